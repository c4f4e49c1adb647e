"""The reader: what it takes, what it refuses and how it says so."""

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.layout import NAMES, SHARED, write_layout
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stl10bench.core.errors import DataError, StorageError
from stl10bench.data import stl10
from stl10bench.data.stl10 import (
    CLASS_NAMES,
    NEEDED,
    OFFICIAL,
    open_dataset,
    open_unlabelled,
    pieces,
    read_folds,
)

REAL = SHARED / "data" / "stl10"
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"needs {REAL}, no part of the project")
linux = pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc")
LABELS = "train_y.bin"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A data folder of its own: 16 training and 8 test images of four classes."""
    return write_layout(tmp_path, train=16, test=8)


def folder(data_dir: Path) -> Path:
    return data_dir / "stl10_binary"


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def test_a_folder_in_the_layout_opens_with_its_own_counts_and_classes(small: Path) -> None:
    data = open_dataset(small)
    assert (data.name, data.class_names, data.folder) == ("STL-10 layout", NAMES, folder(small))
    assert (data.train.images.shape, data.train.images.dtype) == ((16, 3, 96, 96), np.uint8)
    assert (data.test.labels.tolist(), data.test.labels.dtype) == ([0, 1, 2, 3] * 2, np.int64)


def test_planes_are_stored_column_by_column(small: Path) -> None:
    pixels = np.fromfile(folder(small) / "train_X.bin", dtype=np.uint8)
    images = open_dataset(small).train.images
    channel, row, column = 2, 7, 50
    assert images[3, channel, row, column] == pixels[3 * 27648 + channel * 9216 + column * 96 + row]


def test_images_are_mapped_and_cannot_be_written(small: Path) -> None:
    images = open_dataset(small).train.images
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


@linux
def test_a_hundred_thousand_unlabelled_images_take_no_memory(small: Path) -> None:
    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    with (folder(small) / "unlabeled_X.bin").open("wb") as file:
        file.truncate(OFFICIAL["unlabeled_X.bin"][0])  # sparse
    before = resident()
    images = open_unlabelled(small)
    assert images.shape == (100_000, 3, 96, 96)
    assert int(images[::10_000].sum()) == 0
    assert resident() - before < 20_000  # kB


def test_the_fingerprint_is_that_of_the_contents_alone(small: Path, tmp_path: Path) -> None:
    other = write_layout(tmp_path / "a copy elsewhere", train=16, test=8)
    (folder(other) / "unlabeled_X.bin").write_bytes(b"of no matter")
    assert open_dataset(small).fingerprint == open_dataset(other).fingerprint
    write_layout(tmp_path / "more", train=16, test=12)
    assert open_dataset(tmp_path / "more").fingerprint != open_dataset(small).fingerprint


def test_the_size_of_the_images_is_part_of_the_data(small: Path) -> None:
    before = open_dataset(small).fingerprint
    size = folder(small) / "image_size.txt"
    size.write_text("48\n")
    with pytest.raises(DataError, match=r"train_y.bin: 64 labels expected, .* found 16"):
        open_dataset(small)
    for split, count in (("train", 16), ("test", 8)):
        os.truncate(folder(small) / f"{split}_X.bin", count * 3 * 48 * 48)
    data = open_dataset(small)
    assert (data.image_size, data.test.images.shape) == (48, (8, 3, 48, 48))
    assert data.fingerprint != before
    (folder(small) / "unlabeled_X.bin").write_bytes(bytes(5 * 3 * 48 * 48))
    assert open_unlabelled(small).shape == (5, 3, 48, 48)
    for content in ("", "7", "1025", "-48", "48.0", "4\x008", "9" * 101):
        size.write_text(content)
        with pytest.raises(DataError, match=r"image_size.txt"):
            open_dataset(small)


@pytest.mark.parametrize(("size", "step"), [(96, 500), (48, 2000), (1024, 4)])
def test_pieces_take_the_same_memory_at_every_size(size: int, step: int) -> None:
    rows = [list(range(5001))[piece] for piece in pieces(5001, size)]
    assert [row for piece in rows for row in piece] == list(range(5001))
    assert {len(piece) for piece in rows[:-1]} == {step}


def test_sums_are_computed_once_and_again_when_a_file_changes(small: Path) -> None:
    first = open_dataset(small).fingerprint
    stamp = folder(small) / ".stl10bench.json"
    stamped = json.loads(stamp.read_text())
    stamped["train_X.bin"]["sha256"] = "0" * 64
    stamp.write_text(json.dumps(stamped))
    assert open_dataset(small).fingerprint != first  # so the stamp was believed
    os.utime(folder(small) / "train_X.bin", ns=(0, 0))
    assert open_dataset(small).fingerprint == first
    assert json.loads(stamp.read_text())["train_X.bin"]["mtime_ns"] == 0


def test_sums_that_came_with_a_copied_folder_are_not_believed(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fingerprint = open_dataset(small).fingerprint
    stamp = folder(small) / ".stl10bench.json"
    stamped = json.loads(stamp.read_text())
    for name in NEEDED:  # another's images, under STL-10's names and with its sums
        facts = (folder(small) / name).stat()
        monkeypatch.setitem(OFFICIAL, name, (facts.st_size, "1" * 32))
        stamped[name]["md5"] = "1" * 32
    stamp.write_text(json.dumps(stamped))
    monkeypatch.setattr(stl10, "CLASS_NAMES", NAMES)
    assert open_dataset(small).name == "STL-10"  # a lie in the own folder is not noticed
    shutil.copytree(small / "stl10_binary", tmp_path / "copy" / "stl10_binary")  # keeps the mtimes
    with pytest.raises(DataError, match="is not STL-10's"):
        open_dataset(tmp_path / "copy")
    assert open_dataset(tmp_path / "copy", verify=False).fingerprint == fingerprint


@pytest.mark.parametrize("value", [None, 3, "", "\ud800", "0" * 63, "G" * 64, ["0" * 64]])
def test_sums_that_are_none_are_computed_again(small: Path, value: object) -> None:
    fingerprint = open_dataset(small).fingerprint
    stamp = folder(small) / ".stl10bench.json"
    stamped = json.loads(stamp.read_text())
    stamped["test_X.bin"]["sha256"] = value
    stamp.write_text(json.dumps(stamped))
    assert open_dataset(small).fingerprint == fingerprint


@pytest.mark.parametrize("content", ["", "[]", "{", '{"train_X.bin": 3}'])
def test_a_damaged_stamp_is_replaced(small: Path, content: str) -> None:
    first = open_dataset(small).fingerprint
    stamp = folder(small) / ".stl10bench.json"
    stamp.write_text(content)
    if content.startswith('{"'):
        assert open_dataset(small).fingerprint == first
    else:
        with pytest.warns(UserWarning, match="the checksums are computed again"):
            assert open_dataset(small).fingerprint == first
    assert "sha256" in json.loads(stamp.read_text())["train_X.bin"]


def test_a_stamp_that_cannot_be_written_is_a_warning(small: Path) -> None:
    (folder(small) / ".stl10bench.json" / "in the way").mkdir(parents=True)
    with (
        pytest.warns(UserWarning, match="computed again"),
        pytest.warns(UserWarning, match="computed in every run"),
    ):
        assert open_dataset(small).name == "STL-10 layout"


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_file_is_named_with_the_command_that_gets_it(small: Path, name: str) -> None:
    (folder(small) / name).unlink()
    with pytest.raises(DataError) as caught:
        open_dataset(small)
    assert f"{folder(small)} lacks {name}" in str(caught.value)
    assert f"'stl10bench data download --data-dir {small}'" in str(caught.value)


def test_the_command_can_be_pasted_whatever_the_folder_is_called(tmp_path: Path) -> None:
    data_dir = tmp_path / "Ünsere Daten; it's 🐒"
    with pytest.raises(DataError) as caught:
        open_dataset(data_dir)
    command = str(caught.value).split("'stl10bench ", 1)[1].split("', pass")[0]
    assert shlex.split(command) == ["data", "download", "--data-dir", str(data_dir)]
    assert open_dataset(write_layout(data_dir)).name == "STL-10 layout"


def cut(name: str, count: int) -> Callable[[Path], None]:
    def damage(here: Path) -> None:
        os.truncate(here / name, (here / name).stat().st_size + count)

    return damage


def put(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda here: (here / name).write_bytes(content) and None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut("train_X.bin", -5), r"train_X.bin: a multiple of 27648 bytes.*15 images and 27643"),
        (cut("test_X.bin", 1), r"test_X.bin: a multiple of 27648 bytes.*8 images and 1 bytes"),
        (cut("train_X.bin", -27648), "train_y.bin: 15 labels expected.*found 16"),
        (cut("test_X.bin", 27648), "test_y.bin: 9 labels expected.*found 8"),
        (put("test_X.bin", b""), "test_X.bin: a multiple of 27648 bytes.*found 0"),
        (cut(LABELS, -1), "train_y.bin: 16 labels expected.*found 15"),
        (put(LABELS, b""), "train_y.bin: 16 labels expected.*found 0"),
        (put(LABELS, bytes([1, 2, 3, 4, 0, 9] + [1] * 10)), "1..4 expected; found 0 at index 4"),
        (put(LABELS, bytes([1, 2, 3, 4] * 3 + [11] * 4)), "1..4 expected; found 11 at index 12"),
        (put(LABELS, bytes([255] * 16)), "1..4 expected; found 255 at index 0"),
        (put(LABELS, bytes([1, 2, 4, 4] * 4)), "train_y.bin: no image of class 'cow'"),
        (put("class_names.txt", b"one"), "2 to 255 different names"),
        (put("class_names.txt", b"a\nb\na\n"), "2 to 255 different names.*found 3: 'a', 'b', 'a'"),
        (put("class_names.txt", b"a\n\nb\n"), "2 to 255 different names"),
        (put("class_names.txt", b"a\n\x1b[31mb\n"), r"printable characters; found 2: 'a', '\\x1b"),
        (put("class_names.txt", b"a\n" + b"b" * 101), "up to 100 printable characters; found 2"),
        (put("class_names.txt", b"a\n\xff\n"), "class_names.txt: UTF-8 text expected"),
        (put("class_names.txt", b"a" * 200_000), "200000 bytes, at most 100,000 expected"),
    ],
)
def test_damaged_files_are_refused_with_what_was_expected_and_found(
    small: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(folder(small))
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(small)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([4, 5, 255]).flatmap(lambda most: st.tuples(*[st.integers(0, most)] * 8)))
def test_labels_are_taken_only_if_every_one_names_a_class(
    small: Path, labels: tuple[int, ...]
) -> None:
    (folder(small) / "test_y.bin").write_bytes(bytes(labels))
    if all(1 <= label <= 4 for label in labels):
        assert (open_dataset(small).test.labels + 1).tolist() == list(labels)
    else:
        with pytest.raises(DataError, match=r"labels 1\.\.4 expected"):
            open_dataset(small)


@linux
def test_a_file_that_cannot_be_read_is_a_storage_error(small: Path) -> None:
    (folder(small) / "class_names.txt").unlink()
    (folder(small) / "class_names.txt").symlink_to("/proc/self/mem")  # reading it is an I/O error
    with pytest.raises(StorageError, match=r"cannot read .*stl10_binary"):
        open_dataset(small)


def test_files_with_the_official_names_must_have_the_official_sums(tmp_path: Path) -> None:
    write_layout(tmp_path, names=CLASS_NAMES)
    size, sum_ = OFFICIAL["train_X.bin"]
    actual = md5(folder(tmp_path) / "train_X.bin")
    expected = f"expected {size} bytes, MD5 {sum_}; found {40 * 27648} bytes, MD5 {actual}"
    with pytest.raises(DataError, match=f"{expected}.*--no-verify"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, verify=False).name == "STL-10 layout"


def test_only_files_with_the_official_sums_are_called_stl10(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_layout(tmp_path, names=CLASS_NAMES)
    for path in folder(tmp_path).iterdir():
        monkeypatch.setitem(OFFICIAL, path.name, (path.stat().st_size, md5(path)))
    assert open_dataset(tmp_path).name == "STL-10"
    pixels = bytearray((folder(tmp_path) / "test_X.bin").read_bytes())
    pixels[1000] ^= 1
    (folder(tmp_path) / "test_X.bin").write_bytes(pixels)
    with pytest.raises(DataError, match=r"test_X.bin is not STL-10's"):
        open_dataset(tmp_path)


def test_folds_are_the_rows_that_the_file_lists(small: Path) -> None:
    (folder(small) / "fold_indices.txt").write_text("0 15 3 \n1 2 \n")
    assert [fold.tolist() for fold in read_folds(open_dataset(small))] == [[0, 15, 3], [1, 2]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0 16\n", "different rows 0..15 of the train split expected in line 1"),
        ("0 1\n-1\n", "expected in line 2"),
        ("0 0\n", "expected in line 1"),
        ("0 1\n\n2 3\n", "expected in line 2, found 0"),
        ("zero\n", "lines of row numbers expected"),
        ("9" * 30, "lines of row numbers expected"),
        ("", "found none"),
        ("0\n" * 1001, "1 to 1000 lines expected.*found 1001"),
        ("1" * (10 << 20) + "1", "at most 10,485,760 bytes"),
    ],
)
def test_folds_that_are_none_are_refused(small: Path, content: str, message: str) -> None:
    (folder(small) / "fold_indices.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        read_folds(open_dataset(small))


def test_missing_folds_and_unlabelled_images_are_named_with_their_command(
    tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = "'stl10bench data download --{} --data-dir " + f"{small}'"
    missing = f"unlabeled_X.bin is missing: get it with {command.format('unlabelled')}"
    with pytest.raises(DataError, match=missing):
        open_unlabelled(small)
    with pytest.raises(DataError, match="only STL-10 and the demo data have folds"):
        read_folds(open_dataset(small))
    monkeypatch.setattr(stl10, "CLASS_NAMES", NAMES)
    for path in folder(small).glob("*.[bt]*"):
        monkeypatch.setitem(OFFICIAL, path.name, (path.stat().st_size, md5(path)))
    with pytest.raises(DataError, match=f"fold_indices.txt .*{command.format('folds')}"):
        read_folds(open_dataset(small))
    (folder(small) / "fold_indices.txt").write_text("0 1\n")
    with pytest.raises(DataError, match=r"fold_indices.txt is not STL-10's.*found 4 bytes"):
        read_folds(open_dataset(small))


@real
def test_the_official_sums_are_those_of_the_real_files() -> None:
    for name in ("train_y.bin", "test_y.bin", "class_names.txt"):
        assert OFFICIAL[name] == ((REAL / name).stat().st_size, md5(REAL / name))
    assert (REAL / "class_names.txt").read_text().splitlines() == list(CLASS_NAMES)


@real
def test_the_real_test_images_have_the_labels_that_the_reader_gives_them(tmp_path: Path) -> None:
    names = tuple(f"{name}!" for name in CLASS_NAMES)
    write_layout(tmp_path, train=10, test=10, names=names)
    for split in ("train", "test"):
        labels = (REAL / f"{split}_y.bin").read_bytes()
        (folder(tmp_path) / f"{split}_y.bin").write_bytes(labels)
        os.truncate(folder(tmp_path) / f"{split}_X.bin", 27648 * len(labels))
    stamp = {}
    for path in folder(tmp_path).iterdir():  # black pictures: their sums do not matter here
        facts = path.stat()
        stamp[path.name] = {"bytes": facts.st_size, "mtime_ns": facts.st_mtime_ns}
        stamp[path.name] |= {"ctime_ns": facts.st_ctime_ns, "md5": "0" * 32, "sha256": "0" * 64}
    (folder(tmp_path) / ".stl10bench.json").write_text(json.dumps(stamp))
    data = open_dataset(tmp_path)
    assert np.bincount(data.train.labels).tolist() == [500] * 10
    assert np.bincount(data.test.labels).tolist() == [800] * 10
    pictures = [path.stem.split("_") for path in (REAL / "test_images").glob("*.png")]
    assert len(pictures) == 10
    for name, index in pictures:
        assert CLASS_NAMES[data.test.labels[int(index)]] == name
