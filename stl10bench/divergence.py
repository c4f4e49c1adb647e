"""Losses and gradients -> whether a step may be applied, without waiting for the device."""

import math
from typing import NamedTuple

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from stl10bench.errors import (
    DivergedError,
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
