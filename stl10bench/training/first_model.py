"""A config, data and weights -> a run's model before its first step."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from stl10bench.config import SELF_SUPERVISED, RunConfig
from stl10bench.core.device import memory_format
from stl10bench.core.errors import UsageError
from stl10bench.core.seeding import FIT, WEIGHTS, seed_of
from stl10bench.data import augment
from stl10bench.data.loader import Normalise, channel_statistics, load_images, make_normalise
from stl10bench.data.splits import training_rows
from stl10bench.data.stl10 import Dataset
from stl10bench.data.unlabelled import Unlabelled
from stl10bench.models import checkpoint, registry
from stl10bench.models.factory import build_run_model, check_options
from stl10bench.models.methods import FIXMATCH, SEMI_SUPERVISED
from stl10bench.models.pretrained import TEST_IMAGES, UNLABELLED_IMAGES, Weights
from stl10bench.models.timm_backbone import freeze_stages, load_pretrained
from stl10bench.training.evaluate import EVALUATION_BATCH


def create_model(
    config: RunConfig,
    dataset: Dataset,
    weights: Weights,
    training_images: Callable[[], Tensor],
    unlabelled: Unlabelled | None,
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
        seen=seen_before(weights, config, dataset, unlabelled),
        before=weights.configs,
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
    header = checkpoint.parse_header(metadata, path)[1] if weights.configs else None
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
    if header.config.method == SELF_SUPERVISED:  # a backbone alone: the head is the run's own
        check_same_backbone(header.config, config)
        tensors |= checkpoint.tensors_of_head(model)
    left_out = checkpoint.fill_where_fitting(model, tensors, path)
    if left_out and config.takes_steps:  # other methods fit theirs anew
        warnings.warn(
            f"{path}: leaving out its classifier, which does not fit {', '.join(left_out[:3])}",
            stacklevel=2,
        )
    return header.mean, header.std


def check_same_backbone(pretrained: RunConfig, config: RunConfig) -> None:
    """Warn of model options that weights would not show, such as the stride of the stem."""
    theirs, ours = (check_options(each.model, each.model_options) for each in (pretrained, config))
    of_head = {"freeze", "hidden", "dropout", "intermediates", "views"}
    for key in sorted(theirs.keys() - of_head):
        if theirs[key] != ours[key]:
            before, now = (
                ",".join(map(str, value)) if isinstance(value, tuple) else value
                for value in (theirs[key], ours[key])
            )
            warnings.warn(
                f"the backbone was pretrained with {key} = {before}, but this run has {key} = "
                f"{now}: pass --model-option {key}={before}",
                stacklevel=2,
            )


def seen_before(
    weights: Weights, config: RunConfig, dataset: Dataset, unlabelled: Unlabelled | None
) -> tuple[str, ...]:
    """What a run's first weights and its unlabelled images hold: see `pretrained.contamination`."""
    seen, validation = set(weights.seen), training_rows(config, dataset)[1]
    for before in weights.configs:  # all of them: the last run may have seen few images anew
        if before.data != config.data:
            seen.add(f"data {before.data[:12]}")
        elif np.intersect1d(training_rows(before, dataset)[0], validation).size:
            seen.add("validation images")
        if before.method == SELF_SUPERVISED:
            seen.add(UNLABELLED_IMAGES)
    if unlabelled is not None and unlabelled.kept:
        seen.add(TEST_IMAGES)
    return tuple(sorted(seen))


@dataclass(frozen=True)
class InputBatches:
    """Images as a model takes them, without labels or augmentation; can be gone through again.

    Yields float (B, 3, image_size, image_size), normalised, on the device, B at most 250, in order:
    the training images, then the unlabelled ones, which are loaded batch by batch.
    """

    images: Callable[[], Tensor]  # uint8 (N, 3, S, S); called when they are gone through
    normalise: Normalise
    config: RunConfig
    unlabelled: Unlabelled | None = None

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.images()) + len(self.unlabelled or ())

    def __iter__(self) -> Iterator[Tensor]:
        device = self.normalise.mean.device
        for images in chain(torch.split(self.images(), EVALUATION_BATCH), self._unlabelled()):
            yield self.normalise(augment.centre(images.to(device), self.config.image_size))

    def _unlabelled(self) -> Iterator[Tensor]:
        for split, rows in self.unlabelled.parts if self.unlabelled is not None else ():
            for start in range(0, len(rows), EVALUATION_BATCH):
                part = rows[start : start + EVALUATION_BATCH]
                yield load_images(split, part, self.config, self.normalise.mean.device).images


def fit_modules(model: nn.Module, batches: InputBatches, *, fitted: bool = False) -> None:
    """Call `fit(images, seed=...)` of each module that has one, once, before the first step.

    `images` are the training images and the unlabelled ones, `InputBatches`. What a module learns
    from them (whitening, centroids) it keeps in its parameters and buffers: a checkpoint holds it.
    All processes fit to the same images, then take the main one's values. Weights of a run are
    `fitted` already, and what learned behind such a module goes with it. Raises UsageError for
    unlabelled images that nothing learns from.
    """
    fits = [fit for module in model.modules() if callable(fit := getattr(module, "fit", None))]
    config = batches.config
    learns = config.method in (*SEMI_SUPERVISED, SELF_SUPERVISED)
    if batches.unlabelled is not None and (fitted or not fits) and not learns:
        # FixMatch trains every model; the others need the frozen backbone that a probe has.
        method = FIXMATCH if config.takes_steps else SEMI_SUPERVISED[0]
        raise UsageError(
            f"unlabeled = {config.unlabeled}: no effect with model {config.model!r} and --method "
            f"{config.method}; leave it out, or use --method {method}"
        )
    if fitted or not fits:
        return
    model.eval()
    with torch.no_grad():
        for number, fit in enumerate(fits):
            fit(batches, seed=seed_of(batches.config.seed, FIT, number))
        for tensor in chain(model.parameters(), model.buffers()):
            tensor.copy_(broadcast(tensor.contiguous()))
