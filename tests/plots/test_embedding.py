"""The embedding: PCA as computed by hand, t-SNE the same twice, classes told apart."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.entry import Entry
from helpers.layout import NAMES
from helpers.pictures import HOSTILE, save_model, written
from numpy.typing import NDArray
from torch import nn

from stl10bench.core.errors import UsageError
from stl10bench.data.stl10 import open_dataset
from stl10bench.inference.predictor import load
from stl10bench.models import registry
from stl10bench.plots import embedding, inspection


def blobs(count: int = 40, width: int = 6) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features around one of two far points each, and which."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2
    features = rng.normal(size=(count, width)) * np.arange(1, width + 1) + 100.0 * labels[:, None]
    return features.astype(np.float32), labels


def test_pca_is_the_singular_value_decomposition() -> None:
    features, _ = blobs()
    (title, points), _ = embedding.project(features).items()
    centred = features.astype(np.float64) - features.astype(np.float64).mean(axis=0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    expected = centred @ directions[:2].T
    signs = np.sign((points * expected).sum(axis=0))
    assert np.allclose(points, expected * signs)
    share = (sizes[:2] ** 2).sum() / (sizes**2).sum()
    assert title == f"PCA ({share:.2f} of the variance)"


def test_tsne_keeps_neighbours_together_and_is_the_same_twice() -> None:
    features, labels = blobs()
    first, again = embedding.project(features), embedding.project(features)
    name = "t-SNE (perplexity 13)"
    assert np.array_equal(first[name], again[name])
    assert first[name].shape == (40, 2)
    points = first[name]
    distances = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    assert np.array_equal(labels[distances.argmin(axis=1)], labels)


def test_one_feature_and_eight_images_are_enough() -> None:
    features, _ = blobs(embedding.MIN_IMAGES, 1)
    assert [points.shape for points in embedding.project(features).values()] == [(8, 2)] * 2


@pytest.mark.parametrize(
    ("features", "text"),
    [
        (np.zeros((20, 3)), "the model's features are not finite, or the same for every image"),
        (np.full((20, 3), np.inf), "the model's features are not finite, or the same"),
        (blobs(7)[0], "7 images: an embedding needs at least 8"),
    ],
)
def test_features_without_an_embedding_are_refused(
    features: NDArray[np.float32], text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        embedding.project(features.astype(np.float32))


def test_each_class_has_its_points_in_its_colour_and_shape_and_its_name() -> None:
    labels = np.arange(40) % 4
    points = np.random.default_rng(0).normal(size=(40, 2))
    figure = embedding.scatter("title $\\frac{$", {"one": points, "two": -points}, labels, HOSTILE)
    left, right = figure.axes
    looks = set()
    for label, drawn in enumerate(left.collections):
        assert np.array_equal(np.asarray(drawn.get_offsets()), points[labels == label])
        paths = drawn.get_paths()
        looks.add((tuple(drawn.get_facecolor()[0]), paths[0].vertices.tobytes()))
    assert len(looks) == 4
    assert np.array_equal(np.asarray(right.collections[0].get_offsets()), -points[labels == 0])
    (legend,) = figure.legends
    assert [text.get_text().replace("\n", "") for text in legend.get_texts()] == list(HOSTILE)


def test_more_classes_than_colours_still_look_different() -> None:
    names = [f"class {number}" for number in range(60)]
    points = np.zeros((60, 2))
    figure = embedding.scatter("title", {"one": points}, np.arange(60), names)
    looks = {
        (tuple(drawn.get_facecolor()[0]), drawn.get_paths()[0].vertices.tobytes())
        for drawn in figure.axes[0].collections
    }
    assert len(looks) == 60


def test_penultimate_features_are_what_the_last_layer_takes_in(
    data_dir: Path, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "m.safetensors", "mlp", hidden=(16, 5))
    predictor = load(tmp_path / "m.safetensors")
    images = open_dataset(data_dir).test.images
    rows = np.array([3, 0, 9])
    features = inspection.penultimate(predictor, images, rows)
    assert features.shape == (3, 5)
    last = model.get_submodule("linears.2")
    assert isinstance(last, nn.Linear)
    logits = inspection.logits(predictor, images, rows)
    assert torch.allclose(last(torch.from_numpy(features)), logits, atol=1e-6)


def test_the_penultimate_features_of_logistic_regression_are_the_pixels(
    data_dir: Path, tmp_path: Path
) -> None:
    save_model(tmp_path / "m.safetensors", "logistic")
    predictor = load(tmp_path / "m.safetensors")
    images = open_dataset(data_dir).test.images
    assert inspection.penultimate(predictor, images, np.arange(2)).shape == (2, 192)


def test_a_model_without_a_last_linear_layer_is_refused(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scaled(num_classes: int, image_size: int) -> nn.Module:
        linear = nn.Linear(3 * image_size**2, num_classes)
        return nn.Sequential(nn.Flatten(), linear, nn.LayerNorm(num_classes))

    monkeypatch.setitem(registry._registered, "scaled", scaled)
    save_model(tmp_path / "m.safetensors", "scaled")
    predictor = load(tmp_path / "m.safetensors")
    with pytest.raises(UsageError, match="'scaled' has no penultimate features"):
        inspection.penultimate(predictor, open_dataset(data_dir).test.images, np.arange(2))


def test_the_embedding_is_drawn_by_the_command_and_the_same_twice(
    cli: Entry, tmp_path: Path, data_dir: Path
) -> None:
    save_model(tmp_path / "m.safetensors", "mlp", hidden=(16, 5))
    options = ["visualize", "embedding", "m.safetensors", "--data-dir", data_dir]
    ended = cli(*options)
    assert (ended.code, ended.out, ended.err) == (0, "embedding.png\n", "")
    first = (tmp_path / "embedding.png").read_bytes()
    assert written(tmp_path / "embedding.png").shape[1] == 1.5 * 1070
    cli(*options)
    assert (tmp_path / "embedding.png").read_bytes() == first
    assert load("m.safetensors").class_names == NAMES
