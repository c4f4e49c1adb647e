"""Calibration against scikit-learn, scipy, closed forms and what must not matter."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import brier_score_loss, log_loss

from stl10bench.core.errors import UsageError
from stl10bench.metrics import calibration
from stl10bench.metrics.classification import confusion_matrix, measures

Case = tuple[Any, Any]
SEEDS = st.integers(0, 2**32 - 1)


def case_of(seed: int, images: int = 300, classes: int = 5, strength: float = 1.5) -> Case:
    """Logits that know something of their labels, all classes among these."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(images) % classes)
    logits = 2 * rng.normal(size=(images, classes)) + strength * np.eye(classes)[labels]
    return logits, labels


def logits_of(confidence: float, images: int) -> Any:
    """Two classes: the first has probability `confidence`."""
    logits = np.zeros((images, 2))
    logits[:, 0] = math.log(confidence / (1 - confidence))
    return logits


@given(SEEDS)
def test_brier_and_nll_are_scikit_learns(seed: int) -> None:
    logits, labels = case_of(seed)
    shares = softmax(logits, axis=1)
    theirs = brier_score_loss(labels, shares, scale_by_half=False, labels=range(5))
    assert calibration.brier(logits, labels) == pytest.approx(theirs, rel=1e-9)
    assert calibration.nll(logits, labels) == pytest.approx(log_loss(labels, shares), rel=1e-9)


def test_brier_goes_from_0_for_the_truth_to_2_for_certain_error() -> None:
    logits = np.array([[1000.0, 0.0], [1000.0, 0.0]])
    assert calibration.brier(logits, np.array([0, 0])) == 0
    assert calibration.brier(logits, np.array([1, 1])) == 2
    assert calibration.brier(np.zeros((1, 4)), np.array([2])) == pytest.approx(0.75)


def plain_ece(logits: Any, labels: Any, bins: int) -> float:
    """The formula, image by image, for confidences that all differ."""
    shares = [softmax(row) for row in logits]
    ranked = sorted(range(len(labels)), key=lambda i: max(shares[i]))
    total = 0.0
    for number in range(bins):
        rows = ranked[number * len(labels) // bins : (number + 1) * len(labels) // bins]
        accuracy = sum(int(np.argmax(logits[i])) == labels[i] for i in rows) / len(rows)
        confidence = sum(max(shares[i]) for i in rows) / len(rows)
        total += len(rows) / len(labels) * abs(accuracy - confidence)
    return total


@given(SEEDS, st.integers(150, 400), st.sampled_from([2, 7, 15]))
def test_ece_is_its_formula(seed: int, images: int, bins: int) -> None:
    logits, labels = case_of(seed, images)
    value, used = calibration.ece(logits, labels, bins=bins)
    assert value == pytest.approx(plain_ece(logits, labels, bins), abs=1e-12)
    assert used == bins


def test_ece_of_one_confidence_is_its_distance_from_the_accuracy() -> None:
    labels = np.repeat([0, 1], [60, 140])
    value, bins = calibration.ece(logits_of(0.9, 200), labels)
    assert value == pytest.approx(0.6)
    assert bins == 1, "equal confidences share a bin"


def test_ece_parts_two_confidences_although_one_is_frequent() -> None:
    """150 at 0.9, half of them right; 50 at 0.6, all right: 0.75 * 0.4 + 0.25 * 0.4."""
    logits = np.concatenate([logits_of(0.6, 50), logits_of(0.9, 150)])
    labels = np.repeat([0, 1], [125, 75])
    value, bins = calibration.ece(logits, labels)
    assert value == pytest.approx(0.4)
    assert bins == 2


@given(SEEDS, SEEDS)
def test_the_order_of_the_images_does_not_matter(seed: int, other: int) -> None:
    logits, labels = case_of(seed)
    logits = logits.round()  # so that many confidences are equal
    order = np.random.default_rng(other).permutation(len(labels))
    moved = calibration.ece(logits[order], labels[order])
    assert moved == pytest.approx(calibration.ece(logits, labels), abs=1e-12)


def test_ece_vanishes_for_labels_drawn_from_the_probabilities() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200_000, 3))
    shares = softmax(logits, axis=1).cumsum(1)
    labels = (rng.random((200_000, 1)) > shares).sum(1)
    assert calibration.ece(logits, labels)[0] < 0.005
    assert calibration.ece(2 * logits, labels)[0] > 0.1, "too confident by a factor of two"


