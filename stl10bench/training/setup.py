"""A job, data and weights -> the run: images, model, optimizer and schedule, where it left off."""

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import broadcast
from rich.console import Console
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from stl10bench.config import RunConfig
from stl10bench.core.device import memory_format
from stl10bench.core.errors import CheckpointError, StorageError, UsageError
from stl10bench.core.seeding import FIT, WEIGHTS, seed_of
from stl10bench.data import augment
from stl10bench.data.loader import (
    Images,
    Normalise,
    augmented_batches,
    cached_batches,
    channel_statistics,
    load_images,
    make_normalise,
)
from stl10bench.data.mix import mixed_batches
from stl10bench.data.splits import training_rows
from stl10bench.data.stl10 import Dataset
from stl10bench.models import checkpoint, registry
from stl10bench.models.check import check_training
from stl10bench.models.classifier import Classifier
from stl10bench.models.factory import build_run_model
from stl10bench.models.methods import SUPERVISED
from stl10bench.models.pretrained import Weights
from stl10bench.models.timm_backbone import freeze_stages, load_pretrained
from stl10bench.results.run_folder import RunFolder
from stl10bench.training import resume
from stl10bench.training.ema import Ema
from stl10bench.training.evaluate import EVALUATION_BATCH, features_of_views, fuse_frozen
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
    ema: Ema | None  # of the model's weights; then it is what is evaluated and kept
    schedule: LRScheduler
    batches: Callable[..., Iterator[tuple[Tensor, Tensor]]]  # (epoch=, start=)
    steps_per_epoch: int


def set_up(
    job: Job, accelerator: Accelerator, dataset: Dataset, weights: Weights, console: Console
) -> tuple[Training, checkpoint.Header, State | None]:
    """The run, its checkpoints' header before the first epoch, and the state that it resumes from.

    Raises UsageError for settings that do not fit the data or the processes, DataError,
    CheckpointError, and StorageError when the disk has no room for the checkpoints.
    """
    config = job.config
    train, validation = load_training_images(config, dataset, accelerator)
    steps = len(train.labels) // config.batch_size
    model, normalise, header = create_model(
        config, dataset, weights, lambda: train.images, accelerator
    )
    resume.check_room(job.folder, model, averaged=config.ema is not None)
    state = resume.newest(job.folder, config)
    taken = 0
    if state is not None:
        taken = state.position.step(steps)
        fill_weights(model, state, job.folder, steps)
        resume_threads(state, accelerator, console)
    check_agreement(taken, job.folder, accelerator)
    model.to(accelerator.device)
    if state is None:  # else it has been trained already
        check_training(
            config.model,
            model,
            len(dataset.class_names),
            config.image_size,
            batch=config.batch_size // accelerator.num_processes,
            autocast=accelerator.autocast(),
        )
    started = time.monotonic() - (state.position.total_seconds if state is not None else 0.0)
    if state is None:
        fit_modules(model, InputBatches(lambda: train.images, normalise, config))
    fuse_frozen(model, train, normalise, config)

    learner, batches = model, partial(augmented_batches, train, normalise, config, accelerator)
    if config.cache_views:  # only the rest learns, on features that are computed once
        assert isinstance(model, Classifier)  # checked with the settings
        few = augment.centre(train.images[:4].to(accelerator.device), config.image_size)
        front, learner = model.front_and_rest(normalise(few))
        views = features_of_views(front, train, normalise, config, accelerator)
        batches = partial(cached_batches, views, train.labels, config, accelerator)
    if config.mixup or config.cutmix:
        classes = len(dataset.class_names)
        batches = partial(mixed_batches, batches, config, accelerator, classes)
    optimizer = make_optimizer(config, model)
    ema = None if config.ema is None else Ema(model, config.ema)
    learner, optimizer = accelerator.prepare(learner, optimizer)
    if job.compile:
        learner = torch.compile(learner)  # type: ignore[assignment]
    # Not prepared: accelerate would step it once per process.
    schedule = make_schedule(config, optimizer.optimizer, steps, taken=taken)
    if state is not None:
        restore(state, optimizer, accelerator)
        if ema is not None:
            ema.load(state.ema, job.folder.path)
        if accelerator.is_main_process:
            resume.forget_after(job.folder, taken)
        console.print(
            f"Resuming at epoch {state.position.epoch + 1}/{config.epochs}, "
            f"step {state.position.batch}/{steps}",
            highlight=False,
        )
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
        ema=ema,
        schedule=schedule,
        batches=batches,
        steps_per_epoch=steps,
        started=started,
    )
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


