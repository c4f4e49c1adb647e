"""A learning rate that rises from step to step -> the loss at each, and a rate to begin with.

The range test of Smith 2017, "Cyclical learning rates for training neural networks", on the steps
that training takes: same images, augmentation, optimizer and loss. The test split is never read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from accelerate import Accelerator
from rich.console import Console
from rich.progress import Progress
from torch.optim.lr_scheduler import LambdaLR

from stl10bench.core.errors import DivergedError, UsageError
from stl10bench.data.stl10 import Dataset
from stl10bench.models.pretrained import Weights
from stl10bench.training.epoch import train_epoch
from stl10bench.training.job import Job
from stl10bench.training.resume import Position
from stl10bench.training.setup import set_up

RULE = "where the smoothed loss falls steepest over the logarithm of the rate, before its minimum"
_WINDOW = 11  # steps whose mean is a step's smoothed loss: those around it, so it does not lag
_RECENT = 5  # steps whose mean tells that the loss has exploded
_EXPLOSION = 4.0  # times its lowest value, as in fastai


class Rates(NamedTuple):
    """A number of steps, and the rates of the first and the last; they grow by one factor."""

    steps: int
    lowest: float
    highest: float


@dataclass(frozen=True)
class RangeTest:
    """What a range test has seen, one value for each step that was taken."""

    rates: tuple[float, ...]  # of the head, where a backbone has its own
    losses: tuple[float, ...]  # mean training loss of the step's batch, nats
    smoothed: tuple[float, ...]
    suggestion: float | None  # by RULE; None where the loss never falls
    ended: str  # why: "all steps", "loss exploded" or "diverged"


def range_test(
    job: Job,
    accelerator: Accelerator,
    dataset: Dataset,
    weights: Weights,
    console: Console,
    rising: Rates,
) -> RangeTest:
    """Take up to `rising.steps` steps of the job's run; writes nothing.

    Raises UsageError for rates that do not rise, and what `set_up` raises.
    """
    steps, lowest, highest = rising
    if not 0 < lowest < highest:
        raise UsageError(
            f"lowest = {lowest:g}, highest = {highest:g}: must be 0 < --lowest < --highest"
        )
    # A schedule of its own, from each group's own rate; and a folder that is never made.
    config = job.config.model_copy(update={"schedule": "constant", "warmup": 0.0})
    job = job.model_copy(update={"config": config, "runs_dir": job.runs_dir / ".lr-find"})
    run, _, _ = set_up(job, accelerator, dataset, weights, console)
    growth = (highest / lowest) ** (1 / max(1, steps - 1))
    schedule = LambdaLR(run.optimizer.optimizer, lambda step: lowest * growth**step / config.lr)
    run = replace(run, schedule=schedule)
    at, rates, losses = Position(), [], [math.nan]
    ended = "all steps"
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        for _ in bar.track(range(steps), description=f"{config.model}: raising the rate"):
            rate, before = run.optimizer.param_groups[-1]["lr"], at
            try:
                at = train_epoch(run, at, losses[-1], lambda: True, lambda *_: None)
            except DivergedError:
                ended = "diverged"
                break
            rates.append(rate)
            losses.append(_last_loss(before, at))
            if _has_exploded(losses[1:]):
                ended = "loss exploded"
                break
            if at.batch == run.steps_per_epoch:
                at = at.next_epoch()
    smoothed = smooth(losses[1:])
    suggestion = suggest_rate(rates, smoothed)
    return RangeTest(tuple(rates), tuple(losses[1:]), smoothed, suggestion, ended)


def _last_loss(before: Position, at: Position) -> float:
    """The mean loss of the step between two positions, over all processes."""
    (loss, images), (old_loss, old_images) = (
        [sum(row[column] for row in position.sums) for column in (0, 2)]
        for position in (at, before)
    )
    return (loss - old_loss) / (images - old_images)


def _has_exploded(losses: Sequence[float]) -> bool:
    means = np.convolve(losses, np.ones(_RECENT) / _RECENT, "valid") if losses[_RECENT:] else [0.0]
    return bool(means[-1] > _EXPLOSION * min(means))


def smooth(losses: Sequence[float]) -> tuple[float, ...]:
    """The mean of each loss and its neighbours, five on either side where there are as many."""
    window = np.ones(_WINDOW)
    half = _WINDOW // 2
    counts = np.convolve(np.ones(len(losses)), window)[half:-half] if losses else np.ones(0)
    sums = np.convolve(losses, window)[half:-half] if losses else np.ones(0)
    return tuple((sums / counts).tolist())


def suggest_rate(rates: Sequence[float], smoothed: Sequence[float]) -> float | None:
    """The rate to begin with, by RULE; None where the loss never falls."""
    if len(rates) < 2:
        return None
    slopes = np.gradient(smoothed, np.log(rates))[: int(np.argmin(smoothed)) + 1]
    steepest = int(np.argmin(slopes))
    return float(rates[steepest]) if slopes[steepest] < 0 else None
