"""Classifiers on frozen features: what references compute, what is chosen, and what is kept."""

import errno
import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import timm
import torch
from helpers.forks import Forks
from helpers.killer import contents
from helpers.layout import write_layout
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

import stl10bench
from stl10bench.core.errors import InterruptedRunError, UsageError
from stl10bench.data.stl10 import open_dataset
from stl10bench.models.feature_heads import KnnHead, power_normalise
from stl10bench.training import features
from stl10bench.training.linear import fit_linear

BACKBONE: dict[str, Any] = {
    **{"model": "timm:test_resnet", "image_size": 32, "precision": "no", "tracker": "none"},
    "threads": 1,
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 training images: 40 of each class; two folds of 104 of them."""
    data_dir = write_layout(tmp_path_factory.mktemp("large"), train=160)
    folds = [" ".join(map(str, range(start, start + 104))) for start in (0, 56)]
    (data_dir / "stl10_binary/fold_indices.txt").write_text("\n".join(folds) + "\n")
    return data_dir


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of the kept features, empty."""
    monkeypatch.setenv("STL10BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/features"


@pytest.fixture
def train(data_dir: Path, weights: Path, tmp_path: Path) -> Any:
    def train(method: str = "probe", **options: Any) -> Any:
        where = {"data_dir": data_dir, "runs_dir": tmp_path / "runs", "weights": weights}
        return stl10bench.train(**{**BACKBONE, **where, "method": method, **options})

    return train


@pytest.mark.parametrize("penalty", [0.01, 1.0, 30.0])
def test_the_linear_fit_is_that_of_scikit_learn(penalty: float) -> None:
    torch.manual_seed(0)
    inputs, targets = power_normalise(torch.randn(120, 8), 0.5), torch.arange(120) % 3
    fitted = fit_linear(inputs, targets, penalty, torch.zeros(9, 3))
    reference = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=2000)
    reference.fit(inputs.double().numpy(), targets.numpy())
    expected = reference.predict_proba(inputs.double().numpy())
    found = torch.addmm(fitted[-1], inputs, fitted[:-1]).softmax(1).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_the_vote_of_neighbours_is_that_of_scikit_learn() -> None:
    torch.manual_seed(0)
    bank, labels, queries = torch.randn(60, 8), torch.arange(60) % 3, torch.randn(20, 8)
    head = KnnHead(power_normalise(bank, 1), labels, 3, k=7, temperature=0.1)
    reference = KNeighborsClassifier(
        7, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.1)
    ).fit(bank.numpy(), labels.numpy())
    votes = 0.99 * reference.predict_proba(queries.numpy()) + 0.01 / 3
    np.testing.assert_allclose(head(queries).exp().numpy(), votes, atol=1e-4)


@pytest.mark.parametrize("method", ["probe", "knn"])
def test_a_run_on_features_ends_in_a_checkpoint_that_gives_its_row_again(
    train: Any, data_dir: Path, weights: Path, tmp_path: Path, method: str
) -> None:
    row = train(method)
    file = tmp_path / "runs" / row.checkpoint
    again = stl10bench.evaluate(file, data_dir=data_dir, threads=1)
    assert again["test_accuracy"] == row.test_accuracy
    assert again["test_loss"] == pytest.approx(row.test_loss, rel=1e-5)
    backbone = load_file(weights)
    for key, value in load_file(file).items():
        if key.startswith("backbone."):
            assert torch.equal(value, backbone[key.removeprefix("backbone.")]), key
    assert (row.method, row.epochs, row.best_epoch) == (method, None, None)
    assert row.test_accuracy > 0.5  # of four classes, told by their colour


def test_mirrored_images_are_learned_from_as_well(train: Any) -> None:
    one, two = train(), train(method_options={"views": 2})
    assert one.run != two.run
    assert one.test_loss != two.test_loss


