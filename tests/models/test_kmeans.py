"""K-means features: what scikit-learn computes from the same centroids, and a whole run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import stl10bench
from stl10bench.core.errors import UsageError
from stl10bench.data.stl10 import open_dataset
from stl10bench.models import kmeans
from stl10bench.models.feature_heads import power_normalise
from stl10bench.models.kmeans import KMeansFeatures, k_means


class Images(list[torch.Tensor]):
    """Batches, as `fit` takes them."""

    count = 24


@pytest.fixture
def images() -> Images:
    torch.manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.randn(24, 3, 5, 5), size=11, mode="bilinear")
    return Images((smooth + 0.1 * torch.randn(24, 3, 11, 11)).split(10))


@pytest.fixture
def learned(images: Images) -> KMeansFeatures:
    layer = KMeansFeatures(6, 4, 1)
    layer.fit(images, seed=3)
    return layer


def patches_of(image: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    """The patches of an image (3, S, S), row by row, each normalised for contrast."""
    places = range(image.shape[1] - size + 1)
    cut = [image[:, i : i + size, j : j + size].ravel() for i in places for j in places]
    patches = np.array(cut) - np.mean(cut, 1, keepdims=True)
    return patches / np.sqrt(patches.var(1, keepdims=True) + kmeans.CONTRAST)


def test_features_are_those_of_scikit_learn_from_the_same_centroids(
    images: Images, learned: KMeansFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    centroids = learned.centroids.numpy().astype(np.float64)
    oracle = KMeans(6, init=centroids, n_init=1, max_iter=1).fit(centroids)
    oracle.cluster_centers_ = centroids
    expected = []
    for image in torch.cat(list(images)).numpy().astype(np.float64):
        patches = (patches_of(image, 4) - learned.mean.numpy()) @ learned.whitening.numpy()
        distances = oracle.transform(patches)
        active = np.maximum(0, distances.mean(1, keepdims=True) - distances).reshape(8, 8, 6)
        halves = (slice(0, 4), slice(4, 8))
        expected.append(np.concatenate([active[i, j].sum((0, 1)) for i in halves for j in halves]))
    monkeypatch.setitem(kmeans._TABLE, "cpu", 3 * 64 * 6)  # three images at once
    np.testing.assert_allclose(learned(torch.cat(list(images))), expected, atol=2e-3)


def test_whitened_patches_are_uncorrelated(images: Images, learned: KMeansFeatures) -> None:
    patches = learned._sample(images, torch.Generator().manual_seed(9))
    whitened = (patches - learned.mean) @ learned.whitening
    values = np.linalg.eigvalsh(np.cov(patches.T.numpy(), bias=True))
    expected = values / (values + kmeans.ZCA)
    np.testing.assert_allclose(np.linalg.eigvalsh(np.cov(whitened.T)), expected, atol=0.1)


def test_centroids_are_those_of_lloyds_algorithm() -> None:
    points = torch.randn(400, 5, generator=torch.Generator().manual_seed(1))
    first = torch.randint(400, (7,), generator=torch.Generator().manual_seed(2))
    oracle = KMeans(7, init=points[first].numpy(), n_init=1, max_iter=10, tol=0).fit(points.numpy())
    found = k_means(points, 7, torch.Generator().manual_seed(2))
    np.testing.assert_allclose(found, oracle.cluster_centers_, atol=1e-4)


def test_a_run_has_the_accuracy_of_scikit_learn_on_its_features(
    data_dir: Path, tmp_path: Path
) -> None:
    row = stl10bench.train(
        "kmeans", data_dir=data_dir, runs_dir=tmp_path, image_size=12, centroids=8, patch=4,
        val_fraction=0, method_options={"penalty": 0.01}, tracker="none", threads=1,
    )  # fmt: skip
    assert (row.method, row.config.method) == ("probe", "probe")
    predictor = stl10bench.load(tmp_path / str(row.checkpoint))
    data = open_dataset(data_dir)
    inputs: list[torch.Tensor] = []
    head = predictor.model.get_submodule("head")
    head.register_forward_pre_hook(lambda _, features: inputs.append(features[0]))
    with torch.no_grad():
        for split in (data.train, data.test):
            predictor(torch.from_numpy(split.images.copy()))
    train, test = (power_normalise(each, 0.5).double().numpy() for each in inputs)
    scaler = StandardScaler().fit(train)
    train, test = (scaler.transform(each) / train.shape[1] ** 0.5 for each in (train, test))
    oracle = LogisticRegression(C=1 / 0.01, tol=1e-8, max_iter=5000).fit(train, data.train.labels)
    assert row.test_accuracy == oracle.score(test, data.test.labels)
    predicted = oracle.predict_proba(test)[np.arange(20), data.test.labels]
    assert row.test_loss == pytest.approx(-np.log(predicted).mean(), rel=0.05)


def test_unlabelled_images_change_the_centroids(data_dir: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"image_size": 8, "centroids": 4, "patch": 3, "labels_per_class": 5}
    options |= {"data_dir": data_dir, "runs_dir": tmp_path, "tracker": "none", "threads": 1}
    alone, rest = (stl10bench.train("kmeans", **options, unlabeled=x) for x in (None, "rest"))
    assert (alone.unlabeled_used, rest.unlabeled_used) == (None, 20)
    assert alone.test_loss != rest.test_loss


def test_patches_larger_than_the_images_are_refused(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="kmeans with patches of 9 px, 1 apart, needs at least 10"):
        stl10bench.train("kmeans", data_dir=data_dir, runs_dir=tmp_path, image_size=8, patch=9)
