"""FixMatch: its loss by hand, what it learns from, and that it is a run like any other."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.layout import write_layout

import stl10bench
from stl10bench.core.errors import UsageError
from stl10bench.training import epoch
from stl10bench.training.losses import consistency
from stl10bench.training.resolve import check_settings

SETTINGS: dict[str, Any] = {
    **{"method": "fixmatch", "unlabeled": "rest", "labels_per_class": 4, "image_size": 8},
    **{"epochs": 2, "batch_size": 4, "recipe": "quick", "hidden": "8", "lr": 0.01},
    **{"method_options": {"uratio": 2, "p_cutoff": 0.3}},
    **{"tracker": "none", "threads": 1, "precision": "no"},
}


def train(data_dir: Path, runs_dir: Path, **changed: Any) -> Any:
    return stl10bench.train(
        **{"model": "mlp", **SETTINGS, "data_dir": data_dir, "runs_dir": runs_dir, **changed}
    )


def losses(runs_dir: Path, row: Any) -> list[float]:
    lines = (runs_dir / row.run / "metrics.jsonl").read_text().splitlines()
    return [line["train/loss"] for line in map(json.loads, lines) if "train/loss" in line]


def test_the_consistency_loss_is_that_computed_by_hand() -> None:
    weak = torch.tensor([[2.0, 0.0], [0.1, 0.0], [0.0, 3.0]])  # confidence 0.88, 0.52, 0.95
    strong = torch.tensor([[0.0, 1.0], [5.0, 0.0], [0.0, 1.0]], requires_grad=True)
    first = np.log(1 + np.e)  # its label is 0
    third = np.log(1 + np.exp(-1))
    assert consistency(weak, strong, 0.8).item() == pytest.approx((first + third) / 3)
    assert consistency(weak, strong, 0.9).item() == pytest.approx(third / 3)
    assert consistency(weak, strong, 1.01).item() == 0
    gradient = torch.autograd.grad(consistency(weak, strong, 0.9), strong)[0]
    assert not gradient[:2].any()
    assert gradient[2].any()


@pytest.mark.parametrize("model", ["cnn", "resnet9"])
def test_labels_are_not_smoothed_or_no_prediction_would_be_confident(model: str) -> None:
    chosen = {"method": "fixmatch", "unlabeled": "rest"}
    assert check_settings(model, settings=chosen)[0].label_smoothing == 0
    assert check_settings(model, settings={**chosen, "unlabeled": None})[0].label_smoothing == 0
    asked = {**chosen, "label_smoothing": 0.1}
    assert check_settings(model, settings=asked)[0].label_smoothing == 0.1
    assert check_settings(model, settings={})[0].label_smoothing == 0.1


def test_without_a_confident_prediction_the_loss_is_the_supervised_one(
    data_dir: Path, tmp_path: Path
) -> None:
    alone = train(data_dir, tmp_path, unlabeled=None)
    assert (alone.method, alone.config.ema, alone.unlabeled_used) == ("supervised", 0.999, None)
    never = train(data_dir, tmp_path, method_options={"p_cutoff": 1.0, "uratio": 2})
    assert losses(tmp_path, never) == pytest.approx(losses(tmp_path, alone), rel=1e-5)
    confident = train(data_dir, tmp_path)
    assert confident.epochs == 2
    assert losses(tmp_path, confident) != pytest.approx(losses(tmp_path, alone), rel=1e-2)


def test_an_interrupted_run_ends_with_the_same_bits(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(data_dir, tmp_path / "whole", model="cnn", image_size=13, channels=(4, 4))
    steps = 0

    def stop_in_the_second_epoch(losses: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == 5:
            raise KeyboardInterrupt
        return losses

    small: dict[str, Any] = {"model": "cnn", "image_size": 13, "channels": (4, 4)}
    with monkeypatch.context() as patched:
        patched.setattr(epoch, "nan_if_infinite", stop_in_the_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            train(data_dir, tmp_path / "cut", **small, checkpoint_minutes=0)
    again = train(data_dir, tmp_path / "cut", **small)
    name = Path(whole.checkpoint)
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert again.test_loss == whole.test_loss


def test_labels_of_unlabelled_images_are_never_read(tmp_path: Path) -> None:
    def folds(folder: Path) -> Path:
        data_dir = write_layout(folder)
        fold = " ".join(map(str, range(20)))
        (data_dir / "stl10_binary/fold_indices.txt").write_text(f"{fold}\n")
        return data_dir

    settings: dict[str, Any] = {"labels_per_class": None, "fold": 0, "runs_dir": tmp_path / "runs"}
    row = train(folds(tmp_path / "data"), **settings)
    changed = folds(tmp_path / "changed")
    labels = np.fromfile(changed / "stl10_binary/train_y.bin", np.uint8)
    labels[20:] = np.roll(labels[20:], 1)
    labels.tofile(changed / "stl10_binary/train_y.bin")
    again = train(changed, **settings)
    assert again.run != row.run
    assert again.test_loss == row.test_loss
    assert (row.labels_used, row.unlabeled_used) == (20, 20)


def test_the_verdict_is_against_the_supervised_twin(cli: Any, data_dir: Path) -> None:
    words = ["train", "logistic", "--image-size", "8", "--epochs", "1", "--batch-size", "4"]
    words += ["--labels-per-class", "4", "--method", "fixmatch", "--method-option", "uratio=1"]
    words += ["--tracker", "none", "--data-dir", str(data_dir), "--unlabeled"]
    assert "train the same with --unlabeled none" in cli(*words, "rest")[1]
    cli(*words, "none")
    assert "against logistic-" in cli(*words, "rest")[1]


def test_views_of_unlabelled_images_are_not_cached(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cache_views = 2: --method fixmatch sees new views"):
        train(data_dir, tmp_path, model="mobilenetv2", hidden="", cache_views=2, weights=None)
