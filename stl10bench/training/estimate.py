"""A job -> how long it will take, from a few of its steps."""

import time
from typing import Any

from rich.console import Console

from stl10bench.config import RunConfig
from stl10bench.core.device import make_accelerator
from stl10bench.data.stl10 import Dataset
from stl10bench.models.methods import SUPERVISED, method_options
from stl10bench.models.pretrained import Weights
from stl10bench.training.epoch import train_epoch
from stl10bench.training.evaluate import compute_logits
from stl10bench.training.job import Job
from stl10bench.training.resume import Position
from stl10bench.training.setup import load_test_images, set_up

_SECONDS = 2.0  # of steps, after the first two, which are slower
_TESTED = 250  # images
_FREE = {  # settings without effect on the time of a step
    *("seed", "lr", "backbone_lr", "momentum", "weight_decay", "label_smoothing", "schedule"),
    "class_weights",
    *("warmup", "step_epochs", "step_gamma"),
}


def same_cost(config: RunConfig) -> RunConfig:
    """One config for all that take as long."""
    defaults = {key: RunConfig.model_fields[key].default for key in _FREE}
    fold = None if config.fold is None else 0
    return config.model_copy(update={**defaults, "fold": fold})


def estimate_seconds(job: Job, data: Dataset) -> float:
    """What training and testing will take on the job's device, without the start of a process.

    Steps are taken for two seconds with random weights, and 250 images tested. With
    `cache_views` or `--compile` the steps are those without: too much is said, not too little. For
    a method on frozen features it is the forward passes of both splits, without the fit. Nothing
    is written. Raises what a run raises for settings that do not fit.
    """
    stepped: dict[str, Any] = {"cache_views": 0}
    takes_steps = job.config.takes_steps
    if not takes_steps:  # the same backbone under a head that is not used
        stepped |= {"method": SUPERVISED, "method_options": {}, "batch_size": 2}
    config = job.config.model_copy(update=stepped)
    accelerator = make_accelerator(job.device, config.precision)
    # Its own folder has a checkpoint, perhaps; this one is never made.
    changes = {"config": config, "runs_dir": job.runs_dir / ".estimate", "compile": False}
    job = job.model_copy(update=changes)
    run, _, _ = set_up(job, accelerator, data, Weights(), Console(quiet=True))
    stamps: list[float] = []

    def enough() -> bool:
        stamps.append(time.monotonic())
        return len(stamps) > 3 and stamps[-1] - stamps[1] > _SECONDS

    if takes_steps:
        train_epoch(run, Position(), 0.0, enough, lambda *_: None)
    first = min(1, len(stamps) - 2)
    step = (stamps[-1] - stamps[first]) / (len(stamps) - 1 - first) if len(stamps) > 1 else 0.0
    test = load_test_images(config, data, accelerator)
    started = time.monotonic()
    images = test.images[:_TESTED]
    compute_logits(run.model, images, run.normalise, config.image_size, accelerator)
    image = (time.monotonic() - started) / len(images)
    if not takes_steps:
        views = getattr(method_options(job.config), "views", 1)
        return (views * len(data.train.labels) + len(test.labels)) * image
    validated = len(run.validation.labels)
    tested = config.epochs * validated + validated + len(test.labels)
    return config.epochs * run.steps_per_epoch * step + tested * image
