"""A job, data and weights -> the run: images, model, optimizer and schedule, where it left off."""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from rich.console import Console
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from stl10bench.config import SELF_SUPERVISED, RunConfig
from stl10bench.core.errors import CheckpointError, StorageError, UsageError
from stl10bench.data import augment
from stl10bench.data.loader import (
    Images,
    Normalise,
    augmented_batches,
    cached_batches,
    load_images,
)
from stl10bench.data.mix import mixed_batches
from stl10bench.data.splits import training_rows
from stl10bench.data.stl10 import Dataset
from stl10bench.data.unlabelled import Unlabelled, find_unlabelled
from stl10bench.data.views import (
    Views,
    image_reader,
    pairs_of_views,
    weak_and_strong,
    with_views,
)
from stl10bench.models import checkpoint
from stl10bench.models.check import check_training
from stl10bench.models.classifier import Classifier
from stl10bench.models.methods import FIXMATCH, method_options
from stl10bench.models.pretrained import Weights
from stl10bench.results.run_folder import RunFolder
from stl10bench.training import resume
from stl10bench.training.ema import Ema
from stl10bench.training.evaluate import features_of_views, fuse_frozen
from stl10bench.training.first_model import InputBatches, create_model, fit_modules
from stl10bench.training.job import Job
from stl10bench.training.optim import make_optimizer, make_schedule
from stl10bench.training.resume import State


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that a run is made of, whatever its method; nothing of it is replaced."""

    job: Job
    dataset: Dataset
    weights: Weights  # that the model starts from
    accelerator: Accelerator
    console: Console
    model: nn.Module  # whole and unprepared: what is evaluated and saved
    normalise: Normalise
    started: float  # on the monotonic clock, as if the run had never been interrupted
    unlabelled: Unlabelled | None  # images that it learns from beside the labelled ones

    @property
    def config(self) -> RunConfig:
        return self.job.config

    @property
    def folder(self) -> RunFolder:
        return self.job.folder

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return bool(self.accelerator.is_main_process)

    @property
    def tested_file(self) -> Path:
        """The checkpoint that is tested: the best epoch's, or the last where none is chosen."""
        return self.folder.tested_file(self.config)

    def seconds(self) -> float:
        """Seconds of training and validation so far, all sessions together."""
        return time.monotonic() - self.started


@dataclass(frozen=True, kw_only=True)
class Training(Run):
    """A run that takes gradient steps."""

    train: Images
    validation: Images  # none with val_fraction 0
    learner: nn.Module  # prepared: what takes the batches, the model or its head alone
    optimizer: AcceleratedOptimizer
    class_weights: Tensor | None  # float32 (C,), of the loss
    ema: Ema | None  # of the model's weights; then it is what is evaluated and kept
    schedule: LRScheduler
    batches: Callable[..., Iterator[tuple[Tensor, ...]]]  # (epoch=, start=); see `losses`
    steps_per_epoch: int


def set_up(
    job: Job, accelerator: Accelerator, dataset: Dataset, weights: Weights, console: Console
) -> tuple[Training, checkpoint.Header, State | None]:
    """The run, its checkpoints' header before the first epoch, and the state that it resumes from.

    Raises UsageError for settings that do not fit the data or the processes, DataError,
    CheckpointError, and StorageError when the disk has no room for the checkpoints.
    """
    config, classes = job.config, len(dataset.class_names)
    train, validation = load_training_images(config, dataset, accelerator)
    unlabelled = find_unlabelled(config, dataset)
    steps = count_steps(config, len(train.labels), unlabelled)
    model, normalise, header = create_model(
        config, dataset, weights, lambda: train.images, unlabelled, accelerator
    )
    resume.check_room(job.folder, model, averaged=config.ema is not None)
    state = stored_state(job, model, steps, accelerator, console)
    taken = 0 if state is None else state.position.step(steps)
    model.to(accelerator.device)
    if state is None:  # else it has been trained already
        check_parts(config, model, classes, accelerator)
    started = time.monotonic() - (state.position.total_seconds if state is not None else 0.0)
    if state is None:
        images = InputBatches(lambda: train.images, normalise, config, unlabelled)
        fit_modules(model, images, fitted=bool(weights.configs))
    fuse_frozen(model, train, normalise, config)
    learner, batches = learner_and_batches(model, train, normalise, config, accelerator, classes)
    if config.method in (FIXMATCH, SELF_SUPERVISED):
        assert unlabelled is not None  # or it would be another run
        views = make_views(unlabelled, normalise, config, accelerator)
        batches = partial(with_views, batches, views, steps)
        if config.method == SELF_SUPERVISED:
            batches = partial(pairs_of_views, views, steps)
    optimizer = make_optimizer(config, model)
    ema = None if config.ema is None else Ema(model, config.ema)
    learner, optimizer = accelerator.prepare(learner, optimizer)
    if job.compile:
        learner = torch.compile(learner)  # type: ignore[assignment]
    run = Training(
        job=job,
        dataset=dataset,
        weights=weights,
        accelerator=accelerator,
        console=console,
        train=train,
        validation=validation,
        model=model,
        normalise=normalise,
        learner=learner,
        optimizer=optimizer,
        class_weights=class_weights(config, train.labels, classes),
        ema=ema,
        # Not prepared: accelerate would step it once per process.
        schedule=make_schedule(config, optimizer.optimizer, steps, taken=taken),
        batches=batches,
        steps_per_epoch=steps,
        started=started,
        unlabelled=unlabelled,
    )
    if state is not None:
        restore(run, state)
    return run, header, state


