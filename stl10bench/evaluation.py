"""A model and a split -> logits in the split's order, and a row."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from stl10bench import augment, checkpoint, intervals, metrics
from stl10bench.batches import Images, Normalise, load, make_normalise
from stl10bench.config import RunConfig
from stl10bench.data.stl10 import Dataset
from stl10bench.device import memory_format
from stl10bench.errors import DataError
from stl10bench.models import registry, summary
from stl10bench.models.head import Classifier
from stl10bench.models.weights import NONE, contamination
from stl10bench.predict import Predictor
from stl10bench.prepare import training_rows
from stl10bench.provenance import provenance

EVALUATION_BATCH = 250  # images per process; small enough for every model here on a small GPU


@torch.no_grad()
def evaluate(
    model: nn.Module,
    images: Tensor,
    normalise: Normalise,
    image_size: int,
    accelerator: Accelerator,
    *,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """float32 logits (N, C), on the CPU, of uint8 images (N, 3, S, S), in their order.

    Each process takes an equal share, the last one padded by repeating the last image; the
    logits are gathered and the padding cut off by our own count. `check` is called before each
    batch and may raise.
    """
    model.eval()
    device = accelerator.device
    for buffer in model.buffers():  # batch-norm statistics: those of rank 0 are saved, so use them
        buffer.copy_(broadcast(buffer))
    share = math.ceil(len(images) / accelerator.num_processes)
    rows = torch.arange(share) + share * accelerator.process_index
    logits = []
    with accelerator.autocast():
        for part in rows.clamp(max=len(images) - 1).to(images.device).split(EVALUATION_BATCH):
            check()
            batch = augment.centre(images.index_select(0, part).to(device), image_size)
            logits.append(model(normalise(batch)))
    gathered: Tensor = accelerator.gather(torch.cat(logits).float())
    return gathered[: len(images)].cpu()


def fold_frozen(model: nn.Module, images: Images, normalise: Normalise, config: RunConfig) -> None:
    """Let a frozen backbone run folded and in the run's precision; other models are left alone."""
    if isinstance(model, Classifier):
        few = augment.centre(images.images[:4].to(normalise.mean.device), config.image_size)
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision, torch.float32)
        model.fold(normalise(few), dtype)


@torch.no_grad()
def features_of_views(
    model: Classifier,
    train: Images,
    normalise: Normalise,
    config: RunConfig,
    accelerator: Accelerator,
) -> Tensor:
    """float32 (cache_views, N, F): the backbone's features of augmented views of each image."""
    device, size = accelerator.device, train.images.shape[-1]
    views = []
    for view in range(1, config.cache_views + 1):
        parts = []
        for batch, images in enumerate(torch.split(train.images, config.batch_size)):
            draws = augment.draw(config, config.batch_size, size, epoch=view, batch=batch)
            draws = draws.rows(0, len(images), device)
            with accelerator.autocast():
                augmented = normalise(augment.apply(images.to(device), draws, config))
                parts.append(model.features(augmented).flatten(1).float())
        views.append(torch.cat(parts))
    return torch.stack(views)


def test(
    predictor: Predictor, accelerator: Accelerator, dataset: Dataset, *, split: str
) -> dict[str, Any]:
    """The row of a loaded checkpoint on a split: test, train, or val, its own hold-out.

    Raises DataError when the data have other classes, or for val when they are other data.
    """
    header, device = predictor.header, accelerator.device
    config = header.config
    if dataset.class_names != header.class_names:
        raise DataError(
            f"the checkpoint knows the classes {', '.join(header.class_names)}; the data in "
            f"{dataset.folder} have {', '.join(dataset.class_names)}"
        )
    part = dataset.test if split == "test" else dataset.train
    rows = np.arange(len(part.labels))
    if split == "val":
        if dataset.fingerprint != config.data or config.val_fraction == 0:
            raise DataError(
                f"no hold-out: val_fraction = {config.val_fraction}, and the data must be those "
                f"of the run (fingerprint {config.data[:12]}, found {dataset.fingerprint[:12]})"
            )
        _, rows = training_rows(config, dataset)
    images = load(part, rows, config, device)
    model = accelerator.prepare_model(predictor.model, evaluation_mode=True)
    normalise = make_normalise(header.mean, header.std, memory_format(model), device)
    fold_frozen(model, images, normalise, config)
    logits = evaluate(model, images.images, normalise, config.image_size, accelerator)
    scores = metrics.finite(metrics.score(logits, images.labels, split))
    header = header.at(header.epoch, header.step, {**header.metrics, **scores})
    return tested_row(header, model, dataset.name, len(rows), accelerator, split=split)


def tested_row(
    header: checkpoint.Header,
    model: nn.Module,
    dataset: str,
    images: int,
    accelerator: Accelerator,
    *,
    split: str = "test",
) -> dict[str, Any]:
    """The part of a row that an evaluation knows; accuracies and intervals in 0..1."""
    config, values = header.config, header.metrics
    accuracy = values[f"{split}/accuracy"] or 0.0
    total, trainable = summary.parameters(model)
    with accelerator.autocast():  # a folded backbone has the run's precision
        macs = summary.macs(model, config.image_size)
    return {
        "model": config.model,
        "model_options": registry.check_options(config.model, config.model_options),
        "dataset": dataset,
        "val_accuracy": values.get("val/accuracy"),
        "val_loss": values.get("val/loss"),
        f"{split}_accuracy": accuracy,
        f"{split}_accuracy_interval": list(intervals.wilson(accuracy, images)),
        f"{split}_loss": values[f"{split}/loss"],
        f"{split}_images": images,
        "parameters": total,
        "trainable_parameters": trainable,
        "macs": macs,
        "image_size": config.image_size,
        "pretrained": config.weights != NONE,
        "contamination": contamination(config.weights),
        "epochs": config.epochs,
        "best_epoch": header.epoch,
        "seed": config.seed,
        "precision": config.precision,
        "memory_format": str(memory_format(model)).removeprefix("torch."),
        "mean": list(header.mean),
        "std": list(header.std),
        "processes": accelerator.num_processes,
        "version": header.version,
        "config": config.model_dump(mode="json"),
        **provenance(accelerator.device),
    }
