"""A config -> how long its run will take, from a few of its steps."""

import time

from stl10bench import device as machine
from stl10bench.batches import augmented
from stl10bench.config import RunConfig
from stl10bench.data.stl10 import Dataset
from stl10bench.epoch import train_epoch
from stl10bench.evaluation import evaluate, fold_frozen
from stl10bench.models.weights import Weights
from stl10bench.prepare import create, load_test, load_train
from stl10bench.schedule import make_optimizer, make_schedule
from stl10bench.state import Position

_SECONDS = 2.0  # of steps, after the first two, which are slower


def seconds(config: RunConfig, data: Dataset, kind: str) -> float:
    """What training and testing will take on the device `kind`, without the start of a process.

    Steps are taken for two seconds with random weights, and 250 images tested. With
    `cache_views` the steps are those without: too much is said, not too little. Raises what a run
    raises for settings that do not fit.
    """
    accelerator = machine.make_accelerator(kind, config.precision, "none", None)
    train, val = load_train(config, data, accelerator)
    model, normalise, _ = create(config, data, Weights(), train, accelerator)
    model.to(accelerator.device)
    fold_frozen(model, train, normalise, config)
    steps = len(train.labels) // config.batch_size
    optimizer = make_optimizer(config, model)
    learner, optimizer = accelerator.prepare(model, optimizer)
    schedule = make_schedule(config, optimizer.optimizer, steps)
    stamps: list[float] = []

    def enough() -> bool:
        stamps.append(time.monotonic())
        return len(stamps) > 3 and stamps[-1] - stamps[1] > _SECONDS

    batches = augmented(train, normalise, config, accelerator, epoch=1)
    train_epoch(
        *(learner, optimizer, schedule, batches, config, accelerator, Position()),
        first_step=0,
        pauses=enough,
        advance=lambda: None,
    )
    first = min(1, len(stamps) - 2)
    step = (stamps[-1] - stamps[first]) / (len(stamps) - 1 - first) if len(stamps) > 1 else 0.0
    test = load_test(config, data, accelerator)
    started = time.monotonic()
    evaluate(model, test.images[:250], normalise, config.image_size, accelerator)
    image = (time.monotonic() - started) / min(250, len(test.labels))
    tested = config.epochs * len(val.labels) + len(val.labels) + len(test.labels)
    return config.epochs * steps * step + tested * image