def load_test_images(
    config: RunConfig, dataset: Dataset, accelerator: Accelerator, *, count: int | None = None
) -> Images:
    """All images of the test split, or the first `count`."""
    rows = np.arange(len(dataset.test.labels))[:count]
    return load_images(dataset.test, rows, config, accelerator.device)


def create_model(
    config: RunConfig,
    dataset: Dataset,
    weights: Weights,
    training_images: Callable[[], Tensor],
    accelerator: Accelerator,
) -> tuple[nn.Module, Normalise, checkpoint.Header]:
    """The model with its first weights, what normalises its input, and its checkpoints' header.

    Normalisation is by the backbone's own mean and std where it is pretrained, else by the training
    images' (validation images excluded), per channel.
    """
    torch.manual_seed(seed_of(config.seed, WEIGHTS))
    classes = len(dataset.class_names)
    model = build_run_model(config, classes)
    model = model.to(memory_format=memory_format(model))
    if config.freeze_stages:
        freeze_stages(model, config.freeze_stages)
    if weights.file is None:
        mean, std = channel_statistics(training_images())
    else:
        mean, std = load_weights(model, config, weights, dataset.class_names)
    normalise = make_normalise(mean, std, memory_format(model), accelerator.device)
    header = checkpoint.Header(
        config=config,
        class_names=dataset.class_names,
        mean=mean,
        std=std,
        seen=seen_before(weights, config, dataset),
    )
    return model, normalise, header