def load_training_images(
    config: RunConfig, dataset: Dataset, accelerator: Accelerator
) -> tuple[Images, Images]:
    """The images to train on, and those to validate on (none with val_fraction 0).

    Raises UsageError when the batch does not fit the images or the processes, and DataError.
    """
    train_rows, val_rows = training_rows(config, dataset)
    if config.batch_size > len(train_rows):
        raise UsageError(
            f"batch_size = {config.batch_size} is larger than the {len(train_rows)} training "
            "images: lower --batch-size"
        )
    if config.batch_size % accelerator.num_processes:
        raise UsageError(
            f"batch_size = {config.batch_size}: must be divisible by the "
            f"{accelerator.num_processes} processes; change --batch-size"
        )
    share = config.batch_size // accelerator.num_processes
    if (config.mixup or config.cutmix) and accelerator.num_processes > 1 and share % 2:
        raise UsageError(
            f"batch_size = {config.batch_size}: mixup and cutmix need an even number of images on "
            f"each of the {accelerator.num_processes} processes; change --batch-size"
        )
    train = load_images(dataset.train, train_rows, config, accelerator.device)
    return train, load_images(dataset.train, val_rows, config, accelerator.device)


def class_weights(config: RunConfig, labels: Tensor, classes: int) -> Tensor | None:
    """float32 (C,): images / (classes x images of the class), as scikit-learn's "balanced".

    Of the labels (N,) to train on; None without `class_weights`. A class without any has 0.
    """
    if config.class_weights == "none":
        return None
    counts = torch.bincount(labels, minlength=classes)
    weights = len(labels) / (classes * counts.clamp(min=1))
    return torch.where(counts > 0, weights, 0.0)


def load_test_images(
    config: RunConfig, dataset: Dataset, accelerator: Accelerator, *, count: int | None = None
) -> Images:
    """All images of the test split, or the first `count`."""
    rows = np.arange(len(dataset.test.labels))[:count]
    return load_images(dataset.test, rows, config, accelerator.device)


def learner_and_batches(
    model: nn.Module,
    train: Images,
    normalise: Normalise,
    config: RunConfig,
    accelerator: Accelerator,
    classes: int,
) -> tuple[nn.Module, Callable[..., Iterator[tuple[Tensor, ...]]]]:
    """What takes the batches, the model or what of it is not frozen, and the batches of an epoch.

    Raises UsageError for stages that cannot be cached, StorageError for views beyond the memory.
    """
    learner, batches = model, partial(augmented_batches, train, normalise, config, accelerator)
    if config.cache_views:  # only the rest learns, on features that are computed once
        assert isinstance(model, Classifier)  # checked with the settings
        few = augment.centre(train.images[:4].to(accelerator.device), config.image_size)
        front, learner = model.front_and_rest(normalise(few))
        views = features_of_views(front, train, normalise, config, accelerator)
        batches = partial(cached_batches, views, train.labels, config, accelerator)
    if config.mixup or config.cutmix:
        batches = partial(mixed_batches, batches, config, accelerator, classes)
    return learner, batches


