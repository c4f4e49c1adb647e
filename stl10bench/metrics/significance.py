"""Counts of correct images -> intervals and p-values: one run, pairs of runs, seeds."""

import math
import statistics
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

SIGNIFICANCE = 0.05  # p-values below this are significant
RESAMPLES = 10_000
Z95 = 1.959963984540054  # the 97.5 % point of the normal distribution
_STEPS = 60  # of a bisection: more than a float has bits
_MAX_FREEDOM = 60  # degrees; more change little, and `t_tail` takes as many steps


def wilson_interval(accuracy: float, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share `accuracy` of `count` independent trials.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    centre = accuracy + Z95**2 / (2 * count)
    spread = Z95 * math.sqrt(accuracy * (1 - accuracy) / count + Z95**2 / (4 * count**2))
    scale = 1 + Z95**2 / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


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
        """The first run's accuracy minus the second's, -1..1."""
        return (self.first - self.second) / self.images


def decode_hits(text: str) -> int:
    """What `Predictions.hits` wrote, as an integer with a bit set for each correct image."""
    return int(text, 16)


def count_pairs(first: int, second: int, images: int) -> PairedCounts:
    """Two runs' decoded hits on the same `images` images -> the four counts."""
    both = (first & second).bit_count()
    only_first, only_second = first.bit_count() - both, second.bit_count() - both
    return PairedCounts(both, only_first, only_second, images - both - only_first - only_second)


def mcnemar_p(counts: PairedCounts) -> float:
    """The exact two-sided p-value for equal accuracies on the same images, 0..1.

    min(1, 2 P(X <= min(first, second))) with X binomial over the first + second images on which
    just one run is right, each with probability 1/2; 1 where there are none. McNemar (1947), "Note
    on the sampling error of the difference between correlated proportions or percentages", with the
    binomial instead of its chi-squared approximation.
    """
    fewer, trials = min(counts.first, counts.second), counts.first + counts.second
    # P(X = fewer), by logarithms: 2^-trials is 0 in a float from 1,075 trials on.
    orders = math.lgamma(trials + 1) - math.lgamma(fewer + 1) - math.lgamma(trials - fewer + 1)
    term = math.exp(orders - trials * math.log(2))
    tail = 0.0
    for successes in range(fewer, -1, -1):
        tail += term
        term *= successes / (trials - successes + 1)
    return min(1.0, 2 * tail)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, in their order, for a family-wise error below 5 %.

    Sorted upwards, the k-th of m is multiplied by m - k + 1, is at least its predecessor and at
    most 1. Holm (1979), "A simple sequentially rejective multiple test procedure".
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, (len(p_values) - rank) * p_values[index])
        corrected[index] = min(1.0, highest)
    return corrected


def letter_groups(count: int, different: Collection[tuple[int, int]]) -> list[str]:
    """Letters for `count` results, best first: two share one unless they are `different`.

    The pairs are of places, the smaller first. Insert-and-absorb of Piepho (2004), "An algorithm
    for a letter-based representation of all-pairwise comparisons", section 2. A letter stands for a
    set of results of which no two differ; together the sets hold every pair that does not.
    """
    groups = [set(range(count))]
    for first, second in sorted(different):
        split = []
        for group in groups:
            both = {first, second} <= group
            split += [group - {first}, group - {second}] if both else [group]
        groups = []
        for group in sorted(split, key=len, reverse=True):  # absorb what another one holds
            if not any(group <= other for other in groups):
                groups.append(group)
    groups.sort(key=sorted)
    names = [_letters(number) for number in range(len(groups))]
    pairs = [list(zip(names, groups, strict=True)) for _ in range(count)]
    return [
        "".join(name for name, group in pairs[place] if place in group) for place in range(count)
    ]


def _letters(number: int) -> str:
    """a to z, then a1, b1, ..."""
    turn, letter = divmod(number, 26)
    return chr(ord("a") + letter) + (str(turn) if turn else "")


