"""One run, top to bottom: config, data and accelerator -> metrics, checkpoints and a row."""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler

from stl10bench import augment, checkpoint, files, metrics
from stl10bench.batches import Images, Normalise, load, make_normalise
from stl10bench.config import RunConfig
from stl10bench.data import splits
from stl10bench.data.stl10 import Dataset
from stl10bench.device import memory_format
from stl10bench.errors import DivergedError, UsageError
from stl10bench.evaluation import evaluate, tested_row
from stl10bench.models import registry
from stl10bench.models.weights import Weights
from stl10bench.randomness import DROPOUT, ORDER, WEIGHTS, generator, seed_of
from stl10bench.schedule import make_optimizer, make_schedule
from stl10bench.tracking import Log


class Best(NamedTuple):
    """The epoch that counts, so far: its rank, its checkpoint's header and its weights."""

    rank: tuple[float, float]
    header: checkpoint.Header
    state: dict[str, Tensor]


def run(
    config: RunConfig,
    accelerator: Accelerator,
    dataset: Dataset,
    *,
    folder: Path,
    weights: Weights = Weights(),  # noqa: B008  frozen
    tracker: str = "none",
    console: Console | None = None,
) -> dict[str, Any]:
    """Train and test one model; returns the row, which then stands in `folder`/result.json.

    The epoch is chosen on the hold-out (highest accuracy, then lowest loss); without one the last
    counts. The test split is read once, at the end. Raises UsageError for settings that do not
    fit the data or the processes, DataError, DivergedError, StorageError.
    """
    device, main = accelerator.device, accelerator.is_main_process
    console = console or Console(quiet=True)

    train_rows, val_rows = splits.hold_out(dataset.train.labels, config.val_fraction, config.seed)
    steps_per_epoch = count_steps(config, len(train_rows), accelerator.num_processes)
    train = load(dataset.train, train_rows, config, device)
    val = load(dataset.train, val_rows, config, device)

    torch.manual_seed(seed_of(config.seed, WEIGHTS))
    classes = len(dataset.class_names)
    model = registry.build(config.model, classes, config.image_size, config.model_options)
    mean, std = initialise(model, weights, train, config)
    layout = memory_format(model)
    normalise = make_normalise(mean, std, layout, device)

    optimizer = make_optimizer(config, model)
    learner, optimizer = accelerator.prepare(model.to(memory_format=layout), optimizer)
    schedule = make_schedule(config, optimizer.optimizer, steps_per_epoch)
    header = checkpoint.Header(config=config, class_names=dataset.class_names, mean=mean, std=std)

    best: Best | None = None
    seconds = 0.0
    started = time.monotonic()
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    with Log(folder, config, accelerator, tracker) as log, bar:
        task = bar.add_task(config.model, total=config.epochs * steps_per_epoch)
        for epoch in range(1, config.epochs + 1):
            values = train_epoch(
                learner,
                optimizer,
                schedule,
                train,
                normalise,
                config,
                accelerator,
                epoch=epoch,
                advance=partial(bar.advance, task),
            )
            seconds += values["seconds"]
            if len(val_rows):
                logits = evaluate(model, val.images, normalise, config.image_size, accelerator)
                values |= metrics.score(logits, val.labels, "val")
            step = epoch * steps_per_epoch
            log.write(metrics.finite({"epoch": epoch, **values, "time": time.time()}), step=step)
            console.print(epoch_line(epoch, config.epochs, values), highlight=False)
            rank = (values["val/accuracy"], -values["val/loss"]) if len(val_rows) else (epoch, 0.0)
            header = header.at(epoch, step, metrics.finite(values))
            if best is None or rank > best.rank:
                state = {key: value.clone() for key, value in model.state_dict().items()}
                best = Best(rank, header, state)
                if main and len(val_rows):
                    checkpoint.save(folder / "best.safetensors", model, header)
        train_seconds = time.monotonic() - started
        if main:
            checkpoint.save(folder / "last.safetensors", model, header)

        assert best is not None  # there is at least one epoch
        bar.update(task, description=f"{config.model}: test split")
        model.load_state_dict(best.state)
        test = load(dataset.test, np.arange(len(dataset.test.labels)), config, device)
        logits = evaluate(model, test.images, normalise, config.image_size, accelerator)
        tested = metrics.finite(metrics.score(logits, test.labels, "test"))
        log.write(tested, step=config.epochs * steps_per_epoch)
        header = best.header.at(best.header.epoch, best.header.step, best.header.metrics | tested)
        chosen = "best" if len(val_rows) else "last"
        row = {
            "run": folder.name,
            **tested_row(header, model, dataset.name, len(test.labels), accelerator),
            "selection": "hold-out" if len(val_rows) else "last epoch",
            "train_seconds": train_seconds,
            "images_per_second": config.epochs * steps_per_epoch * config.batch_size / seconds,
            "weights": {"source": config.weights, "sha256": weights.sha256},
            "checkpoint": f"{folder.name}/{chosen}.safetensors",
        }
        log.summary(row)
    if main:
        checkpoint.save(folder / f"{chosen}.safetensors", model, header)
        checkpoint.save_predictions(folder / "predictions.safetensors", logits, test.labels)
        files.write_json(folder / "result.json", row)
    return row


