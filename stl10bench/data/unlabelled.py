"""Images without labels that a run may learn from, and which of them are copies of test images.

7,463 of STL-10's 8,000 test images lie byte for byte in its own unlabelled split, so copies are
left out unless a run asks for them. Nothing is loaded: the file is mapped, and read in pieces.
"""

import hashlib
import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from stl10bench.config import SELF_SUPERVISED, RunConfig
from stl10bench.core import files
from stl10bench.core.errors import DataError, StorageError
from stl10bench.core.seeding import UNLABELLED, numpy_generator
from stl10bench.data.duplicates import digests
from stl10bench.data.splits import Rows, training_rows
from stl10bench.data.stl10 import Dataset, Images, Split, open_unlabelled, pieces

REST = "rest"
STAMP = ".stl10bench-unlabelled.json"  # remembers the copies, so that they are found once


@dataclass(frozen=True)
class Unlabelled:
    """Images of the train split whose labels are not used, and images of unlabeled_X.bin."""

    dataset: Dataset
    train_rows: Rows  # int64, sorted, of the train split
    file_rows: Rows  # int64, sorted, of the file
    dropped: int  # copies of test images, left out
    kept: int  # and those among the images above

    def __len__(self) -> int:
        return len(self.train_rows) + len(self.file_rows)

    @cached_property
    def file(self) -> Split:
        """The file's images, mapped, all labelled -1."""
        images = open_unlabelled(self.dataset.folder.parent)
        return Split(images, np.full(len(images), -1, dtype=np.int64))

    @property
    def parts(self) -> list[tuple[Split, Rows]]:
        """The splits in which the images lie, and their rows."""
        parts = [(self.dataset.train, self.train_rows)]
        return [*parts, (self.file, self.file_rows)] if len(self.file_rows) else parts


def find_unlabelled(config: RunConfig, dataset: Dataset) -> Unlabelled | None:
    """The unlabelled images of a run; None where it asks for none.

    `rest`: the training images that neither train with their labels nor validate (pretraining uses
    no labels, so all that do not validate). `all`: these and
    all of unlabeled_X.bin. A number: so many of `all`, drawn by the seed; a larger number adds to
    those of a smaller one. Copies of test images are left out first, unless `config.keep_copies`.
    Raises DataError where there are none, or too few.
    """
    if config.unlabeled is None:
        return None
    rest = np.setdiff1d(np.arange(len(dataset.train.labels)), _left_out(config, dataset))
    copied = np.isin(rest, _copied_rows(dataset.train.images, rest, _test_digests(dataset)))
    in_file = np.arange(0)
    if config.unlabeled != REST:
        is_copy = scan_file(dataset).is_copy
        in_file, copied = np.arange(len(is_copy)), np.concatenate([copied, is_copy])
    keep = np.ones(len(copied), dtype=np.bool_) if config.keep_copies else ~copied
    places = np.flatnonzero(keep)  # in the rest, then in the file
    if config.unlabeled.isdecimal():
        places = _drawn(places, int(config.unlabeled), config.seed)
    if not len(places):
        raise DataError(
            f"unlabeled = {config.unlabeled}: there is no such image; leave labels out with --fold "
            "or --labels-per-class, or pass --unlabeled all"
        )
    of_train = places < len(rest)
    return Unlabelled(
        dataset,
        rest[places[of_train]],
        in_file[places[~of_train] - len(rest)],
        int(copied.sum()) * (not config.keep_copies),
        int(copied[places].sum()),
    )


def _left_out(config: RunConfig, dataset: Dataset) -> Rows:
    """The training images that are not unlabelled ones."""
    with_labels, validation = training_rows(config, dataset)
    if config.method == SELF_SUPERVISED:
        return validation
    return np.concatenate([with_labels, validation])


def _drawn(places: Rows, count: int, seed: int) -> Rows:
    if count > len(places):
        raise DataError(
            f"unlabeled = {count}: there are only {len(places):,} unlabelled images; lower it, or "
            "pass --unlabeled all"
        )
    return np.sort(numpy_generator(seed, UNLABELLED).permutation(places)[:count])


class Scan(NamedTuple):
    """What unlabeled_X.bin holds."""

    fingerprint: str  # sha256 over the hashes of its images, in their order
    is_copy: np.ndarray[Any, np.dtype[np.bool_]]  # (N,): of an image of the test split


def scan_file(dataset: Dataset) -> Scan:
    """The content of unlabeled_X.bin, and which of its images are copies of test images.

    Read once (2.8 GB in seconds); then a stamp beside the file knows, until the file changes.
    """
    images = open_unlabelled(dataset.folder.parent)
    stamp, state = dataset.folder / STAMP, (dataset.folder / "unlabeled_X.bin").stat()
    current = {
        "data": dataset.fingerprint,
        "bytes": state.st_size,
        "mtime_ns": state.st_mtime_ns,
        "ctime_ns": state.st_ctime_ns,  # only the kernel sets it
    }
    if stamp.exists():
        try:
            stored = files.read_json(stamp, DataError)
            if current.items() <= stored.items():
                bits = np.frombuffer(bytes.fromhex(stored["copies"]), dtype=np.uint8)
                if len(bits) != math.ceil(len(images) / 8):
                    raise ValueError(f"{len(bits)} bytes of copies for {len(images):,} images")
                is_copy = np.unpackbits(bits, count=len(images)).astype(np.bool_)
                return Scan(str(stored["fingerprint"]), is_copy)
        except (DataError, KeyError, TypeError, ValueError) as error:
            warnings.warn(f"{stamp}: {error}; finding the copies again", stacklevel=2)
    scan = _scan(images, _test_digests(dataset))
    if dataset.stamp:
        copies = np.packbits(scan.is_copy).tobytes().hex()
        found = {"fingerprint": scan.fingerprint, "copies": copies}
        try:
            files.write_json(stamp, current | found)
        except StorageError as error:
            warnings.warn(f"{error}; the copies will be found anew in every run", stacklevel=2)
    return scan


def _scan(images: Images, tested: set[bytes]) -> Scan:
    content, is_copy = hashlib.sha256(), np.zeros(len(images), dtype=np.bool_)
    for part in pieces(len(images), images.shape[-1]):
        keys = digests(images[part].swapaxes(2, 3))
        content.update(b"".join(keys))
        is_copy[part] = [key in tested for key in keys]
    return Scan(content.hexdigest(), is_copy)


def _test_digests(dataset: Dataset) -> set[bytes]:
    images = dataset.test.images
    parts = pieces(len(images), images.shape[-1])
    return {key for part in parts for key in digests(images[part].swapaxes(2, 3))}


def _copied_rows(images: Images, rows: Rows, tested: set[bytes]) -> Rows:
    """Those of `rows` whose images are among `tested`."""
    copied = [
        rows[part][[key in tested for key in digests(images[rows[part]].swapaxes(2, 3))]]
        for part in pieces(len(rows), images.shape[-1])
    ]
    return np.concatenate([np.arange(0), *copied])
