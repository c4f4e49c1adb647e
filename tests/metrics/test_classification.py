"""Scores against closed forms, exact arithmetic and torch's own; draws against their promise."""

import json
import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics
from sklearn.metrics import f1_score, recall_score
from statsmodels.stats.proportion import proportion_confint

from stl10bench.core.errors import DataError
from stl10bench.core.seeding import AUGMENT, DROPOUT, ORDER, VALIDATION, WEIGHTS, generator, seed_of
from stl10bench.data.loader import channel_statistics
from stl10bench.metrics.classification import confusion_matrix, measures, none_if_not_finite
from stl10bench.metrics.significance import Z95, decode_hits, wilson_interval
from stl10bench.results.predictions import Predictions
from stl10bench.training.evaluate import score

SCORES = st.integers(1, 400).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count)))


@given(SCORES)
def test_wilsons_interval_is_where_the_score_test_just_accepts(case: tuple[int, int]) -> None:
    """Its ends solve (p - hits/n)^2 = z^2 p (1 - p) / n: the interval's definition."""
    hits, count = case
    share = hits / count
    low, high = wilson_interval(share, count)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            left = (end - share) ** 2
            right = Z95**2 * end * (1 - end) / count
            assert left == pytest.approx(right, rel=1e-9, abs=1e-15)


def test_wilsons_interval_of_a_textbook_case() -> None:
    """15 of 148: 0.0624 to 0.1605 (Newcombe 1998, "Two-sided confidence intervals", table I)."""
    low, high = wilson_interval(15 / 148, 148)
    assert (round(low, 4), round(high, 4)) == (0.0624, 0.1605)


def test_ninety_five_percent_is_the_normal_quantile() -> None:
    assert math.erf(Z95 / math.sqrt(2)) == pytest.approx(0.95, abs=1e-15)


@given(SCORES.filter(lambda case: case[1] > 1))
def test_more_images_narrow_the_interval(case: tuple[int, int]) -> None:
    hits, count = case
    low, high = wilson_interval(hits / count, count)
    narrow_low, narrow_high = wilson_interval(hits / count, 4 * count)
    assert narrow_high - narrow_low < high - low


@given(SCORES)
def test_wilsons_interval_is_statsmodels(case: tuple[int, int]) -> None:
    hits, count = case
    theirs = proportion_confint(hits, count, method="wilson")
    assert wilson_interval(hits / count, count) == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("images", [500, 1000, 8000])
@pytest.mark.parametrize("accuracy", [0.1, 0.35, 0.6, 0.85, 0.97])
def test_wilsons_interval_holds_the_truth_95_times_in_100(accuracy: float, images: int) -> None:
    hits, times = np.unique(
        np.random.default_rng(0).binomial(images, accuracy, size=100_000), return_counts=True
    )
    intervals = [wilson_interval(count / images, images) for count in hits]
    inside = [low <= accuracy <= high for low, high in intervals]
    assert times[inside].sum() / 100_000 == pytest.approx(0.95, abs=0.015)


PREDICTIONS = st.integers(2, 6).flatmap(
    lambda classes: st.tuples(
        st.just(classes),
        st.lists(st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1)), min_size=1),
    )
)


@given(PREDICTIONS)
def test_confusion_f1_and_class_accuracies_are_scikit_learns(
    case: tuple[int, list[tuple[int, int]]],
) -> None:
    classes, pairs = case
    labels, predicted = zip(*pairs, strict=True)
    logits = np.eye(classes, dtype=np.float32)[list(predicted)]
    row = measures(logits, np.array(labels))
    counts = sklearn_metrics.confusion_matrix(labels, predicted, labels=range(classes))
    assert confusion_matrix(logits, np.array(labels)).tolist() == counts.tolist()
    theirs = f1_score(labels, predicted, average="macro", zero_division=0)
    assert row["test_macro_f1"] == pytest.approx(theirs, abs=1e-9)
    recalls = recall_score(
        labels, predicted, labels=range(classes), average=None, zero_division=np.nan
    )
    ours = [math.nan if accuracy is None else accuracy for accuracy in row["per_class_accuracy"]]
    assert ours == pytest.approx(recalls.tolist(), abs=1e-9, nan_ok=True)
    hits = [label == guess for label, guess in pairs]
    text = Predictions(logits, np.array(labels), None, None).hits()
    bits = bin(decode_hits("01" + text))[3:][: len(hits)]
    assert [bit == "1" for bit in bits] == hits, "a bit an image, in their order"
    assert decode_hits(text).bit_count() == sum(hits)
    json.dumps(row, allow_nan=False)


def test_loss_is_the_mean_nll_and_accuracy_counts_the_first_of_equal_logits() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0], [1.0, 1.0]])
    scores = score(logits, torch.tensor([0, 0, 0, 1]), "val")
    right, wrong, tie = math.log1p(math.exp(-2)), math.log1p(math.exp(2)), math.log(2)
    assert scores["val/accuracy"] == 0.5
    assert scores["val/loss"] == pytest.approx((right + wrong + 2 * tie) / 4, rel=1e-12)


def test_huge_logits_lose_no_digits() -> None:
    logits = torch.tensor([[1e4, 0.0], [1e4 + 1, 1e4]])
    scores = score(logits, torch.tensor([0, 0]), "test")
    assert scores["test/loss"] == pytest.approx(math.log1p(math.exp(-1)) / 2, rel=1e-12)


@given(st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_channel_statistics_are_those_of_numpy(count: int, seed: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (count, 3, 5, 5), dtype=np.uint8)
    mean, std = channel_statistics(torch.from_numpy(images))
    floats = images.astype(np.float64) / 255
    assert mean == pytest.approx(floats.mean((0, 2, 3)), rel=1e-12)
    assert std == pytest.approx(floats.std((0, 2, 3)), rel=1e-9)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_channel_that_is_the_same_everywhere_is_refused(value: int) -> None:
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    images[:, 1] = value
    with pytest.raises(DataError, match=f"channel 1 is {value / 255:.3f} in every pixel"):
        channel_statistics(images)


def test_what_json_cannot_say_becomes_none() -> None:
    values = {"a": 1.0, "b": math.nan, "c": math.inf}
    assert none_if_not_finite(values) == {"a": 1.0, "b": None, "c": None}


# Randomness.


def test_a_seed_is_the_same_on_every_platform() -> None:
    """If this fails, no stored run can be reproduced: raise config.FORMAT."""
    assert seed_of(0, ORDER, 1) == 1554199118406742183
    draws = torch.rand(2, generator=generator(7, AUGMENT, 2, 3))
    assert draws.tolist() == pytest.approx([0.74480885, 0.08016092], abs=1e-7)


def test_no_two_places_share_a_seed() -> None:
    purposes = (
        VALIDATION,
        ORDER,
        AUGMENT,
        DROPOUT,
        WEIGHTS,
    )
    places = [
        *product(range(3), purposes),
        *product(range(3), purposes, range(6)),
        *product(range(3), purposes, range(6), range(6)),
    ]
    # A trailing zero is the same place to SeedSequence; within a purpose counters are as many.
    for length in (2, 3, 4):
        seeds = [seed_of(*place) for place in places if len(place) == length]
        assert len(set(seeds)) == len(seeds)
        assert all(0 <= seed < 2**63 for seed in seeds)
