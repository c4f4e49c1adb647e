"""Accuracies of seeds on their hold-outs -> is a difference larger than the noise? Light.

There are two noises. Seeds: another seed gives other weights, another order and another hold-out.
Images: a hold-out is a small sample of all images. A difference counts as larger than the noise
only if it is larger than each of them: its p-value is the higher of the two, an
intersection-union test (Berger 1982, "Multiparameter hypothesis testing and acceptance sampling").
"""

import math
import statistics
from typing import NamedTuple

from stl10bench.intervals import Z95

_STEPS = 60  # of a bisection: more than a float has bits


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
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None


def p_value(first: Sample, second: Sample) -> float:
    """The two-sided p-value for equal hold-out accuracies, 0..1.

    The higher of `p_images` and `p_seeds`; with one seed in either the seeds' noise is not known,
    and only that of the images counts.
    """
    if min(len(first.accuracies), len(second.accuracies)) == 1:
        return p_images(first, second)
    return max(p_images(first, second), p_seeds(first, second))


def p_images(first: Sample, second: Sample) -> float:
    """Of the z-test for two proportions with a pooled share, over the images of all hold-outs.

    The two settings saw the same images, which makes their difference less noisy than that of
    independent samples: the test errs on the side of noise. Fleiss, Levin and Paik, "Statistical
    Methods for Rates and Proportions", 3rd edition (2003), section 3.1.
    """
    hits = first.mean * first.images + second.mean * second.images
    share = hits / (first.images + second.images)
    variance = share * (1 - share) * (1 / first.images + 1 / second.images)
    return _normal_tail(first.mean - second.mean, math.sqrt(variance))


def p_seeds(first: Sample, second: Sample) -> float:
    """Of Welch's t-test on the seeds' accuracies, the degrees of freedom rounded down.

    Welch (1947), "The generalization of Student's problem when several different population
    variances are involved". Raises ValueError for a single seed.
    """
    gap = first.mean - second.mean
    parts = [statistics.variance(one.accuracies) / len(one.accuracies) for one in (first, second)]
    variance = sum(parts)
    if variance == 0:
        return 1.0 if gap == 0 else 0.0
    weights = [
        part**2 / (len(one.accuracies) - 1)
        for part, one in zip(parts, (first, second), strict=True)
    ]
    return t_tail(gap / math.sqrt(variance), max(1, int(variance**2 / sum(weights))))


def least(sample: Sample) -> float:
    """The least difference that could be told from `sample`, of a setting with the same noise.

    At p = 0.05 and without a correction for several comparisons.
    """
    share, seeds = sample.mean, len(sample.accuracies)
    images = Z95 * math.sqrt(2 * share * (1 - share) / sample.images)
    if sample.deviation is None:
        return images
    return max(images, t_point(2 * (seeds - 1)) * sample.deviation * math.sqrt(2 / seeds))


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
