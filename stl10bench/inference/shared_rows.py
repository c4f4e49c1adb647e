"""Finished runs -> an archive; a run out of somebody's archive -> how far it can be believed.

Each level proves what those before it do not:

- whole: `row_archive.unpack` took it: nothing was changed since it was written;
- recomputed: its figures follow from its logits and from the labels of one's own data;
- re-evaluated: its checkpoint gives these logits for one's own images;
- reproduced: its settings, trained again, give this checkpoint, or one that is as good.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from stl10bench.core.device import choose_device, keep_freed_memory, make_accelerator, set_threads
from stl10bench.core.errors import BenchError, CheckpointError, DataError, DifferentError
from stl10bench.data.loader import Images, load_images
from stl10bench.data.splits import fold_overlap, training_rows
from stl10bench.data.stl10 import Dataset
from stl10bench.inference.evaluate import check_classes, prepare
from stl10bench.inference.predictor import load
from stl10bench.metrics.classification import measures, none_if_not_finite
from stl10bench.metrics.significance import SIGNIFICANCE, wilson_interval
from stl10bench.models import checkpoint, summary
from stl10bench.results import predictions
from stl10bench.results.aggregate import aggregate, rows_p_value
from stl10bench.results.predictions import Predictions
from stl10bench.results.row_archive import SharedRun, pack
from stl10bench.results.rows import LEVELS, Level, Row
from stl10bench.results.run_folder import RunFolder
from stl10bench.training.evaluate import score
from stl10bench.training.job import make_job
from stl10bench.training.reproduce import reproduce_run, train_again
from stl10bench.training.row import attempt, describe_config, describe_model

# What each level proves, and what it cannot see.
PROVES: dict[Level, tuple[str, str]] = {
    "whole": (
        "nothing was changed since it was written, and the row is of these settings",
        "whether any figure is true",
    ),
    "recomputed": (
        "the figures follow from its logits and your labels",
        "where the logits come from: training on test images, or logits that were made up; "
        "seconds, latency and memory are claims",
    ),
    "re-evaluated": (
        "its checkpoint gives these logits for your images",
        "what the checkpoint was trained on: training on test images",
    ),
    "reproduced": (
        "its settings, trained again on your data, give the same result",
        "whether its settings were chosen by looking at the test split",
    ),
}
# The largest difference of a logit, as a share of the largest logit. The same weights give other
# roundings on another processor: TF32 on a GPU keeps 10 bits of fp32's 23, bf16 has 7.
TOLERANCES = {"no": 2e-3, "fp16": 1e-2, "bf16": 5e-2}
_EQUAL = 1e-9  # relative, of two figures in float64 from the same logits
_VALIDATION = 1e-3  # of the validation loss: of the same weights, but computed twice
_ON_VALIDATION = (
    *("val_accuracy", "val_loss", "test_temperature"),
    *("test_loss_scaled", "test_ece_scaled", "test_brier_scaled"),
)
_NOT_COMPARED = ("config", "test_notes")


class Verified(NamedTuple):
    """How far a run was verified."""

    run: str
    digest: str  # see `SharedRun`
    details: dict[Level, str]  # of each level that it passed, what was compared
    error: BenchError | None  # of the level that refused it

    @property
    def level(self) -> Level:
        """The highest level that it passed; refused, if the next one did not let it pass."""
        return "refused" if self.error else list(self.details)[-1]


class Verifier(NamedTuple):
    """What runs are checked with: one's own data and machine, and how a run is trained again."""

    dataset: Dataset
    device: str
    threads: int | None
    into: Path  # the runs folder for those that are trained again
    options: Mapping[str, Any]  # fields of their Job
    seeds: int  # to train where the bits differ, the run's own among them
    console: Console


def share(path: Path, folders: Sequence[RunFolder], *, with_checkpoint: bool = False) -> None:
    """Write finished runs as an archive, see `row_archive.pack`; raises as that and for damage."""
    if with_checkpoint:
        for folder in folders:
            checkpoint.load(folder.checkpoint())  # a damaged one is no use to anybody
    pack(path, folders, with_checkpoint=with_checkpoint)


