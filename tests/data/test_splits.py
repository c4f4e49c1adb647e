"""Which images a run trains on, and which are for validation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import stl10bench
from stl10bench.core.errors import DataError, UsageError
from stl10bench.data.demo import make_demo
from stl10bench.data.splits import labelled_subset, split_validation
from stl10bench.data.stl10 import open_dataset, read_folds

TINY: dict[str, Any] = {"image_size": 8, "epochs": 1, "batch_size": 4, "tracker": "none"}


@pytest.fixture(scope="module")
def demo_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demo data, which have folds: 40 images to train on, so a fold has 8."""
    folder = tmp_path_factory.mktemp("demo")
    make_demo(folder / "demo", train=40, test=20)
    return folder


def test_the_validation_split_is_stratified_disjoint_and_seeded() -> None:
    labels = np.repeat(np.arange(10), 50)
    train_rows, val_rows = split_validation(labels, 0.1, seed=3)
    assert np.bincount(labels[val_rows]).tolist() == [5] * 10
    assert sorted([*train_rows, *val_rows]) == list(range(500))
    assert np.array_equal(split_validation(labels, 0.1, seed=3)[1], val_rows)
    assert not np.array_equal(split_validation(labels, 0.1, seed=4)[1], val_rows)


@given(
    labels=st.lists(st.integers(0, 3), min_size=40, max_size=80),
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_a_subset_has_as_many_of_each_class_and_is_part_of_every_larger_one(
    labels: list[int], seed: int, sizes: tuple[int, int]
) -> None:
    array = np.array([*labels, *[0, 1, 2, 3] * 5])
    small, large = (labelled_subset(array, size, seed) for size in sorted(sizes))
    assert np.bincount(array[small]).tolist() == [min(sizes)] * 4
    assert set(small) <= set(large)
    assert np.array_equal(small, np.sort(small))


def test_another_seed_draws_another_subset_and_none_is_everything() -> None:
    labels = np.repeat(np.arange(4), 25)
    assert not np.array_equal(labelled_subset(labels, 5, 0), labelled_subset(labels, 5, 1))
    assert np.array_equal(labelled_subset(labels, None, 0), np.arange(100))
    with pytest.raises(DataError, match="labels_per_class = 26: class 0 has only 25 images"):
        labelled_subset(labels, 26, 0)


def test_a_run_on_a_subset_validates_on_a_part_of_it(data_dir: Path, tmp_path: Path) -> None:
    row = stl10bench.train(
        "logistic", data_dir=data_dir, runs_dir=tmp_path, labels_per_class=4, val_fraction=0.25,
        **TINY,
    )  # fmt: skip
    assert row.config.labels_per_class == 4
    measured = stl10bench.evaluate(tmp_path / row["checkpoint"], data_dir=data_dir, split="val")
    assert measured["val_images"] == 4
    assert measured["val_accuracy"] == row["val_accuracy"]


def test_a_fold_is_trained_on_whole_and_says_how_much_the_folds_overlap(
    demo_dir: Path, tmp_path: Path
) -> None:
    options = {**TINY, "dataset": "demo", "data_dir": demo_dir, "runs_dir": tmp_path}
    rows = [stl10bench.train("logistic", fold=fold, **options) for fold in (0, 9)]
    assert rows[0]["run"] != rows[1]["run"]
    for row in rows:
        assert row["selection"] == "last epoch"
        assert row["val_accuracy"] is None
        assert row.config.val_fraction == 0
        (epoch, _) = (tmp_path / row["run"] / "metrics.jsonl").read_text().splitlines()
        assert json.loads(epoch)["step"] == 8 // 4
    sets = [set(fold) for fold in read_folds(open_dataset(demo_dir / "demo"))]
    shared = [len(a & b) / 8 for i, a in enumerate(sets) for j, b in enumerate(sets) if i != j]
    assert rows[0]["fold_overlap"] == pytest.approx(np.mean(shared))


def test_a_fold_has_no_validation_images_and_no_subset(data_dir: Path, tmp_path: Path) -> None:
    for wrong in ({"val_fraction": 0.1}, {"labels_per_class": 4}):
        with pytest.raises(UsageError, match="fold = 3: training uses the whole fold"):
            stl10bench.train("logistic", data_dir=data_dir, runs_dir=tmp_path, fold=3, **wrong)


def test_data_without_folds_say_who_has_them(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"fold_indices.txt .*only STL-10 and the demo data"):
        stl10bench.train("logistic", data_dir=data_dir, runs_dir=tmp_path, fold=0, **TINY)
