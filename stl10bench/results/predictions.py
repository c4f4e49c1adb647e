"""A run's logits and labels <-> predictions.safetensors, which proves itself."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from stl10bench.core import files
from stl10bench.core.errors import CheckpointError
from stl10bench.core.safetensors import read_safetensors
from stl10bench.metrics.classification import confusion_matrix

FORMAT = 1
_KEY = "stl10bench-predictions"

Logits = NDArray[np.float32]
Labels = NDArray[np.int64]


class Predictions(NamedTuple):
    """What a finished run predicted: one row per image, in the order of the split."""

    logits: Logits  # (N, C), test split; not all finite, perhaps
    labels: Labels  # (N,), 0..C-1
    val_logits: Logits | None = None  # (V, C), validation; None without, and in older files
    val_labels: Labels | None = None  # (V,)

    def hits(self) -> str:
        """Which of the N test images are classified correctly, as hexadecimal.

        A bit an image, in the order of the split, the first one highest; zeros fill the last byte.
        Of equal logits the first class counts. `significance.decode_hits` reads it.
        """
        return np.packbits(self.logits.argmax(1) == self.labels).tobytes().hex()

    def confusion(self) -> tuple[tuple[int, ...], ...]:
        """The confusion matrix of the test images, see `classification.confusion_matrix`."""
        return tuple(map(tuple, confusion_matrix(self.logits, self.labels).tolist()))


def save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write what `encode` makes of the arrays. Raises StorageError."""
    files.write(path, encode(arrays))


def encode(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """`logits`, `labels` and, with validation images, `val_logits` and `val_labels`, as a file.

    The metadata hold a sha256 over all of it.
    """
    whole = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
    metadata = {_KEY: json.dumps({"format": FORMAT, "sha256": _sum(whole)})}
    return safetensors.numpy.save(whole, metadata)


def read(path: Path) -> Predictions:
    """What `save` wrote.

    A file without a sum, from before there was one, is held to names, types, shapes and labels
    alone. Raises CheckpointError with the path for a file that is missing, damaged or another.
    """
    content, metadata = read_safetensors(path)
    try:
        arrays = safetensors.numpy.load(content)
        expected = json.loads(metadata[_KEY])["sha256"] if _KEY in metadata else None
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = str(error)[:200]
        raise CheckpointError(f"{path} is not a whole safetensors file: {reason}") from None
    if expected is not None and expected != _sum(arrays):
        raise CheckpointError(f"{path} is damaged: its checksum does not match")
    names = {"logits", "labels"}, set(Predictions._fields)
    if (
        arrays.keys() not in names
        or not _fit(arrays["logits"], arrays["labels"])
        or (len(arrays) > 2 and not _fit(arrays["val_logits"], arrays["val_labels"]))
    ):
        raise CheckpointError(
            f"{path} holds no predictions: it must have float32 logits (N, C) and int64 labels "
            "(N,) of 0..C-1, and no more than the same of the validation images"
        )
    return Predictions(**arrays)


def _fit(logits: NDArray[Any], labels: NDArray[Any]) -> bool:
    return (
        (logits.dtype.name, labels.dtype.name) == ("float32", "int64")
        and (logits.ndim, labels.ndim) == (2, 1)
        and 0 < len(logits) == len(labels)
        and logits.shape[1] > 0
        and bool(((labels >= 0) & (labels < logits.shape[1])).all())
    )


def _sum(arrays: Mapping[str, NDArray[Any]]) -> str:
    """The sha256 over names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for key in sorted(arrays):
        value = arrays[key]
        digest.update(f"{key} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()