def verify(shared: SharedRun, verifier: Verifier | None, level: Level | None = None) -> Verified:
    """Check a run up to `level`; by default as far as that goes without training.

    Without a verifier it stays at `whole`. Raises what is no fault of the run: DataError for other
    data, UsageError for a model or weights that are missing, CheckpointError where `level` needs a
    checkpoint that the archive lacks, or for one's own files and weights that cannot be read.
    """
    name = shared.folder.name
    if level == "re-evaluated" and not shared.has_checkpoint:
        raise CheckpointError(
            f"{name} has no checkpoint in the archive, so it cannot be re-evaluated: ask for one "
            "that was shared with --with-checkpoint, or use --level recomputed"
        )
    highest = level or ("re-evaluated" if shared.has_checkpoint else "recomputed")
    checks = {"recomputed": recompute, "re-evaluated": re_evaluate, "reproduced": reproduce}
    if not shared.has_checkpoint:
        del checks["re-evaluated"]  # to train it again proves more
    details: dict[Level, str] = {"whole": "schema, sums, the run's name and settings"}
    for step in LEVELS[1 : LEVELS.index(highest) + 1]:
        if verifier is None or step not in checks:
            continue
        try:
            details[step] = checks[step](shared, verifier)
        except (DifferentError, CheckpointError) as error:
            # The levels before have read all files of the run: what is damaged now is one's own.
            if step == "reproduced" and not isinstance(error, DifferentError):
                raise
            text = str(error).replace(f"{shared.folder.path.parent}{os.sep}", "")
            refusal = type(error)(f"{name} is refused at level {step}: {text}")
            return Verified(name, shared.digest, details, refusal)
    return Verified(name, shared.digest, details, None)


def recompute(shared: SharedRun, verifier: Verifier) -> str:
    """Hold every figure of a row to its logits and to one's own labels; says how many there are.

    Raises DifferentError for what differs, CheckpointError for predictions that are not the row's,
    DataError for other data.
    """
    folder, dataset = shared.folder, verifier.dataset
    row, config = folder.row(), folder.config()
    if dataset.fingerprint != config.data:
        raise DataError(
            f"{folder.name} was tested on data {config.data[:12]}; {dataset.folder} contains "
            f"{dataset.fingerprint[:12]}: pass the --dataset and --data-dir of these data"
        )
    if row.dataset == "STL-10" and dataset.name == "STL-10 layout":
        raise DataError(
            f"{folder.name} says STL-10, which only the MD5 sums of your files can prove: leave "
            "out --no-verify"
        )
    if row.dataset not in (dataset.name, "STL-10 layout"):
        raise DifferentError(f"it says {row.dataset}, but your same data are {dataset.name}")
    predicted = predictions.read(folder.predictions_file)
    _check_labels(predicted, row, dataset)
    figures = _figures(predicted, row, dataset)
    compared = _compare(row, figures)
    folder.predictions(row)  # raises for what is compared only where the row has it
    missing = [key for key in _ON_VALIDATION if key not in figures and row[key] is not None]
    note = f"; not {', '.join(missing)}: no validation logits are stored" if missing else ""
    images = len(predicted.labels)
    return f"{compared} figures from the logits of {images:,} images and your labels{note}"


def _check_labels(predicted: Predictions, row: Row, dataset: Dataset) -> None:
    """Raise DifferentError unless the stored labels are those of the data, image by image."""
    classes = len(dataset.class_names)
    if predicted.logits.shape[1] != classes:
        raise DifferentError(
            f"its logits are of {predicted.logits.shape[1]} classes, your data have {classes}"
        )
    splits = {"test": (predicted.labels, dataset.test.labels)}
    if predicted.val_labels is not None:
        _, rows = training_rows(row.config, dataset)
        splits["validation"] = (predicted.val_labels, dataset.train.labels[rows])
    for split, (theirs, ours) in splits.items():
        if len(theirs) != len(ours):
            raise DifferentError(f"it has {len(theirs):,} {split} labels, your data {len(ours):,}")
        wrong = np.flatnonzero(theirs != ours)
        if len(wrong):
            raise DifferentError(
                f"{len(wrong):,} of its {len(ours):,} {split} labels are not those of your data, "
                f"the first at image {wrong[0]}"
            )


