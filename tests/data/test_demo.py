"""The drawn data: the same everywhere, in the layout, and not solvable by colours or pixels."""

import json
from pathlib import Path

import numpy as np
import pytest

from stl10bench.core.errors import DataError, StorageError
from stl10bench.data.demo import draw_demo, draw_image, make_demo
from stl10bench.data.stl10 import CLASS_NAMES, NEEDED, STAMP, Split, open_dataset, read_folds


def files(data_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (data_dir / "stl10_binary").glob("[!.]*")}


def test_the_demo_data_open_under_their_own_name(tmp_path: Path) -> None:
    make_demo(tmp_path, train=40, test=20)
    data = open_dataset(tmp_path)
    assert (data.name, data.class_names) == ("demo", CLASS_NAMES)
    assert data.train.images.shape == (40, 3, 96, 96)
    assert np.bincount(data.train.labels).tolist() == [4] * 10
    assert np.bincount(data.test.labels).tolist() == [2] * 10
    assert set(files(tmp_path)) == {*NEEDED, "fold_indices.txt", "demo.json"}


def test_what_is_drawn_in_memory_is_what_would_be_written(tmp_path: Path) -> None:
    drawn = draw_demo(tmp_path, train=40, test=20)
    assert not list(tmp_path.iterdir())
    make_demo(tmp_path, train=40, test=20)
    stored = open_dataset(tmp_path, stamp=False)
    assert not (tmp_path / "stl10_binary" / STAMP).exists()
    assert (drawn.fingerprint, drawn.folder) == (stored.fingerprint, stored.folder)
    for split in ("train", "test"):
        one, other = getattr(drawn, split), getattr(stored, split)
        assert np.array_equal(one.images, other.images)
        assert np.array_equal(one.labels, other.labels)
    assert np.array_equal(read_folds(drawn), read_folds(stored))


def test_the_folds_are_ten_fifths_of_the_train_split(tmp_path: Path) -> None:
    make_demo(tmp_path, train=40, test=10)
    folds = read_folds(open_dataset(tmp_path))
    assert [len(set(fold.tolist())) for fold in folds] == [8] * 10
    assert len({tuple(fold) for fold in folds}) == 10


def test_the_same_seed_draws_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    for name, seed in (("first", 7), ("again", 7), ("other", 8)):
        make_demo(tmp_path / name, train=20, test=10, seed=seed)
    assert files(tmp_path / "first") == files(tmp_path / "again")
    first, other = files(tmp_path / "first"), files(tmp_path / "other")
    assert first["train_X.bin"] != other["train_X.bin"]
    assert first["test_X.bin"] != other["test_X.bin"]


def test_more_images_leave_the_first_ones_as_they_are(tmp_path: Path) -> None:
    make_demo(tmp_path / "few", train=20, test=10)
    make_demo(tmp_path / "more", train=30, test=20)
    few, more = open_dataset(tmp_path / "few"), open_dataset(tmp_path / "more")
    assert np.array_equal(few.train.images, more.train.images[:20])
    assert np.array_equal(few.test.images, more.test.images[:10])


def test_no_image_is_drawn_twice(tmp_path: Path) -> None:
    make_demo(tmp_path, train=100, test=50)
    data = open_dataset(tmp_path)
    seen = {image.tobytes() for split in (data.train, data.test) for image in split.images}
    assert len(seen) == 150


def test_an_image_arrives_upright(tmp_path: Path) -> None:
    make_demo(tmp_path, train=20, test=10, seed=3)
    drawn = draw_image(2, 3, 0, 12).transpose(2, 0, 1)  # rows, columns, channels -> channels first
    assert np.array_equal(open_dataset(tmp_path).train.images[12], drawn)


def test_every_class_is_another_drawing() -> None:
    drawn = {draw_image(label, 0, 0, 0).tobytes() for label in range(10)}
    assert len(drawn) == 10


def accuracy(train: Split, test: Split, features: object) -> float:
    """Of a linear classifier (ridge regression on one-hot targets) on `features` of the images."""
    x, y = (features(split.images / 255.0) for split in (train, test))  # type: ignore[operator]
    mean, scale = x.mean(0), x.std(0) + 1e-6
    x, y = (x - mean) / scale, (y - mean) / scale
    targets = np.eye(10)[train.labels] - 0.1
    weights = np.linalg.solve(x.T @ x + len(x) * np.eye(x.shape[1]), x.T @ targets)
    return float(((y @ weights).argmax(1) == test.labels).mean())


def test_neither_colours_nor_pixels_give_the_class_away(tmp_path: Path) -> None:
    make_demo(tmp_path, train=400, test=300)
    data = open_dataset(tmp_path)
    colours = accuracy(data.train, data.test, lambda x: np.c_[x.mean((2, 3)), x.std((2, 3))])
    blocks = accuracy(
        data.train,
        data.test,
        lambda x: x.reshape(len(x), 3, 12, 8, 12, 8).mean((3, 5)).reshape(len(x), -1),
    )
    assert colours < 0.25
    assert blocks < 0.3


def test_data_that_are_there_and_whole_are_left_alone(tmp_path: Path) -> None:
    make_demo(tmp_path, train=20, test=10)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "stl10_binary").iterdir()}
    make_demo(tmp_path, train=20, test=10)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("change", [{"train": 30}, {"test": 20}, {"seed": 1}])
def test_other_demo_data_are_not_overwritten(tmp_path: Path, change: dict[str, int]) -> None:
    make_demo(tmp_path, train=20, test=10)
    before = files(tmp_path)
    with pytest.raises(DataError, match="exists already: move it away"):
        make_demo(tmp_path, **{"train": 20, "test": 10, **change})
    assert files(tmp_path) == before


def test_data_of_others_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "stl10_binary").mkdir()
    (tmp_path / "stl10_binary" / "train_X.bin").write_bytes(b"precious")
    with pytest.raises(DataError, match="exists already: move it away"):
        make_demo(tmp_path, train=20, test=10)
    assert files(tmp_path) == {"train_X.bin": b"precious"}


@pytest.mark.parametrize("name", NEEDED[:4])
def test_demo_data_that_were_changed_are_refused(tmp_path: Path, name: str) -> None:
    make_demo(tmp_path, train=20, test=10)
    path = tmp_path / "stl10_binary" / name
    path.write_bytes(path.read_bytes()[::-1])
    for use in (open_dataset, lambda folder: make_demo(folder, train=20, test=10)):
        with pytest.raises(DataError, match=rf"{name} is not what make-demo wrote.*draw it again"):
            use(tmp_path)


@pytest.mark.parametrize("marker", ["", "{}", '{"sha256": 1}', "[]"])
def test_a_damaged_marker_is_refused(tmp_path: Path, marker: str) -> None:
    make_demo(tmp_path, train=20, test=10)
    (tmp_path / "stl10_binary" / "demo.json").write_text(marker)
    with pytest.raises(DataError, match=r"demo\.json|not what make-demo wrote"):
        open_dataset(tmp_path)


def test_the_marker_says_what_was_drawn(tmp_path: Path) -> None:
    make_demo(tmp_path, train=20, test=10, seed=5)
    marker = json.loads(files(tmp_path)["demo.json"])
    assert {key: marker[key] for key in ("seed", "train", "test")} == {
        "seed": 5,
        "train": 20,
        "test": 10,
    }
    assert set(marker["sha256"]) >= set(NEEDED)


def test_nothing_is_left_where_the_demo_data_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write the demo data"):
        make_demo(tmp_path / "file", train=20, test=10)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
