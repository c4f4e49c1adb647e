"""Labels -> which images train and which validate."""

from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from stl10bench.config import RunConfig
from stl10bench.core.errors import DataError
from stl10bench.core.seeding import K_FOLD, SUBSET, VALIDATION, numpy_generator
from stl10bench.data.stl10 import Dataset, Labels, read_folds

Rows = NDArray[np.int64]


def labelled_subset(labels: Labels, per_class: int | None, seed: int) -> Rows:
    """Sorted int64 rows of `labels` (N,), `per_class` of each class; all rows with None.

    Nested: with the same seed a larger number adds rows to those of a smaller one. Raises
    DataError when a class has fewer.
    """
    if per_class is None:
        return np.arange(len(labels))
    rng = numpy_generator(seed, SUBSET)
    chosen = []
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        if per_class > count:
            raise DataError(
                f"labels_per_class = {per_class}: class {label} has only {count} images; lower it"
            )
        chosen.append(rng.permutation(np.flatnonzero(labels == label))[:per_class])
    return np.sort(np.concatenate(chosen))


def split_validation(labels: Labels, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Sorted int64 rows of `labels` (N,) for training and for validation.

    Stratified: of a class with n images round(fraction * n) are for validation; a function of the
    arguments alone. Raises DataError when a class would have no image on one of the two sides.
    """
    rows = np.arange(len(labels))
    if fraction == 0:
        return rows, rows[:0]
    rng = numpy_generator(seed, VALIDATION)
    chosen = []
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        share = round(fraction * count)
        if not 0 < share < count:
            raise DataError(
                f"val_fraction = {fraction}: class {label} has {count} images, {share} for "
                f"validation and {count - share} for training; use another --val-fraction"
            )
        chosen.append(rng.permutation(np.flatnonzero(labels == label))[:share])
    val = np.sort(np.concatenate(chosen))
    return np.setdiff1d(rows, val), val


def stratified_parts(labels: Labels, parts: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The part, 0 to `parts` - 1, of each of `labels` (N,): of each class as equal as can be."""
    part_of = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        part_of[rows] = np.arange(len(rows)) % parts
    return part_of


def training_rows(config: RunConfig, dataset: Dataset) -> tuple[Rows, Rows]:
    """Sorted int64 rows of the train split for training and for validation.

    With `config.fold` that fold, all for training; with `config.k_fold` one of so many stratified
    parts for validation and the others for training; else a stratified split of all images or of
    `config.labels_per_class`. Raises DataError when there are too few images, or no such fold.
    """
    labels = dataset.train.labels
    if config.fold is not None:
        folds = read_folds(dataset)
        if config.fold >= len(folds):
            raise DataError(f"fold = {config.fold}: the data have folds 0 to {len(folds) - 1}")
        return np.sort(folds[config.fold]), np.arange(0)
    if config.k_fold is not None:
        smallest = int(np.unique(labels, return_counts=True)[1].min())
        if smallest < config.k_fold:
            raise DataError(
                f"k_fold = {config.k_fold}: a class has only {smallest} images; lower --k-fold"
            )
        rng = numpy_generator(config.seed, K_FOLD)
        validates = stratified_parts(labels, config.k_fold, rng) == config.k_fold_part
        return np.flatnonzero(~validates), np.flatnonzero(validates)
    chosen = labelled_subset(labels, config.labels_per_class, config.seed)
    train, val = split_validation(labels[chosen], config.val_fraction, config.seed)
    return chosen[train], chosen[val]


def fold_overlap(dataset: Dataset) -> float:
    """The mean share of a fold's images that are in another fold too, over all pairs, 0..1.

    0 for a single fold.
    """
    sets = [set(fold.tolist()) for fold in read_folds(dataset)]
    shares = [len(a & b) / len(a) for a, b in permutations(sets, 2)]
    return sum(shares) / max(1, len(shares))
