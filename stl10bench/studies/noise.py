"""Accuracies of seeds on their hold-outs -> is a difference larger than the noise? Light.

There are two noises. Seeds: another seed gives other weights, another order and another hold-out.
Images: a hold-out is a small sample of all images. A difference counts as larger than the noise
only if it is larger than each of them: its p-value is the higher of the two, an
intersection-union test (Berger 1982, "Multiparameter hypothesis testing and acceptance sampling").
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from stl10bench.intervals import Z95

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
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None


class Pooled(NamedTuple):
    """What all settings of a study say of the noise of seeds: a variance and its freedom."""

    variance: float
    freedom: int


def pooled(samples: Sequence[Sample]) -> Pooled | None:
    """The variance within settings, of all that have several seeds; None where none has.

    Three seeds say little of their own spread, those of all settings together much more: the mean
    square within groups of a one-way analysis of variance (Montgomery, "Design and Analysis of
    Experiments", 8th edition (2013), section 3.3).
    """
    freedom = sum(len(one.accuracies) - 1 for one in samples)
    if freedom == 0:
        return None
    squares = sum((value - one.mean) ** 2 for one in samples for value in one.accuracies)
    return Pooled(squares / freedom, min(freedom, _FREEDOM))


def p_value(first: Sample, second: Sample, seeds: Pooled | None) -> float:
    """The two-sided p-value for equal hold-out accuracies, 0..1.

    The higher of `p_images` and `p_seeds`; without `seeds` their noise is not known, and only that
    of the images counts.
    """
    images = p_images(first, second)
    return images if seeds is None else max(images, p_seeds(first, second, seeds))


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


def p_seeds(first: Sample, second: Sample, seeds: Pooled) -> float:
    """Of Student's t-test on the seeds' accuracies, with the variance of all settings.

    Where the two spread more than that, their own variance takes its place, so that a setting whose
    seeds disagree is not judged by the others' calm.
    """
    variance = max(seeds.variance, _own(first, second))
    counts = [len(one.accuracies) for one in (first, second)]
    deviation = math.sqrt(variance * sum(1 / count for count in counts))
    gap = first.mean - second.mean
    if deviation == 0:
        return 1.0 if gap == 0 else 0.0
    return t_tail(gap / deviation, seeds.freedom)


def _own(*samples: Sample) -> float:
    """The mean of the variances of those that have several seeds, else 0."""
    own = [one.deviation**2 for one in samples if one.deviation is not None]
    return statistics.fmean(own) if own else 0.0


def least(sample: Sample, seeds: Pooled | None) -> float:
    """The least difference that could be told from `sample`, of a setting with the same noise.

    At p = 0.05 and without a correction for several comparisons.
    """
    share = sample.mean
    images = Z95 * math.sqrt(2 * share * (1 - share) / sample.images)
    if seeds is None:
        return images
    deviation = math.sqrt(max(seeds.variance, _own(sample)) * 2 / len(sample.accuracies))
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
