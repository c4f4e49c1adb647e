"""Two predictors on the same images -> their difference, its interval and a p-value; light."""

import math
from collections.abc import Sequence
from typing import NamedTuple

RESAMPLES = 10_000


class Pair(NamedTuple):
    """How many images both, only the first, only the second, or neither classified correctly."""

    both: int
    first: int
    second: int
    neither: int

    @property
    def images(self) -> int:
        return sum(self)

    @property
    def difference(self) -> float:
        """The first's accuracy less the second's, -1..1."""
        return (self.first - self.second) / self.images


def decode_hits(text: str) -> int:
    """What `predictions.encode_hits` wrote, as an integer with a bit set for each."""
    return int(text, 16)


def pair(first: int, second: int, images: int) -> Pair:
    """Two runs' decoded hits on the same `images` images -> the four counts."""
    both = (first & second).bit_count()
    only_first, only_second = first.bit_count() - both, second.bit_count() - both
    return Pair(both, only_first, only_second, images - both - only_first - only_second)


def mcnemar(counts: Pair) -> float:
    """The exact two-sided p-value for equal accuracies on the same images, 0..1.

    min(1, 2 P(X <= min(first, second))) with X binomial over the first + second images on which
    just one is right, each with probability 1/2; 1 where there are none. McNemar (1947), "Note on
    the sampling error of the difference between correlated proportions or percentages", with the
    binomial in place of its chi-squared approximation.
    """
    fewer, trials = min(counts.first, counts.second), counts.first + counts.second
    term = math.exp(
        math.lgamma(trials + 1)
        - math.lgamma(fewer + 1)
        - math.lgamma(trials - fewer + 1)
        - trials * math.log(2)
    )
    tail = 0.0
    for successes in range(fewer, -1, -1):
        tail += term
        term *= successes / (trials - successes + 1)
    return min(1.0, 2 * tail)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, in their order: the family-wise error stays below 5 %.

    Sorted upwards, the k-th of m is multiplied by m - k + 1, is at least its predecessor and at
    most 1. Holm (1979), "A simple sequentially rejective multiple test procedure".
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, (len(p_values) - rank) * p_values[index])
        corrected[index] = min(1.0, highest)
    return corrected


def bootstrap(counts: Pair, *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """The 95 % paired-bootstrap interval of the difference in accuracy, -1..1.

    The 2.5 and 97.5 % points of the difference over `resamples` test splits, drawn with
    replacement from the images. An image counts only by its cell of the four counts, so a resample
    is one draw from their multinomial: the same distribution, without touching an image. Efron and
    Tibshirani (1993), "An Introduction to the Bootstrap", section 13.3.
    """
    import numpy as np

    shares = np.array(counts, dtype=np.float64) / counts.images
    draws = np.random.default_rng(seed).multinomial(counts.images, shares, size=resamples)
    low, high = np.quantile((draws[:, 1] - draws[:, 2]) / counts.images, (0.025, 0.975))
    return float(low), float(high)
