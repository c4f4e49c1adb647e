"""Logits and labels -> how well the probabilities are calibrated, and a temperature for them."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stl10bench.core.errors import UsageError

BINS = 15
BIN_IMAGES = 10  # with fewer in a bin its accuracy is noise
MAX_TEMPERATURE = 100.0  # and the least is 1 / this
_MEASURES = (
    *("test_ece", "test_brier", "test_temperature"),
    *("test_loss_scaled", "test_ece_scaled", "test_brier_scaled"),
)

Logits = NDArray[np.float64]  # (N, C), any finite numbers
Labels = NDArray[np.int64]  # (N,), 0..C-1


class Reliability(NamedTuple):
    """The bins of a reliability diagram, B of them, by rising confidence."""

    confidences: NDArray[np.float64]  # (B,) the mean of the highest probabilities
    accuracies: NDArray[np.float64]  # (B,) the share of images classified correctly
    counts: NDArray[np.int64]  # (B,) images


def measures(
    logits: Logits, labels: Labels, validation: tuple[Logits, Labels] | None
) -> dict[str, Any]:
    """The part of a row on calibration, as JSON: see `classification.measures`.

    The temperature is fitted on the logits and labels of `validation`. What cannot be computed is
    None, and a line of `test_notes` says why.
    """
    values: dict[str, Any] = dict.fromkeys(_MEASURES)
    notes = values["test_notes"] = []
    if not np.isfinite(logits).all() or (validation and not np.isfinite(validation[0]).all()):
        notes.append("calibration: some logits are not finite")
        return values
    values["test_ece"] = _ece_or_note(logits, labels, "", notes)
    values["test_brier"] = brier(logits, labels)
    if validation is None:
        notes.append("temperature: no validation images to fit it on")
        return values
    try:
        values["test_temperature"] = fitted = temperature(*validation)
    except UsageError as error:
        notes.append(str(error))
        return values
    values["test_loss_scaled"] = nll(logits / fitted, labels)
    values["test_ece_scaled"] = _ece_or_note(logits / fitted, labels, " scaled", notes)
    values["test_brier_scaled"] = brier(logits / fitted, labels)
    return values


def _ece_or_note(logits: Logits, labels: Labels, kind: str, notes: list[str]) -> float | None:
    """The ECE, or None; what a reader must know of it is added to `notes`."""
    try:
        value, bins = ece(logits, labels)
    except UsageError as error:
        if str(error) not in notes:
            notes.append(str(error))
        return None
    if bins < BINS:
        notes.append(f"ECE{kind}: {bins} bins instead of {BINS}, as some confidences are equal")
    return value


def log_probabilities(logits: Logits) -> Logits:
    """float64 (N, C): the log of softmax over the classes, without overflow."""
    shifted: Logits = logits - logits.max(1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(1, keepdims=True))
    return shifted


def nll(logits: Logits, labels: Labels) -> float:
    """The mean negative log likelihood of the labels, nats."""
    return -float(log_probabilities(logits)[np.arange(len(labels)), labels].mean())


def brier(logits: Logits, labels: Labels) -> float:
    """The mean over images of sum_c (p_c - [c is the label])^2, 0..2: the multi-class sum.

    Brier (1950), "Verification of forecasts expressed in terms of probability", eq. 2. (With two
    classes this is twice what is often called the Brier score.)
    """
    errors = np.exp(log_probabilities(logits))
    errors[np.arange(len(labels)), labels] -= 1
    return float((errors**2).sum(1).mean())


def ece(logits: Logits, labels: Labels, *, bins: int = BINS) -> tuple[float, int]:
    """The expected calibration error, 0..1, and the number of bins that it was made of.

    sum_b n_b / N |accuracy_b - confidence_b|, where the confidence is the highest probability and
    the accuracy is that of the class which has it (Guo et al. 2017, "On Calibration of Modern
    Neural Networks", eq. 3). Noise makes it too high, by more the fewer images there are.

    The bins hold equally many images (Nguyen and O'Connor 2015, "Posterior calibration and
    exploratory analysis for natural language processing models", section 4; Nixon et al. 2019,
    "Measuring Calibration in Deep Learning", "adaptive"): sorted by confidence, bin b ends after
    image b N / bins. Equal confidences stay in the bin of their first, so that the order of the
    images cannot matter; then there can be fewer bins.

    Raises UsageError for fewer than 10 images a bin.
    """
    diagram = reliability(logits, labels, bins=bins)
    gaps = np.abs(diagram.accuracies - diagram.confidences)
    return float((gaps * diagram.counts).sum() / len(labels)), len(gaps)


def reliability(logits: Logits, labels: Labels, *, bins: int = BINS) -> Reliability:
    """The bins that `ece` is made of, by rising confidence; raises UsageError as `ece` does."""
    count = len(labels)
    if count < bins * BIN_IMAGES:
        raise UsageError(
            f"ECE: {count} images are too few for {bins} bins of at least {BIN_IMAGES} images"
        )
    confidences = np.exp(log_probabilities(logits).max(1))
    order = np.argsort(confidences)
    confidences = confidences[order]
    hits = (logits.argmax(1) == labels)[order].astype(np.float64)
    last = np.arange(1, bins + 1) * count // bins - 1
    ends = np.unique(np.searchsorted(confidences, confidences[last], side="right"))
    starts = np.concatenate([[0], ends[:-1]])
    counts = ends - starts
    return Reliability(
        np.add.reduceat(confidences, starts) / counts,
        np.add.reduceat(hits, starts) / counts,
        counts,
    )


def temperature(logits: Logits, labels: Labels) -> float:
    """The temperature T > 0 for which softmax(logits / T) has the least NLL on these labels.

    Guo et al. (2017), section 4.2; to be fitted on validation images. The NLL is convex in 1/T, so
    its only minimum is where its derivative mean(sum_c p_c z_c - z_label) is 0, found by bisection.
    Raises UsageError where there is no minimum between 1/100 and 100: when the logits say nothing
    about the labels, or when every label has the highest logit.
    """
    rows = np.arange(len(labels))

    def slope(inverse: float) -> float:
        """The NLL's derivative by 1/T."""
        shares = np.exp(log_probabilities(logits * inverse))
        return float(((shares * logits).sum(1) - logits[rows, labels]).mean())

    low, high = 1 / MAX_TEMPERATURE, MAX_TEMPERATURE
    if slope(low) >= 0:
        raise UsageError(
            f"temperature: no minimum up to {MAX_TEMPERATURE:g}, as the logits of the "
            f"{len(labels)} validation images say nothing about their labels"
        )
    if slope(high) <= 0:
        raise UsageError(
            f"temperature: no minimum down to {1 / MAX_TEMPERATURE:g}, as no mistake on the "
            f"{len(labels)} validation images sets a limit"
        )
    for _ in range(50):  # leaves ln(10^4) / 2^50 of ln(T)
        middle = math.sqrt(low * high)
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 1 / math.sqrt(low * high)
