"""Logits and labels -> loss, accuracy, confusion matrix, macro F1, calibration and hits."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from stl10bench.metrics import calibration
from stl10bench.metrics.significance import encode_hits


def score(logits: Tensor, labels: Tensor, split: str) -> dict[str, float]:
    """`<split>/loss`, the mean NLL in nats, and `<split>/accuracy`, top-1 in 0..1.

    Of logits (N, C) and labels (N,), in float64 on the CPU. The first of equal logits is the
    prediction; hits are counted as integers.
    """
    logits, labels = logits.cpu().double(), labels.cpu()
    hits = int((logits.argmax(1) == labels).sum())
    return {
        f"{split}/loss": F.cross_entropy(logits, labels).item(),
        f"{split}/accuracy": hits / len(labels),
    }


def measures(
    logits: Tensor,
    labels: Tensor,
    val_logits: Tensor | None = None,
    val_labels: Tensor | None = None,
) -> dict[str, Any]:
    """A row's test metrics beside loss and accuracy, as JSON, of logits (N, C) and labels (N,).

    - `test_macro_f1`: the mean over classes of 2 hits / (images + predictions), 0..1
    - `test_ece`, `test_brier`: see calibration
    - `test_temperature`: fitted on the validation images, `val_logits` (V, C), `val_labels` (V,)
    - `test_loss_scaled`, `test_ece_scaled`, `test_brier_scaled`: of the logits divided by it
    - `test_notes`: why one of these is None or not computed as usual, a line each
    - `per_class_accuracy`: (C,) the share of each class's images classified correctly, 0..1
    - `confusion`: (C, C) counts, a row for each true class and a column for each predicted one
    - `test_hits`: which images were classified correctly, see `significance.encode_hits`

    In float64 on the CPU; the first of equal logits is the prediction. A class without images has
    None instead of an accuracy; one that was not predicted either is left out of the macro F1.
    """
    scores, truth = _array(logits), _array(labels)
    validation = None
    if val_logits is not None and val_labels is not None and len(val_labels):
        validation = _array(val_logits), _array(val_labels)
    counts = confusion_matrix(scores, truth)
    images, hits = counts.sum(1).tolist(), counts.diagonal().tolist()
    return {
        "test_macro_f1": macro_f1(counts),
        **calibration.measures(scores, truth, validation),
        "per_class_accuracy": [h / n if n else None for h, n in zip(hits, images, strict=True)],
        "confusion": counts.tolist(),
        "test_hits": encode_hits(scores, truth),
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


def _array(tensor: Tensor) -> NDArray[Any]:
    """Logits as float64, labels as int64."""
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array.astype(np.float64 if array.dtype.kind == "f" else np.int64)


def none_if_not_finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """The values, with None for NaN and infinities, which JSON does not have."""
    return {key: value if math.isfinite(value) else None for key, value in values.items()}
