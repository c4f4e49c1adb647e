"""Balanced class weights are scikit-learn's, and parts of a batch add up with them too."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

import stl10bench
from stl10bench.config import make_config
from stl10bench.models import checkpoint
from stl10bench.results import columns
from stl10bench.training.losses import mean_loss
from stl10bench.training.setup import class_weights

BALANCED = make_config({"model": "logistic", "class_weights": "balanced"})


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels = torch.tensor([0] * 9 + [1] * 3 + [2])
    weights = class_weights(BALANCED, labels, 3)
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())
    assert weights is not None
    assert weights.tolist() == pytest.approx(theirs.tolist())
    assert float(weights[labels].mean()) == pytest.approx(1)
    assert class_weights(BALANCED, torch.tensor([0, 0]), 2) is not None  # one class has no image


def test_without_them_a_run_keeps_its_name() -> None:
    plain = make_config({"model": "logistic"})
    assert "class_weights" not in plain.changed()
    assert class_weights(plain, torch.tensor([0, 1]), 2) is None
    assert BALANCED.name != plain.name


def test_each_images_smoothed_loss_is_times_the_weight_of_its_class() -> None:
    labels = torch.tensor([0] * 9 + [1] * 2 + [2])
    logits = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    weights = class_weights(BALANCED, labels, 3)
    assert weights is not None
    for smoothing in (0.0, 0.1):
        config = BALANCED.model_copy(update={"label_smoothing": smoothing})
        run: Any = SimpleNamespace(config=config, class_weights=weights)
        torchs = partial(F.cross_entropy, logits, label_smoothing=smoothing, reduction="none")
        expected = (weights[labels] * torchs(labels)).mean()
        assert mean_loss(run, logits, labels) == pytest.approx(float(expected))
        shares = 0.7 * F.one_hot(labels, 3) + 0.3 * F.one_hot(labels.flip(0), 3)
        of_parts = 0.7 * expected + 0.3 * (weights[labels.flip(0)] * torchs(labels.flip(0))).mean()
        assert mean_loss(run, logits, shares) == pytest.approx(float(of_parts))


def test_a_batch_in_parts_learns_the_same_with_weights(data_dir: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"image_size": 8, "epochs": 1, "batch_size": 12, "tracker": "none"}
    tensors = []
    for parts in (1, 3):
        row = stl10bench.train(
            *("logistic",),
            **{"data_dir": data_dir, "runs_dir": tmp_path, "threads": 1, "grad_accum": parts},
            **{"class_weights": "balanced", "precision": "no", **options},
        )
        assert columns.value(row, "balanced_accuracy") == pytest.approx(row.test_accuracy)
        tensors.append(checkpoint.load(tmp_path / str(row.checkpoint))[0])
    assert all(tensors[0][key].allclose(tensors[1][key], atol=1e-6) for key in tensors[0])
