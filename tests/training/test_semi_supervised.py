"""Methods that learn from unlabelled images: what references compute, and what a run says."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.layout import write_layout
from sklearn.semi_supervised import LabelSpreading
from torch.nn import functional as F

import stl10bench
from stl10bench.models.feature_heads import KnnHead, SpreadHead
from stl10bench.training.semi_supervised import most_confident, neighbour_graph, spread

METHODS = ("pseudo-label", "label-spreading")
KMEANS: dict[str, Any] = {
    **{"image_size": 12, "centroids": 8, "patch": 4, "tracker": "none", "threads": 1},
}


@pytest.mark.parametrize("alpha", [0.2, 0.9])
def test_labels_spread_as_in_scikit_learn(alpha: float) -> None:
    torch.manual_seed(0)
    classes = torch.arange(60) % 3
    images = F.normalize(torch.randn(60, 5) + 2 * torch.eye(5)[classes], dim=1)
    graph = neighbour_graph(images, 6, 0.1)
    weights = np.zeros((60, 60))
    np.add.at(weights, (graph.here.numpy(), graph.there.numpy()), graph.weights.numpy())
    assert np.array_equal(weights, weights.T)
    labels = np.where(np.arange(60) < 6, classes, -1)
    oracle = LabelSpreading(kernel=lambda *_: weights, alpha=alpha, max_iter=9999, tol=1e-12)
    oracle.fit(images.numpy(), labels)
    seeds = F.one_hot(classes, 3).float() * (torch.arange(60) < 6)[:, None]
    np.testing.assert_allclose(spread(graph, seeds, alpha), oracle.label_distributions_, atol=2e-3)


def test_an_image_that_no_label_reaches_has_equal_shares() -> None:
    images = torch.eye(4)[[0, 0, 1, 1]]
    seeds = torch.eye(2)[[0, 1, 0, 1]] * torch.tensor([1, 0, 0, 0])[:, None]
    shares = spread(neighbour_graph(images, 1, 0.1), seeds, 0.9)
    assert shares.tolist() == [[1, 0], [1, 0], [0.5, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize("temperature", [0.1, 0.01, 0.005, 0.001])
def test_labels_spread_and_vote_at_any_temperature(temperature: float) -> None:
    """Neighbours at a cosine of about 0.7, whose weights and their products are tiny."""
    torch.manual_seed(0)
    classes = torch.arange(40) % 2
    images = F.normalize(torch.randn(40, 20) + 4 * torch.eye(20)[classes], dim=1)
    seeds = torch.zeros(40, 2)
    seeds[[0, 1], [0, 1]] = 1
    shares = spread(neighbour_graph(images, 5, temperature), seeds, 0.9)
    assert shares[:2].argmax(1).tolist() == [0, 1]
    assert shares.isfinite().all()
    logits = SpreadHead(images, shares, 5, temperature)(images)
    assert logits.isfinite().all()
    assert KnnHead(images, classes, 2, 5, temperature)(images).isfinite().all()


def test_the_most_confident_of_each_predicted_class_are_taken() -> None:
    confidence = torch.tensor([0.9, 0.5, 0.7, 0.8, 0.6, 0.4])
    predicted = torch.tensor([1, 1, 1, 1, 0, 0])
    assert most_confident(confidence, predicted, 0.5).tolist() == [0, 3, 4]
    assert most_confident(confidence, predicted, 0.01).tolist() == [0, 4]
    assert most_confident(confidence, predicted, 1.0).tolist() == list(range(6))


@pytest.fixture
def train(data_dir: Path, tmp_path: Path) -> Any:
    def train(method: str, **options: Any) -> Any:
        where = {"data_dir": data_dir, "runs_dir": tmp_path / "runs", "labels_per_class": 2}
        return stl10bench.train("kmeans", **{**KMEANS, **where, "method": method, **options})

    return train


@pytest.mark.parametrize("method", METHODS)
def test_a_run_ends_in_a_checkpoint_that_gives_its_row_again(
    train: Any, data_dir: Path, tmp_path: Path, method: str
) -> None:
    row = train(method, unlabeled="rest")
    assert (row.labels_used, row.unlabeled_used, row.copies_dropped) == (8, 32, 0)
    again = stl10bench.evaluate(tmp_path / "runs" / row.checkpoint, data_dir=data_dir, threads=1)
    assert again["test_accuracy"] == row.test_accuracy
    assert again["test_loss"] == pytest.approx(row.test_loss, rel=1e-5)


def test_without_unlabelled_images_pseudo_labels_are_a_probe(train: Any) -> None:
    alone = train("pseudo-label", method_options={"rounds": 3, "power": 0.7})
    assert (alone.method, alone.config.method_options) == ("probe", {"power": 0.7})
    assert train("pseudo-label", unlabeled="rest").chosen["pseudo_labels"] == 32


@pytest.mark.parametrize("method", METHODS)
def test_no_label_but_those_of_the_budget_is_read(
    train: Any, data_dir: Path, tmp_path: Path, method: str
) -> None:
    row = train(method, unlabeled="rest", fold=0, labels_per_class=None, data_dir=_folds(tmp_path))
    changed = _folds(tmp_path / "changed")
    labels = np.fromfile(changed / "stl10_binary/train_y.bin", np.uint8)
    labels[20:] = np.roll(labels[20:], 1)
    labels.tofile(changed / "stl10_binary/train_y.bin")
    again = train(method, unlabeled="rest", fold=0, labels_per_class=None, data_dir=changed)
    assert again.run != row.run
    assert again.test_loss == row.test_loss


def _folds(folder: Path) -> Path:
    data_dir = write_layout(folder / "data")
    fold = " ".join(map(str, range(20)))
    (data_dir / "stl10_binary/fold_indices.txt").write_text(f"{fold}\n")
    return data_dir


@pytest.mark.parametrize("method", METHODS)
def test_images_of_the_file_are_learned_from(train: Any, tmp_path: Path, method: str) -> None:
    data_dir = write_layout(tmp_path / "data")
    stored = np.fromfile(data_dir / "stl10_binary/train_X.bin", dtype=np.uint8)
    (stored.reshape(40, -1)[:7] ^ 1).tofile(data_dir / "stl10_binary/unlabeled_X.bin")
    rest = train(method, data_dir=data_dir, unlabeled="rest")
    everything = train(method, data_dir=data_dir, unlabeled="all")
    assert (rest.unlabeled_used, everything.unlabeled_used) == (32, 39)
    assert rest.test_loss != everything.test_loss
    of_file = train(method, data_dir=data_dir, unlabeled="all", labels_per_class=None)
    assert of_file.unlabeled_used == 7
    assert of_file.chosen.get("pseudo_labels", 7) == 7


def test_train_says_whether_unlabelled_images_helped(cli: Any, data_dir: Path) -> None:
    words = ["train", "kmeans", "--image-size", "8", "--model-option", "centroids=4"]
    words += ["--model-option", "patch=3", "--tracker", "none", "--data-dir", str(data_dir)]
    words += ["--labels-per-class", "2", "--set", "runs_dir=mine", "--unlabeled"]
    assert "train the same with --unlabeled none" in cli(*words, "rest")[1]
    assert "unlabelled images" not in cli(*words, "none")[1]
    assert re.search(
        r"unlabelled images: (helped by|hurt by|no gain:) .* points \[.*\], against kmeans-",
        cli(*words, "rest")[1],
    )
