"""predictions.safetensors: what is written comes back, and damage does not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from stl10bench.core.errors import CheckpointError
from stl10bench.results import predictions

LOGITS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 2, 1, 0])


def written(folder: Path, *held_out: Any) -> Path:
    names = ("logits", "labels", "val_logits", "val_labels")
    predictions.save(folder / "p", dict(zip(names, (LOGITS, LABELS, *held_out), strict=False)))
    return folder / "p"


def refuse(path: Path, text: str) -> None:
    with pytest.raises(CheckpointError) as error:
        predictions.read(path)
    assert text in str(error.value)
    assert str(path) in str(error.value)


def test_what_a_run_answered_comes_back_with_its_hold_out(tmp_path: Path) -> None:
    found = predictions.read(written(tmp_path, LOGITS[:4], LABELS[:4]))
    assert found.val_logits is not None
    assert found.val_labels is not None
    assert np.array_equal(found.logits, LOGITS)
    assert np.array_equal(found.labels, LABELS)
    assert np.array_equal(found.val_logits, LOGITS[:4])
    assert np.array_equal(found.val_labels, LABELS[:4])


def test_without_a_hold_out_there_is_none(tmp_path: Path) -> None:
    found = predictions.read(written(tmp_path))
    assert (found.val_logits, found.val_labels) == (None, None)


def test_a_flipped_bit_in_any_byte_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    """Nothing: the sum's own name, without which the file is one from before there was a sum."""
    path = written(tmp_path, LOGITS[:4], LABELS[:4])
    content, whole = path.read_bytes(), predictions.read(path)
    unnoticed = 0
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            found = predictions.read(path)
        except CheckpointError:
            continue
        unnoticed += 1
        assert all(np.array_equal(a, b) for a, b in zip(found, whole, strict=True))
    assert unnoticed < len("__metadata__stl10bench-predictions")


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            predictions.read(path)


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({}, "holds no predictions"),
        ({"logits": LOGITS}, "holds no predictions"),
        ({"logits": LOGITS, "labels": LABELS[:5]}, "holds no predictions"),
        ({"logits": LOGITS, "labels": LABELS + 1}, "of 0..C-1"),
        ({"logits": LOGITS, "labels": LABELS - 1}, "of 0..C-1"),
        ({"logits": LOGITS.astype(np.float64), "labels": LABELS}, "float32"),
        ({"logits": LOGITS, "labels": LABELS.astype(np.int32)}, "int64"),
        ({"logits": LOGITS[0], "labels": LABELS}, "(N, C)"),
        ({"logits": LOGITS[:0], "labels": LABELS[:0]}, "holds no predictions"),
        ({"logits": LOGITS, "labels": LABELS, "val_logits": LOGITS}, "holds no predictions"),
        ({"logits": LOGITS, "labels": LABELS, "weight": LOGITS}, "no more"),
        (
            {"logits": LOGITS, "labels": LABELS, "val_logits": LOGITS, "val_labels": LABELS[1:]},
            "validation images",
        ),
    ],
)
def test_other_tensors_are_no_predictions(
    tmp_path: Path, arrays: dict[str, Any], text: str
) -> None:
    whole = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
    (tmp_path / "p").write_bytes(safetensors.numpy.save(whole))
    refuse(tmp_path / "p", text)
    predictions.save(tmp_path / "p", whole)
    refuse(tmp_path / "p", text)


@pytest.mark.parametrize("sum_", ["", "null", "[]", "3", "{}", '{"sha256": 3}', "[" * 100_000])
def test_a_sum_that_is_none_is_refused(tmp_path: Path, sum_: str) -> None:
    arrays = {"logits": LOGITS, "labels": LABELS}
    content = safetensors.numpy.save(arrays, {"stl10bench-predictions": sum_})
    (tmp_path / "p").write_bytes(content)
    refuse(tmp_path / "p", "p")


def test_a_file_from_before_there_was_a_sum_is_read(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(safetensors.numpy.save({"logits": LOGITS, "labels": LABELS}))
    assert np.array_equal(predictions.read(tmp_path / "p").logits, LOGITS)


def test_what_is_no_safetensors_file_is_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "none", "cannot read")
    torch.save({"logits": torch.zeros(2)}, tmp_path / "p")
    refuse(tmp_path / "p", "is a pickle")
    (tmp_path / "p").write_bytes((2**40).to_bytes(8, "little") + b"{}")
    refuse(tmp_path / "p", "is not a safetensors file")
