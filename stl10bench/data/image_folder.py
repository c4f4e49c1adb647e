"""A folder of class folders with photos -> files in STL-10's layout."""

import hashlib
import shlex
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.progress import track

from stl10bench.core import files
from stl10bench.core.console import clean, stderr
from stl10bench.core.errors import DataError, UsageError
from stl10bench.data import image_file
from stl10bench.data.stl10 import (
    CLASS_NAMES,
    FOLDER,
    SIDE,
    SIZE_FILE,
    SIZES,
    encode_class_names,
    pieces,
)

_SPLITS = ("train", "test")
# How the folders of the splits are called, in capitals or not.
_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_LAYOUTS = (
    "pass a folder whose folders are the classes, or one with just train (or training) and test "
    "(testing) or val (valid, validation) or both, and the classes in each of them"
)
# Made by systems and archives, not by people.
_FOREIGN = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
# Known to be no photos. A file of any other name is read, and an error if it is not one.
_NO_PHOTOS = (
    *(".avi", ".m4v", ".mkv", ".mov", ".mp3", ".mp4", ".wav", ".webm"),
    *(".csv", ".json", ".jsonl", ".log", ".md", ".rst", ".tsv", ".txt", ".xml", ".yaml", ".yml"),
    *(".doc", ".docx", ".htm", ".html", ".pdf", ".xls", ".xlsx", ".ipynb", ".py", ".sh", ".toml"),
    *(".aae", ".cfg", ".db", ".ini", ".lnk", ".url", ".xmp"),  # Thumbs.db, desktop.ini
    *(".gz", ".mat", ".npy", ".npz", ".tar", ".zip"),
)


class Photo(NamedTuple):
    """One file below the source."""

    path: Path
    label: int  # 0..C-1
    split: str  # "train" or "test" where the source has folders for these, else ""
    content: bytes = b""  # a checksum of its pixels as they are stored, once they are


def import_folder(
    source: Path,
    data_dir: Path,
    *,
    size: int = SIDE,
    test_fraction: float = 0.2,
    seed: int = 0,
    skip_broken: bool = False,
) -> dict[str, int]:
    """Write the photos below `source` as `data_dir`/stl10_binary, whole or not at all.

    `source` holds a folder of images per class, or folders of splits with the same class folders
    each: train and test; train, test and val, whose images then join the training split (a run
    draws its validation images from that); or train and val, which then is the test split. Without
    these, each class gives `test_fraction` of its images (at least one) to the test split, chosen
    by `seed` and file name. `image_file.read` makes each image `size` x `size`.

    Hidden files are passed over, and what by its suffix is no photo is skipped. Any other file that
    is not an image is an error, or with `skip_broken` left out with a warning. Told on stderr: what
    is skipped, what val becomes, copies in both splits or under two labels. Returns the counts of
    classes, train and test images, and skipped files. Raises UsageError, DataError, StorageError.
    """
    target = data_dir / FOLDER
    if target.exists():
        raise UsageError(f"{target} exists already: move it away, or use another --data-dir")
    if not 0 < test_fraction < 1:
        raise UsageError(f"test_fraction = {test_fraction}: must be between 0 and 1")
    least, most = SIZES
    if not least <= size <= most:
        raise UsageError(f"size = {size}: must be {least} to {most} pixels")
    if not source.is_dir():
        raise DataError(f"{source} is not a folder: pass one with a folder of images per class")
    with files.storage_errors(f"cannot import {source} into {target}"):
        roots = _roots(source)
        names, found = _listed(roots)
        photos = _without_known_others(source, found)
        _check_counts(roots, names, photos)
        with files.new_folder(target) as part:
            images = _convert(source, photos, part / "all", size, skip_broken=skip_broken)
            _check_counts(roots, names, images)
            is_test = _test_rows(images, test_fraction, seed)
            for split, rows in zip(_SPLITS, (~is_test, is_test), strict=True):
                _write_split(part, split, images, np.flatnonzero(rows), size)
            (part / "all").unlink()
            (part / "class_names.txt").write_bytes(encode_class_names(names))
            if size != SIDE:
                (part / SIZE_FILE).write_text(f"{size}\n")
    _tell_copies(source, data_dir, images, is_test)
    test = int(is_test.sum())
    skipped = len(found) - len(images)
    return {"classes": len(names), "train": len(images) - test, "test": test, "skipped": skipped}


def _roots(source: Path) -> dict[Path, str]:
    """The folders that hold the class folders -> the split of each, or "" for `source` itself."""
    folders = _folders(source)
    kinds = [_SPLIT_NAMES.get(path.name.lower(), "") for path in folders]
    if sorted(kinds) not in (["test", "train"], ["train", "val"], ["test", "train", "val"]):
        return {source: ""}
    if "val" in kinds:
        name, meaning = folders[kinds.index("val")].name, "are the test split: there is no other"
        if "test" in kinds:
            meaning = "join the training split, from which runs split their validation images"
        _say(f"{source}: the images in {name}/ {meaning}")
    validation = "train" if "test" in kinds else "test"
    splits = (validation if kind == "val" else kind for kind in kinds)
    return dict(zip(folders, splits, strict=True))


def _listed(roots: Mapping[Path, str]) -> tuple[list[str], list[Photo]]:
    """The class names and the files, training first, then sorted by name."""
    folders = sorted(roots, key=lambda root: roots[root] == "test")
    names = _class_names(folders[0])
    photos = []
    for root in folders:
        for name in sorted(set(names) ^ set(_class_names(root))):
            owner = folders[0] if name in names else root
            raise DataError(
                f"{root} and {folders[0]} need the same class folders; only {owner} has {name!r}"
            )
        for label, name in enumerate(names):
            for path in _visible(root / name):
                if path.is_dir():
                    raise DataError(f"{path} is a folder within a class folder: {_LAYOUTS}")
                photos.append(Photo(path, label, roots[root]))
    return names, photos


