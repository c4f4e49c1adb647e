"""A config and data -> what a run starts from: images, model, normalisation, header."""

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from stl10bench.config import RunConfig
from stl10bench.core.device import memory_format
from stl10bench.core.errors import UsageError
from stl10bench.core.seeding import WEIGHTS, seed_of
from stl10bench.data.loader import (
    Images,
    Normalise,
    channel_statistics,
    load_images,
    make_normalise,
)
from stl10bench.data.splits import training_rows
from stl10bench.data.stl10 import Dataset
from stl10bench.models import checkpoint, registry
from stl10bench.models.factory import build_model
from stl10bench.models.pretrained import Weights
from stl10bench.models.timm_backbone import load_pretrained


def load_training_images(
    config: RunConfig, dataset: Dataset, accelerator: Accelerator
) -> tuple[Images, Images]:
    """The images to train on, and the hold-out (none with val_fraction 0).

    Raises UsageError when the batch does not fit the images or the processes, and DataError.
    """
    train_rows, val_rows = training_rows(config, dataset)
    if config.batch_size > len(train_rows):
        raise UsageError(
            f"batch_size = {config.batch_size}: there are only {len(train_rows)} training images; "
            "lower --batch-size"
        )
    if config.batch_size % accelerator.num_processes:
        raise UsageError(
            f"batch_size = {config.batch_size}: the global batch must be divisible by the "
            f"{accelerator.num_processes} processes"
        )
    train = load_images(dataset.train, train_rows, config, accelerator.device)
    return train, load_images(dataset.train, val_rows, config, accelerator.device)


def load_test_images(config: RunConfig, dataset: Dataset, accelerator: Accelerator) -> Images:
    """All images of the test split."""
    return load_images(
        dataset.test, np.arange(len(dataset.test.labels)), config, accelerator.device
    )


def create_model(
    config: RunConfig, dataset: Dataset, weights: Weights, train: Images, accelerator: Accelerator
) -> tuple[nn.Module, Normalise, checkpoint.Header]:
    """The model with its first weights, what normalises its input, and its checkpoints' header.

    Normalisation is by the backbone's own mean and std where it is pretrained, else by the training
    images' (hold-out excluded), per channel.
    """
    model = build_random_model(config, dataset)
    name = registry.backbone_name(config.model)
    if name is None or weights.file is None:
        mean, std = channel_statistics(train.images)
    else:
        tensors, _ = checkpoint.read_tensors(weights.file)
        checkpoint.check_finite(tensors, weights.file)
        mean, std = load_pretrained(
            model.get_submodule("backbone"), name, config.image_size, tensors
        )
    normalise = make_normalise(mean, std, memory_format(model), accelerator.device)
    header = checkpoint.Header(config=config, class_names=dataset.class_names, mean=mean, std=std)
    return model, normalise, header


def build_random_model(config: RunConfig, dataset: Dataset) -> nn.Module:
    """The model with the random weights of its seed, in its memory layout."""
    torch.manual_seed(seed_of(config.seed, WEIGHTS))
    classes = len(dataset.class_names)
    model = build_model(config.model, classes, config.image_size, config.model_options)
    return model.to(memory_format=memory_format(model))
