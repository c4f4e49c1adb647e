"""A folder of class folders with photos -> files in STL-10's layout."""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from stl10bench.core import files
from stl10bench.core.errors import DataError, UsageError
from stl10bench.data import image_file
from stl10bench.data.stl10 import CLASS_NAMES, FOLDER, IMAGE_BYTES, encode_class_names

_SPLITS = ("train", "test")


class Photo(NamedTuple):
    """One file below the source."""

    path: Path
    label: int  # 0..C-1
    root: str  # "train" or "test" where the source has these, else ""


def import_folder(
    source: Path,
    data_dir: Path,
    *,
    test_fraction: float = 0.2,
    seed: int = 0,
    skip_broken: bool = False,
) -> dict[str, int]:
    """Write the photos below `source` as `data_dir`/stl10_binary, whole or not at all.

    `source` holds a folder of images per class, or `train` and `test` with the same class folders
    each. Without these two, each class gives `test_fraction` of its images (at least one) to the
    test split, chosen by `seed` and file name. `image_file.read` makes each image 96x96. Hidden
    files are ignored; any other file that is not an image is an error, or with `skip_broken` left
    out with a warning. Returns the counts of classes, train and test images, and skipped files.
    Raises UsageError, DataError, StorageError.
    """
    target = data_dir / FOLDER
    if target.exists():
        raise UsageError(f"{target} exists already: move it away, or use another --data-dir")
    if not 0 < test_fraction < 1:
        raise UsageError(f"test_fraction = {test_fraction}: must be between 0 and 1")
    if not source.is_dir():
        raise DataError(f"{source} is not a folder: pass one with a folder of images per class")
    with files.storage_errors(f"cannot import {source} into {target}"):
        names, photos = _listed(source)
        _check_counts(source, names, photos)
        with files.new_folder(target) as part:
            images = _convert(source, photos, part / "all", skip_broken=skip_broken)
            _check_counts(source, names, images)
            is_test = _test_rows(images, test_fraction, seed)
            for split, rows in zip(_SPLITS, (~is_test, is_test), strict=True):
                _write_split(part, split, images, np.flatnonzero(rows))
            (part / "all").unlink()
            (part / "class_names.txt").write_bytes(encode_class_names(names))
    test = int(is_test.sum())
    skipped = len(photos) - len(images)
    return {"classes": len(names), "train": len(images) - test, "test": test, "skipped": skipped}


def _listed(source: Path) -> tuple[list[str], list[Photo]]:
    """The class names and the files, both sorted by name."""
    split = [path.name for path in _visible(source) if path.is_dir()] == sorted(_SPLITS)
    roots = [source / name for name in _SPLITS] if split else [source]
    names = _class_names(roots[0])
    if split and _class_names(roots[1]) != names:
        odd = sorted(set(names) ^ set(_class_names(roots[1])))
        raise DataError(f"{source}: train and test need the same classes; only one has {odd[0]!r}")
    photos = []
    for root in roots:
        for label, name in enumerate(names):
            for path in _visible(root / name):
                if path.is_dir():
                    raise DataError(
                        f"{path} is a folder within a class folder: pass a folder whose folders "
                        "are the classes, or just train/ and test/ with the classes in them"
                    )
                photos.append(Photo(path, label, root.name if split else ""))
    return names, photos


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _class_names(root: Path) -> list[str]:
    names = [path.name for path in _visible(root) if path.is_dir()]
    if not 2 <= len(names) <= 255:
        raise DataError(f"{root}: 2 to 255 class folders expected, found {len(names)}")
    for name in names:
        if not name.isprintable() or name != name.strip():
            raise DataError(
                f"{root}: {name!r} cannot be a class name: use printable UTF-8 characters without "
                "spaces around them; rename the folder"
            )
    if names == sorted(CLASS_NAMES):
        raise DataError(
            f"{root}: these are STL-10's own ten class names, and data with them must be STL-10: "
            "rename a folder, e.g. 'airplane' to 'plane'"
        )
    return names


def _check_counts(source: Path, names: Sequence[str], photos: Sequence[Photo]) -> None:
    """Raise DataError for a class without an image for each split."""
    roots = _SPLITS if any(photo.root for photo in photos) else ("",)
    least = 3 - len(roots)  # images in each root: one per split that it fills
    for root in roots:
        labels = [photo.label for photo in photos if photo.root == root]
        for name, count in zip(names, np.bincount(labels, minlength=len(names)), strict=True):
            if count < least:
                raise DataError(f"{source / root / name}: {count} images, at least {least} needed")


def _convert(source: Path, photos: list[Photo], path: Path, *, skip_broken: bool) -> list[Photo]:
    """Write the photos to `path`, in the layout's order of bytes; returns the readable ones."""
    readable, broken = [], []
    console = Console(stderr=True)
    hidden = not console.is_terminal
    with path.open("wb") as file, image_file.silenced():
        for photo in track(photos, "reading", console=console, transient=True, disable=hidden):
            try:
                pixels = image_file.read(photo.path)
            except Exception as error:  # Pillow's decoders raise errors of all kinds
                name = photo.path.relative_to(source).as_posix()
                broken.append(f"{name!r} ({image_file.reason(error)})")
            else:
                file.write(pixels.transpose(2, 1, 0).tobytes())  # channel, column, row
                readable.append(photo)
    if broken:
        problem = (
            f"{source}: {len(broken)} of {len(photos)} files cannot be read as images: "
            f"{'; '.join(broken)}"
        )
        if not skip_broken:
            raise DataError(f"{problem}; repair or remove them, or skip them with --skip-broken")
        warnings.warn(f"{problem}; they are left out", stacklevel=3)
    return readable


def _test_rows(photos: Sequence[Photo], fraction: float, seed: int) -> NDArray[np.bool_]:
    """bool (N,): which photos are for testing, by their root or else a share of each class.

    A hash of seed and name decides, so the choice is the same everywhere and for ever.
    """
    if photos[0].root:
        return np.array([photo.root == "test" for photo in photos])
    is_test = np.zeros(len(photos), dtype=np.bool_)
    labels = np.array([photo.label for photo in photos])
    for label in range(labels.max() + 1):
        rows = np.flatnonzero(labels == label).tolist()
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        is_test[sorted(rows, key=lambda row: _rank(photos[row].path, seed))[:count]] = True
    return is_test


def _rank(path: Path, seed: int) -> bytes:
    name = f"{seed}/{path.parent.name}/{path.name}"
    return hashlib.sha256(name.encode(errors="surrogateescape")).digest()


def _write_split(folder: Path, split: str, photos: Sequence[Photo], rows: NDArray[np.intp]) -> None:
    images = np.memmap(folder / "all", dtype=np.uint8, mode="r").reshape(-1, IMAGE_BYTES)
    with (folder / f"{split}_X.bin").open("wb") as file:
        for start in range(0, len(rows), 1000):
            file.write(images[rows[start : start + 1000]].tobytes())
    labels = np.array([photos[row].label + 1 for row in rows], dtype=np.uint8)
    (folder / f"{split}_y.bin").write_bytes(labels.tobytes())
