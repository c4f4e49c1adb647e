"""Files in STL-10's binary layout -> checked, memory-mapped images and labels."""

import hashlib
import re
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl10bench.core import files
from stl10bench.core.errors import DataError, StorageError

FOLDER = "stl10_binary"
STAMP = ".stl10bench.json"  # remembers checksums, so that they are computed once
MARKER = "demo.json"  # written by make-demo beside its files
SIZE_FILE = "image_size.txt"  # height and width of images that are not SIDE pixels
SIDE = 96  # pixels: STL-10's
SIZES = (8, 1024)  # the least and the largest side
_PIECE = 500 * 3 * SIDE * SIDE  # bytes
_FOLDS, _FOLDS_LIMIT = 1000, 10 << 20  # lines, bytes

CLASS_NAMES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
FileSum = tuple[int, str]  # bytes, MD5
OFFICIAL: dict[str, FileSum] = {
    "train_X.bin": (138_240_000, "918c2871b30a85fa023e0c44e0bee87f"),
    "train_y.bin": (5_000, "5a34089d4802c674881badbb80307741"),
    "test_X.bin": (221_184_000, "7f263ba9f9e0b06b93213547f721ac82"),
    "test_y.bin": (8_000, "36f9794fa4beb8a2c72628de14fa638e"),
    "unlabeled_X.bin": (2_764_800_000, "5242ba1fed5e4be9e1e742405eb56ca4"),
    "class_names.txt": (55, "6de44d022411c4d5cda4673b7f147c3f"),
    "fold_indices.txt": (47_794, "4bbf8cd098ab9f87fe03fbcb37c06b28"),
}
NEEDED = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "class_names.txt")

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Images and their labels."""

    images: Images  # uint8 (N, 3, S, S): a view on the mapped file, planes swapped
    labels: Labels  # int64 (N,), 0..C-1


@dataclass(frozen=True)
class Dataset:
    """The labelled splits of one folder."""

    name: str  # STL-10 (the official sums), STL-10 layout (any other content), or demo
    fingerprint: str  # sha256 over the names and sums of the NEEDED files and of SIZE_FILE
    class_names: tuple[str, ...]
    folder: Path
    train: Split
    test: Split
    fold_lines: bytes | None = None  # of data that are in no file
    stamp: bool = True  # whether checksums may be noted beside the files

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        return int(self.train.images.shape[-1])

    def summary(self) -> str:
        """The name, the numbers of images and classes, and the beginning of the fingerprint."""
        images = f"{len(self.train.labels):,} train and {len(self.test.labels):,} test images"
        if self.image_size != SIDE:
            images += f" of {self.image_size}x{self.image_size} pixels"
        classes = f"{len(self.class_names)} classes"
        return f"{self.name}: {images}, {classes}, fingerprint {self.fingerprint[:12]}"


def open_dataset(data_dir: Path, *, verify: bool = True, stamp: bool = True) -> Dataset:
    """The dataset in `data_dir`/stl10_binary: mapped, not loaded.

    Every file is checked for its size, counts and labels. Files with the official class names
    must have the official MD5 checksums, unless make-demo wrote them; `verify=False` takes them as
    "STL-10 layout" instead. Without `stamp` the checksums are not noted beside the files. Raises
    DataError with the file, what was expected and what was found, StorageError for a file that
    cannot be read.
    """
    with files.storage_errors(f"cannot read {data_dir / FOLDER}"):
        return _open(data_dir / FOLDER, verify=verify, stamp=stamp)


def _open(folder: Path, *, verify: bool, stamp: bool) -> Dataset:
    if missing := [name for name in NEEDED if not (folder / name).is_file()]:
        raise DataError(
            f"{folder} lacks {', '.join(missing)}: get STL-10 with {_download(folder.parent)}, "
            "pass another --data-dir, or try --dataset demo"
        )
    class_names = _class_names(folder / "class_names.txt")
    size = _image_size(folder)
    train, test = (_split(folder, split, size, len(class_names)) for split in ("train", "test"))
    if absent := sorted(set(range(len(class_names))) - set(train.labels.tolist())):
        raise DataError(f"{folder / 'train_y.bin'}: no image of class {class_names[absent[0]]!r}")

    sums = _sums(folder, write=stamp)
    name = "STL-10 layout"
    if (folder / MARKER).exists():
        _check_marker(folder, sums)
        name = "demo"
    elif class_names == CLASS_NAMES and verify:
        for file in NEEDED:
            size_md5 = sums[file]["bytes"], sums[file]["md5"]
            remedy = "download it again, or use it as other data with --no-verify"
            check_sum(folder / file, size_md5, OFFICIAL[file], remedy)
        name = "STL-10"
    identity = fingerprint({file: entry["sha256"] for file, entry in sums.items()})
    return Dataset(name, identity, class_names, folder, train, test, stamp=stamp)


def fingerprint(sums: Mapping[str, str]) -> str:
    """The fingerprint of data, from the sha256 of each file."""
    content = "".join(f"{file} {sha256}\n" for file, sha256 in sums.items())
    return hashlib.sha256(content.encode()).hexdigest()


def open_unlabelled(data_dir: Path) -> Images:
    """uint8 (N, 3, S, S): the unlabelled images, mapped, not verified. Raises DataError."""
    path = data_dir / FOLDER / "unlabeled_X.bin"
    if not path.is_file():
        raise DataError(f"{path} is missing: get it with {_download(data_dir, '--unlabelled')}")
    return _images(path, _image_size(path.parent))


def pieces(count: int, size: int) -> Iterator[slice]:
    """Slices of `count` images of `size` pixels a side, 14 MB each: what to have in memory at once.

    Of STL-10's images that is 500.
    """
    step = max(1, _PIECE // (3 * size * size))
    return (slice(start, start + step) for start in range(0, count, step))


def read_folds(dataset: Dataset) -> tuple[Labels, ...]:
    """The rows of the train split in each pre-defined fold, int64, in the file's order.

    STL-10's own file must have its official MD5. Raises DataError.
    """
    path = dataset.folder / "fold_indices.txt"
    count = len(dataset.train.labels)
    content = dataset.fold_lines
    if content is None:
        content = _read_fold_lines(dataset, path)
    lines = content.splitlines()
    if not 1 <= len(lines) <= _FOLDS or len(content) > _FOLDS_LIMIT:
        raise DataError(
            f"{path}: 1 to {_FOLDS} lines expected, one for each fold, of at most "
            f"{_FOLDS_LIMIT:,} bytes; found {len(lines) or 'none'}"
        )
    try:
        folds = tuple(np.array(line.split(), dtype=np.int64) for line in lines)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{path}: lines of row numbers expected: {str(error)[:100]}") from None
    for number, fold in enumerate(folds, 1):
        if not len(fold) or fold.min() < 0 or fold.max() >= count or len(set(fold)) < len(fold):
            raise DataError(
                f"{path}: different rows 0..{count - 1} of the train split expected in line "
                f"{number}, found {len(fold)}: {fold[:5].tolist()}..."
            )
    return folds


def _read_fold_lines(dataset: Dataset, path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for a writer
            raise DataError(f"cannot read {path}: no regular file")
        with path.open("rb") as file:
            content = file.read(_FOLDS_LIMIT + 1)
    except OSError as error:
        remedy = "only STL-10 and the demo data have folds"
        if dataset.name == "STL-10":
            remedy = f"get it with {_download(dataset.folder.parent, '--folds')}"
        raise DataError(f"cannot read {path} ({error.strerror}): {remedy}") from None
    if dataset.name == "STL-10":
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        remedy = "move it away and download it again"
        check_sum(path, (len(content), md5), OFFICIAL[path.name], remedy)
    return content


def check_sum(path: Path, content: FileSum, expected: FileSum, remedy: str) -> None:
    """Raise DataError, with `remedy`, unless a file of STL-10 has the `expected` bytes and MD5."""
    if content != expected:
        raise DataError(
            f"{path} is not STL-10's: expected {expected[0]} bytes, MD5 {expected[1]}; found "
            f"{content[0]} bytes, MD5 {content[1]}; {remedy}"
        )


def encode_class_names(names: Sequence[str]) -> bytes:
    """The content of class_names.txt."""
    return "".join(f"{name}\n" for name in names).encode()


def _class_names(path: Path) -> tuple[str, ...]:
    if path.stat().st_size > 100_000:
        raise DataError(f"{path}: {path.stat().st_size} bytes, at most 100,000 expected")
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: UTF-8 text expected: {error}") from None
    usable = all(name and name.isprintable() and len(name) <= 100 for name in names)
    if not 2 <= len(names) <= 255 or not usable or len(set(names)) < len(names):
        shown = f"{len(names)}: {', '.join(repr(name[:100]) for name in names[:12])}"
        raise DataError(
            f"{path}: 2 to 255 different names expected, one a line, of up to 100 printable "
            f"characters; found {shown}"
        )
    return names


def _split(folder: Path, split: str, size: int, classes: int) -> Split:
    images = _images(folder / f"{split}_X.bin", size)
    path = folder / f"{split}_y.bin"
    if path.stat().st_size != len(images):
        raise DataError(
            f"{path}: {len(images)} labels expected, one for each image of {split}_X.bin; "
            f"found {path.stat().st_size}"
        )
    stored = np.fromfile(path, dtype=np.uint8)
    wrong = np.flatnonzero((stored < 1) | (stored > classes))
    if len(wrong):
        value, index = stored[wrong[0]], wrong[0]
        raise DataError(f"{path}: labels 1..{classes} expected; found {value} at index {index}")
    return Split(images, stored.astype(np.int64) - 1)


def _image_size(folder: Path) -> int:
    path = folder / SIZE_FILE
    if not path.exists():
        return SIDE
    text = files.read(path, 100, DataError).decode(errors="replace").strip()
    size = int(text) if text.isdecimal() else 0
    least, most = SIZES
    if not least <= size <= most:
        raise DataError(f"{path}: a number of {least} to {most} pixels expected, found {text!r}")
    return size


def _images(path: Path, size: int) -> Images:
    """The file's images; each plane is stored column by column, so height and width are swapped."""
    found, image = path.stat().st_size, 3 * size * size
    if found == 0 or found % image:
        raise DataError(
            f"{path}: a multiple of {image} bytes expected (3x{size}x{size}); found {found}, "
            f"which is {found // image} images and {found % image} bytes"
        )
    return as_images(np.memmap(path, dtype=np.uint8, mode="r"), size)


