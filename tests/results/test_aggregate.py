"""Seeds and folds as one row: means, two kinds of noise shown apart, and who can be ranked."""

import random
import statistics
from typing import Any

import numpy as np
import pytest
from helpers.rows import row_of, with_hits

from stl10bench.core.errors import CheckpointError
from stl10bench.metrics.significance import count_pairs, decode_hits, mcnemar_p, wilson_interval
from stl10bench.results import columns, ranking
from stl10bench.results.aggregate import aggregate, rows_p_value, run_count
from stl10bench.results.benchmark_table import by_protocol, rows_to_table
from stl10bench.results.rows import Failure, Row

IMAGES = 400


def run_of(model: str, hits: Any, *, seed: int = 0, **config: Any) -> Row:
    """A row of two classes with 200 images each, of which `hits` were classified correctly."""
    accuracy = sum(hits) / IMAGES
    row = row_of(
        model,
        accuracy,
        run=f"{model}-{seed}",
        dataset="demo",
        test_images=IMAGES,
        test_accuracy_interval=list(wilson_interval(accuracy, IMAGES)),
        test_loss=1 - accuracy,
        train_seconds=10.0 + seed,
        config={"data": "f" * 64, "seed": seed, **config},
    )
    return with_hits(row, np.array(hits))


def draws(model: str, accuracy: float, seeds: int, **config: Any) -> list[Row]:
    rng = random.Random(f"{model} {accuracy}")
    return [
        run_of(model, [rng.random() < accuracy for _ in range(IMAGES)], seed=seed, **config)
        for seed in range(seeds)
    ]


def test_seeds_become_one_row_of_their_means() -> None:
    rows = draws("mlp", 0.6, 3)
    (row,) = aggregate(rows)
    accuracies = [run.test_accuracy for run in rows]
    assert row.test_accuracy == pytest.approx(statistics.mean(accuracies))
    assert row.test_accuracy_sd == pytest.approx(np.std(accuracies, ddof=1))
    assert row.test_accuracy_interval == wilson_interval(row.test_accuracy, IMAGES)
    assert row.train_seconds == 11
    assert run_count(row) == "3"
    assert row.repeats == ("mlp-0", "mlp-1", "mlp-2")
    assert np.array_equal(row.confusion, sum(np.array(run.confusion) for run in rows))
    right = sum(row.confusion[label][label] for label in (0, 1))
    assert right / (3 * IMAGES) == pytest.approx(row.test_accuracy)
    assert (row.run, row.test_hits, row.seed) == (None, None, None)


def test_repeats_with_other_classes_than_their_likes_are_refused() -> None:
    rows = draws("mlp", 0.6, 2)
    rows[1] = rows[1].model_copy(update={"confusion": ((1, 0, 0), (0, 1, 0), (0, 0, 1))})
    with pytest.raises(CheckpointError, match="runs mlp-0, mlp-1 have the same settings"):
        aggregate(rows)


def test_a_setting_with_fewer_runs_says_so_and_is_not_ranked() -> None:
    config = draws("cnn", 0.9, 3)[2].config
    missing = Failure(model="cnn", config=config, error="diverged: at step 3, lower --lr")
    rows = [*draws("mlp", 0.6, 3), *draws("cnn", 0.9, 2), missing]
    mlp, cnn = ranking.annotate(aggregate(rows))
    assert (run_count(mlp), run_count(cnn)) == ("3", "2/3")
    assert (mlp.vs_best, cnn.vs_best) == (None, None)
    assert cnn.failures == ("diverged: at step 3, lower --lr",)
    table = rows_to_table("", [mlp, cnn], columns.choose(["test_accuracy", "runs"], []))
    assert [line[2] for line in table.lines] == ["3", "2/3"]
    assert any("not ranked" in text for _, text in table.notes)
    assert any("diverged: at step 3" in text for _, text in table.notes)


def test_settings_are_told_apart_and_one_run_stays_as_it_is() -> None:
    rows = [*draws("mlp", 0.6, 2, lr=0.1), *draws("mlp", 0.6, 2, lr=0.2)]
    assert [row.runs for row in aggregate(rows)] == [2, 2]
    (alone,) = draws("mlp", 0.6, 1)
    (row,) = aggregate([alone])
    alike = {"runs": None, "runs_asked": None, "repeats": (), "repeated_hits": ()}
    assert row.model_copy(update=alike) == alone
    assert row.test_accuracy_sd is None


def test_repeats_of_which_one_lacks_its_predictions_have_no_confusion() -> None:
    rows = draws("mlp", 0.6, 2)
    rows[1] = rows[1].model_copy(update={"confusion": None, "test_hits": None})
    (row,) = aggregate(rows)
    assert (row.confusion, row.per_class_accuracy, row.repeated_hits) == (None, None, ())


def test_full_data_folds_and_label_budgets_are_never_in_one_table() -> None:
    rows = [
        *draws("mlp", 0.6, 1),
        *draws("mlp", 0.6, 1, labels_per_class=10),
        *draws("mlp", 0.6, 1, labels_per_class=20),
        *[
            run_of("cnn", hits, fold=fold, val_fraction=0.0).model_copy(
                update={"fold_overlap": 0.2}
            )
            for fold, hits in enumerate(([True] * IMAGES, [False] * IMAGES))
        ],
    ]
    parts = by_protocol(rows)
    assert sorted(len(part) for _, part in parts) == [1, 1, 1, 2]
    titles = " ".join(title for title, _ in parts)
    assert "10 labelled images per class" in titles
    assert "pre-defined folds, which share 20.0% of their images pairwise" in titles


def test_the_p_value_of_single_runs_is_mcnemars() -> None:
    first, second = (aggregate(draws(model, 0.6, 1))[0] for model in ("mlp", "cnn"))
    hits = [decode_hits(row.test_hits) for row in (first, second)]
    assert rows_p_value(first, second) == mcnemar_p(count_pairs(*hits, IMAGES))


def test_the_p_value_of_repeats_holds_its_level_when_images_and_seeds_both_vary() -> None:
    """Equal settings, whose images differ in difficulty and whose seeds differ in skill."""
    rng = np.random.default_rng(0)
    rejected = 0
    for _ in range(300):
        difficulty = rng.normal(0, 1, IMAGES)
        combined = []
        for model in ("mlp", "cnn"):
            skill = rng.normal(0.5, 0.1, (5, 1))
            right = skill + rng.normal(0, 1, (5, IMAGES)) > difficulty
            rows = [run_of(model, list(hits), seed=seed) for seed, hits in enumerate(right)]
            combined += aggregate(rows)
        p = rows_p_value(*combined)
        assert p == pytest.approx(rows_p_value(*reversed(combined)))
        rejected += p < 0.05
    assert 0.01 <= rejected / 300 <= 0.08


def test_a_clear_difference_of_repeats_is_found() -> None:
    better, worse = (aggregate(draws("mlp", share, 3))[0] for share in (0.9, 0.6))
    assert rows_p_value(better, worse) < 1e-6
