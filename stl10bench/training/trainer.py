"""One run, top to bottom: set up, train and validate each epoch, test the best, make the row."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from stl10bench.config import RunConfig
from stl10bench.core.errors import InterruptedRunError
from stl10bench.data.stl10 import Dataset
from stl10bench.metrics.classification import none_if_not_finite
from stl10bench.models import checkpoint
from stl10bench.models.checkpoint import Header
from stl10bench.models.pretrained import Weights
from stl10bench.results.rows import Row
from stl10bench.training import resume
from stl10bench.training.epoch import diverged, epoch_line, epoch_values, loss_before, train_epoch
from stl10bench.training.evaluate import Mirrored, compute_logits, score
from stl10bench.training.interrupt import Watch, defer_signals
from stl10bench.training.job import Job
from stl10bench.training.resume import Best, Position, State
from stl10bench.training.row import Effort, write_result
from stl10bench.training.setup import Run, Training, load_test_images, set_up
from stl10bench.training.tracking import CURVE_POINTS, Log, Mirror


def train(
    job: Job,
    accelerator: Accelerator,
    dataset: Dataset,
    weights: Weights,
    console: Console,
    mirrors: Sequence[Mirror] = (),
) -> Row:
    """Train and test one model; returns the row, which then stands in the run folder too.

    An interrupted run resumes from its newest checkpoint, with the same bits on a CPU. The epoch
    is chosen on the validation images (highest accuracy, then lowest loss); without any the last
    counts. The test split is read once, at the end. Raises what `set_up` raises, DivergedError,
    and InterruptedRunError, after a checkpoint, when the run was asked to stop.
    """
    run, header, state = set_up(job, accelerator, dataset, weights, console)
    config, steps = run.config, run.steps_per_epoch
    at: Position = Position()  # between two steps
    best: Best | None = None
    if state is not None:
        at, header, best = state.position, state.header, state.best
    signalled = defer_signals()
    with (
        Log(run.folder, accelerator, mirrors, state and state.mark, console) as log,
        Progress(console=console, transient=True, disable=not console.is_terminal) as bar,
    ):
        watch = Watch(accelerator, signalled, job.limits)
        task = bar.add_task(config.model, total=config.epochs * steps, completed=at.step(steps))
        every = math.ceil(config.epochs * steps / CURVE_POINTS)

        def advance(step: int, loss: Tensor, lr: float) -> None:
            bar.advance(task)
            if step % every == 0:
                log.write_step(loss, lr, step=step)

        try:
            while at.epoch < config.epochs and not out_of_patience(config, header, best):
                before = loss_before(at, header)
                at = train_epoch(run, at, before, watch.pauses, advance)
                if at.batch < steps:  # paused: to stop, or because a checkpoint is due
                    watch.raise_if_stopped()
                    save(run, at, header, best, log)
                    watch.saved()
                    continue
                epoch, step = at.epoch + 1, at.step(steps)
                with averaged_weights(run):
                    values = epoch_values(at) | validate(run, watch.check)
                    if not math.isfinite(values.get("val/loss", 0.0)):
                        what = "logits of the validation images after"
                        raise diverged(what, step, at.lr, values["train/loss"])
                    logged = none_if_not_finite({"epoch": epoch, **values, "time": time.time()})
                    log.write(logged, step=step)
                    line = epoch_line(epoch, config.epochs, values)
                    console.print(line, highlight=False, soft_wrap=True)
                    header = header.at(epoch, step, logged)
                    best = better(best, header, run)
                    if best.header is header and len(run.validation.labels) and run.is_main:
                        checkpoint.save(run.folder.best_file, run.model, header)
                at = at.next_epoch()
                if job.limits.checkpoint_epochs and epoch % job.limits.checkpoint_epochs == 0:
                    save(run, at, header, best, log)
                    watch.saved()

            assert best is not None  # there is at least one epoch
            at = at.model_copy(update={"total_seconds": run.seconds()})
            with averaged_weights(run):
                if run.is_main:
                    checkpoint.save(run.folder.last_file, run.model, header)
            bar.update(task, description=f"{config.model}: test split")
            return final_evaluation(run, at, best, log, watch.check)
        except InterruptedRunError:
            save(run, at, header, best, log)
            watch.saved()
            raise


def validate(run: Training, check: Callable[[], None]) -> dict[str, float]:
    """`val/loss` and `val/accuracy` on the validation images; nothing where there are none."""
    if not len(run.validation.labels):
        return {}
    return score(logits_of(run, run.validation.images, check), run.validation.labels, "val")


def logits_of(
    run: Run, images: Tensor, check: Callable[[], None], *, mirrored: bool = False
) -> Tensor:
    """The model's logits (N, C), float32 on the CPU, of uint8 images (N, 3, S, S)."""
    size = run.config.image_size
    model = Mirrored(run.model) if mirrored else run.model
    return compute_logits(model, images, run.normalise, size, run.accelerator, check=check)


