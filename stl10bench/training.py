"""One run, top to bottom: config, data and accelerator -> metrics, checkpoints and a row."""

import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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

from stl10bench import checkpoint, cost, files, metrics, state
from stl10bench.batches import Images, Normalise, augmented, cached
from stl10bench.config import Limits, RunConfig
from stl10bench.data.stl10 import Dataset
from stl10bench.errors import (
    CheckpointError,
    DivergedError,
    InterruptedRunError,
    StorageError,
)
from stl10bench.evaluation import evaluate, features_of_views, fold_frozen, tested_row
from stl10bench.models.head import Classifier
from stl10bench.models.weights import Weights
from stl10bench.prepare import create, fold_overlap, load_test, load_train
from stl10bench.randomness import DROPOUT, seed_of
from stl10bench.schedule import make_optimizer, make_schedule
from stl10bench.state import Best, Position, State
from stl10bench.stopping import Watch, deferred_signals
from stl10bench.tracking import Log


def run(
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
    train, val = load_train(config, dataset, accelerator)
    steps = len(train.labels) // config.batch_size
    model, normalise, header = create(config, dataset, weights, train, accelerator)
    state.check_room(folder, model)
    stored = state.newest(folder, config)
    at, best = Position(), None
    if stored is not None:
        at, header, best = stored.position, stored.header, stored.best
        if at.batch > steps:
            raise CheckpointError(f"{folder}: {at.batch} steps of an epoch of {steps} are stored")
        for one in (best.weights if best else stored.model, stored.model):  # each is to fit
            checkpoint.fill(model, one, folder)
    check_agreement(at.step(steps), folder, accelerator)
    model.to(accelerator.device)
    fold_frozen(model, train, normalise, config)
    started = time.monotonic() - at.total_seconds
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
    schedule = make_schedule(config, optimizer.optimizer, steps, taken=at.step(steps))
    if stored is not None:
        restore(stored, optimizer, accelerator)
        if main:
            state.forget_after(folder, at.step(steps))
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
                    logits = evaluate(
                        *(model, val.images, normalise, config.image_size, accelerator),
                        check=watch.check,
                    )
                    values |= metrics.score(logits, val.labels, "val")
                epoch, step = at.epoch + 1, at.step(steps)
                if not math.isfinite(values.get("val/loss", 0.0)):
                    raise diverged(
                        "logits of the hold-out after", step, at.lr, values["train/loss"]
                    )
                row = metrics.finite({"epoch": epoch, **values, "time": time.time()})
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
            return finish(
                best,
                model,
                normalise,
                load_test(config, dataset, accelerator),
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
    state.restore_optimizer(optimizer.optimizer, stored.optimizer)
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
        state.save(
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


def finish(
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
    **facts: Any,
) -> dict[str, Any]:
    """Test the epoch that counts; writes its checkpoint, predictions and row, returns the row.

    `step` is the run's last; `check` is called now and then and may raise; `facts` are what else
    the row says. The model keeps the weights that it came with.
    """
    config, main = best.header.config, accelerator.is_main_process
    with loaded(model, best.weights):
        logits, val_logits = (
            evaluate(*(model, part.images, normalise, config.image_size, accelerator), check=check)
            if len(part.labels)
            else None
            for part in (test, val)
        )
        assert logits is not None  # there are test images
        tested = metrics.finite(metrics.score(logits, test.labels, "test"))
        log.write(tested, step=step)
        header = best.header.at(best.header.epoch, best.header.step, best.header.metrics | tested)
        file = folder / ("best.safetensors" if config.val_fraction else "last.safetensors")
        if main:
            checkpoint.save(file, model, header)
        row = {
            "run": folder.name,
            **tested_row(header, model, dataset, len(test.labels), accelerator),
            **metrics.measures(logits, test.labels, val_logits, val.labels),
            "selection": "hold-out" if config.val_fraction else "last epoch",
            **facts,
            **(
                cost.measure(model, test, normalise, config.image_size, accelerator) if main else {}
            ),
            "checkpoint": f"{folder.name}/{file.name}",
            "checkpoint_mb": file.stat().st_size / 1e6 if main else 0.0,
        }
        log.summary(row)
        if main:
            checkpoint.save_predictions(
                folder / "predictions.safetensors", logits, test.labels, val_logits, val.labels
            )
            files.write_json(folder / "result.json", row)
    return row


@contextmanager
def loaded(model: nn.Module, weights: dict[str, Tensor]) -> Iterator[None]:
    """Within, the model has other weights."""
    own = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(weights)
    try:
        yield
    finally:
        model.load_state_dict(own)


def train_epoch(
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    schedule: LRScheduler,
    batches: Iterable[tuple[Tensor, Tensor]],
    config: RunConfig,
    accelerator: Accelerator,
    at: Position,
    *,
    first_step: int,
    last_loss: float = math.nan,
    pauses: Callable[[], bool],
    advance: Callable[[], None],
) -> Position:
    """The steps of an epoch from `at` on, up to its end or a pause; returns where that is.

    `last_loss` is that of the step before, for what is said of a divergence.
    Raises DivergedError when the loss or a gradient is not finite: that step is not applied, and
    at most one more is computed (with fp16's loss scaling, those up to the end or the pause).
    Raises it as well, at the end or the pause, for weights that are not finite.
    """
    started = time.monotonic()
    skips = can_skip(optimizer)
    checks: deque[Check] = deque()
    loss_of_last = torch.tensor(last_loss)
    if not at.batch:
        at = at.model_copy(update={"lr": optimizer.param_groups[-1]["lr"]})
    sums = own_sums(at, accelerator)
    batch = 0

    model.train()
    for batch, (images, labels) in enumerate(batches, 1):
        step = first_step + batch
        torch.manual_seed(seed_of(config.seed, DROPOUT, step - 1, accelerator.process_index))
        logits = model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        accelerator.backward(poisoned(loss))
        if accelerator.scaler is None:  # which skips such steps by itself
            broken = broken_gradients(optimizer)
            checks.append(Check(step, optimizer.param_groups[-1]["lr"], broken, loss_of_last))
            if skips:
                optimizer.optimizer.found_inf = broken.float()
            if len(checks) > skips:
                raise_if_broken(checks.popleft())
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

        loss_of_last = loss.detach()
        sums[0] += loss_of_last * len(labels)
        sums[1] += (logits.detach().argmax(1) == labels).sum()
        sums[2] += len(labels)
        advance()
        if pauses():
            break

    for check in checks:
        raise_if_broken(check)
    step = first_step + batch
    gathered = accelerator.gather(torch.cat([sums, broken_weights(model).to(sums)[None]])[None])
    if not gathered[:, :3].isfinite().all():  # as far as fp16's loss scaling lets it come
        raise diverged("losses up to", step, at.lr, math.nan)
    if gathered[:, 3].any():
        raise diverged("weights after", step, at.lr, loss_of_last.item())
    return at.model_copy(
        update={
            "batch": at.batch + batch,
            "sums": gathered[:, :3].tolist(),
            "seconds": at.seconds + time.monotonic() - started,
        }
    )


def poisoned(losses: Tensor) -> Tensor:
    """The losses, NaN where infinite: then the gradients of all processes are NaN as well."""
    return losses * torch.where(losses.isfinite(), 1.0, math.nan)


def broken_gradients(optimizer: AcceleratedOptimizer) -> Tensor:
    """Whether a gradient of the optimizer's parameters is not finite: bool (), not waited for."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    return ~torch.nn.utils.get_total_norm(gradients, math.inf).isfinite()


def broken_weights(model: nn.Module) -> Tensor:
    """Whether a weight or a statistic is not finite, bool (): rate x gradient can overflow."""
    values = [
        value for value in (*model.parameters(), *model.buffers()) if value.is_floating_point()
    ]
    return ~torch.nn.utils.get_total_norm(values, math.inf).isfinite()


def can_skip(optimizer: AcceleratedOptimizer) -> bool:
    """Whether a step with `found_inf` = 1 leaves everything as it is: so do torch's fused ones."""
    return getattr(optimizer.optimizer, "_step_supports_amp_scaling", False)


class Check(NamedTuple):
    """What is known of a step when its gradients are there: on the device, not waited for."""

    step: int
    lr: float
    broken: Tensor  # whether its loss or a gradient is not finite
    last_loss: Tensor  # of the step before


def raise_if_broken(check: Check) -> None:
    """Raise DivergedError for a step whose loss or gradients were not finite."""
    if check.broken:
        raise diverged("loss or gradients of", check.step, check.lr, check.last_loss.item())


def diverged(what: str, step: int, lr: float, last_loss: float) -> DivergedError:
    """The error for `what` of a step that is not finite; `last_loss` is the newest before it."""
    last = last_loss if math.isfinite(last_loss) else None
    before = "" if last is None else f", after a loss of {last:.4g}"
    return DivergedError(
        f"diverged: {what} step {step} are not finite at learning rate {lr:.3g}{before}; "
        "lower --lr or raise --warmup",
        step=step,
        lr=lr,
        last_finite_loss=last,
    )


def own_sums(at: Position, accelerator: Accelerator) -> Tensor:
    """Loss, hits and images of this process so far in the epoch: float64 (3,), on the device."""
    device = accelerator.device
    dtype = torch.float64 if device.type != "mps" else torch.float32
    sums = torch.tensor(at.sums or [[0.0] * 3], dtype=dtype, device=device)
    if len(sums) == accelerator.num_processes:
        return sums[accelerator.process_index].clone()
    return sums.sum(0) if accelerator.is_main_process else torch.zeros_like(sums[0])


def loss_before(at: Position, header: checkpoint.Header) -> float:
    """The mean training loss of the epoch so far, or at its begin of the one before, else NaN."""
    if at.batch:
        return epoch_values(at)["train/loss"]
    before = header.metrics.get("train/loss")
    return math.nan if before is None else before


def epoch_values(at: Position) -> dict[str, float]:
    """Loss, accuracy, rate and speed of a whole epoch, all processes together.

    Loss and accuracy are means over the epoch's augmented images.
    """
    loss, hits, images = (sum(column) for column in zip(*at.sums, strict=True))
    return {
        "train/loss": loss / images,
        "train/accuracy": hits / images,
        "lr": at.lr,
        "seconds": at.seconds,
        "images_per_second": images / at.seconds,
    }


def epoch_line(epoch: int, epochs: int, values: dict[str, float]) -> str:
    """What one epoch prints."""
    line = f"epoch {epoch:{len(str(epochs))}}/{epochs}"
    for split, title in (("train", "train"), ("val", "hold-out")):
        if f"{split}/loss" in values:
            line += f"  {title} {values[f'{split}/loss']:.3f} {values[f'{split}/accuracy']:.1%}"
    return f"{line}  {values['images_per_second']:,.0f} images/s"
