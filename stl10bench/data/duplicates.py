"""The images of all splits -> which are copies of each other, byte for byte or nearly."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl10bench.data.stl10 import SIDE, Images, Labels

BITS = 63  # of a perceptual hash
DISTANCE = 4  # bits in which the hashes of near copies may differ
_CHUNK = 500  # images in memory at once: 55 MB as float32
_TILE = 256, 2048  # pairs compared at once: 4 MB
_FREQUENCIES = 8

Splits = dict[str, tuple[Images, Labels | None]]
Indices = NDArray[np.int64]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Facts:
    """What the audit keeps of a split of N images."""

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


Found = dict[tuple[str, str], Copies]  # by the names of two splits, or of one twice


def read(
    splits: Splits,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, Facts]:
    """Each split's uint8 images (N, 3, 96, 96), mapped or not, and labels -> its facts.

    Reads 500 images at a time; `advance` is called with the number of images just read.
    """
    numbers: dict[bytes, int] = {}
    facts = {}
    for name, (images, labels) in splits.items():
        contents = np.empty(len(images), dtype=np.int64)
        hashes = np.empty(len(images), dtype=np.uint64)
        for start in range(0, len(images), _CHUNK):
            part = slice(start, start + _CHUNK)
            stored = np.ascontiguousarray(images[part].swapaxes(2, 3))  # as the file has them
            sums = (hashlib.blake2b(image.data, digest_size=16).digest() for image in stored)
            contents[part] = [numbers.setdefault(one, len(numbers)) for one in sums]
            hashes[part] = perceptual_hashes(stored)
            advance(len(stored))
        facts[name] = Facts(contents, hashes, labels)
    return facts


def perceptual_hashes(images: Images) -> Hashes:
    """uint64 (N,) of uint8 images (N, 3, 96, 96): bit k says whether frequency k is above median.

    The 63 lowest frequencies but the constant of the grey image's cosine transform, 8 by 8:
    neither brightness, contrast nor a few pixels change many. Zauner (2010), "Implementation and
    benchmarking of perceptual image hash functions", section 3.2.1, on all 96 by 96 pixels.
    """
    red, green, blue = (images[:, channel].astype(np.float32) for channel in range(3))
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    steps, pixels = np.arange(_FREQUENCIES)[:, None], np.arange(SIDE)
    waves = np.cos(np.pi * steps * (2 * pixels + 1) / (2 * SIDE)).astype(np.float32)
    waves[0] /= np.sqrt(np.float32(2))
    low = (waves @ (grey @ waves.T)).reshape(len(images), -1)[:, 1:]
    low = low.round()  # else rounding errors would be the hash of an image of one colour
    bits = low > np.median(low, axis=1, keepdims=True)
    whole = np.concatenate([np.zeros((len(images), 1), dtype=np.bool_), bits], axis=1)
    return np.packbits(whole, axis=1).view(">u8")[:, 0].astype(np.uint64)


def pairs_of(facts: Mapping[str, Facts]) -> list[tuple[str, str]]:
    """Every split with itself and with each that comes after it."""
    return list(combinations_with_replacement(facts, 2))


def exact(facts: Mapping[str, Facts], *, examples: int = 5) -> Found:
    """The images that are the same byte for byte."""
    return {
        (one, other): _exact(facts[one], facts[other], same=one == other, examples=examples)
        for one, other in pairs_of(facts)
    }


def _exact(first: Facts, second: Facts, *, same: bool, examples: int) -> Copies:
    size = 1 + max(first.contents.max(), second.contents.max())
    ours = np.bincount(first.contents, minlength=size)
    theirs = np.bincount(second.contents, minlength=size)
    copied = np.flatnonzero(ours > 1 if same else (ours > 0) & (theirs > 0))
    found: list[tuple[int, int]] = []
    for content in copied[:examples]:
        rows = np.flatnonzero(first.contents == content)
        others = rows[1:] if same else np.flatnonzero(second.contents == content)
        found.append((int(rows[0]), int(others[0])))
    other_label = None
    pairs = _count_pairs(first.contents, second.contents, same=same)
    if first.labels is not None and second.labels is not None:
        classes = 1 + max(first.labels.max(), second.labels.max())
        keys = (one.contents * classes + one.labels for one in (first, second))
        other_label = pairs - _count_pairs(*keys, same=same)
    return Copies(pairs, (int(ours[copied].sum()), int(theirs[copied].sum())), other_label, found)


def _count_pairs(first: Indices, second: Indices, *, same: bool) -> int:
    """How many pairs of one of `first` and another of `second` are equal."""
    values, counts = np.unique(first, return_counts=True)
    if same:
        return int((counts * (counts - 1) // 2).sum())
    values_there, counts_there = np.unique(second, return_counts=True)
    _, here, there = np.intersect1d(values, values_there, return_indices=True)
    return int((counts[here] * counts_there[there]).sum())


def near(
    facts: Mapping[str, Facts],
    *,
    distance: int = DISTANCE,
    examples: int = 5,
    advance: Callable[[int], None] = lambda _: None,
) -> Found:
    """The different images whose hashes differ in at most `distance` of their 63 bits.

    Of exact copies in one split only the first takes part. The examples are the nearest. `advance`
    is called with the number of pairs just compared, `comparisons(facts)` in all.
    """
    found = {}
    for one, other in pairs_of(facts):
        first, second = facts[one], facts[other]
        found[one, other] = _near(first, second, distance, examples, advance, same=one == other)
    return found


def comparisons(facts: Mapping[str, Facts]) -> int:
    """How many pairs `near` compares."""
    kept = {name: _first_of_each(one) for name, one in facts.items()}
    tiles = (_tiles(kept[one], kept[other], same=one == other) for one, other in pairs_of(facts))
    return sum(len(rows) * len(columns) for part in tiles for rows, columns in part)


def _near(
    first: Facts,
    second: Facts,
    distance: int,
    examples: int,
    advance: Callable[[int], None],
    *,
    same: bool,
) -> Copies:
    pairs = other_label = 0
    labels = (
        None if first.labels is None or second.labels is None else (first.labels, second.labels)
    )
    ours = np.zeros(len(first.hashes), dtype=np.bool_)
    theirs = ours if same else np.zeros(len(second.hashes), dtype=np.bool_)
    nearest: list[tuple[int, int, int]] = []
    for rows, columns in _tiles(_first_of_each(first), _first_of_each(second), same=same):
        gaps = np.bitwise_count(first.hashes[rows, None] ^ second.hashes[columns])
        i, j = np.nonzero(gaps <= distance)
        gap, i, j = gaps[i, j], rows[i], columns[j]
        different = (i < j) if same else first.contents[i] != second.contents[j]
        gap, i, j = gap[different], i[different], j[different]
        pairs += len(i)
        ours[i] = theirs[j] = True
        if labels is not None:
            other_label += int((labels[0][i] != labels[1][j]).sum())
        best = np.argsort(gap, kind="stable")[:examples]
        nearest += zip(gap[best].tolist(), i[best].tolist(), j[best].tolist(), strict=True)
        nearest = sorted(nearest)[:examples]
        advance(gaps.size)
    images = int(ours.sum()), int(theirs.sum())
    pairs_with = None if labels is None else other_label
    return Copies(pairs, images, pairs_with, [(i, j) for _, i, j in nearest])


def _first_of_each(facts: Facts) -> Indices:
    """The index of the first image of each content."""
    return np.sort(np.unique(facts.contents, return_index=True)[1])


def _tiles(first: Indices, second: Indices, *, same: bool) -> Iterator[tuple[Indices, Indices]]:
    """Rows and columns of the table of all pairs, piece by piece; within a split its upper half."""
    height, width = _TILE
    for top in range(0, len(first), height):
        rows = first[top : top + height]
        for left in range(top if same else 0, len(second), width):
            yield rows, second[left : left + width]


def as_json(found: Found) -> dict[str, Any]:
    """Copies by splits: `train` for within a split, `train-test` for between two."""
    return {
        one if one == other else f"{one}-{other}": {
            "pairs": copies.pairs,
            "images": {one: copies.images[0], other: copies.images[1]},
            "other_label": copies.other_label,
            "examples": copies.examples,
        }
        for (one, other), copies in found.items()
    }