def _figures(predicted: Predictions, row: Row, dataset: Dataset) -> dict[str, Any]:
    """What a row with these settings, logits and labels says, as far as that follows from them."""
    logits, labels = torch.from_numpy(predicted.logits), torch.from_numpy(predicted.labels)
    tested = none_if_not_finite(score(logits, labels, "test"))
    validation, validated = None, {}
    if predicted.val_logits is not None and predicted.val_labels is not None:
        validation = predicted.val_logits, predicted.val_labels
        both = torch.from_numpy(predicted.val_logits), torch.from_numpy(predicted.val_labels)
        validated = none_if_not_finite(score(both[0], both[1], "val"))
    accuracy = tested["test/accuracy"] or 0.0
    figures = {
        **describe_config(row.config),
        "labels_used": sum(map(len, training_rows(row.config, dataset))),
        "test_accuracy": accuracy,
        "test_accuracy_interval": wilson_interval(accuracy, len(labels)),
        "test_loss": tested["test/loss"],
        "test_images": len(labels),
        "val_accuracy": validated.get("val/accuracy"),
        "val_loss": validated.get("val/loss"),
        **measures(predicted.logits, predicted.labels, validation),
    }
    if row.config.fold is not None:
        figures["fold_overlap"] = fold_overlap(dataset)
    if validation is None and row.config.val_fraction:
        figures = {key: value for key, value in figures.items() if key not in _ON_VALIDATION}
    return figures


def _compare(row: Row, figures: Mapping[str, Any]) -> int:
    """How many of the figures the row has, all of them equal; raises DifferentError."""
    compared = 0
    stored = row.model_dump(mode="json")
    for key, value in figures.items():
        if key in _NOT_COMPARED or row[key] is None:
            continue
        theirs, ours = stored[key], json.loads(json.dumps(value))
        tolerance = _VALIDATION if key in ("val_accuracy", "val_loss") else _EQUAL
        if not _equal(theirs, ours, tolerance):
            raise DifferentError(f"it says {key} = {theirs!r:.100}, but that is {ours!r:.100} here")
        compared += 1
    return compared


def _equal(first: Any, second: Any, tolerance: float) -> bool:
    """Whether JSON values are equal, floats up to a relative difference."""
    if isinstance(first, list) and isinstance(second, list):
        pairs = zip(first, second, strict=False)
        return len(first) == len(second) and all(_equal(*pair, tolerance) for pair in pairs)
    if isinstance(first, float) and isinstance(second, int | float):
        return math.isclose(first, second, rel_tol=tolerance, abs_tol=1e-12)
    return bool(first == second)


def re_evaluate(shared: SharedRun, verifier: Verifier) -> str:
    """Compute a checkpoint's logits on one's own images; says how far they differ from the stored.

    Raises DifferentError for more than TOLERANCES allows, or for a row or settings that are not
    the checkpoint's, CheckpointError for one that is damaged.
    """
    folder, dataset = shared.folder, verifier.dataset
    row, config = folder.row(), folder.config()
    set_threads(verifier.threads)
    keep_freed_memory()
    kind = choose_device(verifier.device)
    predictor = load(folder.tested_file(config))
    if predictor.header.config != config:
        raise DifferentError("its checkpoint was trained with other settings than the row's")
    check_classes(predictor.header, dataset)
    accelerator = make_accelerator(kind, config.precision)
    rows = np.arange(len(dataset.test.labels))
    test = load_images(dataset.test, rows, config, accelerator.device)
    evaluation = prepare(predictor, accelerator, test)
    stored = predictions.read(folder.predictions_file)
    logits = evaluation.logits(test.images)
    difference = _check_logits(torch.from_numpy(stored.logits), logits, config.precision)
    facts, notes = describe_model(predictor.header, evaluation.model), list[str]()
    with accelerator.autocast():
        macs = attempt("macs", lambda: summary.macs(evaluation.model, config.image_size), notes)
    if macs is not None:  # else it is this machine that cannot measure them
        facts["macs"] = macs
    if config.tta == "flip":
        both = (logits + evaluation.logits(test.images, mirrored=True)) / 2
        _check_mirrored(both, test, row, config.precision)
    _compare(row, facts)
    changed = int((logits.argmax(1) != torch.from_numpy(stored.logits).argmax(1)).sum())
    images = f"{changed:,} of {len(rows):,} images get another class"
    return "; ".join([difference, images, *notes])


