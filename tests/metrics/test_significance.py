"""Paired tests against statsmodels and scipy, and intervals against draws of a known truth."""

from fractions import Fraction
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from stl10bench.metrics.significance import (
    PairedCounts,
    bootstrap_interval,
    count_pairs,
    holm,
    mcnemar_p,
)

COUNTS = st.integers(0, 4000)
TINY = 1e-250  # below, scipy's p-values become 0


@given(COUNTS, COUNTS, st.integers(0, 10**6))
def test_mcnemars_test_is_that_of_statsmodels_and_scipy(first: int, second: int, both: int) -> None:
    p = mcnemar_p(PairedCounts(both, first, second, 7))
    theirs = mcnemar([[both, first], [second, 7]], exact=True).pvalue
    assert p == pytest.approx(theirs, rel=1e-9, abs=TINY)
    if first + second:
        binomial = binomtest(first, first + second).pvalue
        assert p == pytest.approx(binomial, rel=1e-9, abs=TINY)


@given(COUNTS, COUNTS)
@settings(max_examples=25)
def test_mcnemars_test_is_exact(first: int, second: int) -> None:
    trials, term, tail = first + second, 1, 0
    for successes in range(min(first, second) + 1):
        tail += term
        term = term * (trials - successes) // (successes + 1)
    exact = min(1.0, float(Fraction(2 * tail, 2**trials)))
    p = mcnemar_p(PairedCounts(3, first, second, 7))
    assert p == pytest.approx(exact, rel=1e-9, abs=1e-300)


def test_mcnemars_test_of_counts_that_can_be_checked_by_hand() -> None:
    assert mcnemar_p(PairedCounts(10, 0, 5, 10)) == pytest.approx(2 / 32, rel=1e-12)
    assert mcnemar_p(PairedCounts(10, 1, 4, 10)) == pytest.approx(2 * (1 + 5) / 32, rel=1e-12)
    assert mcnemar_p(PairedCounts(10, 3, 3, 10)) == 1
    assert mcnemar_p(PairedCounts(10, 0, 0, 10)) == 1
    assert mcnemar_p(PairedCounts(0, 10**6, 0, 0)) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(max_examples=30)
def test_holms_correction_is_that_of_statsmodels(p_values: list[float]) -> None:
    with patch("gc.collect"):  # which it calls, for most of a second beside torch
        theirs = multipletests(p_values, method="holm")[1]
    assert holm(p_values) == pytest.approx(theirs.tolist(), abs=1e-9)


def test_nothing_to_correct_is_nothing() -> None:
    assert holm([]) == []


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_a_pair_counts_images_by_who_was_right(hits: list[tuple[bool, bool]]) -> None:
    first, second = (int("".join(str(int(pair[k])) for pair in hits), 2) for k in range(2))
    counts = count_pairs(first, second, len(hits))
    cells = ((True, True), (True, False), (False, True), (False, False))
    assert list(counts) == [hits.count(cell) for cell in cells]
    assert counts.images == len(hits)
    assert counts.difference == sum(a - b for a, b in hits) / len(hits)


def test_the_bootstrap_on_counts_is_the_bootstrap_on_images() -> None:
    """Resampling the images one by one, with other draws, gives the same quantiles."""
    counts = PairedCounts(500, 60, 30, 110)
    gains = np.repeat([0, 1, -1, 0], counts)
    rng = np.random.default_rng(1)
    drawn = gains[rng.integers(0, 700, size=(20_000, 700))].mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    assert bootstrap_interval(counts, resamples=20_000) == pytest.approx((low, high), abs=0.0015)


def test_the_bootstrap_is_a_function_of_counts_and_seed() -> None:
    counts = PairedCounts(500, 60, 30, 110)
    assert bootstrap_interval(counts) == bootstrap_interval(counts)
    assert bootstrap_interval(counts, seed=1) != bootstrap_interval(counts)
    low, high = bootstrap_interval(
        PairedCounts(*(counts[k] for k in (0, 2, 1, 3))), resamples=100_000
    )
    assert (-high, -low) == pytest.approx(bootstrap_interval(counts, resamples=100_000), abs=0.0015)


@pytest.mark.parametrize("images", [1000, 8000])
@pytest.mark.parametrize("shares", [(0.08, 0.05), (0.03, 0.03), (0.25, 0.1), (0.02, 0.05)])
def test_the_bootstrap_interval_holds_the_truth_95_times_in_100(
    shares: tuple[float, float], images: int
) -> None:
    """Of 2,000 pairs of runs; `shares` of the images only the first, only the second gets right."""
    first, second = shares
    cells = (0.9 - first - second, first, second, 0.1)
    tables = np.random.default_rng(0).multinomial(images, cells, size=2000)
    inside = 0
    for seed, table in enumerate(tables.tolist()):
        low, high = bootstrap_interval(PairedCounts(*table), resamples=1000, seed=seed)
        inside += low - 1e-12 <= first - second <= high + 1e-12
    assert inside / 2000 == pytest.approx(0.95, abs=0.015)


def test_equal_runs_are_called_different_less_than_5_times_in_100() -> None:
    tables = np.random.default_rng(0).multinomial(2000, (0.7, 0.05, 0.05, 0.2), size=4000)
    p_values = [mcnemar_p(PairedCounts(*table)) for table in tables.tolist()]
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.05