def save(run: Training, at: Position, header: Header, best: Best | None, log: Log) -> None:
    """Write a checkpoint of the run at a position; to be called by all processes."""
    if not run.is_main:
        return
    scaler = run.accelerator.scaler
    state = State(
        position=at.model_copy(update={"total_seconds": run.seconds()}),
        mark=log.mark(),
        processes=run.accelerator.num_processes,
        threads=torch.get_num_threads(),
        model=run.model.state_dict(),
        optimizer=run.optimizer.optimizer.state_dict(),
        scaler=scaler.state_dict() if scaler is not None else {},
        header=header,
        best=best,
        ema=run.ema.weights if run.ema is not None else {},
    )
    resume.save_state(run.folder, run.config, at.step(run.steps_per_epoch), state)


def out_of_patience(config: RunConfig, header: Header, best: Best | None) -> bool:
    """Whether the last epoch, of `header`, is `patience` epochs after the best one."""
    if config.patience is None or best is None:
        return False
    return header.epoch - best.header.epoch >= config.patience


def better(best: Best | None, header: Header, run: Run) -> Best:
    """`best`, or the epoch of `header` if it ranks higher on the validation images."""
    if best is not None and _rank(header) <= _rank(best.header):
        return best
    weights = {key: value.clone() for key, value in run.model.state_dict().items()}
    return Best(header, weights, run.seconds())


def _rank(header: Header) -> tuple[float, float]:
    """By validation accuracy, then by loss; without validation images by epoch."""
    accuracy, loss = header.metrics.get("val/accuracy"), header.metrics.get("val/loss")
    if accuracy is None:
        return float(header.epoch), 0.0
    return accuracy, -math.inf if loss is None else -loss


def final_evaluation(
    run: Training, at: Position, best: Best, log: Log, check: Callable[[], None]
) -> Row:
    """Test the best epoch; writes its checkpoint, predictions and row, returns the row.

    `check` is called now and then and may raise. The model keeps the weights that it came with.
    """
    test = load_test_images(run.config, run.dataset, run.accelerator)
    steps = at.step(run.steps_per_epoch)
    with loaded_weights(run.model, best.weights):
        arrays = {
            "logits": logits_of(run, test.images, check).numpy(),
            "labels": test.labels.cpu().numpy(),
        }
        if len(run.validation.labels):
            arrays["val_logits"] = logits_of(run, run.validation.images, check).numpy()
            arrays["val_labels"] = run.validation.labels.cpu().numpy()
        if run.config.tta == "flip":
            arrays["mirrored_logits"] = logits_of(run, test.images, check, mirrored=True).numpy()
        speed = steps * run.config.batch_size / at.trained_seconds
        effort = Effort(steps, at.total_seconds, best.seconds, speed, epochs=at.epoch)
        return write_result(run, best.header, arrays, test.images, effort, log)


@contextmanager
def averaged_weights(run: Training) -> Iterator[None]:
    """Within, the model has its weights' moving average, where the run keeps one."""
    if run.ema is None:
        yield
    else:
        with loaded_weights(run.model, run.model.state_dict() | run.ema.weights):
            yield


@contextmanager
def loaded_weights(model: nn.Module, weights: dict[str, Tensor]) -> Iterator[None]:
    """Within, the model has other weights."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(weights)
    try:
        yield
    finally:
        model.load_state_dict(before)
