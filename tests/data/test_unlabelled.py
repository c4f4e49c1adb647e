"""Images without labels: which a run gets, that copies of test images are not among them."""

import json
import tracemalloc
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
from stl10bench.data.unlabelled import STAMP, find_unlabelled, scan_file

COPIES, OTHERS = (3, 4, 17), 30  # test images that lie in the unlabelled file, before the others
KMEANS: dict[str, Any] = {
    **{"image_size": 8, "centroids": 4, "patch": 3, "tracker": "none", "threads": 1},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Data with two folds of 20 images, and an unlabelled file."""
    folder = write_layout(tmp_path / "data") / "stl10_binary"
    folds = [" ".join(map(str, range(start, start + 20))) for start in (0, 10)]
    (folder / "fold_indices.txt").write_text("\n".join(folds) + "\n")
    image = 3 * 96 * 96
    tested = (folder / "test_X.bin").read_bytes()
    copies = b"".join(tested[image * row :][:image] for row in COPIES)
    others = np.random.default_rng(2).integers(0, 256, OTHERS * image, dtype=np.uint8)
    (folder / "unlabeled_X.bin").write_bytes(copies + others.tobytes())
    return folder


@pytest.fixture
def dataset(folder: Path) -> Dataset:
    return open_dataset(folder.parent)


def rows(dataset: Dataset, **settings: Any) -> tuple[list[int], list[int], int]:
    """The rows of the train split and of the file, and the copies."""
    found = find_unlabelled(make_config({"model": "kmeans", **settings}), dataset)
    assert found is not None
    return found.train_rows.tolist(), found.file_rows.tolist(), found.dropped + found.kept


def test_the_rest_is_what_a_fold_leaves_out(dataset: Dataset) -> None:
    found = rows(dataset, fold=1, val_fraction=0, unlabeled="rest")
    assert found == ([*range(10), *range(30, 40)], [], 0)


def test_validation_images_are_not_among_the_rest_of_a_budget(dataset: Dataset) -> None:
    settings = {"labels_per_class": 4, "val_fraction": 0.25, "unlabeled": "rest"}
    labelled = np.concatenate(
        training_rows(make_config({"model": "kmeans", **settings}), dataset)
    ).tolist()
    train_rows, file_rows, _ = rows(dataset, **settings)
    assert sorted([*train_rows, *labelled]) == list(range(40))
    assert not file_rows


def test_all_is_the_rest_and_the_file_without_the_planted_copies(dataset: Dataset) -> None:
    found = rows(dataset, fold=0, val_fraction=0, unlabeled="all")
    assert found == (list(range(20, 40)), list(range(3, 33)), len(COPIES))


def test_a_training_image_that_is_a_test_image_is_dropped_from_the_rest(folder: Path) -> None:
    stored = np.fromfile(folder / "train_X.bin", dtype=np.uint8).reshape(40, -1)
    tested = np.fromfile(folder / "test_X.bin", dtype=np.uint8).reshape(20, -1)
    stored[39] = tested[7]
    stored.tofile(folder / "train_X.bin")
    found = rows(open_dataset(folder.parent), fold=0, val_fraction=0, unlabeled="rest")
    assert found == (list(range(20, 39)), [], 1)


def test_a_number_is_drawn_by_the_seed_and_adds_to_every_smaller_one(dataset: Dataset) -> None:
    fold = {"fold": 0, "val_fraction": 0}
    five, nine, other = (
        rows(dataset, **fold, unlabeled=number, seed=seed)
        for number, seed in ((5, 0), ("9", 0), (5, 1))
    )
    assert [len(train) + len(file) for train, file, _ in (five, nine, other)] == [5, 9, 5]
    assert set(five[0]) <= set(nine[0])
    assert set(five[1]) <= set(nine[1])
    assert five != other


def test_copies_are_looked_for_once_until_the_file_changes(
    folder: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scan_file(dataset)
    with monkeypatch.context() as patch:
        patch.setattr("stl10bench.data.unlabelled._scan", None)
        again = scan_file(dataset)
    assert (again.fingerprint, again.is_copy.tolist()) == (
        first.fingerprint,
        first.is_copy.tolist(),
    )
    with (folder / "unlabeled_X.bin").open("ab") as file:
        file.write(bytes(3 * 96 * 96))
    longer = scan_file(dataset)
    assert len(longer.is_copy) == len(first.is_copy) + 1
    assert longer.fingerprint != first.fingerprint
    (folder / STAMP).write_text("{")
    with pytest.warns(UserWarning, match="finding the copies again"):
        assert scan_file(dataset).fingerprint == longer.fingerprint


def test_a_stamp_without_some_of_the_copies_is_not_believed(dataset: Dataset, folder: Path) -> None:
    first = scan_file(dataset)
    stored = json.loads((folder / STAMP).read_text())
    (folder / STAMP).write_text(json.dumps(stored | {"copies": ""}))
    with pytest.warns(UserWarning, match="0 bytes of copies for .* images; finding"):
        assert scan_file(dataset).is_copy.tolist() == first.is_copy.tolist()


def test_where_nothing_may_be_written_the_copies_are_found_all_the_same(folder: Path) -> None:
    assert scan_file(open_dataset(folder.parent, stamp=False)).is_copy.sum() == len(COPIES)
    assert not (folder / STAMP).exists()


def test_a_large_file_adds_nothing_to_memory(folder: Path) -> None:
    with (folder / "unlabeled_X.bin").open("r+b") as file:
        file.truncate(9000 * 3 * 96 * 96)  # 249 MB, of which the disk has 1
    dataset = open_dataset(folder.parent)
    tracemalloc.start()
    train_rows, file_rows, copies = rows(dataset, unlabeled="all", fold=0, val_fraction=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(train_rows), len(file_rows), copies) == (20, 9000 - len(COPIES), len(COPIES))
    assert peak < 40e6


@pytest.mark.parametrize("keep", [False, True])
def test_a_row_counts_labels_unlabelled_images_and_copies(
    folder: Path, tmp_path: Path, keep: bool
) -> None:
    row = stl10bench.train(
        "kmeans", data_dir=folder.parent, runs_dir=tmp_path / "runs", fold=0, unlabeled="all",
        keep_copies=keep, **KMEANS,
    )  # fmt: skip
    kept = len(COPIES) if keep else 0
    counts = (row.labels_used, row.unlabeled_used, row.copies_dropped)
    assert counts == (20, 20 + OTHERS + kept, len(COPIES) - kept)
    assert row.contamination == ("test images" if keep else "none")
    assert "unlabelled" in row.protocol  # in no ranking with rows of labels alone
    header = json.loads((tmp_path / "runs" / str(row.run) / "config.json").read_text())
    assert header["unlabeled_data"] == scan_file(open_dataset(folder.parent)).fingerprint


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"unlabeled": "some"}, UsageError, "unlabeled = 'some': must be rest, all or a number"),
        ({"keep_copies": True}, UsageError, "keep_copies has no effect without unlabelled images"),
        ({"unlabeled": "rest"}, DataError, "unlabeled = rest: there is no such image"),
        ({"unlabeled": 51, "fold": 0}, DataError, "there are only 50 unlabelled images"),
        (
            {"unlabeled": "rest", "fold": 0, "model": "logistic", "batch_size": 8},
            UsageError,
            "'logistic' and --method supervised; leave it out, or use --method fixmatch",
        ),
    ],
)
def test_what_cannot_be_is_said_and_leaves_no_run(
    folder: Path, tmp_path: Path, settings: dict[str, Any], error: Any, message: str
) -> None:
    options = {"model": "kmeans", **KMEANS, **settings}
    if options["model"] != "kmeans":
        del options["centroids"], options["patch"]
    with pytest.raises(error, match=message):
        stl10bench.train(data_dir=folder.parent, runs_dir=tmp_path / "runs", **options)
    assert not list((tmp_path / "runs").glob("*/"))


@pytest.mark.filterwarnings("default")
def test_train_says_what_became_of_copies_and_the_card_that_they_were_seen(
    folder: Path, cli: Any
) -> None:
    words = ["train", "kmeans", "--fold", "0", "--unlabeled", "all", "--image-size", "8"]
    words += ["--model-option", "centroids=4", "--model-option", "patch=3", "--tracker", "none"]
    words += ["--data-dir", str(folder.parent), "--runs-dir"]
    _, out, err = cli(*words, "dropped")
    assert "3 copies of test images were dropped from the unlabelled images" in out
    assert "warning" not in err
    _, out, err = cli(*words, "kept", "--keep-copies")
    assert "were dropped" not in out
    assert "warning: the model has learned from copies of test images" in err
    for runs_dir, seen in (("dropped", False), ("kept", True)):
        (run,) = Path(runs_dir).glob("kmeans-*")
        assert cli("export", str(run), "--to", "hub", "-o", f"{runs_dir}-hub")[0] == 0
        card = Path(f"{runs_dir}-hub/README.md").read_text()
        assert ("| contamination | test images |" in card) == seen


def test_without_the_file_the_rest_is_named(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unlabeled_X\.bin is missing: get it with"):
        stl10bench.train(
            "kmeans", data_dir=data_dir, runs_dir=tmp_path, unlabeled="all", **KMEANS
        )  # fmt: skip