def _visible(folder: Path) -> list[Path]:
    paths = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(path for path in paths if path.name not in _FOREIGN)


def _folders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_dir()]


def _class_names(root: Path) -> list[str]:
    names = [path.name for path in _folders(root)]
    if not 2 <= len(names) <= 255:
        raise DataError(
            f"{root}: 2 to 255 class folders expected, found {len(names)}"
            f"{_shown(names, before=': ')}; {_LAYOUTS}"
        )
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


def _shown(names: Iterable[str], *, before: str = "") -> str:
    """The first five names, quoted, and how many more there are."""
    quoted = [repr(name) for name in names]
    more = f" and {len(quoted) - 5} more" if len(quoted) > 5 else ""
    return f"{before}{', '.join(quoted[:5])}{more}" if quoted else ""


def _without_known_others(source: Path, photos: Sequence[Photo]) -> list[Photo]:
    """The files that may be photos by their names; the others are told."""
    others = [photo for photo in photos if photo.path.suffix.lower() in _NO_PHOTOS]
    if others:
        names = _shown(photo.path.relative_to(source).as_posix() for photo in others)
        noun = "1 file that is not a photo"
        if len(others) > 1:
            noun = f"{len(others)} files that are not photos"
        _say(f"{source}: skipped {noun}: {names}")
    return [photo for photo in photos if photo.path.suffix.lower() not in _NO_PHOTOS]


def _check_counts(roots: Mapping[Path, str], names: Sequence[str], photos: Sequence[Photo]) -> None:
    """Raise DataError for a class without an image for each split."""
    for root, split in roots.items():
        least = 1 if split else 2  # one for each split that the folder fills
        labels = [photo.label for photo in photos if photo.split == split]
        for name, count in zip(names, np.bincount(labels, minlength=len(names)), strict=True):
            if count < least:
                raise DataError(
                    f"{root / name}: at least {least} {'image' if least == 1 else 'images'} "
                    f"needed, found {count or 'none'}"
                )


def _convert(
    source: Path, photos: Sequence[Photo], path: Path, size: int, *, skip_broken: bool
) -> list[Photo]:
    """Write the photos to `path`, in the layout's order of bytes; returns the readable ones."""
    readable, broken = [], []
    console = stderr()
    hidden = not console.is_terminal
    with path.open("wb") as file, image_file.silenced():
        for photo in track(photos, "reading", console=console, transient=True, disable=hidden):
            try:
                pixels = image_file.read(photo.path, size=size)
            except Exception as error:  # Pillow's decoders raise errors of all kinds
                name = photo.path.relative_to(source).as_posix()
                broken.append(f"{name!r} ({image_file.reason(error)})")
            else:
                stored = pixels.transpose(2, 1, 0).tobytes()  # channel, column, row
                file.write(stored)
                content = hashlib.blake2b(stored, digest_size=16).digest()
                readable.append(photo._replace(content=content))
    if broken:
        problem = (
            f"{source}: {len(broken)} of {len(photos)} files cannot be read as images: "
            f"{'; '.join(broken)}"
        )
        if not skip_broken:
            raise DataError(f"{problem}; repair or remove them, or skip them with --skip-broken")
        warnings.warn(f"{problem}; they are skipped", stacklevel=3)
    return readable


def _test_rows(photos: Sequence[Photo], fraction: float, seed: int) -> NDArray[np.bool_]:
    """bool (N,): which photos are for testing, by their folder or else a share of each class.

    A hash of seed and name decides, so the choice is the same everywhere and for ever.
    """
    if photos[0].split:
        return np.array([photo.split == "test" for photo in photos])
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


def _write_split(
    folder: Path, split: str, photos: Sequence[Photo], rows: NDArray[np.intp], size: int
) -> None:
    images = np.memmap(folder / "all", dtype=np.uint8, mode="r").reshape(len(photos), -1)
    with (folder / f"{split}_X.bin").open("wb") as file:
        for piece in pieces(len(rows), size):
            file.write(images[rows[piece]].tobytes())
    labels = np.array([photos[row].label + 1 for row in rows], dtype=np.uint8)
    (folder / f"{split}_y.bin").write_bytes(labels.tobytes())


def _tell_copies(
    source: Path, data_dir: Path, photos: Sequence[Photo], is_test: NDArray[np.bool_]
) -> None:
    """Tell how many images are in both splits or under two labels, the same in every pixel."""
    copies = defaultdict(list)
    for photo, in_test in zip(photos, is_test.tolist(), strict=True):
        copies[photo.content].append((photo, in_test))
    across = [group for group in copies.values() if len({test for _, test in group}) > 1]
    mislabelled = [group for group in copies.values() if len({p.label for p, _ in group}) > 1]
    for groups, what in (
        (across, "in both the training and the test split"),
        (mislabelled, "under two labels"),
    ):
        if groups:
            example = _shown(photo.path.relative_to(source).as_posix() for photo, _ in groups[0])
            noun = "1 image is" if len(groups) == 1 else f"{len(groups)} images are"
            _say(
                f"{source}: {noun} {what}, e.g. {example}; find all exact and near copies with "
                f"'stl10bench data audit --data-dir {shlex.quote(str(data_dir))}'"
            )


def _say(text: str) -> None:
    stderr().print(escape(clean(text)), highlight=False, emoji=False, soft_wrap=True)