def as_images(stored: Images, size: int) -> Images:
    """uint8 (N, 3, S, S) of the bytes of a file."""
    return stored.reshape(-1, 3, size, size).transpose(0, 1, 3, 2)


def _sums(folder: Path, *, write: bool) -> dict[str, dict[str, Any]]:
    """Size, times, MD5 and sha256 of the files that are the data, by name.

    From the stamp where that is up to date.
    """
    stamp = folder / STAMP
    stored: dict[str, Any] = {}
    if stamp.exists():
        try:
            stored = files.read_json(stamp, DataError)
        except DataError as error:
            warnings.warn(f"{error}; the checksums are computed again", stacklevel=3)
    sums: dict[str, dict[str, Any]] = {}
    for name in (*NEEDED, *([SIZE_FILE] if (folder / SIZE_FILE).exists() else [])):
        state = (folder / name).stat()
        # Only the kernel sets the ctime, so a stamp that was copied with its folder never counts.
        times = {"mtime_ns": state.st_mtime_ns, "ctime_ns": state.st_ctime_ns}
        current = {"bytes": state.st_size, **times}
        entry = stored.get(name)
        if isinstance(entry, dict) and current.items() <= entry.items() and _has_sums(entry):
            sums[name] = entry
        else:
            md5, sha256 = files.digests(folder / name, "md5", "sha256")
            sums[name] = {**current, "md5": md5, "sha256": sha256}
    if write and sums != stored:
        try:
            files.write_json(stamp, sums)
        except StorageError as error:
            warnings.warn(f"{error}; the checksums will be computed in every run", stacklevel=3)
    return sums


def _has_sums(entry: dict[str, Any]) -> bool:
    lengths = {"md5": 32, "sha256": 64}
    return all(re.fullmatch(f"[0-9a-f]{{{n}}}", str(entry.get(k))) for k, n in lengths.items())


def _check_marker(folder: Path, sums: dict[str, dict[str, Any]]) -> None:
    marker = files.read_json(folder / MARKER, DataError)
    expected = marker.get("sha256")
    for name in NEEDED:
        sha256 = str(expected.get(name) if isinstance(expected, dict) else None)[:64]
        if sums[name]["sha256"] != sha256:
            raise DataError(
                f"{folder / name} is not what make-demo wrote: expected sha256 {sha256!r}, found "
                f"{sums[name]['sha256']}; delete {folder} and draw it again"
            )


def _download(data_dir: Path, *flags: str) -> str:
    """The command that downloads, to be pasted into a shell."""
    words = ["stl10bench data download", *flags, "--data-dir", shlex.quote(str(data_dir))]
    return f"'{' '.join(words)}'"
