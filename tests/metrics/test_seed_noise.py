"""Is a difference larger than the noise? Against scipy, statsmodels and draws of a known truth."""

from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportions_ztest

from stl10bench.config import make_config
from stl10bench.metrics.significance import (
    Sample,
    images_p_value,
    least_significant_difference,
    pooled_variance,
    samples_p_value,
    seeds_p_value,
    t_point,
    t_tail,
)
from stl10bench.results.rows import Failure, Row
from stl10bench.studies import ranking, record, summary
from stl10bench.studies.ranking import Trained
from stl10bench.studies.study import Study

IMAGES = 500


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30])
def test_students_tail_is_scipys(freedom: int) -> None:
    for t in (0.0, 0.3, 1.0, 2.5, 12.0):
        assert t_tail(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), abs=1e-12)
    assert t_point(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-9)


def test_the_seeds_test_is_students_with_the_variance_of_all_settings() -> None:
    groups = [(0.71, 0.74, 0.70), (0.65, 0.67, 0.60), (0.5, 0.52, 0.59), (0.4, 0.4, 0.4)]
    samples = [Sample(group, 1500) for group in groups]
    seeds = pooled_variance(samples)
    assert seeds is not None
    mean_square = float(np.mean([np.var(group, ddof=1) for group in groups]))
    assert seeds == (pytest.approx(mean_square), 8)
    gap = np.mean(groups[0]) - np.mean(groups[3])
    expected = 2 * stats.t.sf(abs(gap) / np.sqrt(mean_square * 2 / 3), 8)
    assert seeds_p_value(samples[0], samples[3], seeds) == pytest.approx(expected)
    # Two that are alone: the textbook's test.
    pair = pooled_variance(samples[:2])
    assert pair is not None
    expected = stats.ttest_ind(*groups[:2]).pvalue
    assert seeds_p_value(samples[0], samples[1], pair) == pytest.approx(expected)
    assert pooled_variance([Sample((0.5,), 500)] * 3) is None


def test_a_setting_whose_seeds_disagree_is_not_judged_by_the_calm_of_the_others() -> None:
    calm, wild = Sample((0.60, 0.61, 0.62), 1500), Sample((0.70, 0.50, 0.60), 1500)
    seeds = pooled_variance([calm] * 9 + [wild])
    assert seeds is not None
    own = (0.01**2 + 0.1**2) / 2
    expected = 2 * stats.t.sf(0.01 / np.sqrt(own * 2 / 3), 20)
    assert seeds_p_value(calm, wild, seeds) == pytest.approx(expected)


def test_the_images_test_is_that_of_two_proportions() -> None:
    first, second = Sample((0.7, 0.74), 1000), Sample((0.66, 0.68), 1000)
    expected = proportions_ztest([720, 670], [1000, 1000])[1]
    assert images_p_value(first, second) == pytest.approx(expected)


def test_a_difference_must_be_larger_than_both_noises() -> None:
    steady, wild = Sample((0.70, 0.70, 0.70), 1500), Sample((0.85, 0.62, 0.81), 1500)
    seeds = pooled_variance([steady, wild])
    assert seeds is not None
    assert images_p_value(steady, wild) < 0.01 < 0.05 < seeds_p_value(steady, wild, seeds)
    assert samples_p_value(steady, wild, seeds) == seeds_p_value(steady, wild, seeds)
    close = Sample((0.71, 0.71, 0.71), 1500)
    seeds = pooled_variance([steady, close])
    assert seeds is not None
    assert seeds_p_value(steady, close, seeds) < 0.01
    assert samples_p_value(steady, close, seeds) == images_p_value(steady, close) > 0.05


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
        rejected += samples_p_value(*samples, pooled_variance(samples)) < 0.05
    assert rejected / trials <= 0.08  # 5 % of 400 draws, and three standard errors


@pytest.mark.parametrize("spread", [(1,) * 6, (1,) * 5 + (4,)])
@pytest.mark.parametrize("seeds", [2, 3])
def test_of_equal_settings_the_best_seldom_stands_out(seeds: int, spread: tuple[int, ...]) -> None:
    """Any of them may come out best, and one may be noisier than the others."""
    rng = np.random.default_rng(0)
    wrong, trials = 0, 300
    for _ in range(trials):
        trained = [
            run_of(str(k), s, 0.5 + 0.02 * spread[k] * float(rng.normal()), images=10**6)
            for k in range(len(spread))
            for s in range(seeds)
        ]
        wrong += any(place.verdict == ranking.WORSE for place in ranking.rank(trained))
    assert wrong / trials <= (0.05 if len(set(spread)) == 1 else 0.1)