def count_steps(config: RunConfig, images: int, unlabelled: Unlabelled | None) -> int:
    """The steps of an epoch: a pass over the images with labels; of pretraining, those without.

    Raises UsageError where the unlabelled images make no batch.
    """
    if config.method == SELF_SUPERVISED:
        images = len(unlabelled or ())
        if images < config.batch_size:
            raise UsageError(
                f"batch_size = {config.batch_size} is larger than the {images} unlabelled images: "
                "lower --batch-size"
            )
    return images // config.batch_size


def make_views(
    unlabelled: Unlabelled, normalise: Normalise, config: RunConfig, accelerator: Accelerator
) -> Views:
    """Two views of unlabelled images: of FixMatch weak and strong, of SimCLR alike.

    A batch of FixMatch has `uratio` of them to a labelled one.
    """
    ratio, kinds = 1, (config, config)
    if config.method == FIXMATCH:
        ratio, kinds = method_options(config).uratio, weak_and_strong(config)
    return Views(
        read=image_reader(unlabelled, config, accelerator.device),
        count=len(unlabelled),
        kinds=kinds,
        size=ratio * config.batch_size,
        normalise=normalise,
        accelerator=accelerator,
    )


def check_parts(
    config: RunConfig, model: nn.Module, classes: int, accelerator: Accelerator
) -> None:
    """Raise UsageError unless `model` can be trained on the smallest part of a batch."""
    if config.method == SELF_SUPERVISED:
        classes = method_options(config).projection
    share = config.batch_size // accelerator.num_processes
    part = math.ceil(share / config.grad_accum)  # as `epoch.backward` cuts them
    check_training(
        config.model,
        model,
        classes,
        config.image_size,
        batch=share % part or part,
        autocast=accelerator.autocast(),
    )


def stored_state(
    job: Job, model: nn.Module, steps: int, accelerator: Accelerator, console: Console
) -> State | None:
    """The state that a run resumes from, its weights in `model`; None for a new run.

    Raises CheckpointError for a state that cannot be, StorageError unless all processes have it.
    """
    state = resume.newest(job.folder, job.config)
    if state is not None:
        if state.position.batch > steps:
            raise CheckpointError(
                f"{job.folder.path}: its checkpoint is at step {state.position.batch} of {steps}"
            )
        if state.best is not None:  # the best weights must fit as well
            checkpoint.check_fit(model, state.best.weights, job.folder.path)
        checkpoint.fill(model, state.model, job.folder.path)
        resume_threads(state, accelerator, console)
    check_agreement(0 if state is None else state.position.step(steps), job.folder, accelerator)
    return state


def resume_threads(state: State, accelerator: Accelerator, console: Console) -> None:
    """Compute with as many threads as the run began with: another number gives other bits."""
    same_processes = state.processes == accelerator.num_processes
    if state.threads is None or not same_processes or state.threads == torch.get_num_threads():
        return
    threads = f"{state.threads} thread{'s'[: state.threads - 1]}"
    console.print(f"Using {threads}, as at the start of the run", highlight=False, soft_wrap=True)
    torch.set_num_threads(state.threads)


def check_agreement(step: int, folder: RunFolder, accelerator: Accelerator) -> None:
    """Raise StorageError unless all processes found a checkpoint of the same step."""
    steps = accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist()
    if len(set(steps)) > 1:
        raise StorageError(
            f"the processes found checkpoints of different steps {steps} in {folder.path}: put the "
            "runs folder on a disk that they share"
        )


def restore(run: Training, state: State) -> None:
    """Give optimizer, loss scaling and moving average what they had, and forget newer checkpoints.

    Raises CheckpointError for what does not fit. Warns when the number of processes is another:
    their rows then add up in another order.
    """
    accelerator, steps = run.accelerator, run.steps_per_epoch
    resume.restore_optimizer(run.optimizer.optimizer, state.optimizer)
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(state.scaler)
    if state.processes != accelerator.num_processes:
        warnings.warn(
            f"this run was trained by {_processes(state.processes)} and resumes with "
            f"{_processes(accelerator.num_processes)}: rounding and dropout will differ from an "
            "uninterrupted run",
            stacklevel=2,
        )
    if run.ema is not None:
        run.ema.load(state.ema, run.folder.path)
    if run.is_main:
        resume.forget_after(run.folder, state.position.step(steps))
    run.console.print(
        f"Resuming at epoch {state.position.epoch + 1}/{run.config.epochs}, "
        f"step {state.position.batch}/{steps}",
        highlight=False,
        soft_wrap=True,
    )


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"
