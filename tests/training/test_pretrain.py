"""Pretraining: its loss by hand, no label in the weights, the same bits, what --weights takes."""

import json
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.forks import Forks
from helpers.layout import write_layout
from torch.nn import functional as F

import stl10bench
from stl10bench.core.errors import CheckpointError, UsageError
from stl10bench.models.checkpoint import read_tensors
from stl10bench.training import epoch
from stl10bench.training.losses import nt_xent
from stl10bench.training.run import pretrain

BACKBONE: dict[str, Any] = {"image_size": 13, "channels": (4, 6), "threads": 1, "tracker": "none"}
SETTINGS: dict[str, Any] = {
    **BACKBONE,
    **{"epochs": 3, "batch_size": 8, "val_fraction": 0.2, "precision": "no"},
    **{"method_options": {"projection": 5, "knn_every": 2}},
}


def run(data_dir: Path, runs_dir: Path, **changed: Any) -> Any:
    return pretrain("cnn", **{**SETTINGS, "data_dir": data_dir, "runs_dir": runs_dir, **changed})


def weights_of(runs_dir: Path, name: str) -> dict[str, torch.Tensor]:
    return read_tensors(runs_dir / name / "backbone.safetensors")[0]


@pytest.fixture(scope="module")
def pretrained(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    runs_dir = tmp_path_factory.mktemp("runs")
    return runs_dir, run(data_dir, runs_dir)


def test_nt_xent_is_that_of_an_explicit_loop() -> None:
    views = F.normalize(torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(0)), dim=2)
    losses, hits = [], []
    for image in range(5):
        for side in (0, 1):
            anchor = views[image, side]
            others = [(i, s) for i in range(5) for s in (0, 1) if (i, s) != (image, side)]
            scores = {place: math.exp(float(anchor @ views[place]) / 0.5) for place in others}
            losses.append(-math.log(scores[image, 1 - side] / sum(scores.values())))
            if side == 0:
                hits.append(max(scores, key=lambda place: scores[place]) == (image, 1))
    loss, found = nt_xent(views, 0.5)
    assert loss.item() == pytest.approx(sum(losses) / 10)
    assert found.tolist() == hits


def test_a_run_ends_in_a_backbone_and_says_what_it_cost(pretrained: tuple[Path, Any]) -> None:
    runs_dir, result = pretrained
    folder = runs_dir / result.run
    assert result.run.startswith("simclr-cnn-")
    assert (result.unlabeled_used, result.config.unlabeled) == (32, "rest")
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert not (folder / "checkpoints").exists()
    assert not (folder / "result.json").exists()
    assert json.loads((folder / "pretraining.json").read_text())["seconds"] == result.seconds
    assert {key.partition(".")[0] for key in weights_of(runs_dir, result.run)} == set("0145")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    with_knn = [line.get("epoch", 0) for line in lines if "knn/accuracy" in line]
    assert with_knn == [0, 2, 3]  # random weights, every second epoch, the last
    assert lines[-1]["knn/accuracy"] == result.knn_accuracy
    assert lines[-1]["train/loss"] < math.log(15)  # of guessing among fifteen


