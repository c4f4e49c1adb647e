"""Batches -> the steps of one epoch and its loss, accuracy and speed; stops when they diverge."""

import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from stl10bench.core.errors import DivergedError
from stl10bench.core.seeding import DROPOUT, seed_of
from stl10bench.models import checkpoint
from stl10bench.training.losses import LOSSES
from stl10bench.training.resume import Position
from stl10bench.training.setup import Training


def nan_if_infinite(losses: Tensor) -> Tensor:
    """The losses, NaN where infinite: then the gradients of all processes are NaN as well."""
    return losses * torch.where(losses.isfinite(), 1.0, math.nan)


def backward(run: Training, *batch: Tensor) -> tuple[Tensor, Tensor]:
    """Leave a batch's gradients in the parameters; its mean loss and its hits, not waited for.

    `batch` are the tensors (B, ...) that the loss of the run's method takes.
    The batch is computed in `grad_accum` parts (the memory is that of one): but for batch norms
    and dropout, the gradients are those of the whole batch up to rounding. Processes exchange them
    once, with the last part.
    """
    config, accelerator, compute_loss = run.config, run.accelerator, LOSSES[run.config.method]
    count = len(batch[0])
    size = math.ceil(count / config.grad_accum)
    losses, hits = [], []
    for start in range(0, count, size):
        part = [tensor[start : start + size] for tensor in batch]
        is_last = start + size >= count
        with nullcontext() if is_last else accelerator.no_sync(run.learner):
            loss, correct = compute_loss(run, *part)
            loss = loss * (len(part[0]) / count)
            accelerator.backward(nan_if_infinite(loss))
        losses.append(loss.detach())
        hits.append(correct)
    return torch.stack(losses).sum(), torch.stack(hits).sum()


def clip_gradients(run: Training) -> Tensor:
    """Whether the gradients' norm is not finite, bool () and not waited for; clips them by it.

    The norm is over all parameters together (Pascanu et al. 2013, "On the difficulty of training
    recurrent neural networks"), after fp16's loss scaling is undone. One too large for float32
    counts as not finite: to clip by it would leave gradients of 0, and Adam squares them as well.
    Without `clip_grad` nothing is clipped.
    """
    config, optimizer = run.config, run.optimizer
    if config.clip_grad is not None:
        run.accelerator.unscale_gradients(optimizer)
    parameters = [
        parameter
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    # Not the largest absolute value: on a CPU that takes torch 20 times as long as the 2-norm.
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    if config.clip_grad is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, config.clip_grad, norm)
    return ~norm.isfinite()


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


def train_epoch(
    run: Training,
    at: Position,
    last_loss: float,
    pauses: Callable[[], bool],
    advance: Callable[[int, Tensor, float], None],
) -> Position:
    """The steps of an epoch from `at` on, up to its end or a pause; returns where that is.

    `advance` is called after each with its number, its loss (of this process) and its rate.
    `last_loss` is that of the step before, for what is said of a divergence.
    Raises DivergedError when the loss or a gradient is not finite: that step is not applied, and
    at most one more is computed (with fp16's loss scaling, those up to the end or the pause).
    Raises it as well, at the end or the pause, for weights that are not finite.
    """
    config, accelerator, optimizer = run.config, run.accelerator, run.optimizer
    first_step = at.step(run.steps_per_epoch)
    started = time.monotonic()
    skips = can_skip(optimizer)
    checks: deque[Check] = deque()
    loss_of_last = torch.tensor(last_loss)
    if not at.batch:
        at = at.model_copy(update={"lr": optimizer.param_groups[-1]["lr"]})
    sums = own_sums(at, accelerator)
    batch = 0

    run.learner.train()
    batches = run.batches(epoch=at.epoch + 1, start=at.batch)
    for batch, tensors in enumerate(batches, 1):
        step = first_step + batch
        torch.manual_seed(seed_of(config.seed, DROPOUT, step - 1, accelerator.process_index))
        loss, hits = backward(run, *tensors)
        broken = clip_gradients(run)
        lr = optimizer.param_groups[-1]["lr"]
        if accelerator.scaler is None:  # which skips such steps by itself
            checks.append(Check(step, lr, broken, loss_of_last))
            if skips:
                optimizer.optimizer.found_inf = broken.float()
            if len(checks) > skips:
                raise_if_broken(checks.popleft())
        optimizer.step()
        run.schedule.step()
        optimizer.zero_grad()
        if run.ema is not None:
            run.ema.update(step)

        loss_of_last = loss
        sums[0] += loss * len(tensors[0])
        sums[1] += hits
        sums[2] += len(tensors[0])
        advance(step, loss, lr)
        if pauses():
            break

    for check in checks:
        raise_if_broken(check)
    step = first_step + batch
    broken = broken_weights(run.learner).to(sums)
    gathered = accelerator.gather(torch.cat([sums, broken[None]])[None])
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


def own_sums(at: Position, accelerator: Accelerator) -> Tensor:
    """Loss, hits and images of this process so far in the epoch: float64 (3,), on the device."""
    device = accelerator.device
    dtype = torch.float64 if device.type != "mps" else torch.float32
    sums = torch.tensor(at.sums or [[0.0] * 3], dtype=dtype, device=device)
    if len(sums) == accelerator.num_processes:
        return sums[accelerator.process_index].clone()
    return sums.sum(0) if accelerator.is_main_process else torch.zeros_like(sums[0])


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


def loss_before(at: Position, header: checkpoint.Header) -> float:
    """The mean training loss of the epoch so far, or at its begin of the one before, else NaN."""
    if at.batch:
        return epoch_values(at)["train/loss"]
    before = header.metrics.get("train/loss")
    return math.nan if before is None else before


def epoch_line(epoch: int, epochs: int, values: dict[str, float]) -> str:
    """What one epoch prints: up to two-digit epochs and five-digit speeds within 80 columns."""
    line = f"epoch {epoch:{len(str(epochs))}}/{epochs}"
    for name, form in (("loss", ".3f"), ("accuracy", ".1%")):
        line += f"  {name} {values[f'train/{name}']:{form}}"
        if f"val/{name}" in values:
            line += f" (val {values[f'val/{name}']:{form}})"
    return f"{line}  {values['images_per_second']:,.0f} images/s"
