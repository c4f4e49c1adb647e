"""One run, top to bottom: config, data and accelerator -> metrics, checkpoints and a row."""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from stl10bench.config import Limits, RunConfig
from stl10bench.core import files
from stl10bench.core.errors import CheckpointError, InterruptedRunError, StorageError
from stl10bench.data.loader import Images, Normalise, augmented_batches, cached_batches
from stl10bench.data.splits import fold_overlap
from stl10bench.data.stl10 import Dataset
from stl10bench.metrics.classification import measures, none_if_not_finite, score
from stl10bench.models import checkpoint
from stl10bench.models.classifier import Classifier
from stl10bench.models.pretrained import Weights
from stl10bench.training import resume
from stl10bench.training.epoch import diverged, epoch_line, epoch_values, loss_before, train_epoch
from stl10bench.training.evaluate import compute_logits, features_of_views, fuse_frozen
from stl10bench.training.interrupt import Watch, deferred_signals
from stl10bench.training.optim import make_optimizer, make_schedule
from stl10bench.training.resume import Best, Position, State
from stl10bench.training.row import measure_cost, save_predictions, tested_row
from stl10bench.training.setup import create_model, load_test_images, load_training_images
from stl10bench.training.tracking import Log


def train(
    config: RunConfig,
    accelerator: Accelerator,
    dataset: Dataset,
    *,
    folder: Path,
    weights: Weights = Weights(),  # noqa: B008  frozen
    compiled: bool = False,
    limits: Limits = Limits(),  # noqa: B008  frozen
    tracker: str = "none",
    console: Console | None = None,
) -> dict[str, Any]:
    """Train and test one model; returns the row, which then stands in `folder`/result.json.

    A run that stopped on its way goes on from its newest checkpoint, with the same bits on a CPU.
    The epoch is chosen on the hold-out (highest accuracy, then lowest loss); without one the last
    counts. The test split is read once, at the end. Raises UsageError for settings that do not
    fit the data or the processes, DataError, CheckpointError, DivergedError, StorageError, and
    InterruptedRunError, after a checkpoint, when the run was asked to stop.
    """
    console = console or Console(quiet=True)
    main = accelerator.is_main_process
    train, val = load_training_images(config, dataset, accelerator)
    steps = len(train.labels) // config.batch_size
    model, normalise, header = create_model(config, dataset, weights, train, accelerator)
    resume.check_room(folder, model)
    stored = resume.newest(folder, config)
    at, best = Position(), None
    if stored is not None:
        at, header, best = stored.position, stored.header, stored.best
        if at.batch > steps:
            raise CheckpointError(f"{folder}: {at.batch} steps of an epoch of {steps} are stored")
        for one in (best.weights if best else stored.model, stored.model):  # each is to fit
            checkpoint.fill(model, one, folder)
    check_agreement(at.step(steps), folder, accelerator)
    model.to(accelerator.device)
    fuse_frozen(model, train, normalise, config)
    started = time.monotonic() - at.total_seconds
    if config.cache_views:
        assert isinstance(model, Classifier)  # checked with the settings
        views = features_of_views(model, train, normalise, config, accelerator)
        batches = partial(cached_batches, views, train.labels, config, accelerator)
    else:
        batches = partial(augmented_batches, train, normalise, config, accelerator)
    optimizer = make_optimizer(config, model)
    learner = model.get_submodule("head") if config.cache_views else model
    learner, optimizer = accelerator.prepare(learner, optimizer)
    if compiled:
        learner = torch.compile(learner)  # type: ignore[assignment]
    schedule = make_schedule(config, optimizer.optimizer, steps, taken=at.step(steps))
    if stored is not None:
        restore(stored, optimizer, accelerator)
        if main:
            resume.forget_after(folder, at.step(steps))
        console.print(
            f"going on after epoch {at.epoch} of {config.epochs} and {at.batch} of {steps} steps",
            highlight=False,
        )

    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    with (
        deferred_signals() as signalled,
        Log(folder, config, accelerator, tracker, stored and stored.mark) as log,
        bar,
    ):
        watch = Watch(accelerator, signalled, limits)
        save = partial(
            save_state,
            folder,
            config,
            model,
            optimizer,
            accelerator,
            log,
            watch,
            steps=steps,
            started=started,
        )
        task = bar.add_task(config.model, total=config.epochs * steps, completed=at.step(steps))
        try:
            while at.epoch < config.epochs:
                at = train_epoch(
                    learner,
                    optimizer,
                    schedule,
                    batches(epoch=at.epoch + 1, start=at.batch),
                    config,
                    accelerator,
                    at,
                    first_step=at.step(steps),
                    last_loss=loss_before(at, header),
                    pauses=watch.pauses,
                    advance=partial(bar.advance, task),
                )
                if at.batch < steps:
                    watch.raise_if_stopped()
                    save(at, header, best)
                    continue
                values = epoch_values(at)
                if len(val.labels):
                    logits = compute_logits(
                        *(model, val.images, normalise, config.image_size, accelerator),
                        check=watch.check,
                    )
                    values |= score(logits, val.labels, "val")
                epoch, step = at.epoch + 1, at.step(steps)
                if not math.isfinite(values.get("val/loss", 0.0)):
                    raise diverged(
                        "logits of the hold-out after", step, at.lr, values["train/loss"]
                    )
                row = none_if_not_finite({"epoch": epoch, **values, "time": time.time()})
                log.write(row, step=step)
                console.print(epoch_line(epoch, config.epochs, values), highlight=False)
                header = header.at(epoch, step, row)
                best = better(best, header, model)
                if best.header is header and len(val.labels) and main:
                    checkpoint.save(folder / "best.safetensors", model, header)
                at = at.next_epoch()
                if limits.checkpoint_epochs and epoch % limits.checkpoint_epochs == 0:
                    save(at, header, best)
            train_seconds = time.monotonic() - started
            if main:
                checkpoint.save(folder / "last.safetensors", model, header)

            assert best is not None  # there is at least one epoch
            bar.update(task, description=f"{config.model}: test split")
            return final_evaluation(
                best,
                model,
                normalise,
                load_test_images(config, dataset, accelerator),
                val,
                accelerator,
                check=watch.check,
                dataset=dataset.name,
                folder=folder,
                log=log,
                step=at.step(steps),
                train_seconds=train_seconds,
                images_per_second=at.step(steps) * config.batch_size / at.trained_seconds,
                compiled=compiled,
                weights={"source": config.weights, "sha256": weights.sha256},
                fold_overlap=None if config.fold is None else fold_overlap(dataset),
            )
        except InterruptedRunError:
            save(at, header, best)
            raise


