"""Modules that learn from images without labels, once, before the first step."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.forks import Forks
from helpers.killer import contents
from safetensors.torch import load_file

import stl10bench
from stl10bench.training import epoch

PLUGIN = """
from torch import nn, zeros
from stl10bench import register
from stl10bench.models.classifier import Classifier
from stl10bench.models.mlp import Head


class Centre(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", zeros(3, 8, 8))
        self.register_buffer("calls", zeros(()))

    def fit(self, images, *, seed):
        assert not self.training
        assert sum(map(len, images)) == sum(map(len, images))  # can be gone through again
        self.mean.copy_(sum(batch.sum(0) for batch in images) / sum(map(len, images)))
        self.calls += 1

    def forward(self, images):
        return (images - self.mean).flatten(1)


@register
def my_centred(num_classes: int, image_size: int, *, frozen: bool = False) -> nn.Module:
    head = Head(192, num_classes, hidden=(), dropout=0)
    return Classifier(Centre(), head, freeze=frozen)
"""
SETTINGS: dict[str, Any] = {
    **{"image_size": 8, "precision": "no", "tracker": "none", "threads": 1},
}
STEPS: dict[str, Any] = {"epochs": 2, "batch_size": 8}


@pytest.fixture
def train(data_dir: Path, tmp_path: Path, forgetful: None) -> Any:
    (tmp_path / "my_centred.py").write_text(PLUGIN)
    plugin = str(tmp_path / "my_centred.py")

    def train(**options: Any) -> Any:
        where = {"data_dir": data_dir, "runs_dir": tmp_path / "runs", "plugin": plugin}
        return stl10bench.train("my_centred", **{**SETTINGS, **where, **options})

    return train


def learned(runs_dir: Path, run: str) -> dict[str, torch.Tensor]:
    return load_file(runs_dir / run / "best.safetensors")


@pytest.mark.parametrize("method", ["supervised", "probe"])
def test_it_learns_once_from_the_training_images_alone(
    train: Any, tmp_path: Path, method: str
) -> None:
    options = STEPS if method == "supervised" else {"method": method, "frozen": True}
    row = train(**options)
    tensors = learned(tmp_path / "runs", row.run)
    assert tensors["backbone.calls"] == 1
    # Normalised by the training images' own mean, so theirs is 0 in each channel; nobody else's is.
    mean = tensors["backbone.mean"].mean((1, 2)).numpy()
    np.testing.assert_allclose(mean, 0, atol=1e-5)
    assert tensors["backbone.mean"].abs().max() > 0.01


def test_a_run_that_was_stopped_keeps_what_was_learned(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(runs_dir=tmp_path / "straight", **STEPS)
    original, calls = epoch.nan_if_infinite, []

    def stopping(losses: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return original(losses)

    with monkeypatch.context() as patch:
        patch.setattr(epoch, "nan_if_infinite", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(checkpoint_minutes=0, **STEPS)
    row = train(**STEPS)
    assert learned(tmp_path / "runs", row.run)["backbone.calls"] == 1
    assert contents(tmp_path / "runs") == contents(tmp_path / "straight")


def test_two_processes_learn_the_same(
    train: Any, forks: Forks, data_dir: Path, tmp_path: Path
) -> None:
    row = train(**STEPS)
    words = ["train", "my_centred", "--plugin", tmp_path / "my_centred.py", "--image-size", "8"]
    words += ["--epochs", "2", "--batch-size", "8", "--precision", "no", "--tracker", "none"]
    ended = forks.run(*words, "--data-dir", data_dir, "--runs-dir", tmp_path / "two", processes=2)
    assert ended.code == 0, ended.err
    one, two = (learned(tmp_path / folder, row.run) for folder in ("runs", "two"))
    torch.testing.assert_close(two, one)