def test_what_is_far_behind_stands_out_with_two_seeds_however_much_it_varies() -> None:
    accuracies = {"a": (0.45, 0.43), "b": (0.44, 0.45), "c": (0.42, 0.40), "d": (0.18, 0.11)}
    trained = [run_of(k, s, value) for k, own in accuracies.items() for s, value in enumerate(own)]
    verdicts = {place.labels[0]: place.verdict for place in ranking.rank(trained)}
    assert verdicts["d"] == ranking.WORSE
    assert verdicts["c"] == ranking.TIED


def test_the_least_difference_is_where_an_equal_setting_becomes_distinguishable() -> None:
    sample = Sample((0.50, 0.52, 0.54), 1500)
    least = least_significant_difference(sample, pooled_variance([sample, sample]))
    for factor, distinguishable in ((0.93, False), (1.07, True)):
        other = Sample(tuple(a + factor * least for a in sample.accuracies), 1500)
        seeds = pooled_variance([sample, other])
        assert (samples_p_value(sample, other, seeds) < 0.05) is distinguishable


ROW = Row(
    model="mlp",
    config=make_config({"model": "mlp"}),
    dataset="demo",
    test_accuracy=0.5,
    test_images=1000,
    per_class_accuracy=(0.5,) * 4,
)


def run_of(
    label: str, seed: int, accuracy: float | None, *, images: int = IMAGES, **failure: Any
) -> Trained:
    """A run that finished with a validation accuracy, failed, or is still to do."""
    row: Row | Failure | None = None
    if accuracy is not None:
        row = ROW.model_copy(update={"val_accuracy": accuracy, "test_accuracy": 1 - accuracy})
    elif failure:
        row = Failure(model="mlp", **failure)
    return Trained((label,), seed, f"{label}-{seed}", images, row)


def test_settings_are_ranked_by_validation_accuracy_and_never_by_the_test_split() -> None:
    trained = [run_of("a", s, 0.50 + s / 100) for s in range(3)]
    trained += [run_of("b", s, 0.51 + s / 100) for s in range(3)]
    trained += [run_of("c", s, 0.20 + s / 100) for s in range(3)]
    places = ranking.rank(trained)
    assert [place.labels[0] for place in places] == ["b", "a", "c"]
    assert [place.verdict for place in places] == [ranking.BEST, ranking.TIED, ranking.WORSE]
    assert [place.at_chance for place in places] == [False, False, True]  # of four classes
    assert places[1].behind == pytest.approx(0.01)
    assert places[2].test_accuracy == pytest.approx(0.79)


@pytest.mark.parametrize(
    ("ends", "best", "held"),
    [
        ({"a": 0.3, "b": 0.6}, "best: lr=b with 0.600", "Contradicted: "),
        ({"a": 0.6, "b": 0.3}, "best: lr=a with 0.600", "Holds: "),
        ({"a": 0.6, "b": 0.6}, "best: lr=a with 0.600", "Tied: the report's best is the best here"),
        (
            {"a": 0.60, "b": 0.61},
            "best: lr=b with 0.610",
            "Tied: the report's best is tied",
        ),
        (
            {"a": 0.3, "b": None},
            "best so far (1 setting lacks runs): lr=a",
            "Not known: settings lack",
        ),
        (
            {"a": "diverged", "b": 0.2},
            "best: lr=b with 0.200",
            "Contradicted: the report",
        ),
        ({"b": 0.2}, "best: lr=b with 0.200", "Not known: the report's best was not run"),
        ({"a": 0.2}, "best: lr=a with 0.200", "Not known: there are no other settings"),
    ],
)
def test_what_is_said_of_the_reports_finding_waits_for_all_runs(
    ends: dict[str, Any], best: str, held: str
) -> None:
    study = Study(name="x", model="mlp", vary={"lr": list(ends)}, seeds=(0,), best={"lr": "a"})
    made = {"format": record.FORMAT, "data": "0" * 64, "dataset": "demo", "base": None, "runs": []}
    stored = record.Record(study=study, **made)
    failed = {"error": "at step 3", "state": "diverged"}
    trained = [
        run_of(name, 0, None, **failed) if end == "diverged" else run_of(name, 0, end)
        for name, end in ends.items()
    ]
    places = ranking.rank(trained)
    assert summary.best(stored, places).startswith(best)
    assert summary.held(stored, places).startswith(held)


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
