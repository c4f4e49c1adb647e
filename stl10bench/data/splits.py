"""Labels -> which images train and which are held out."""

import numpy as np
from numpy.typing import NDArray

from stl10bench.errors import DataError

_PURPOSE = 0  # randomness.HOLDOUT, without importing torch
_SUBSET = 5  # randomness.SUBSET


def subset(labels: NDArray[np.int64], per_class: int | None, seed: int) -> NDArray[np.int64]:
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


def hold_out(
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
