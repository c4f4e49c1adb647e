"""The images of all splits -> which are copies of each other, byte for byte or nearly."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl10bench.data.stl10 import Images, Labels, pieces

DISTANCE = 4  # of the 63 bits of a hash, in which near copies may differ
_TILE = 256, 2048  # pairs compared at once: 4 MB
_FREQUENCIES = 8

Splits = dict[str, tuple[Images, Labels | None]]
Indices = NDArray[np.int64]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Keys:
    """What images are compared by, for a split of N images."""

    contents: Indices  # (N,): images with the same number are the same, in whichever split
    hashes: Hashes  # (N,)
    labels: Labels | None  # (N,)


@dataclass(frozen=True)
class Copies:
    """Copies within a split or between two."""

    pairs: int
    images: tuple[int, int]  # how many of the first and of the second split are in a pair
    other_label: int | None  # pairs whose labels differ; None where a split has no labels
    examples: list[tuple[int, int]]  # indices in the first and in the second split, from 0


Audit = dict[tuple[str, str], Copies]  # by the names of two splits, or of one twice


def read(splits: Splits, advance: Callable[[int], None] = lambda _: None) -> dict[str, Keys]:
    """Each split's uint8 images (N, 3, S, S), mapped or not, and labels -> its keys.

    Reads 14 MB at a time; `advance` is called with the number of images just read.
    """
    numbers: dict[bytes, int] = {}
    keys = {}
    for name, (images, labels) in splits.items():
        contents = np.empty(len(images), dtype=np.int64)
        hashes = np.empty(len(images), dtype=np.uint64)
        for part in pieces(len(images), images.shape[-1]):
            stored = np.ascontiguousarray(images[part].swapaxes(2, 3))  # as the file has them
            contents[part] = [numbers.setdefault(key, len(numbers)) for key in digests(stored)]
            hashes[part] = perceptual_hashes(stored)
            advance(len(stored))
        keys[name] = Keys(contents, hashes, labels)
    return keys


def digests(images: Images) -> list[bytes]:
    """A 16-byte hash (BLAKE2b) of each of uint8 images (N, 3, S, S), plane by plane, row by row."""
    return [
        hashlib.blake2b(image.data, digest_size=16).digest()
        for image in np.ascontiguousarray(images)
    ]


def perceptual_hashes(images: Images) -> Hashes:
    """uint64 (N,) of uint8 images (N, 3, S, S): bit k says whether frequency k is above median.

    The 63 lowest frequencies (without the constant) of the grey image's cosine transform, 8 by 8:
    neither brightness, contrast nor a few pixels change many. Zauner (2010), "Implementation and
    benchmarking of perceptual image hash functions", section 3.2.1, on all pixels.
    """
    red, green, blue = (images[:, channel].astype(np.float32) for channel in range(3))
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    size = images.shape[-1]
    steps, pixels = np.arange(_FREQUENCIES)[:, None], np.arange(size)
    waves = np.cos(np.pi * steps * (2 * pixels + 1) / (2 * size)).astype(np.float32)
    waves[0] /= np.sqrt(np.float32(2))
    low = (waves @ (grey @ waves.T)).reshape(len(images), -1)[:, 1:]
    low = low.round()  # else the hash of an image of one colour would be rounding errors
    bits = low > np.median(low, axis=1, keepdims=True)
    padded = np.concatenate([np.zeros((len(images), 1), dtype=np.bool_), bits], axis=1)
    return np.packbits(padded, axis=1).view(">u8")[:, 0].astype(np.uint64)


def exact(keys: Mapping[str, Keys], *, examples: int = 5) -> Audit:
    """The images that are the same byte for byte, with up to `examples` pairs of each kind."""
    return {
        (first, second): _exact(keys[first], keys[second], examples)
        for first, second in combinations_with_replacement(keys, 2)
    }


def _exact(first: Keys, second: Keys, examples: int) -> Copies:
    size = 1 + max(first.contents.max(), second.contents.max())
    counts = np.bincount(first.contents, minlength=size)
    counts_there = np.bincount(second.contents, minlength=size)
    within = first is second
    copied = np.flatnonzero(counts > 1 if within else (counts > 0) & (counts_there > 0))
    pairs_shown: list[tuple[int, int]] = []
    for content in copied[:examples]:
        rows = np.flatnonzero(first.contents == content)
        others = rows[1:] if within else np.flatnonzero(second.contents == content)
        pairs_shown.append((int(rows[0]), int(others[0])))
    other_label = None
    pairs = _count_pairs(first.contents, second.contents, within=within)
    if first.labels is not None and second.labels is not None:
        classes = 1 + max(first.labels.max(), second.labels.max())
        labelled = (keys.contents * classes + keys.labels for keys in (first, second))
        other_label = pairs - _count_pairs(*labelled, within=within)
    images = int(counts[copied].sum()), int(counts_there[copied].sum())
    return Copies(pairs, images, other_label, pairs_shown)


def _count_pairs(first: Indices, second: Indices, *, within: bool) -> int:
    """The number of pairs of equal values, one from each; `within`: of different places in one."""
    values, counts = np.unique(first, return_counts=True)
    if within:
        return int((counts * (counts - 1) // 2).sum())
    values_there, counts_there = np.unique(second, return_counts=True)
    _, here, there = np.intersect1d(values, values_there, return_indices=True)
    return int((counts[here] * counts_there[there]).sum())


def near(
    keys: Mapping[str, Keys],
    *,
    distance: int = DISTANCE,
    examples: int = 5,
    advance: Callable[[int], None] = lambda _: None,
) -> Audit:
    """The different images whose hashes differ in at most `distance` of their 63 bits.

    Of exact copies in a split only the first takes part. The examples are the nearest. `advance` is
    called with the number of pairs just compared, `comparisons(keys)` in all.
    """
    return {
        (first, second): _near(keys[first], keys[second], distance, examples, advance)
        for first, second in combinations_with_replacement(keys, 2)
    }


def comparisons(keys: Mapping[str, Keys]) -> int:
    """How many pairs `near` compares."""
    splits = combinations_with_replacement(keys.values(), 2)
    return sum(len(rows) * len(columns) for pair in splits for rows, columns in _tiles(*pair))


def _near(
    first: Keys, second: Keys, distance: int, examples: int, advance: Callable[[int], None]
) -> Copies:
    within = first is second
    labelled = first.labels is not None and second.labels is not None
    pairs = other_label = 0
    copied = np.zeros(len(first.hashes), dtype=np.bool_)
    copied_there = copied if within else np.zeros(len(second.hashes), dtype=np.bool_)
    nearest: list[tuple[int, int, int]] = []
    for rows, columns in _tiles(first, second):
        gaps = np.bitwise_count(first.hashes[rows, None] ^ second.hashes[columns])
        i, j = np.nonzero(gaps <= distance)
        gap, i, j = gaps[i, j], rows[i], columns[j]
        different = (i < j) if within else first.contents[i] != second.contents[j]
        gap, i, j = gap[different], i[different], j[different]
        pairs += len(i)
        copied[i] = copied_there[j] = True
        if first.labels is not None and second.labels is not None:
            other_label += int((first.labels[i] != second.labels[j]).sum())
        best = np.argsort(gap, kind="stable")[:examples]
        nearest += zip(gap[best].tolist(), i[best].tolist(), j[best].tolist(), strict=True)
        nearest = sorted(nearest)[:examples]
        advance(gaps.size)
    images = int(copied.sum()), int(copied_there.sum())
    pairs_shown = [(i, j) for _, i, j in nearest]
    return Copies(pairs, images, other_label if labelled else None, pairs_shown)


def _tiles(first: Keys, second: Keys) -> Iterator[tuple[Indices, Indices]]:
    """Rows and columns of the table of all pairs, piece by piece; within a split its upper half.

    Of the images with the same content only the first is in it.
    """
    rows, columns = (
        np.sort(np.unique(keys.contents, return_index=True)[1]) for keys in (first, second)
    )
    height, width = _TILE
    for top in range(0, len(rows), height):
        for left in range(top if first is second else 0, len(columns), width):
            yield rows[top : top + height], columns[left : left + width]


def as_json(audit: Audit) -> dict[str, Any]:
    """Copies by splits: `train` for within a split, `train-test` for between two."""
    return {
        first if first == second else f"{first}-{second}": {
            "pairs": copies.pairs,
            "images": {first: copies.images[0], second: copies.images[1]},
            "other_label": copies.other_label,
            "examples": copies.examples,
        }
        for (first, second), copies in audit.items()
    }