def _check_logits(stored: Tensor, computed: Tensor, precision: str) -> str:
    """The largest difference and what is allowed; raises DifferentError for a larger one."""
    scale = max(1.0, float(stored.abs().max()))
    allowed = TOLERANCES[precision] * scale
    largest = float((stored - computed).abs().max())
    kind = "fp32" if precision == "no" else precision
    text = f"largest logit difference {largest:.1e} (allowed {allowed:.1e}, {kind})"
    if not largest <= allowed:  # also where one is NaN
        image = int((stored - computed).abs().max(1).values.nan_to_num(math.inf).argmax())
        raise DifferentError(f"its checkpoint gives other logits here: {text}, at image {image}")
    return text


def _check_mirrored(logits: Tensor, test: Images, row: Row, precision: str) -> None:
    """Raise DifferentError for other figures of test-time augmentation than these logits give.

    The mirrored logits are not stored, so the loss has the tolerance of the logits.
    """
    scores = score(logits, test.labels, "tta")
    for key, tolerance in (("tta_accuracy", 0.01), ("tta_loss", TOLERANCES[precision] * 10)):
        ours = scores[key.replace("_", "/")]
        if row[key] is not None and not math.isclose(row[key], ours, abs_tol=tolerance):
            raise DifferentError(f"it says {key} = {row[key]!r}, but that is {ours:.6f} here")


def reproduce(shared: SharedRun, verifier: Verifier) -> str:
    """Train a run again; says whether the bits or only the statistics agree.

    The test of the second is the exact McNemar test on the same images. With several seeds of one's
    own it is `aggregate.rows_p_value`: whether the shared run is one of these, given the noise of
    the images and of the seeds. Raises DifferentError where p < SIGNIFICANCE.
    """
    folder = shared.folder
    job = make_job(folder.config(), runs_dir=verifier.into, tracker="none", **verifier.options)
    outcome = reproduce_run(folder, job, verifier.console)
    if outcome.bits:
        same = "predictions" if outcome.weights is None else "weights and predictions"
        return f"{same} are bitwise identical{outcome.note}"
    p, test = outcome.p, "exact McNemar test"
    if verifier.seeds > 1:
        first = job.config.seed
        configs = [
            job.config.model_copy(update={"seed": first + number})
            for number in range(1, verifier.seeds)
        ]
        rows = [job.folder.with_hits(outcome.second)]
        for each in (job.model_copy(update={"config": config}) for config in configs):
            rows.append(each.folder.with_hits(train_again(each, verifier.console)[0]))
        (ours,), (theirs,) = aggregate(rows), aggregate([folder.with_hits(outcome.first)])
        assert isinstance(ours, Row)
        assert isinstance(theirs, Row)
        p, test = rows_p_value(ours, theirs), f"test against {len(rows)} seeds trained here"
    accuracies = f"{outcome.first.test_accuracy:.4f} in the row, {outcome.second.test_accuracy:.4f}"
    text = f"test accuracy {accuracies} here, p = {p:.3f} ({test})"
    if p < SIGNIFICANCE:
        raise DifferentError(f"{text}: they differ significantly{outcome.note}")
    return f"not the same bits, but the same within noise: {text}{outcome.note}"
