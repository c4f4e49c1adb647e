"""Logits and labels -> confusion matrix, macro F1, and what else a row says of them."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl10bench.metrics import calibration
from stl10bench.metrics.calibration import Labels


def measures(
    logits: NDArray[Any], labels: Labels, validation: tuple[NDArray[Any], Labels] | None = None
) -> dict[str, Any]:
    """A row's test metrics beside loss and accuracy, as JSON, of logits (N, C) and labels (N,).

    - `test_macro_f1`: the mean over classes of 2 hits / (images + predictions), 0..1
    - `test_ece`, `test_brier`: see calibration
    - `test_temperature`: fitted on the logits (V, C) and labels (V,) of `validation`
    - `test_loss_scaled`, `test_ece_scaled`, `test_brier_scaled`: of the logits over it
    - `test_notes`: why one of these is None, or was not made as usual, a line each
    - `per_class_accuracy`: (C,) the share of each class's images classified correctly, 0..1

    In float64; of equal logits the first class counts. A class without images has None in place of
    an accuracy; one that was not predicted either is left out of the macro F1.
    """
    logits = logits.astype(np.float64)
    if validation is not None:
        validation = validation[0].astype(np.float64), validation[1]
    counts = confusion_matrix(logits, labels)
    images, hits = counts.sum(1).tolist(), counts.diagonal().tolist()
    return {
        "test_macro_f1": macro_f1(counts),
        **calibration.measures(logits, labels, validation),
        "per_class_accuracy": [h / n if n else None for h, n in zip(hits, images, strict=True)],
    }


def confusion_matrix(logits: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 (C, C): images by true class (row) and predicted class (column)."""
    classes = logits.shape[1]
    cells = np.bincount(labels * classes + logits.argmax(1), minlength=classes**2)
    return cells.reshape(classes, classes)


def macro_f1(counts: NDArray[np.int64]) -> float:
    """The mean F1 of the classes in a confusion matrix that have images or predictions, 0..1."""
    sums = counts.sum(0) + counts.sum(1)
    return float((2 * counts.diagonal()[sums > 0] / sums[sums > 0]).mean())


def none_if_not_finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """The values, with None for NaN and infinities, which JSON does not have."""
    return {key: value if math.isfinite(value) else None for key, value in values.items()}