def bootstrap_interval(
    counts: PairedCounts, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """The 95 % paired-bootstrap interval of the difference in accuracy, -1..1.

    The 2.5 and 97.5 % points of the difference over `resamples` test splits, drawn with
    replacement from the images. An image counts only by its cell of the four counts, so a resample
    is one draw from their multinomial: the same distribution, without touching an image. Efron and
    Tibshirani (1993), "An Introduction to the Bootstrap", section 13.3.
    """
    shares = np.array(counts, dtype=np.float64) / counts.images
    draws = np.random.default_rng(seed).multinomial(counts.images, shares, size=resamples)
    low, high = np.quantile((draws[:, 1] - draws[:, 2]) / counts.images, (0.025, 0.975))
    return float(low), float(high)


class Sample(NamedTuple):
    """The runs of a setting that differ in their seed alone."""

    accuracies: tuple[float, ...]  # validation accuracy of each seed, 0..1
    images: int  # validation images of all seeds together

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
    """The noise between seeds, estimated from all settings of a study."""

    variance: float
    freedom: int  # degrees


def pooled_variance(samples: Sequence[Sample]) -> PooledVariance | None:
    """The variance within settings, of all that have several seeds; None where none has.

    Three seeds say little about their own spread, those of all settings together much more: the
    mean square within groups of a one-way analysis of variance (Montgomery, "Design and Analysis of
    Experiments", 8th edition (2013), section 3.3).
    """
    freedom = sum(len(sample.accuracies) - 1 for sample in samples)
    if freedom == 0:
        return None
    squares = sum(
        (accuracy - sample.mean) ** 2 for sample in samples for accuracy in sample.accuracies
    )
    return PooledVariance(squares / freedom, min(freedom, _MAX_FREEDOM))


def samples_p_value(first: Sample, second: Sample, seeds: PooledVariance | None) -> float:
    """The two-sided p-value for equal validation accuracies, 0..1.

    The higher of `images_p_value` and `seeds_p_value`. Without `seeds` their noise is unknown, and
    only that of the images counts.
    """
    images = images_p_value(first, second)
    return images if seeds is None else max(images, seeds_p_value(first, second, seeds))


def images_p_value(first: Sample, second: Sample) -> float:
    """The p-value of the z-test for two proportions with a pooled share, over validation images.

    Conservative: the two settings saw the same images, so their difference is less noisy than that
    of the independent samples which the test assumes. Fleiss, Levin and Paik, "Statistical Methods
    for Rates and Proportions", 3rd edition (2003), section 3.1.
    """
    hits = first.mean * first.images + second.mean * second.images
    share = hits / (first.images + second.images)
    variance = share * (1 - share) * (1 / first.images + 1 / second.images)
    return _normal_tail(first.mean - second.mean, math.sqrt(variance))


def seeds_p_value(first: Sample, second: Sample, seeds: PooledVariance) -> float:
    """The p-value of Student's t-test on the seeds' accuracies, with the variance of all settings.

    Where the two settings vary more than that, their own variance replaces it: seeds that disagree
    are not judged by those of other settings that agree.
    """
    variance = max(seeds.variance, _mean_variance(first, second))
    deviation = math.sqrt(variance * (1 / len(first.accuracies) + 1 / len(second.accuracies)))
    gap = first.mean - second.mean
    if deviation == 0:
        return 1.0 if gap == 0 else 0.0
    return t_tail(gap / deviation, seeds.freedom)


def _mean_variance(*samples: Sample) -> float:
    """The mean variance of the samples that have several seeds; 0 where none has."""
    variances = [sample.deviation**2 for sample in samples if sample.deviation is not None]
    return statistics.fmean(variances) if variances else 0.0


def least_significant_difference(sample: Sample, seeds: PooledVariance | None) -> float:
    """The smallest difference from `sample` that is significant for a setting with equal noise.

    In 0..1, at p = 0.05 without a correction for several comparisons.
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
    """The t at which `t_tail` is 0.05, to 12 digits."""
    low, high = 0.0, 13.0  # 12.7 at one degree
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, freedom) > 0.05 else (low, middle)
    return high


def _normal_tail(gap: float, deviation: float) -> float:
    """The probability that a normal variable is further from its mean than `gap`."""
    if deviation == 0:
        return 1.0 if gap == 0 else 0.0
    return math.erfc(abs(gap) / deviation / math.sqrt(2))
