"""Is a difference larger than the noise? Against scipy, statsmodels and draws of a known truth."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportions_ztest

from stl10bench.studies import noise, ranking
from stl10bench.studies.noise import Sample
from stl10bench.studies.ranking import Trained

IMAGES = 500


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30])
def test_students_tail_is_scipys(freedom: int) -> None:
    for t in (0.0, 0.3, 1.0, 2.5, 12.0):
        assert noise.t_tail(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), abs=1e-12)
    assert noise.t_point(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-9)


def test_the_seeds_test_is_welchs_with_the_degrees_rounded_down() -> None:
    first, second = (0.71, 0.74, 0.70, 0.72), (0.65, 0.70, 0.60)
    found = stats.ttest_ind(first, second, equal_var=False)
    expected = 2 * stats.t.sf(abs(found.statistic), int(found.df))
    assert noise.p_seeds(Sample(first, 1), Sample(second, 1)) == pytest.approx(expected)


def test_the_images_test_is_that_of_two_proportions() -> None:
    first, second = Sample((0.7, 0.74), 1000), Sample((0.66, 0.68), 1000)
    expected = proportions_ztest([720, 670], [1000, 1000])[1]
    assert noise.p_images(first, second) == pytest.approx(expected)


def test_a_difference_must_be_larger_than_both_noises() -> None:
    steady, wild = Sample((0.70, 0.70, 0.70), 1500), Sample((0.80, 0.66, 0.80), 1500)
    assert noise.p_images(steady, wild) < 0.01 < 0.05 < noise.p_seeds(steady, wild)
    assert noise.p_value(steady, wild) == noise.p_seeds(steady, wild)
    close = Sample((0.71, 0.71, 0.71), 1500)
    assert noise.p_seeds(steady, close) < 0.01
    assert noise.p_value(steady, close) == noise.p_images(steady, close) > 0.05


@pytest.mark.parametrize("seed_noise", [0.0, 0.05])
@pytest.mark.parametrize("seeds", [2, 3])
def test_equal_settings_seldom_differ_whichever_noise_is_larger(
    seeds: int, seed_noise: float
) -> None:
    """Both settings of a seed see the same images, as in a study."""
    rng = np.random.default_rng(0)
    rejected, trials = 0, 400
    for _ in range(trials):
        difficulty = rng.normal(0, 1, (seeds, IMAGES))
        samples = []
        for _ in range(2):
            skill = 0.5 + rng.normal(0, seed_noise * 3, (seeds, 1))
            hits = skill + rng.normal(0, 1, (seeds, IMAGES)) > difficulty
            samples.append(Sample(tuple(hits.mean(1)), seeds * IMAGES))
        rejected += noise.p_value(*samples) < 0.05
    assert rejected / trials <= 0.05


def test_the_least_difference_is_where_an_equal_setting_becomes_distinguishable() -> None:
    sample = Sample((0.50, 0.52, 0.54), 1500)
    least = noise.least(sample)
    for factor, distinguishable in ((0.93, False), (1.07, True)):
        other = Sample(tuple(a + factor * least for a in sample.accuracies), 1500)
        assert (noise.p_value(sample, other) < 0.05) is distinguishable


def run_of(label: str, seed: int, accuracy: float | None, **row: object) -> Trained:
    if accuracy is None:
        return Trained((label,), seed, f"{label}-{seed}", IMAGES, row or None)
    test = {"val_accuracy": accuracy, "test_accuracy": 1 - accuracy}
    return Trained((label,), seed, f"{label}-{seed}", IMAGES, test)


def test_settings_are_ranked_by_the_hold_out_and_never_by_the_test_split() -> None:
    trained = [run_of("a", s, 0.50 + s / 100) for s in range(3)]
    trained += [run_of("b", s, 0.51 + s / 100) for s in range(3)]
    trained += [run_of("c", s, 0.20 + s / 100) for s in range(3)]
    places = ranking.rank(trained)
    assert [place.labels[0] for place in places] == ["b", "a", "c"]
    assert [place.verdict for place in places] == [ranking.BEST, ranking.TIED, ranking.WORSE]
    assert places[1].behind == pytest.approx(0.01)
    assert places[2].test_accuracy == pytest.approx(0.79)


def test_a_setting_with_runs_that_diverged_or_are_missing_is_not_ranked_and_says_so() -> None:
    diverged = {"error": "diverged: at step 3", "state": "diverged"}
    trained = [
        *(run_of("a", s, 0.3 + s / 100) for s in range(2)),
        *(run_of("b", 0, 0.9), run_of("b", 1, None, **diverged)),
        *(run_of("c", s, None) for s in range(2)),
        *(run_of("d", s, None, error="no memory", state="failed") for s in range(2)),
    ]
    places = {place.labels[0]: place for place in ranking.rank(trained)}
    assert places["a"].verdict == ranking.BEST
    assert places["b"].verdict == "1 of 2 diverged"
    assert places["c"].verdict == "missing"
    assert places["d"].verdict == "failed: no memory"
    assert places["b"].p is None
