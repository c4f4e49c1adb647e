"""A config and data -> what a run starts from: images, model, normalisation, header."""

from itertools import permutations

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn

from stl10bench import checkpoint, metrics
from stl10bench.batches import Images, Normalise, load, make_normalise
from stl10bench.config import RunConfig
from stl10bench.data import splits
from stl10bench.data.stl10 import Dataset, folds
from stl10bench.device import memory_format
from stl10bench.errors import DataError, UsageError
from stl10bench.models import registry
from stl10bench.models.weights import Weights
from stl10bench.randomness import WEIGHTS, seed_of


def load_train(
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
    train = load(dataset.train, train_rows, config, accelerator.device)
    return train, load(dataset.train, val_rows, config, accelerator.device)


def training_rows(
    config: RunConfig, dataset: Dataset
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the train split, int64, to train on and to hold out.

    Of a fold all, in the split's order; else of all images or of `labels_per_class`. Raises
    DataError when there are too few images, or no such fold.
    """
    labels = dataset.train.labels
    if config.fold is not None:
        found = folds(dataset)
        if config.fold >= len(found):
            raise DataError(f"fold = {config.fold}: there are {len(found)}, from 0 on")
        return np.sort(found[config.fold]), np.arange(0)
    chosen = splits.subset(labels, config.labels_per_class, config.seed)
    train, val = splits.hold_out(labels[chosen], config.val_fraction, config.seed)
    return chosen[train], chosen[val]


def fold_overlap(dataset: Dataset) -> float:
    """The mean share of a fold's images that are in another fold too, over all pairs, 0..1."""
    sets = [set(fold.tolist()) for fold in folds(dataset)]
    shares = [len(a & b) / len(a) for a, b in permutations(sets, 2)]
    return sum(shares) / len(shares)


def load_test(config: RunConfig, dataset: Dataset, accelerator: Accelerator) -> Images:
    """All images of the test split."""
    return load(dataset.test, np.arange(len(dataset.test.labels)), config, accelerator.device)


def create(
    config: RunConfig, dataset: Dataset, weights: Weights, train: Images, accelerator: Accelerator
) -> tuple[nn.Module, Normalise, checkpoint.Header]:
    """The model with its first weights, what normalises its input, and its checkpoints' header.

    Normalisation is by the backbone's own mean and std where it is pretrained, else by the training
    images' (hold-out excluded), per channel.
    """
    model = build(config, dataset)
    name = registry.backbone(config.model)
    if name is None or weights.file is None:
        mean, std = metrics.channel_statistics(train.images)
    else:
        from stl10bench.models.backbone import load_pretrained

        tensors, _ = checkpoint.read_tensors(weights.file)
        checkpoint.check_finite(tensors, weights.file)
        mean, std = load_pretrained(
            model.get_submodule("backbone"), name, config.image_size, tensors
        )
    normalise = make_normalise(mean, std, memory_format(model), accelerator.device)
    header = checkpoint.Header(config=config, class_names=dataset.class_names, mean=mean, std=std)
    return model, normalise, header


def build(config: RunConfig, dataset: Dataset) -> nn.Module:
    """The model with the random weights of its seed, in its memory layout."""
    torch.manual_seed(seed_of(config.seed, WEIGHTS))
    classes = len(dataset.class_names)
    model = registry.build(config.model, classes, config.image_size, config.model_options)
    return model.to(memory_format=memory_format(model))
