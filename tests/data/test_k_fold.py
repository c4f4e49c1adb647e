"""k-fold: the training images in k stratified parts, each of which validates one run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.layout import write_layout

import stl10bench
from stl10bench.config import make_config
from stl10bench.core.errors import DataError, UsageError
from stl10bench.data.splits import training_rows
from stl10bench.data.stl10 import Dataset, open_dataset
from stl10bench.results.aggregate import aggregate
from stl10bench.results.labels import data_title
from stl10bench.studies.plan import benchmark_points


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(write_layout(tmp_path_factory.mktemp("data"), train=42, size=8))


def rows(dataset: Dataset, **settings: int) -> tuple[Any, Any]:
    return training_rows(make_config({"model": "logistic", **settings}), dataset)


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_each_image_validates_once_and_trains_otherwise(dataset: Dataset, parts: int) -> None:
    splits = [rows(dataset, k_fold=parts, k_fold_part=part) for part in range(parts)]
    validates = np.concatenate([validation for _, validation in splits])
    np.testing.assert_array_equal(np.sort(validates), np.arange(42))
    for train, validation in splits:
        np.testing.assert_array_equal(np.sort(np.concatenate([train, validation])), np.arange(42))


def test_the_parts_have_the_shares_of_the_classes(dataset: Dataset) -> None:
    labels = dataset.train.labels
    for part in range(5):
        _, validation = rows(dataset, k_fold=5, k_fold_part=part)
        for label, count in enumerate(np.bincount(labels)):
            assert np.sum(labels[validation] == label) in (count // 5, count // 5 + 1)


def test_another_seed_cuts_in_another_way(dataset: Dataset) -> None:
    one, other = (rows(dataset, k_fold=2, seed=seed)[1].tolist() for seed in (0, 1))
    assert one != other


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"k_fold": 3, "k_fold_part": 3}, "k_fold_part = 3: must be less than k_fold = 3"),
        ({"k_fold_part": 1}, "k_fold_part = 1: must be less than k_fold = None"),
        ({"k_fold": 3, "val_fraction": 0.2}, "one part of them validates; leave it out"),
        ({"k_fold": 3, "labels_per_class": 5}, "leave out fold and labels_per_class"),
        ({"k_fold": 1}, "k_fold = 1"),
    ],
)
def test_settings_that_contradict_it_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        make_config({"model": "logistic", **settings})


def test_more_parts_than_a_class_has_images_are_refused(dataset: Dataset) -> None:
    with pytest.raises(DataError, match="k_fold = 11: a class has only 10 images"):
        rows(dataset, k_fold=11)


def test_a_benchmark_by_k_fold_has_a_run_for_each_part() -> None:
    points = benchmark_points(["logistic", "mlp"], {"k_fold": 3}, seeds=2, protocol="k-fold")
    parts = [(p.model, p.settings["k_fold"], p.settings["k_fold_part"], p.seed) for p in points]
    assert sorted(parts) == [
        (model, 3, part, seed)
        for model in ("logistic", "mlp")
        for part in range(3)
        for seed in range(2)
    ]
    assert points[0].title == "logistic --seed 0 --k-fold-part 0 --k-fold 3"  # as it is typed
    assert len(benchmark_points(["logistic"], {}, protocol="k-fold")) == 5
    with pytest.raises(UsageError, match="--k-fold-part 1 contradicts --protocol k-fold"):
        benchmark_points(["logistic"], {"k_fold_part": 1}, protocol="k-fold")


def test_the_parts_are_one_row_apart_from_other_protocols(tmp_path: Path) -> None:
    data_dir = write_layout(tmp_path / "data", size=8)
    rows = [
        stl10bench.train(
            "logistic",
            **{"data_dir": data_dir, "runs_dir": tmp_path, "tracker": "none", "image_size": 8},
            **{"epochs": 1, "batch_size": 8, "threads": 1, **settings},
        )
        for settings in ({"k_fold": 2}, {"k_fold": 2, "k_fold_part": 1}, {})
    ]
    assert rows[0].val_accuracy != rows[1].val_accuracy
    one, full = aggregate(rows)
    assert one.runs == 2
    assert one.test_accuracy == (rows[0].test_accuracy + rows[1].test_accuracy) / 2
    assert one.protocol != full.protocol
    assert "2-fold cross-validation" in data_title([one])
