"""A checkpoint and a split -> a row."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor, nn

from stl10bench.core.device import (
    choose_device,
    keep_freed_memory,
    make_accelerator,
    memory_format,
    set_threads,
)
from stl10bench.core.errors import DataError, listed, unknown
from stl10bench.data.load import open_data
from stl10bench.data.loader import Images, Normalise, load_images, make_normalise
from stl10bench.data.splits import training_rows
from stl10bench.data.stl10 import Dataset
from stl10bench.inference.predictor import Predictor, find_checkpoint, load
from stl10bench.metrics.classification import none_if_not_finite
from stl10bench.metrics.significance import wilson_interval
from stl10bench.models import summary
from stl10bench.models.checkpoint import Header
from stl10bench.results.run_folder import RunFolder
from stl10bench.training.evaluate import Mirrored, compute_logits, fuse_frozen, score
from stl10bench.training.row import attempt, describe_model, provenance

SPLITS = ("test", "train", "val")


def evaluate(
    checkpoint: str | Path,
    *,
    split: str = "test",
    dataset: str | None = None,
    data_dir: str | Path | None = None,
    verify: bool = True,
    device: str = "auto",
    threads: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure a checkpoint on a split (test, train, or val: the validation images of its run).

    Needs only the file and the data; `dataset` is by default that of the run in whose folder the
    file is, else stl10. Raises CheckpointError, DataError, UsageError.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    path = find_checkpoint(Path(checkpoint))
    console = console or Console(quiet=True)
    dataset = dataset or RunFolder(path.parent).dataset()
    data = open_data(dataset, data_dir, download=False, verify=verify, console=console)

    kind = choose_device(device)
    set_threads(threads)
    keep_freed_memory()
    predictor = load(path)
    accelerator = make_accelerator(kind, predictor.header.config.precision)
    return {**evaluate_split(predictor, accelerator, data, split=split), "checkpoint": str(path)}


def evaluate_split(
    predictor: Predictor, accelerator: Accelerator, dataset: Dataset, *, split: str
) -> dict[str, Any]:
    """The figures of a loaded checkpoint on test, train, or val: the validation images of its run.

    Raises DataError when the data have other classes, or for val when they are other data.
    """
    header, device = predictor.header, accelerator.device
    config = header.config
    check_classes(header, dataset)
    part = dataset.test if split == "test" else dataset.train
    rows = np.arange(len(part.labels))
    if split == "val":
        if dataset.fingerprint != config.data or config.val_fraction == 0:
            raise DataError(
                f"--split val needs the run's data ({config.data[:12]}; found "
                f"{dataset.fingerprint[:12]}) and val_fraction > 0 (is {config.val_fraction}): "
                "pass the run's --data-dir, or use --split test"
            )
        _, rows = training_rows(config, dataset)
    images = load_images(part, rows, config, device)
    evaluation = prepare(predictor, accelerator, images)
    logits = evaluation.logits(images.images)
    scores = none_if_not_finite(score(logits, images.labels, split))
    accuracy = scores[f"{split}/accuracy"] or 0.0
    notes: list[str] = []
    with accelerator.autocast():  # a fused backbone has the run's precision
        macs = attempt("macs", lambda: summary.macs(evaluation.model, config.image_size), notes)
    return {
        **describe_model(header, evaluation.model),
        "config": config.model_dump(mode="json"),
        "dataset": dataset.name,
        "val_accuracy": header.metrics.get("val/accuracy"),
        "val_loss": header.metrics.get("val/loss"),
        f"{split}_accuracy": accuracy,
        f"{split}_accuracy_interval": list(wilson_interval(accuracy, len(rows))),
        f"{split}_loss": scores[f"{split}/loss"],
        f"{split}_images": len(rows),
        "macs": macs,
        "notes": notes,
        "processes": accelerator.num_processes,
        **provenance(device),
    }


def check_classes(header: Header, dataset: Dataset) -> None:
    """Raise DataError unless the data have the classes of the checkpoint."""
    if dataset.class_names != header.class_names:
        raise DataError(
            f"the classes of the checkpoint ({listed(header.class_names)}) differ from those "
            f"in {dataset.folder} ({listed(dataset.class_names)}): pass the right --data-dir"
        )


class Evaluation(NamedTuple):
    """A loaded checkpoint, ready to compute logits as its run did."""

    model: nn.Module
    normalise: Normalise
    image_size: int
    accelerator: Accelerator

    def logits(self, images: Tensor, *, mirrored: bool = False) -> Tensor:
        """float32 logits (N, C), on the CPU, of uint8 images (N, 3, S, S)."""
        model = Mirrored(self.model) if mirrored else self.model
        return compute_logits(model, images, self.normalise, self.image_size, self.accelerator)


def prepare(predictor: Predictor, accelerator: Accelerator, images: Images) -> Evaluation:
    """The checkpoint on the device and in its run's precision, its frozen backbone fused."""
    header = predictor.header
    model = accelerator.prepare_model(predictor.model, evaluation_mode=True)
    normalise = make_normalise(header.mean, header.std, memory_format(model), accelerator.device)
    fuse_frozen(model, images, normalise, header.config)
    return Evaluation(model, normalise, header.config.image_size, accelerator)
