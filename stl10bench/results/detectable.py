"""Two settings with their seeds -> the smallest difference that more seeds would show."""

import math
import statistics
from collections.abc import Sequence
from itertools import combinations, product
from typing import NamedTuple

import numpy as np

from stl10bench.metrics.significance import Z95
from stl10bench.results.aggregate import hit_matrix
from stl10bench.results.ranking import best_validated, input_rule
from stl10bench.results.rows import Row

POWER = 0.8  # of the runs that are planned: the share in which a difference is found
_Z_POWER = statistics.NormalDist().inv_cdf(POWER)
MOST_SEEDS = 1000


class Noise(NamedTuple):
    """The variance of the difference of two settings' mean accuracies, by where it comes from."""

    images: float  # of a test split: what no number of seeds takes away
    seeds: float  # of one seed of each setting: k seeds leave a k-th

    def detectable(self, seeds: int) -> float:
        """The smallest true difference, 0..1, that POWER of such comparisons call significant.

        By the normal test of `aggregate.rows_p_value`, two-sided at 5 %, with `seeds` of each:
        (z_0.975 + z_power) standard errors. Lehr (1992), "Sixteen S-squared over D-squared".
        """
        return (Z95 + _Z_POWER) * math.sqrt(self.images + self.seeds / seeds)

    def seeds_for(self, difference: float) -> int | None:
        """The number of seeds of each setting that show a difference; None: no number does.

        `difference` is in 0..1. Two at least, as one says nothing of its own noise.
        """
        room = (difference / (Z95 + _Z_POWER)) ** 2 - self.images
        if room <= 0:
            return None
        needed = max(2, math.ceil(self.seeds / room))
        return needed if needed <= MOST_SEEDS else None


def noise_between(first: Row, second: Row) -> Noise | None:
    """The noise of two aggregated rows on the same images; None unless one has several seeds.

    The variance over images of the difference of mean hits is that of the images plus a k-th of
    what one seed adds to it, which p (1 - p) k / (k - 1) of each image estimates.
    """
    hits = [hit_matrix(row) for row in (first, second)]
    if max(map(len, hits)) < 2:
        return None
    images = first.test_images
    between = float(np.var(hits[0].mean(0) - hits[1].mean(0)))
    within, known = [0.0, 0.0], []
    deviations = [row.test_accuracy_sd for row in (first, second)]
    for number, matrix in enumerate(hits):
        runs, share = len(matrix), matrix.mean(0)
        if runs > 1:
            within[number] = float((share * (1 - share)).mean()) * runs / (runs - 1)
            known.append(number)
    for number in {0, 1} - {*known}:  # a single run is given the other's noise, as in the test
        within[number], deviations[number] = within[known[0]], deviations[known[0]]
    of_images = between - sum(part / len(matrix) for part, matrix in zip(within, hits, strict=True))
    of_seeds = sum((deviation or 0.0) ** 2 for deviation in deviations) + sum(within) / images
    return Noise(max(0.0, of_images) / images, of_seeds)


def settings_to_plan(rows: Sequence[Row]) -> list[tuple[Row, Row, Noise]]:
    """Of aggregated rows, the best by validation accuracy with each other, and their noise.

    All pairs where none has a validation accuracy. Pairs that saw different parts of the images
    are left out, as in `ranking.annotate`.
    """
    ranked = sorted(rows, key=best_validated)
    is_known = any(row.val_accuracy is not None for row in rows)
    pairs = product(ranked[:1], ranked[1:]) if is_known else combinations(ranked, 2)
    alike = (pair for pair in pairs if input_rule(pair[0]) == input_rule(pair[1]))
    found = ((first, second, noise_between(first, second)) for first, second in alike)
    return [(first, second, noise) for first, second, noise in found if noise is not None]
