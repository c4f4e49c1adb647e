"""Labels -> which images train and which validate."""

from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from stl10bench.config import RunConfig
from stl10bench.core.errors import DataError
from stl10bench.data.stl10 import Dataset, read_folds

_PURPOSE = 0  # randomness.HOLDOUT, without importing torch
_SUBSET = 5  # randomness.SUBSET


def labelled_subset(
    labels: NDArray[np.int64], per_class: int | None, seed: int
) -> NDArray[np.int64]:
    """Sorted rows of `labels`, `per_class` of each class; all of them with None.

    Nested: with the same seed a larger number adds rows to those of a smaller one. Raises
    DataError when a class has fewer.
    """
    if per_class is None:
        return np.arange(len(labels))
    rng = np.random.default_rng(np.random.SeedSequence((seed, _SUBSET)))
    chosen = []
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        if per_class > count:
            raise DataError(
                f"labels_per_class = {per_class}: class {label} has {count} images; lower it"
            )
        chosen.append(rng.permutation(np.flatnonzero(labels == label))[:per_class])
    return np.sort(np.concatenate(chosen))


def split_validation(
    labels: NDArray[np.int64], fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of `labels` to train on and to hold out, both sorted; a function of its arguments.

    Stratified: of a class with n images round(fraction * n) are held out. Raises DataError when
    that leaves some class without an image on either side.
    """
    everything = np.arange(len(labels))
    if fraction == 0:
        return everything, everything[:0]
    rng = np.random.default_rng(np.random.SeedSequence((seed, _PURPOSE)))
    held = []
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        share = round(fraction * count)
        if not 0 < share < count:
            raise DataError(
                f"val_fraction = {fraction}: class {label} has {count} images, which leaves "
                f"{share} held out and {count - share} to train on; use another --val-fraction"
            )
        held.append(rng.permutation(np.flatnonzero(labels == label))[:share])
    val = np.sort(np.concatenate(held))
    return np.setdiff1d(everything, val), val


def training_rows(
    config: RunConfig, dataset: Dataset
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the train split, int64, to train on and to hold out.

    Of a fold all, in the split's order; else of all images or of `labels_per_class`. Raises
    DataError when there are too few images, or no such fold.
    """
    labels = dataset.train.labels
    if config.fold is not None:
        found = read_folds(dataset)
        if config.fold >= len(found):
            raise DataError(f"fold = {config.fold}: there are {len(found)}, from 0 on")
        return np.sort(found[config.fold]), np.arange(0)
    chosen = labelled_subset(labels, config.labels_per_class, config.seed)
    train, val = split_validation(labels[chosen], config.val_fraction, config.seed)
    return chosen[train], chosen[val]


def fold_overlap(dataset: Dataset) -> float:
    """The mean share of a fold's images that are in another fold too, over all pairs, 0..1."""
    sets = [set(fold.tolist()) for fold in read_folds(dataset)]
    shares = [len(a & b) / len(a) for a, b in permutations(sets, 2)]
    return sum(shares) / len(shares)
