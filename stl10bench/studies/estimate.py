"""Planned runs -> which are done, and how long the others will take, from a few of their steps."""

import time
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console

from stl10bench.config import RunConfig
from stl10bench.core.device import make_accelerator
from stl10bench.models.pretrained import Weights
from stl10bench.results.rows import Failure, Row
from stl10bench.studies import jobs
from stl10bench.studies.plan import Common, Planned
from stl10bench.training.epoch import train_epoch
from stl10bench.training.evaluate import compute_logits
from stl10bench.training.job import Job
from stl10bench.training.resume import Position
from stl10bench.training.setup import load_test_images, set_up

_SECONDS = 2.0  # of steps, after the first two, which are slower
_TESTED = 250  # images
_FREE = {  # settings without effect on the time of a step
    *("seed", "lr", "backbone_lr", "momentum", "weight_decay", "label_smoothing", "schedule"),
    *("warmup", "step_epochs", "step_gamma"),
}


class Forecast(NamedTuple):
    """A run that is planned: its state, and its seconds, known or estimated; None if unknown."""

    planned: Planned
    state: str
    seconds: float | None
    is_left: bool


def forecast(planned: Sequence[Planned], common: Common) -> list[Forecast]:
    """What is done and what is left; runs that take as long are measured once."""
    forecasts = []
    measured: dict[str, float] = {}
    for place in planned:
        if place.job is None:
            assert place.failure is not None
            forecasts.append(Forecast(place, f"failed: {place.failure.error}", None, False))
            continue
        outcome = jobs.known_outcome(place.job, tidy=False)
        if isinstance(outcome, Failure):
            state = f"{outcome.state}: {outcome.error}"
            forecasts.append(Forecast(place, state, None, False))
        elif isinstance(outcome, Row):
            forecasts.append(Forecast(place, "done", outcome.train_seconds, False))
        else:
            config = _cost(place.job.config)
            if config.name not in measured:
                job = place.job.model_copy(update={"config": config})
                measured[config.name] = estimate_seconds(job, common)
            state = place.job.folder.status()["state"]
            state = "missing" if state == "new" else state
            forecasts.append(Forecast(place, state, measured[config.name], True))
    return forecasts


def _cost(config: RunConfig) -> RunConfig:
    """One config for all that take as long."""
    defaults = {key: RunConfig.model_fields[key].default for key in _FREE}
    fold = None if config.fold is None else 0
    return config.model_copy(update={**defaults, "fold": fold})


def estimate_seconds(job: Job, common: Common) -> float:
    """What training and testing will take on the job's device, without the start of a process.

    Steps are taken for two seconds with random weights, and 250 images tested. With
    `cache_views` or `--compile` the steps are those without: too much is said, not too little.
    Nothing is written. Raises what a run raises for settings that do not fit.
    """
    config = job.config.model_copy(update={"cache_views": 0})
    accelerator = make_accelerator(job.device, config.precision, "none", None)
    # Its own folder has a checkpoint, perhaps; this one is never made.
    changes = {"config": config, "runs_dir": job.runs_dir / ".estimate", "compile": False}
    job = job.model_copy(update=changes)
    run, _, _ = set_up(job, accelerator, common.data, Weights(), Console(quiet=True))
    stamps: list[float] = []

    def enough() -> bool:
        stamps.append(time.monotonic())
        return len(stamps) > 3 and stamps[-1] - stamps[1] > _SECONDS

    train_epoch(run, Position(), 0.0, enough, lambda: None)
    first = min(1, len(stamps) - 2)
    step = (stamps[-1] - stamps[first]) / (len(stamps) - 1 - first) if len(stamps) > 1 else 0.0
    test = load_test_images(config, common.data, accelerator)
    started = time.monotonic()
    images = test.images[:_TESTED]
    compute_logits(run.model, images, run.normalise, config.image_size, accelerator)
    image = (time.monotonic() - started) / len(images)
    validated = len(run.validation.labels)
    tested = config.epochs * validated + validated + len(test.labels)
    return config.epochs * run.steps_per_epoch * step + tested * image