def load_weights(
    model: nn.Module, config: RunConfig, weights: Weights, class_names: tuple[str, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Give a model its first weights; returns the mean and std that its input is normalised by.

    Weights in timm's keys fill the backbone; a checkpoint of a run the whole model, but for a
    classifier of other classes or another size, with a warning. Raises CheckpointError for weights
    that do not fit or are damaged.
    """
    path, name = weights.file, registry.backbone_name(config.model)
    assert path is not None
    tensors, metadata = checkpoint.read_tensors(path)
    of_backbone = {
        key.removeprefix("backbone."): value
        for key, value in tensors.items()
        if key.startswith("backbone.")
    }
    header = None if weights.config is None else checkpoint.parse_header(metadata, path)[1]
    if header is None or (name is not None and not of_backbone):  # timm's keys: also an export's
        assert name is not None  # checked when the weights were chosen
        checkpoint.check_finite(tensors, path)
        backbone = model.get_submodule("backbone")
        mean, std = load_pretrained(backbone, name, config.image_size, tensors)
        return (mean, std) if header is None else (header.mean, header.std)
    checkpoint.verified(tensors, metadata, path)
    if name is not None:  # timm adapts what depends on the size
        load_pretrained(model.get_submodule("backbone"), name, config.image_size, of_backbone)
        adapted = model.get_submodule("backbone").state_dict()
        tensors |= {f"backbone.{key}": value for key, value in adapted.items()}
    if header.class_names != class_names:
        tensors = {key: v for key, v in tensors.items() if not checkpoint.in_classifier(model, key)}
    left_out = checkpoint.fill_where_fitting(model, tensors, path)
    if left_out and config.method == SUPERVISED:  # other methods fit theirs anew
        warnings.warn(
            f"{path}: leaving out its classifier, which does not fit {', '.join(left_out[:3])}",
            stacklevel=2,
        )
    return header.mean, header.std


def seen_before(weights: Weights, config: RunConfig, dataset: Dataset) -> tuple[str, ...]:
    """What a run's first weights learned from: see `pretrained.contamination`."""
    seen = set(weights.seen)
    if (before := weights.config) is not None:
        if before.data != config.data:
            seen.add(f"data {before.data[:12]}")
        elif np.intersect1d(
            training_rows(before, dataset)[0], training_rows(config, dataset)[1]
        ).size:
            seen.add("validation images")
    return tuple(sorted(seen))


@dataclass(frozen=True)
class InputBatches:
    """Images as a model takes them, without labels or augmentation; can be gone through again.

    Yields float (B, 3, image_size, image_size), normalised, on the device, B at most 250, in order.
    """

    images: Callable[[], Tensor]  # uint8 (N, 3, S, S); called when they are gone through
    normalise: Normalise
    config: RunConfig

    def __iter__(self) -> Iterator[Tensor]:
        for images in torch.split(self.images(), EVALUATION_BATCH):
            images = images.to(self.normalise.mean.device)
            yield self.normalise(augment.centre(images, self.config.image_size))


def fit_modules(model: nn.Module, batches: InputBatches) -> None:
    """Call `fit(images, seed=...)` of each module that has one, once, before the first step.

    `images` are the training images, `InputBatches`. What a module learns from them (whitening,
    centroids) it keeps in its parameters and buffers: a checkpoint holds it. All processes fit to
    the same images, then take the main one's values.
    """
    fits = [fit for module in model.modules() if callable(fit := getattr(module, "fit", None))]
    if not fits:
        return
    model.eval()
    with torch.no_grad():
        for number, fit in enumerate(fits):
            fit(batches, seed=seed_of(batches.config.seed, FIT, number))
        for tensor in chain(model.parameters(), model.buffers()):
            tensor.copy_(broadcast(tensor.contiguous()))


def fill_weights(model: nn.Module, state: State, folder: RunFolder, steps: int) -> None:
    """Give the model its stored weights; raises CheckpointError for a state that cannot be."""
    if state.position.batch > steps:
        raise CheckpointError(
            f"{folder.path}: its checkpoint is at step {state.position.batch} of {steps}"
        )
    if state.best is not None:  # the best weights must fit as well
        checkpoint.check_fit(model, state.best.weights, folder.path)
    checkpoint.fill(model, state.model, folder.path)


def resume_threads(state: State, accelerator: Accelerator, console: Console) -> None:
    """Compute with as many threads as the run began with: another number gives other bits."""
    same_processes = state.processes == accelerator.num_processes
    if state.threads is None or not same_processes or state.threads == torch.get_num_threads():
        return
    threads = f"{state.threads} thread{'s'[: state.threads - 1]}"
    console.print(f"Using {threads}, as at the start of the run", highlight=False)
    torch.set_num_threads(state.threads)


def check_agreement(step: int, folder: RunFolder, accelerator: Accelerator) -> None:
    """Raise StorageError unless all processes found a checkpoint of the same step."""
    steps = accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist()
    if len(set(steps)) > 1:
        raise StorageError(
            f"the processes found checkpoints of different steps {steps} in {folder.path}: put the "
            "runs folder on a disk that they share"
        )


def restore(state: State, optimizer: AcceleratedOptimizer, accelerator: Accelerator) -> None:
    """Give optimizer and loss scaling what they had; raises CheckpointError when it does not fit.

    Warns when the number of processes is another: their rows then add up in another order.
    """
    resume.restore_optimizer(optimizer.optimizer, state.optimizer)
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(state.scaler)
    if state.processes != accelerator.num_processes:
        warnings.warn(
            f"this run was trained by {_processes(state.processes)} and resumes with "
            f"{_processes(accelerator.num_processes)}: rounding and dropout will differ from an "
            "uninterrupted run",
            stacklevel=2,
        )


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"
