"""A job -> how long it will take: a few steps of two batch sizes, timed once on a machine."""

import hashlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field, TypeAdapter, ValidationError
from rich.console import Console

from stl10bench.config import RunConfig
from stl10bench.core import __version__, cores, files
from stl10bench.core.device import make_accelerator
from stl10bench.core.errors import StorageError, UsageError
from stl10bench.data.splits import labelled_subset
from stl10bench.data.stl10 import Dataset, Split
from stl10bench.models.methods import SUPERVISED, method_options
from stl10bench.models.pretrained import Weights
from stl10bench.training.epoch import train_epoch
from stl10bench.training.evaluate import compute_logits
from stl10bench.training.features import cache_folder
from stl10bench.training.job import Job
from stl10bench.training.resume import Position
from stl10bench.training.row import cpu_name
from stl10bench.training.setup import load_test_images, set_up

_SECONDS = 1.0  # of steps of each batch size, after the first, which is slower
_BATCHES = (8, 64)  # larger ones differ little for an image, and take long on a CPU
_IMAGES = 32  # of each class, to train on and to test
_FREE = {  # settings without effect on the time of an image
    *("seed", "lr", "backbone_lr", "momentum", "weight_decay", "label_smoothing", "schedule"),
    *("class_weights", "warmup", "step_epochs", "step_gamma", "epochs", "patience", "data"),
    *("batch_size", "labels_per_class", "val_fraction", "fold", "k_fold", "k_fold_part", "weights"),
    *("unlabeled", "unlabeled_data", "keep_copies", "cache_views"),
}
_START = "the start of a process"
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_KNOWN = TypeAdapter(dict[str, list[_Seconds]])  # what a file of timings holds


class Cost(NamedTuple):
    """Seconds that the parts of a run take."""

    step: float  # whatever its batch
    image: float  # of a batch, in a step
    tested: float  # image, in a forward pass


def cost_key(config: RunConfig) -> str:
    """What all runs whose images take as long have in common."""
    values = config.model_dump(mode="json", exclude=_FREE)
    values["model_options"].pop("dropout", None)
    if not config.takes_steps:
        values.pop("method_options")
    return json.dumps(values, sort_keys=True)


class Timings:
    """The costs that this machine has shown, in a file of the user's cache folder.

    They hold for a processor, a number of threads, and versions of torch and this package.
    """

    def __init__(self, job: Job, say: Callable[[str], None]) -> None:
        self.path = cache_folder().with_name("timings.json")
        self.say = say
        is_gpu = job.device.startswith("cuda")
        device = torch.cuda.get_device_name() if is_gpu else f"{job.device} {cpu_name()}"
        threads = job.threads or cores.count()
        self._machine = json.dumps([device, threads, torch.__version__, __version__])
        self._known: dict[str, list[float]] = {}
        try:
            if self.path.exists():
                self._known = _KNOWN.validate_python(files.read_json(self.path, StorageError))
        except (StorageError, ValidationError) as error:
            say(f"{self.path} is damaged ({type(error).__name__}): timing again")

    def cost(self, job: Job, data: Dataset) -> Cost:
        """Of a job's steps and images. Raises what a run raises for settings that do not fit."""
        title = f"{job.config.model}, {job.config.image_size} px"
        key = cost_key(job.config)
        return Cost(*self._look_up(key, title, 3, lambda: [*time_steps(job, data)]))

    def start(self) -> float:
        """Seconds until a new process can train."""
        return self._look_up(_START, _START, 1, lambda: [_time_start()])[0]

    def _look_up(
        self, key: str, title: str, count: int, measure: Callable[[], list[float]]
    ) -> list[float]:
        name = hashlib.sha256(f"{self._machine}{key}".encode()).hexdigest()[:16]
        if len(self._known.get(name, ())) != count:
            self.say(f"timing {title} (kept in {self.path}: remove it to time again)")
            self._known[name] = measure()
            try:
                files.write(self.path, json.dumps(self._known).encode())
            except StorageError as error:
                self.say(f"the timing is not kept for the next time: {error}")
        return self._known[name]


