"""Counts of correct images -> intervals and p-values: one run, pairs of runs, seeds."""

import math
import statistics
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

Z95 = 1.959963984540054  # the 97.5 % point of the normal distribution


def wilson_interval(accuracy: float, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share `accuracy` of `count` independent trials.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    centre = accuracy + Z95**2 / (2 * count)
    spread = Z95 * math.sqrt(accuracy * (1 - accuracy) / count + Z95**2 / (4 * count**2))
    scale = 1 + Z95**2 / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


RESAMPLES = 10_000


class PairedCounts(NamedTuple):
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


def count_pairs(first: int, second: int, images: int) -> PairedCounts:
    """Two runs' decoded hits on the same `images` images -> the four counts."""
    both = (first & second).bit_count()
    only_first, only_second = first.bit_count() - both, second.bit_count() - both
    return PairedCounts(both, only_first, only_second, images - both - only_first - only_second)


def mcnemar_p(counts: PairedCounts) -> float:
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


def bootstrap_interval(
    counts: PairedCounts, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
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


_STEPS = 60  # of a bisection: more than a float has bits
_FREEDOM = 60  # degrees at most: what is above changes little, and takes time


class Sample(NamedTuple):
    """A setting: the hold-out accuracy of each seed, 0..1, and the images of all hold-outs."""

    accuracies: tuple[float, ...]
    images: int

    @property
    def mean(self) -> float:
        return statistics.fmean(self.accuracies)

    @property
    def deviation(self) -> float | None:
        """The standard deviation over the seeds (n - 1); None of one seed."""
        return _deviation(self.accuracies) if len(self.accuracies) > 1 else None


@lru_cache(4096)
def _deviation(values: tuple[float, ...]) -> float:
    return statistics.stdev(values)  # exact, hence slow: asked for each pair of settings


class PooledVariance(NamedTuple):
    """What all settings of a study say of the noise of seeds: a variance and its freedom."""

    variance: float
    freedom: int


def pooled_variance(samples: Sequence[Sample]) -> PooledVariance | None:
    """The variance within settings, of all that have several seeds; None where none has.

    Three seeds say little of their own spread, those of all settings together much more: the mean
    square within groups of a one-way analysis of variance (Montgomery, "Design and Analysis of
    Experiments", 8th edition (2013), section 3.3).
    """
    freedom = sum(len(one.accuracies) - 1 for one in samples)
    if freedom == 0:
        return None
    squares = sum((value - one.mean) ** 2 for one in samples for value in one.accuracies)
    return PooledVariance(squares / freedom, min(freedom, _FREEDOM))


def samples_p_value(first: Sample, second: Sample, seeds: PooledVariance | None) -> float:
    """The two-sided p-value for equal hold-out accuracies, 0..1.

    The higher of `p_images` and `p_seeds`; without `seeds` their noise is not known, and only that
    of the images counts.
    """
    images = images_p_value(first, second)
    return images if seeds is None else max(images, seeds_p_value(first, second, seeds))


def images_p_value(first: Sample, second: Sample) -> float:
    """Of the z-test for two proportions with a pooled share, over the images of all hold-outs.

    The two settings saw the same images, which makes their difference less noisy than that of
    independent samples: the test errs on the side of noise. Fleiss, Levin and Paik, "Statistical
    Methods for Rates and Proportions", 3rd edition (2003), section 3.1.
    """
    hits = first.mean * first.images + second.mean * second.images
    share = hits / (first.images + second.images)
    variance = share * (1 - share) * (1 / first.images + 1 / second.images)
    return _normal_tail(first.mean - second.mean, math.sqrt(variance))


def seeds_p_value(first: Sample, second: Sample, seeds: PooledVariance) -> float:
    """Of Student's t-test on the seeds' accuracies, with the variance of all settings.

    Where the two spread more than that, their own variance takes its place, so that a setting whose
    seeds disagree is not judged by the others' calm.
    """
    variance = max(seeds.variance, _mean_variance(first, second))
    counts = [len(one.accuracies) for one in (first, second)]
    deviation = math.sqrt(variance * sum(1 / count for count in counts))
    gap = first.mean - second.mean
    if deviation == 0:
        return 1.0 if gap == 0 else 0.0
    return t_tail(gap / deviation, seeds.freedom)


def _mean_variance(*samples: Sample) -> float:
    """The mean of the variances of those that have several seeds, else 0."""
    own = [one.deviation**2 for one in samples if one.deviation is not None]
    return statistics.fmean(own) if own else 0.0


def least_significant_difference(sample: Sample, seeds: PooledVariance | None) -> float:
    """The least difference that could be told from `sample`, of a setting with the same noise.

    At p = 0.05 and without a correction for several comparisons.
    """
    share = sample.mean
    images = Z95 * math.sqrt(2 * share * (1 - share) / sample.images)
    if seeds is None:
        return images
    deviation = math.sqrt(max(seeds.variance, _mean_variance(sample)) * 2 / len(sample.accuracies))
    return max(images, t_point(seeds.freedom) * deviation)


def t_tail(t: float, freedom: int) -> float:
    """The probability that Student's t with `freedom` degrees is further from 0 than `t`.

    Abramowitz and Stegun, "Handbook of Mathematical Functions" (1964), 26.7.3 and 26.7.4.
    """
    angle = math.atan(abs(t) / math.sqrt(freedom))
    cosine = math.cos(angle)
    term = cosine if freedom % 2 else 1.0
    total = 0.0
    for k in range(1 + freedom % 2, freedom, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    total *= math.sin(angle)
    return max(0.0, 1 - (2 / math.pi * (angle + total) if freedom % 2 else total))


def t_point(freedom: int) -> float:
    """Where `t_tail` is 0.05, to 12 digits."""
    low, high = 0.0, 13.0  # 12.7 at one degree
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, freedom) > 0.05 else (low, middle)
    return high


def _normal_tail(gap: float, deviation: float) -> float:
    if deviation == 0:
        return 1.0 if gap == 0 else 0.0
    return math.erfc(abs(gap) / deviation / math.sqrt(2))


SIGNIFICANCE = 0.05