def train_epoch(
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    schedule: LRScheduler,
    train: Images,
    normalise: Normalise,
    config: RunConfig,
    accelerator: Accelerator,
    *,
    epoch: int,
    advance: Callable[[], None],
) -> dict[str, float]:
    """One pass over the training images; returns loss, accuracy, rate and speed.

    Loss and accuracy are means over the epoch's augmented images, all processes together. Batch k
    is rows k*B to (k+1)*B of a permutation that depends on (seed, epoch) alone; each process
    takes its share of them, and of the draws. A partial last batch is left out. Raises
    DivergedError when the mean loss is not finite.
    """
    started = time.monotonic()
    device, batch_size = accelerator.device, config.batch_size
    share = batch_size // accelerator.num_processes
    first = share * accelerator.process_index
    order = torch.randperm(len(train.labels), generator=generator(config.seed, ORDER, epoch)).to(
        train.images.device
    )
    steps = len(order) // batch_size
    lr = optimizer.param_groups[-1]["lr"]
    totals = torch.zeros(2, dtype=torch.float64 if device.type != "mps" else None, device=device)

    model.train()
    for batch in range(steps):
        rows = order[batch * batch_size + first :][:share]
        draws = augment.draw(config, batch_size, train.images.shape[-1], epoch=epoch, batch=batch)
        images = train.images[rows].to(device, non_blocking=True)
        images = normalise(augment.apply(images, draws.rows(first, first + share, device), config))
        labels = train.labels[rows.to(device)]

        step = (epoch - 1) * steps + batch
        torch.manual_seed(seed_of(config.seed, DROPOUT, step, accelerator.process_index))
        logits = model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

        totals[0] += loss.detach() * share
        totals[1] += (logits.detach().argmax(1) == labels).sum()
        advance()

    loss_sum, hits = accelerator.reduce(totals).tolist()
    seconds = time.monotonic() - started
    mean_loss = loss_sum / (steps * batch_size)
    if not math.isfinite(mean_loss):
        raise DivergedError(
            f"diverged: the training loss of epoch {epoch} is {mean_loss} at learning rate "
            f"{lr:.3g}; lower --lr or raise --warmup"
        )
    return {
        "train/loss": mean_loss,
        "train/accuracy": hits / (steps * batch_size),
        "lr": lr,
        "seconds": seconds,
        "images_per_second": steps * batch_size / seconds,
    }


def count_steps(config: RunConfig, images: int, processes: int) -> int:
    """Steps an epoch; UsageError when the batch does not fit the images or the processes."""
    if config.batch_size > images:
        raise UsageError(
            f"batch_size = {config.batch_size}: there are only {images} training images; "
            "lower --batch-size"
        )
    if config.batch_size % processes:
        raise UsageError(
            f"batch_size = {config.batch_size}: the global batch must be divisible by the "
            f"{processes} processes"
        )
    return images // config.batch_size


def initialise(
    model: nn.Module, weights: Weights, train: Images, config: RunConfig
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Load pretrained weights, if any; returns the mean and std to normalise by, per channel.

    They are the backbone's own where it was pretrained, else the training images' (hold-out
    excluded), in 0..1.
    """
    name = registry.backbone(config.model)
    if name is None or weights.file is None:
        return metrics.channel_statistics(train.images)
    from stl10bench.models.backbone import load_pretrained

    backbone = model.get_submodule("backbone")
    tensors, _ = checkpoint.read_tensors(weights.file)
    load_pretrained(backbone, name, config.image_size, tensors)
    own: dict[str, Any] = backbone.pretrained_cfg  # type: ignore[assignment]
    return tuple(own["mean"]), tuple(own["std"])


def epoch_line(epoch: int, epochs: int, values: dict[str, float]) -> str:
    """What one epoch prints."""
    line = f"epoch {epoch:{len(str(epochs))}}/{epochs}"
    for split, title in (("train", "train"), ("val", "hold-out")):
        if f"{split}/loss" in values:
            line += f"  {title} {values[f'{split}/loss']:.3f} {values[f'{split}/accuracy']:.1%}"
    return f"{line}  {values['images_per_second']:,.0f} images/s"
