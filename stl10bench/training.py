"""One run, top to bottom: config, data and accelerator -> metrics, checkpoints and a row."""

import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler

from stl10bench import checkpoint, files, metrics
from stl10bench.batches import Images, Normalise, augmented, cached
from stl10bench.config import RunConfig
from stl10bench.data.stl10 import Dataset
from stl10bench.errors import DivergedError
from stl10bench.evaluation import evaluate, features_of_views, fold_frozen, tested_row
from stl10bench.models.head import Classifier
from stl10bench.models.weights import Weights
from stl10bench.prepare import create, load_test, load_train
from stl10bench.randomness import DROPOUT, seed_of
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
    compiled: bool = False,
    tracker: str = "none",
    console: Console | None = None,
) -> dict[str, Any]:
    """Train and test one model; returns the row, which then stands in `folder`/result.json.

    The epoch is chosen on the hold-out (highest accuracy, then lowest loss); without one the last
    counts. The test split is read once, at the end. Raises UsageError for settings that do not
    fit the data or the processes, DataError, DivergedError, StorageError.
    """
    console = console or Console(quiet=True)
    train, val = load_train(config, dataset, accelerator)
    steps = len(train.labels) // config.batch_size
    model, normalise, header = create(config, dataset, weights, train, accelerator)
    model.to(accelerator.device)
    fold_frozen(model, train, normalise, config)
    started = time.monotonic()
    if config.cache_views:
        assert isinstance(model, Classifier)  # checked with the settings
        views = features_of_views(model, train, normalise, config, accelerator)
        batches = partial(cached, views, train.labels, config, accelerator)
    else:
        batches = partial(augmented, train, normalise, config, accelerator)
    optimizer = make_optimizer(config, model)
    learner = model.get_submodule("head") if config.cache_views else model
    learner, optimizer = accelerator.prepare(learner, optimizer)
    if compiled:
        learner = torch.compile(learner)  # type: ignore[assignment]
    schedule = make_schedule(config, optimizer.optimizer, steps)

    best: Best | None = None
    seconds = 0.0
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    with Log(folder, config, accelerator, tracker) as log, bar:
        task = bar.add_task(config.model, total=config.epochs * steps)
        for epoch in range(1, config.epochs + 1):
            values = train_epoch(
                learner,
                optimizer,
                schedule,
                batches(epoch=epoch),
                config,
                accelerator,
                first_step=(epoch - 1) * steps,
                advance=partial(bar.advance, task),
            )
            seconds += values["seconds"]
            if len(val.labels):
                logits = evaluate(model, val.images, normalise, config.image_size, accelerator)
                values |= metrics.score(logits, val.labels, "val")
            stored = metrics.finite({"epoch": epoch, **values, "time": time.time()})
            log.write(stored, step=epoch * steps)
            console.print(epoch_line(epoch, config.epochs, values), highlight=False)
            header = header.at(epoch, epoch * steps, stored)
            best = better(best, header, model)
            if best.header is header and len(val.labels) and accelerator.is_main_process:
                checkpoint.save(folder / "best.safetensors", model, header)
        train_seconds = time.monotonic() - started
        if accelerator.is_main_process:
            checkpoint.save(folder / "last.safetensors", model, header)

        assert best is not None  # there is at least one epoch
        bar.update(task, description=f"{config.model}: test split")
        return finish(
            best,
            model,
            normalise,
            load_test(config, dataset, accelerator),
            accelerator,
            dataset=dataset.name,
            folder=folder,
            log=log,
            step=config.epochs * steps,
            train_seconds=train_seconds,
            images_per_second=config.epochs * steps * config.batch_size / seconds,
            compiled=compiled,
            weights={"source": config.weights, "sha256": weights.sha256},
        )