def test_a_flipped_view_stands_beside_the_plain_result(
    train: Any, data_dir: Path, tmp_path: Path
) -> None:
    row = train(tta="flip")
    model = stl10bench.load(tmp_path / "runs" / row["checkpoint"])
    test = open_dataset(data_dir).test
    images, labels = (torch.from_numpy(part.copy()) for part in (test.images, test.labels))
    with torch.no_grad():
        logits = (model(images) + model(images.flip(3))) / 2
    assert row["tta_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)
    assert row["tta_loss"] != row["test_loss"]
    assert train()["test_loss"] == row["test_loss"]


def test_a_second_classifier_computes_one_batch_of_features_of_a_split(
    train: Any, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "EVALUATION_BATCH", 5)
    first = train()
    assert len(list(kept.iterdir())) == 2  # of 40 training and 20 test images
    loaded: list[int] = []
    original = features.load_images

    def counting(split: Any, rows: Any, *others: Any) -> Any:
        loaded.append(len(rows))
        return original(split, rows, *others)

    monkeypatch.setattr(features, "load_images", counting)
    second = train("knn")
    assert loaded == [5, 5]
    assert second.images_per_second == pytest.approx(first.images_per_second)  # as it was then


@pytest.mark.parametrize("damage", ["cut", "bits", "another backbone's"])
def test_kept_features_that_are_damaged_are_computed_anew(
    train: Any, kept: Path, tmp_path: Path, damage: str
) -> None:
    train()
    for file in kept.iterdir():
        content = file.read_bytes()
        if damage == "cut":
            file.write_bytes(content[:-7])
        elif damage == "bits":
            file.write_bytes(content[:-3] + b"\x00\x00\x01")
        else:  # whole, but not what this backbone computes
            values = load_file(file)["features"] + 1
            features._keep(file, features.Features(values, 1.0))
    straight = contents(tmp_path / "runs")
    if damage == "another backbone's":
        train(overwrite=True)
    else:
        with pytest.warns(UserWarning, match="computing the features again"):
            train(overwrite=True)
    again = contents(tmp_path / "runs")
    assert all(again[name] == value for name, value in straight.items() if ".old" not in name)


def test_a_cache_that_cannot_be_written_loses_no_run(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STL10BENCH_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot cache the features"):
        assert train().test_accuracy > 0.5


def test_a_cache_that_can_only_be_read_is_read(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    train()

    def read_only(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", read_only)
    train("knn")  # a warning would be an error


def test_files_that_another_run_drops_meanwhile_disturb_no_keeping(train: Any, kept: Path) -> None:
    kept.mkdir(parents=True)
    (kept / "gone.safetensors").symlink_to(kept / "nowhere")  # listed, but not there
    train()  # a warning would be an error


def test_a_user_without_a_home_is_told_where_to_keep_features(
    train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "STL10BENCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", Mock(side_effect=RuntimeError("no home")))
    with pytest.raises(UsageError, match="set STL10BENCH_CACHE"):
        train()


@pytest.mark.parametrize("method", ["probe", "knn"])
def test_features_that_are_not_finite_are_refused(
    train: Any, weights: Path, tmp_path: Path, method: str
) -> None:
    """Else all images would be of the first class, and a row would say so."""
    large = {
        key: value * 1e30 if value.is_floating_point() else value
        for key, value in load_file(weights).items()
    }
    save_file(large, tmp_path / "large.safetensors")
    with pytest.raises(UsageError, match="features that are not finite"):
        train(method, weights=tmp_path / "large.safetensors")


def test_the_cache_drops_what_was_not_used_for_longest(
    train: Any, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train()
    size = sum(file.stat().st_size for file in kept.iterdir())
    monkeypatch.setattr(features, "CACHE_LIMIT", size)
    train(image_size=40)
    assert sum(file.stat().st_size for file in kept.iterdir()) <= size


def test_a_run_that_was_stopped_ends_with_the_bits_of_a_straight_one(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(runs_dir=tmp_path / "straight")
    for file in (tmp_path / "cache/features").iterdir():
        file.unlink()
    compute = features._compute

    def stopping(run: Any, name: str, *others: Any) -> Any:
        if name == "test":
            raise InterruptedRunError("Interrupted", 143)
        return compute(run, name, *others)

    with monkeypatch.context() as patch:
        patch.setattr(features, "_compute", stopping)
        with pytest.raises(InterruptedRunError):
            train()
    train()
    assert contents(tmp_path / "runs") == contents(tmp_path / "straight")


@pytest.mark.parametrize("method", ["probe", "knn"])
def test_two_processes_end_like_one(
    forks: Forks, data_dir: Path, weights: Path, tmp_path: Path, method: str
) -> None:
    words = ["train", BACKBONE["model"], "--method", method, "--image-size", "32"]
    words += ["--precision", "no", "--tracker", "none", "--data-dir", data_dir, "--weights"]
    rows = []
    for processes in (1, 2):
        runs_dir = tmp_path / str(processes)
        ended = forks.run(*words, weights, "--runs-dir", runs_dir, processes=processes)
        assert ended.code == 0, ended.err
        (result,) = runs_dir.glob("*/result.json")
        rows.append(json.loads(result.read_text()))
    assert rows[0]["test_accuracy"] == rows[1]["test_accuracy"]
    assert rows[1]["test_loss"] == pytest.approx(rows[0]["test_loss"], rel=1e-4)


# What is chosen, and on what.


def test_with_validation_images_the_penalty_is_chosen_on_them(train: Any, large: Path) -> None:
    row = train(data_dir=large)
    assert row.chosen["penalty_chosen_by"] == "validation images"
    given = train(data_dir=large, method_options={"penalty": row.chosen["penalty"]})
    assert given.chosen["penalty_chosen_by"] == "given"
    assert given.test_accuracy == row.test_accuracy


def test_on_a_fold_it_is_chosen_within_its_labels_and_no_other_label_is_read(
    train: Any, large: Path, tmp_path: Path
) -> None:
    row = train(data_dir=large, fold=0)
    assert row.chosen["penalty_chosen_by"] == "5-fold cross-validation"
    assert (row.selection, row.val_accuracy) == ("last epoch", None)
    other = write_layout(tmp_path / "other", train=160)
    folder = other / "stl10_binary"
    (folder / "fold_indices.txt").write_text((large / "stl10_binary/fold_indices.txt").read_text())
    labels = np.fromfile(folder / "train_y.bin", np.uint8)
    labels[104:] = np.roll(labels[104:], 1)
    labels.tofile(folder / "train_y.bin")
    again = train(data_dir=other, fold=0)
    assert again.chosen == row.chosen
    assert again.test_loss == row.test_loss


def test_below_25_labels_a_class_nothing_is_chosen(train: Any, large: Path) -> None:
    row = train(data_dir=large, labels_per_class=24)
    assert row.config.val_fraction == 0
    assert row.chosen["penalty"] == 1.0
    assert row.chosen["penalty_chosen_by"].startswith("default")
    assert train(data_dir=large, labels_per_class=25).config.val_fraction == 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 3}, "epochs: no effect with --method probe"),
        ({"freeze": False}, "no-freeze: no effect"),
        ({"hidden": (4,)}, "hidden: no effect"),
        ({"method_options": {"vews": 2}}, "no option 'vews': did you mean 'views'"),
        ({"method_options": {"views": 3}}, "views = 3"),
        ({"model": "mlp", "weights": None}, "needs a frozen backbone"),
        ({"method": "prob"}, "unknown method 'prob': did you mean 'probe'"),
    ],
)
def test_what_a_method_cannot_do_is_refused(
    train: Any, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train(**options)
    assert not list((tmp_path / "runs").glob("*/"))