def check_agreement(step: int, folder: Path, accelerator: Accelerator) -> None:
    """Raise StorageError unless all processes found a checkpoint of the same step."""
    seen = accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist()
    if len(set(seen)) > 1:
        raise StorageError(
            f"the processes found checkpoints of the steps {seen} in {folder}: the runs folder "
            "must be on a disk that they share"
        )


def restore(stored: State, optimizer: AcceleratedOptimizer, accelerator: Accelerator) -> None:
    """Give optimizer and loss scaling what they had; raises CheckpointError when it does not fit.

    Warns when the number of processes is another: their rows then add up in another order.
    """
    resume.restore_optimizer(optimizer.optimizer, stored.optimizer)
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(stored.scaler)
    if stored.processes != accelerator.num_processes:
        warnings.warn(
            f"this run was trained by {stored.processes} process(es) and goes on with "
            f"{accelerator.num_processes}: equal to a straight run up to rounding, and dropout is "
            "drawn per process",
            stacklevel=2,
        )


def save_state(
    folder: Path,
    config: RunConfig,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    accelerator: Accelerator,
    log: Log,
    watch: Watch,
    at: Position,
    header: checkpoint.Header,
    best: Best | None,
    *,
    steps: int,
    started: float,
) -> None:
    """Write a checkpoint of the run at a position; to be called by all processes."""
    if accelerator.is_main_process:
        scaler = accelerator.scaler
        resume.save_state(
            folder,
            config,
            at.step(steps),
            State(
                position=at.model_copy(update={"total_seconds": time.monotonic() - started}),
                mark=log.mark(),
                processes=accelerator.num_processes,
                model=model.state_dict(),
                optimizer=optimizer.optimizer.state_dict(),
                scaler=scaler.state_dict() if scaler is not None else {},
                header=header,
                best=best,
            ),
        )
    watch.saved()


def better(best: Best | None, header: checkpoint.Header, model: nn.Module) -> Best:
    """`best`, or the epoch that `header` tells of if it ranks higher on the hold-out."""
    if best is not None and _rank(header) <= _rank(best.header):
        return best
    return Best(header, {key: value.clone() for key, value in model.state_dict().items()})


def _rank(header: checkpoint.Header) -> tuple[float, float]:
    """By accuracy on the hold-out, then by loss; without a hold-out by epoch."""
    accuracy, loss = header.metrics.get("val/accuracy"), header.metrics.get("val/loss")
    if accuracy is None:
        return float(header.epoch), 0.0
    return accuracy, -math.inf if loss is None else -loss


def final_evaluation(
    best: Best,
    model: nn.Module,
    normalise: Normalise,
    test: Images,
    val: Images,
    accelerator: Accelerator,
    *,
    dataset: str,
    folder: Path,
    log: Log,
    step: int,
    check: Callable[[], None] = lambda: None,
    costs: dict[str, float] | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Test the epoch that counts; writes its checkpoint, predictions and row, returns the row.

    `step` is the run's last; `check` is called now and then and may raise; `facts` are what else
    the row says. `costs` are `cost.measure`'s of a model of the same layers, where they are known.
    The model keeps the weights that it came with.
    """
    config, main = best.header.config, accelerator.is_main_process
    with loaded_weights(model, best.weights):
        logits, val_logits = (
            compute_logits(
                *(model, part.images, normalise, config.image_size, accelerator), check=check
            )
            if len(part.labels)
            else None
            for part in (test, val)
        )
        assert logits is not None  # there are test images
        tested = none_if_not_finite(score(logits, test.labels, "test"))
        log.write(tested, step=step)
        header = best.header.at(best.header.epoch, best.header.step, best.header.metrics | tested)
        file = folder / ("best.safetensors" if config.val_fraction else "last.safetensors")
        if main:
            checkpoint.save(file, model, header)
        row = {
            "run": folder.name,
            **tested_row(header, model, dataset, len(test.labels), accelerator),
            **measures(logits, test.labels, val_logits, val.labels),
            "selection": "hold-out" if config.val_fraction else "last epoch",
            **facts,
            "checkpoint": f"{folder.name}/{file.name}",
        }
        if main:
            row |= costs or measure_cost(model, test, normalise, config.image_size, accelerator)
            row["checkpoint_mb"] = file.stat().st_size / 1e6
            log.summary(row)
            save_predictions(
                folder / "predictions.safetensors", logits, test.labels, val_logits, val.labels
            )
            files.write_json(folder / "result.json", row)
    return row


@contextmanager
def loaded_weights(model: nn.Module, weights: dict[str, Tensor]) -> Iterator[None]:
    """Within, the model has other weights."""
    own = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(weights)
    try:
        yield
    finally:
        model.load_state_dict(own)