def estimate_seconds(job: Job, cost: Cost, data: Dataset, images: tuple[int, int]) -> float:
    """What training and testing will take, of `images` to train and to validate on.

    With `cache_views` or `--compile` the steps are those without: too much is said, not too little.
    For a method on frozen features it is the forward passes of both splits, without the fit. Raises
    UsageError for a batch that is larger than the training images.
    """
    config, (trained, validated) = job.config, images
    if not config.takes_steps:
        views = getattr(method_options(config), "views", 1)
        return (views * len(data.train.labels) + len(data.test.labels)) * cost.tested
    if config.batch_size > trained:
        raise UsageError(
            f"batch_size = {config.batch_size} is larger than the {trained} training images: "
            "lower --batch-size"
        )
    steps = config.epochs * (trained // config.batch_size)
    tested = (config.epochs + 1) * validated + len(data.test.labels)
    return steps * (cost.step + cost.image * config.batch_size) + tested * cost.tested


def time_steps(job: Job, data: Dataset) -> Cost:
    """The cost of a step and of an image, from steps of two sizes on a part of the data.

    The weights are random, and nothing is written. Raises what a run raises for settings that do
    not fit.
    """
    changes: dict[str, Any] = dict.fromkeys(("labels_per_class", "fold", "k_fold", "unlabeled"))
    changes |= {"k_fold_part": 0, "val_fraction": 0.0, "cache_views": 0, "keep_copies": False}
    changes |= {"epochs": 1000}  # more than there is time for: a schedule must not end
    if not job.config.takes_steps:  # the same backbone under a head that is not used
        changes |= {"method": SUPERVISED, "method_options": {}}
    part = replace(data, train=_part(data.train), test=_part(data.test))
    limit = max(2, int(0.8 * len(part.train.labels)))
    seconds: dict[int, float] = {}
    for batch in {min(size, limit) for size in _BATCHES}:
        config = job.config.model_copy(update={**changes, "batch_size": batch})
        seconds[batch], tested = _time(job, config, part)
    low, high = min(seconds), max(seconds)
    image = max(0.0, (seconds[high] - seconds[low]) / max(1, high - low))
    step = max(0.0, seconds[low] - low * image)
    return Cost(step, image or seconds[high] / high, tested)


def _time(job: Job, config: RunConfig, data: Dataset) -> tuple[float, float]:
    """Seconds of a step, and of an image in a forward pass."""
    accelerator = make_accelerator(job.device, config.precision)
    # Its own folder has a checkpoint, perhaps; this one is never made.
    update = {"config": config, "runs_dir": job.runs_dir / ".estimate", "compile": False}
    job = job.model_copy(update=update)
    run, _, _ = set_up(job, accelerator, data, Weights(), Console(quiet=True))
    stamps: list[float] = []

    def done() -> bool:
        return len(stamps) > 1 and stamps[-1] - stamps[0] > _SECONDS

    def enough() -> bool:
        stamps.append(time.monotonic())
        return done()

    while not done():  # an epoch of so few images is short
        train_epoch(run, Position(), 0.0, enough, lambda *_: None)
    test = load_test_images(config, data, accelerator)
    started = time.monotonic()
    compute_logits(run.model, test.images, run.normalise, config.image_size, accelerator)
    tested = (time.monotonic() - started) / len(test.images)
    return (stamps[-1] - stamps[0]) / (len(stamps) - 1), tested


def _part(split: Split) -> Split:
    """At most _IMAGES of each class."""
    present = Counter(split.labels.tolist())
    rows = labelled_subset(split.labels, min(_IMAGES, *present.values()), 0)
    return Split(split.images[rows], split.labels[rows])


def _time_start() -> float:
    """Seconds that a process takes to import what trains."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import stl10bench.training.trainer"], check=True)
    return time.monotonic() - started
