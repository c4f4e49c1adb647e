"""A config -> how long its run will take, from a few of its steps."""

import time

from stl10bench.config import RunConfig
from stl10bench.core.device import make_accelerator
from stl10bench.data.loader import augmented_batches
from stl10bench.data.stl10 import Dataset
from stl10bench.models.pretrained import Weights
from stl10bench.training.epoch import train_epoch
from stl10bench.training.evaluate import compute_logits, fuse_frozen
from stl10bench.training.optim import make_optimizer, make_schedule
from stl10bench.training.resume import Position
from stl10bench.training.setup import create_model, load_test_images, load_training_images

_SECONDS = 2.0  # of steps, after the first two, which are slower


def estimate_seconds(config: RunConfig, data: Dataset, kind: str) -> float:
    """What training and testing will take on the device `kind`, without the start of a process.

    Steps are taken for two seconds with random weights, and 250 images tested. With
    `cache_views` the steps are those without: too much is said, not too little. Raises what a run
    raises for settings that do not fit.
    """
    accelerator = make_accelerator(kind, config.precision, "none", None)
    train, val = load_training_images(config, data, accelerator)
    model, normalise, _ = create_model(config, data, Weights(), train, accelerator)
    model.to(accelerator.device)
    fuse_frozen(model, train, normalise, config)
    steps = len(train.labels) // config.batch_size
    optimizer = make_optimizer(config, model)
    learner, optimizer = accelerator.prepare(model, optimizer)
    schedule = make_schedule(config, optimizer.optimizer, steps)
    stamps: list[float] = []

    def enough() -> bool:
        stamps.append(time.monotonic())
        return len(stamps) > 3 and stamps[-1] - stamps[1] > _SECONDS

    batches = augmented_batches(train, normalise, config, accelerator, epoch=1)
    train_epoch(
        *(learner, optimizer, schedule, batches, config, accelerator, Position()),
        first_step=0,
        pauses=enough,
        advance=lambda: None,
    )
    first = min(1, len(stamps) - 2)
    step = (stamps[-1] - stamps[first]) / (len(stamps) - 1 - first) if len(stamps) > 1 else 0.0
    test = load_test_images(config, data, accelerator)
    started = time.monotonic()
    compute_logits(model, test.images[:250], normalise, config.image_size, accelerator)
    image = (time.monotonic() - started) / min(250, len(test.labels))
    tested = config.epochs * len(val.labels) + len(val.labels) + len(test.labels)
    return config.epochs * steps * step + tested * image