def test_too_few_images_for_the_bins_are_refused() -> None:
    with pytest.raises(
        UsageError, match="149 images are too few for 15 bins of at least 10 images"
    ):
        calibration.ece(*case_of(0, 149))
    assert calibration.ece(*case_of(0, 150))[1] == 15


@given(SEEDS, st.floats(1, 4), st.floats(0.2, 4))
def test_the_temperature_is_where_scipy_finds_the_least_nll(
    seed: int, strength: float, scale: float
) -> None:
    logits, labels = case_of(seed, strength=strength)
    logits = scale * logits
    fitted = calibration.temperature(logits, labels)

    def nll(log_temperature: float) -> float:
        scores = log_softmax(logits / math.exp(log_temperature), axis=1)
        return -float(scores[np.arange(len(labels)), labels].mean())

    best = minimize_scalar(nll, bounds=(-4.6, 4.6), method="bounded", options={"xatol": 1e-10})
    assert math.log(fitted) == pytest.approx(best.x, abs=1e-5)
    assert calibration.nll(logits / fitted, labels) <= best.fun + 1e-12


def test_a_temperature_that_was_put_in_comes_out() -> None:
    """Labels drawn from softmax(z): the logits 3 z have temperature 3, up to sampling noise."""
    rng = np.random.default_rng(1)
    z = 2 * rng.normal(size=(100_000, 4))
    labels = (rng.random((100_000, 1)) > softmax(z, axis=1).cumsum(1)).sum(1)
    assert calibration.temperature(3 * z, labels) == pytest.approx(3, rel=0.02)


@pytest.mark.parametrize(
    ("logits", "labels", "reason"),
    [
        (np.zeros((4, 2)), [0, 1, 0, 1], "say nothing"),
        (5 * np.eye(2), [1, 0], "say nothing"),
        (5 * np.eye(2), [0, 1], "no mistake"),
    ],
    ids=["equal", "always wrong", "always right"],
)
def test_no_temperature_is_invented_where_none_is_best(
    logits: Any, labels: list[int], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        calibration.temperature(logits, np.array(labels))


def measured(test: Case, validation: Case | None = None) -> dict[str, Any]:
    return measures(*test, validation)


def test_a_row_says_calibration_before_and_after_scaling() -> None:
    logits, labels = case_of(0)
    row = measured((4 * logits, labels), (4 * case_of(1)[0], case_of(1)[1]))
    fitted = row["test_temperature"]
    assert fitted == calibration.temperature(4 * case_of(1)[0], case_of(1)[1]), (
        "of the validation images"
    )
    assert row["test_loss_scaled"] == pytest.approx(calibration.nll(4 * logits / fitted, labels))
    assert row["test_brier"] == pytest.approx(calibration.brier(4 * logits, labels))
    assert row["test_ece"] == pytest.approx(calibration.ece(4 * logits, labels)[0])
    assert row["test_ece_scaled"] < row["test_ece"]
    assert row["test_brier_scaled"] < row["test_brier"]
    assert row["test_loss_scaled"] < calibration.nll(4 * logits, labels)
    assert row["test_notes"] == []


def test_what_cannot_be_computed_is_none_and_the_row_says_why() -> None:
    few = measured(case_of(0, 20), case_of(1))
    assert few["test_ece"] is few["test_ece_scaled"] is None
    assert few["test_brier_scaled"] is not None
    assert few["test_notes"] == ["ECE: 20 images are too few for 15 bins of at least 10 images"]

    alone = measured(case_of(0))
    scaled = ("test_temperature", "test_loss_scaled", "test_ece_scaled", "test_brier_scaled")
    assert [alone[name] for name in scaled] == [None] * 4
    assert alone["test_notes"] == ["temperature: no validation images to fit it on"]

    sure = measured(case_of(0), (5 * np.eye(5), np.arange(5)))
    assert sure["test_temperature"] is None
    assert "no mistake on the 5 validation images" in sure["test_notes"][0]

    same = measured((np.zeros((200, 5)), case_of(0, 200)[1]))
    assert same["test_ece"] == pytest.approx(0)
    assert "ECE: 1 bins instead of 15, as some confidences are equal" in same["test_notes"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_have_hits_but_no_calibration(value: float) -> None:
    logits, labels = case_of(0)
    logits[0, 0] = value
    row = measured((logits, labels), case_of(1))
    assert row["test_brier"] is row["test_temperature"] is None
    assert row["test_notes"] == ["calibration: some logits are not finite"]
    assert confusion_matrix(logits, labels).sum() == 300