def test_labels_never_reach_the_weights(tmp_path: Path) -> None:
    """Without validation images, which labels choose."""
    changed = write_layout(tmp_path / "changed")
    labels = np.random.default_rng(3).permutation(np.arange(40) % 4) + 1
    labels.astype(np.uint8).tofile(changed / "stl10_binary/train_y.bin")
    data = write_layout(tmp_path / "data"), changed
    first, second = (run(folder, tmp_path, val_fraction=0, epochs=1) for folder in data)
    assert first.run != second.run
    assert (first.unlabeled_used, first.knn_accuracy) == (40, None)
    ours, theirs = (weights_of(tmp_path, result.run) for result in (first, second))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_an_interrupted_run_ends_with_the_same_bytes(
    pretrained: tuple[Path, Any],
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = pretrained[1]
    steps = 0

    def stop_in_the_second_epoch(losses: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == 7:
            raise KeyboardInterrupt
        return losses

    with monkeypatch.context() as patched:
        patched.setattr(epoch, "nan_if_infinite", stop_in_the_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            run(data_dir, tmp_path, checkpoint_minutes=0)
    again = run(data_dir, tmp_path)
    assert steps == 7
    assert again.sha256 == whole.sha256
    assert again.knn_accuracy == whole.knn_accuracy
    assert run(data_dir, tmp_path) == again  # finished: as it is stored


def test_a_run_from_the_backbone_adds_its_seconds_and_says_where_it_is_from(
    pretrained: tuple[Path, Any], data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_dir, result = pretrained
    settings = {**BACKBONE, "data_dir": data_dir, "runs_dir": runs_dir, "recipe": "quick"}
    settings |= {"val_fraction": 0.2, "epochs": 1, "batch_size": 8, "lr": 1e-12}
    row = stl10bench.train("cnn", **settings, weights=result.run)
    assert row.pretrain_seconds == result.seconds
    assert row.train_seconds > result.seconds
    assert row.seconds_to > result.seconds
    assert row.contamination == "unlabelled images"
    assert row.weights["source"] == f"sha256:{result.sha256}"
    loaded = read_tensors(runs_dir / row.run / "best.safetensors")[0]
    ours = weights_of(runs_dir, result.run)
    assert torch.allclose(loaded["0.weight"], ours["0.weight"], atol=1e-6)
    # Another seed validates on images that pretraining saw; the head is the run's own.
    other = stl10bench.train("cnn", **settings, weights=result.run, seed=1)
    assert other.contamination == "unlabelled images + validation images"
    head = read_tensors(runs_dir / other.run / "best.safetensors")[0]
    assert not torch.equal(head["8.linears.0.weight"], loaded["8.linears.0.weight"])


def test_a_copied_backbone_without_its_file_is_noted(
    pretrained: tuple[Path, Any], data_dir: Path, tmp_path: Path
) -> None:
    runs_dir, result = pretrained
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((runs_dir / result.run / "backbone.safetensors").read_bytes())
    settings = {**BACKBONE, "data_dir": data_dir, "runs_dir": tmp_path, "recipe": "quick"}
    settings |= {"epochs": 1, "val_fraction": 0, "batch_size": 8, "image_size": 15}
    row = stl10bench.train("cnn", **settings, weights=copy)
    assert row.pretrain_seconds is None
    assert any("seconds of pretraining: not known" in note for note in row.test_notes)


def test_a_backbone_classifies_nothing(pretrained: tuple[Path, Any], data_dir: Path) -> None:
    runs_dir, result = pretrained
    for path in (runs_dir / result.run, runs_dir / result.run / "backbone.safetensors"):
        with pytest.raises(CheckpointError, match="is pretraining and has no classifier"):
            stl10bench.evaluate(path, data_dir=data_dir)


def test_options_that_a_backbone_does_not_show_are_warned_of(
    data_dir: Path, tmp_path: Path
) -> None:
    from stl10bench.config import make_config
    from stl10bench.training.first_model import check_same_backbone

    before, now = (
        make_config({"model": "resnet9", "model_options": {"scale": scale}})
        for scale in (0.5, 0.125)
    )
    with pytest.warns(UserWarning, match=r"scale = 0.5, but this run has scale = 0.125"):
        check_same_backbone(before, now)


@pytest.mark.parametrize(
    ("backbone", "changed", "text"),
    [
        ("logistic", {"channels": None}, "model 'logistic' has no backbone to pretrain"),
        ("cnn", {"label_smoothing": 0.1}, "label_smoothing: no effect on pretraining"),
        ("cnn", {"unlabeled": "none"}, "unlabeled = none: pretraining needs images"),
        ("cnn", {"batch_size": 64}, "batch_size = 64 is larger than the 32"),
    ],
)
def test_what_cannot_be_pretrained_is_refused(
    data_dir: Path, tmp_path: Path, backbone: str, changed: dict[str, Any], text: str
) -> None:
    settings = {**SETTINGS, "data_dir": data_dir, "runs_dir": tmp_path, **changed}
    settings = {key: value for key, value in settings.items() if value is not None}
    with pytest.raises(UsageError, match=text):
        pretrain(backbone, **settings)
    assert not list(tmp_path.glob("*/config.json"))


def test_train_refuses_the_method_of_pretraining(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="trains no classifier: use 'stl10bench pretrain simclr"):
        stl10bench.train("cnn", method="simclr", data_dir=data_dir, runs_dir=tmp_path)


def test_the_command_says_a_next_one_that_works_and_no_table_has_the_run(
    cli: Any, data_dir: Path
) -> None:
    words = ["pretrain", "simclr", "--backbone", "resnet9", "--model-option", "channels=4"]
    words += ["--image-size", "8", "--epochs", "1", "--batch-size", "8", "--tracker", "none"]
    words += ["--set", "val_fraction=0.2", "--data-dir", str(data_dir), "--runs-dir", "my runs"]
    code, out, err = cli(*words)
    assert code == 0, err
    assert "is a log line and chooses nothing" in " ".join(err.split())
    next_words = shlex.split(out.splitlines()[1])
    assert next_words[:4] == ["stl10bench", "train", "resnet9", "--weights"]
    assert "simclr" not in cli("table", "--runs-dir", "my runs")[1]
    assert "simclr" in cli("runs", "list", "--runs-dir", "my runs")[1]
    kernels = read_tensors(Path("my runs") / next_words[4] / "backbone.safetensors")[0]["0.kernels"]
    options = ["--epochs", "1", "--batch-size", "4", "--tracker", "none"]
    options += ["--labels-per-class", "2"]
    code, _, err = cli(*next_words[1:], *options)  # other images, the same whitening
    assert code == 0, err
    (folder,) = Path("my runs").glob("resnet9-*")
    assert torch.equal(read_tensors(folder / "last.safetensors")[0]["0.kernels"], kernels)


PLUGIN = """
from torch import nn
from stl10bench import register

@register
def flat(num_classes, image_size):  # without batch norms, whose statistics are each process's own
    features = nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, 8), nn.Tanh())
    return nn.Sequential(features, nn.Linear(8, num_classes))
"""


@pytest.mark.faults
def test_two_processes_pretrain_like_one(forks: Forks, data_dir: Path, tmp_path: Path) -> None:
    """The same views, and the negatives of both: loss and gradients are equal to rounding."""
    (tmp_path / "my_flat.py").write_text(PLUGIN)
    words = ["pretrain", "simclr", "--backbone", "flat", "--plugin", str(tmp_path / "my_flat.py")]
    words += ["--image-size", "8", "--epochs", "3", "--batch-size", "8", "--optimizer", "sgd"]
    words += ["--set", "val_fraction=0.2", "--lr", "0.1", "--precision", "no", "--tracker", "none"]
    words += ["--data-dir", str(data_dir), "--json", "--runs-dir"]
    logged = []
    for processes in (1, 2):
        runs_dir = tmp_path / str(processes)
        ended = forks.run(*words, str(runs_dir), processes=processes)
        assert ended.code == 0, ended.err
        lines = next(runs_dir.glob("*/metrics.jsonl")).read_text().splitlines()
        logged.append([json.loads(line) for line in lines])
    one, two = logged
    assert len(one) == len(two) == 4
    for first, second in zip(one, two, strict=True):
        for key in first.keys() - {"time", "seconds", "images_per_second"}:
            assert second[key] == pytest.approx(first[key], rel=1e-4), key
    assert one[3]["train/loss"] < one[1]["train/loss"]