def better(best: Best | None, header: checkpoint.Header, model: nn.Module) -> Best:
    """`best`, or the epoch that `header` tells of if it ranks higher on the hold-out.

    Without a hold-out a later epoch ranks higher.
    """
    accuracy, loss = header.metrics.get("val/accuracy"), header.metrics.get("val/loss")
    rank = (float(header.epoch), 0.0)
    if accuracy is not None:
        rank = (accuracy, -math.inf if loss is None else -loss)
    if best is not None and rank <= best.rank:
        return best
    return Best(rank, header, {key: value.clone() for key, value in model.state_dict().items()})


def finish(
    best: Best,
    model: nn.Module,
    normalise: Normalise,
    test: Images,
    accelerator: Accelerator,
    *,
    dataset: str,
    folder: Path,
    log: Log,
    step: int,
    **facts: Any,
) -> dict[str, Any]:
    """Test the epoch that counts; writes its checkpoint, predictions and row, returns the row.

    `step` is the run's last; `facts` are what else the row says.
    """
    config = best.header.config
    model.load_state_dict(best.state)
    logits = evaluate(model, test.images, normalise, config.image_size, accelerator)
    tested = metrics.finite(metrics.score(logits, test.labels, "test"))
    log.write(tested, step=step)
    header = best.header.at(best.header.epoch, best.header.step, best.header.metrics | tested)
    chosen = "best" if config.val_fraction else "last"
    row = {
        "run": folder.name,
        **tested_row(header, model, dataset, len(test.labels), accelerator),
        "selection": "hold-out" if config.val_fraction else "last epoch",
        **facts,
        "checkpoint": f"{folder.name}/{chosen}.safetensors",
    }
    log.summary(row)
    if accelerator.is_main_process:
        checkpoint.save(folder / f"{chosen}.safetensors", model, header)
        checkpoint.save_predictions(folder / "predictions.safetensors", logits, test.labels)
        files.write_json(folder / "result.json", row)
    return row


def train_epoch(
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    schedule: LRScheduler,
    batches: Iterable[tuple[Tensor, Tensor]],
    config: RunConfig,
    accelerator: Accelerator,
    *,
    first_step: int,
    advance: Callable[[], None],
) -> dict[str, float]:
    """One pass over the training images; returns loss, accuracy, rate and speed.

    Loss and accuracy are means over the epoch's augmented images, all processes together. Raises
    DivergedError when the mean loss is not finite.
    """
    started = time.monotonic()
    device = accelerator.device
    lr = optimizer.param_groups[-1]["lr"]
    sums = torch.zeros(3, dtype=torch.float64 if device.type != "mps" else None, device=device)

    model.train()
    for step, (images, labels) in enumerate(batches, first_step):
        torch.manual_seed(seed_of(config.seed, DROPOUT, step, accelerator.process_index))
        logits = model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

        sums[0] += loss.detach() * len(labels)
        sums[1] += (logits.detach().argmax(1) == labels).sum()
        sums[2] += len(labels)
        advance()

    loss_sum, hits, count = accelerator.reduce(sums).tolist()
    seconds = time.monotonic() - started
    if not math.isfinite(loss_sum):
        raise DivergedError(
            f"diverged: the training loss is {loss_sum / count} after step {step + 1} at learning "
            f"rate {lr:.3g}; lower --lr or raise --warmup"
        )
    return {
        "train/loss": loss_sum / count,
        "train/accuracy": hits / count,
        "lr": lr,
        "seconds": seconds,
        "images_per_second": count / seconds,
    }


def epoch_line(epoch: int, epochs: int, values: dict[str, float]) -> str:
    """What one epoch prints."""
    line = f"epoch {epoch:{len(str(epochs))}}/{epochs}"
    for split, title in (("train", "train"), ("val", "hold-out")):
        if f"{split}/loss" in values:
            line += f"  {title} {values[f'{split}/loss']:.3f} {values[f'{split}/accuracy']:.1%}"
    return f"{line}  {values['images_per_second']:,.0f} images/s"
