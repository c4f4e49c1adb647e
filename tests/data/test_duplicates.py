"""Copies that were made are found where they were put, and nothing else is."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.fft import dctn

from stl10bench.cli.main import main
from stl10bench.data import duplicates

Photos = Any


def photos(count: int, seed: int = 0) -> Photos:
    """uint8 (count, 3, 96, 96): smooth pictures, no two alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(20, 235, (count, 3, 8, 8))
    steps = np.linspace(0, 7, 96)
    low, share = np.minimum(steps.astype(int), 6), steps - np.minimum(steps.astype(int), 6)
    rows = coarse[:, :, low] * (1 - share)[:, None] + coarse[:, :, low + 1] * share[:, None]
    smooth = rows[..., low] * (1 - share) + rows[..., low + 1] * share
    return smooth.astype(np.uint8)


def flipped_pixel(image: Photos) -> Photos:
    image = image.copy()
    image[:, 40, 50] ^= 255
    return image


def brighter(image: Photos) -> Photos:
    return np.clip(image * 1.15 + 8, 0, 255).astype(np.uint8)


def noisy(image: Photos) -> Photos:
    noise = np.random.default_rng(1).normal(0, 5, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def keys_of(**splits: Photos) -> Any:
    return duplicates.read({name: (images, None) for name, images in splits.items()})


def test_different_pictures_are_no_copies() -> None:
    keys = keys_of(train=photos(300), test=photos(200, seed=1))
    for audit in (duplicates.exact(keys), duplicates.near(keys)):
        assert {pair: copies.pairs for pair, copies in audit.items()} == {
            ("train", "train"): 0,
            ("train", "test"): 0,
            ("test", "test"): 0,
        }


def test_exact_copies_are_found_within_and_between_splits() -> None:
    train, test = photos(40), photos(30, seed=1)
    train[[7, 9]] = train[3]  # three of one: three pairs
    test[[5, 20]] = train[3]
    test[8] = train[30]
    audit = duplicates.exact(keys_of(train=train, test=test))
    within, between, other = audit.values()
    assert (within.pairs, within.images, within.examples) == (3, (3, 3), [(3, 7)])
    assert (between.pairs, between.images) == (7, (4, 3))
    assert between.examples == [(3, 5), (30, 8)]
    assert (other.pairs, other.images, other.examples) == (1, (2, 2), [(5, 20)])


@pytest.mark.parametrize("change", [flipped_pixel, brighter, noisy])
def test_near_copies_are_found_and_are_not_exact(change: Any) -> None:
    train, test = photos(60), photos(60, seed=1)
    test[11] = change(train[50])
    train[2] = change(train[40])
    keys = keys_of(train=train, test=test)
    assert all(copies.pairs == 0 for copies in duplicates.exact(keys).values())
    audit = duplicates.near(keys)
    assert audit["train", "train"].examples == [(2, 40)]
    assert audit["train", "test"].examples == [(50, 11)]
    assert [copies.pairs for copies in audit.values()] == [1, 1, 0]
    assert audit["train", "test"].images == (1, 1)


def test_near_copies_are_found_at_every_size() -> None:
    large = np.repeat(np.repeat(photos(20), 2, axis=2), 2, axis=3)
    large[11] = brighter(large[5])
    audit = duplicates.near(keys_of(train=large))
    assert audit["train", "train"].examples == [(5, 11)]


def test_exact_copies_are_not_counted_as_near_ones_as_well() -> None:
    train, test = photos(20), photos(20, seed=1)
    train[5] = test[6] = train[4]
    test[7] = brighter(train[4])
    audit = duplicates.near(keys_of(train=train, test=test))
    assert audit["train", "train"].pairs == 0
    assert audit["train", "test"].examples == [(4, 7)]
    assert audit["test", "test"].examples == [(6, 7)]


def test_a_wider_distance_finds_more_and_the_nearest_first() -> None:
    train = photos(400)
    train[10] = flipped_pixel(train[300])
    keys = keys_of(train=train)
    counts = [duplicates.near(keys, distance=d)["train", "train"].pairs for d in (0, 4, 16, 24, 63)]
    assert counts == sorted(counts)
    assert counts[-1] == 400 * 399 // 2
    assert duplicates.near(keys, distance=24, examples=1)["train", "train"].examples == [(10, 300)]


def test_a_hash_says_which_low_frequencies_are_above_their_median() -> None:
    images = photos(50)
    grey = (images * np.array([0.299, 0.587, 0.114])[:, None, None]).sum(1)
    low = dctn(grey, axes=(1, 2), norm="ortho")[:, :8, :8].reshape(50, 64)[:, 1:]
    bits = low > np.median(low, axis=1, keepdims=True)
    expected = [int("".join(str(int(bit)) for bit in row), 2) for row in bits]
    hashes = duplicates.perceptual_hashes(images).tolist()
    differing = [(x ^ y).bit_count() for x, y in zip(hashes, expected, strict=True)]
    assert np.mean(differing) < 2, "frequencies are rounded, so those about the median may differ"


def test_pictures_of_one_colour_are_near_each_other() -> None:
    shades = np.arange(0, 250, 10, dtype=np.uint8)[:, None, None, None]
    plain = np.broadcast_to(shades, (25, 3, 96, 96))
    assert duplicates.near(keys_of(train=plain))["train", "train"].pairs == 25 * 24 // 2


def test_labels_that_differ_between_copies_are_counted() -> None:
    train, test = photos(20), photos(10, seed=1)
    train[[1, 2]] = train[0]
    test[3] = train[0]
    test[4] = flipped_pixel(train[10])
    labels = np.zeros(20, dtype=np.int64)
    labels[2] = 1
    splits = {"train": (train, labels), "test": (test, np.full(10, 2)), "unlabelled": (test, None)}
    keys = duplicates.read(splits)
    audit = duplicates.exact(keys)
    assert (audit["train", "train"].pairs, audit["train", "train"].other_label) == (3, 2)
    assert (audit["train", "test"].pairs, audit["train", "test"].other_label) == (3, 3)
    assert audit["test", "unlabelled"].other_label is None
    assert duplicates.near(keys)["train", "test"].other_label == 1


@given(st.lists(st.integers(0, 9), min_size=1), st.lists(st.integers(0, 9), min_size=1))
def test_exact_pairs_are_those_of_counting_them_one_by_one(a: list[int], b: list[int]) -> None:
    labels = np.arange(100) % 3
    hashes = np.zeros(100, dtype=np.uint64)
    first, second = (
        duplicates.Keys(np.array(contents), hashes[: len(contents)], labels[: len(contents)])
        for contents in (a, b)
    )
    within, between, _ = duplicates.exact({"a": first, "b": second}).values()
    pairs = [(i, j) for i, x in enumerate(a) for j, y in enumerate(b) if x == y]
    assert between.pairs == len(pairs)
    assert between.images == (len({i for i, _ in pairs}), len({j for _, j in pairs}))
    assert between.other_label == sum(i % 3 != j % 3 for i, j in pairs)
    pairs = [(i, j) for i, x in enumerate(a) for j, y in enumerate(a) if x == y and i < j]
    assert within.pairs == len(pairs)
    assert within.images[0] == len({i for pair in pairs for i in pair})
    assert within.other_label == sum(i % 3 != j % 3 for i, j in pairs)


def test_all_pairs_are_compared_across_the_edges_of_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = keys_of(train=photos(50), test=photos(33, seed=1))
    whole = duplicates.near(keys, distance=26, examples=1000)
    train, test = (keys[name].hashes.tolist() for name in ("train", "test"))
    close = [
        (i, j) for i, x in enumerate(train) for j, y in enumerate(test) if (x ^ y).bit_count() <= 26
    ]
    assert sorted(whole["train", "test"].examples) == close
    assert any((train[i] ^ test[j]).bit_count() == 26 for i, j in close), "the limit itself counts"
    monkeypatch.setattr(duplicates, "_TILE", (4, 7))
    assert duplicates.near(keys, distance=26, examples=1000) == whole
    seen: list[int] = []
    duplicates.near(keys, advance=seen.append)
    assert sum(seen) == duplicates.comparisons(keys)
    assert whole["train", "train"].pairs > 10


def test_a_mapped_file_is_read_in_pieces(tmp_path: Path) -> None:
    images = photos(601)
    images.tofile(tmp_path / "x.bin")
    mapped = np.memmap(tmp_path / "x.bin", dtype=np.uint8, mode="r").reshape(-1, 3, 96, 96)
    steps: list[int] = []
    keys = duplicates.read({"unlabelled": (mapped, None)}, steps.append)
    assert steps == [500, 101]
    assert np.array_equal(keys["unlabelled"].hashes, keys_of(train=images)["train"].hashes)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A data folder whose test image 1 is train image 0, and unlabelled 2 nearly test image 3."""
    folder = tmp_path / "data" / "stl10_binary"
    folder.mkdir(parents=True)
    train, test, unlabelled = photos(20), photos(8, seed=1), photos(5, seed=2)
    test[1] = train[0]
    unlabelled[2] = brighter(test[3])
    for name, images in (("train", train), ("test", test), ("unlabeled", unlabelled)):
        images.swapaxes(2, 3).tofile(folder / f"{name}_X.bin")
        (np.arange(len(images)) % 2 + 1).astype(np.uint8).tofile(folder / f"{name}_y.bin")
    (folder / "class_names.txt").write_text("ant\nbee\n")
    return tmp_path / "data"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["stl10bench", "data", "audit", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_command_prints_one_json_object(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--data-dir", str(copied), "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == {"train": 20, "test": 8, "unlabelled": 5}
    assert report["distance"] == 4
    assert report["exact"]["train-test"] == {
        "pairs": 1,
        "images": {"train": 1, "test": 1},
        "other_label": 1,
        "examples": [[0, 1]],
    }
    assert report["near"]["test-unlabelled"]["examples"] == [[3, 2]]
    assert report["near"]["train-test"]["pairs"] == report["exact"]["train"]["pairs"] == 0
    assert run(monkeypatch, "--data-dir", str(copied), "--json", "--no-unlabelled") == 0
    assert set(json.loads(capsys.readouterr().out)["images"]) == {"train", "test"}


def test_the_command_prints_a_table_and_the_examples(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--data-dir", str(copied)) == 0
    out = capsys.readouterr().out
    assert "20 train, 8 test, 5 unlabelled images" in out
    lines = {line.strip().split("  ")[0]: line.split() for line in out.splitlines() if line}
    assert lines["train and test"][3:] == ["1", "1", "+", "1", "0", "0", "+", "0", "1"]
    assert lines["test and unlabelled"][3:] == ["0", "0", "+", "0", "1", "1", "+", "1", "-"]
    assert "exact: train 0 = test 1" in out
    assert "near: test 3 ~ unlabelled 2" in out
    assert "at most 4 of 63 bits" in out


def test_data_that_are_not_there_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--data-dir", str(tmp_path / "none")) == 3
    assert "lacks train_X.bin" in capsys.readouterr().err
