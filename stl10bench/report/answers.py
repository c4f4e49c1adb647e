"""Predictions of runs -> reliability, the surest mistakes, and how far runs agree."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stl10bench import calibration
from stl10bench.calibration import Reliability
from stl10bench.errors import UsageError
from stl10bench.tables import comparison
from stl10bench.tables.rows import Row


class Answers(NamedTuple):
    """What a run took the N test images for."""

    labels: NDArray[np.int64]  # (N,), 0..C-1
    predicted: NDArray[np.int64]  # (N,), 0..C-1; of equal logits the first class
    confidences: NDArray[np.float64]  # (N,) the softmax probability of `predicted`; nan perhaps
    before: Reliability | None  # None for too few images, or logits that are not finite
    after: Reliability | None  # of the logits over the row's temperature; None without one

    def highest(self) -> int:
        """The highest class that is a label or an answer."""
        return int(max(self.labels.max(), self.predicted.max()))


def read(folder: Path, row: Row) -> Answers:
    """The answers of a finished run; raises CheckpointError for files that do not prove them."""
    found = comparison.answers(folder, row)
    logits = found.logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        confidences = np.exp(calibration.log_probabilities(logits).max(1))
    temperature = row.get("test_temperature")
    return Answers(
        found.labels,
        logits.argmax(1),
        confidences,
        _reliability(logits, found.labels),
        _reliability(logits / temperature, found.labels) if temperature else None,
    )


def mistakes(answers: Answers, most: int) -> NDArray[np.int64]:
    """The rows of at most `most` images with a wrong answer, the highest confidence first."""
    wrong = np.flatnonzero((answers.predicted != answers.labels) & np.isfinite(answers.confidences))
    return wrong[np.argsort(-answers.confidences[wrong], kind="stable")][:most]


def agreement(first: Answers, second: Answers) -> tuple[float, float | None]:
    """The share of images that both take for the same class, 0..1, and Cohen's kappa, -1..1.

    kappa = (share - chance) / (1 - chance), with chance = sum_c p_c q_c the share for independent
    answers of the same class frequencies; None where that is 1. Cohen (1960), "A coefficient of
    agreement for nominal scales".
    """
    classes = 1 + int(max(first.predicted.max(), second.predicted.max()))
    p, q = (
        np.bincount(one.predicted, minlength=classes) / len(one.predicted)
        for one in (first, second)
    )
    share = float((first.predicted == second.predicted).mean())
    chance = float(p @ q)
    return share, (share - chance) / (1 - chance) if chance < 1 else None


def _reliability(logits: calibration.Logits, labels: calibration.Labels) -> Reliability | None:
    if not np.isfinite(logits).all():
        return None
    try:
        return calibration.reliability(logits, labels)
    except UsageError:  # too few images, as the row's notes say
        return None
