"""Rows of one setting with several seeds, or on several folds -> one row of their means."""

import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

from stl10bench.core.errors import CheckpointError
from stl10bench.metrics.significance import count_pairs, decode_hits, mcnemar_p, wilson_interval

Row = dict[str, Any]
_COUNTERS = ("seed", "fold")  # what tells the repeats of a setting apart
_MEANS = (
    *("test_loss", "test_accuracy", "test_macro_f1", "test_ece", "test_brier"),
    *("test_temperature", "test_loss_scaled", "test_ece_scaled", "test_brier_scaled"),
    *("val_accuracy", "val_loss", "train_seconds", "images_per_second", "peak_memory_mb"),
    *("latency_ms", "latency_p95_ms", "inference_images_per_second", "best_epoch"),
)
_OF_ONE_RUN = ("run", "checkpoint", "test_hits", "test_notes", "seed")


def aggregate(rows: Sequence[Row]) -> list[Row]:
    """Each setting as one row, in the order of their first rows; raises CheckpointError for edits.

    The means of what was measured, `test_accuracy_sd`, the standard deviation over the repeats
    (n - 1), the Wilson interval of the mean on the test split, the sum of the confusion matrices,
    `runs`, how many finished, and `runs_asked`, the most that any setting here has. What is of one
    run alone is left out, but for `repeats`, their names, and `repeated_hits`. A setting without a
    finished run keeps one failed row. Rows without settings (baselines, or failures of unknown
    settings) stay as they are.
    """
    settings: dict[str, list[Row]] = {}
    for number, row in enumerate(rows):
        settings.setdefault(_setting(row) or str(number), []).append(row)
    asked = max((len({_counters(row) for row in group}) for group in settings.values()), default=1)
    return [_aggregate_group(group, asked) for group in settings.values()]


def run_count(row: Row) -> str | None:
    """How many of the repeats are finished: 3, or 2/3; None for a row of no run."""
    if "runs" not in row:
        return None
    done, asked = row["runs"], row["runs_asked"]
    return str(done) if done == asked else f"{done}/{asked}"


def rows_p_value(first: Row, second: Row) -> float:
    """The two-sided p-value for equal accuracies of two combined rows on the same images, 0..1.

    Of single runs by the exact McNemar test. Else both the images and the repeats are taken for
    random samples: a normal test of the difference of means, whose variance is that of the images'
    differences of mean hits over their number, and that of each setting's accuracies over its
    number of repeats. A single run among repeats is given the other's variance.
    """
    hits = [[decode_hits(one) for one in hits_of(row)] for row in (first, second)]
    images = first["test_images"]
    if len(hits[0]) == len(hits[1]) == 1:
        return mcnemar_p(count_pairs(hits[0][0], hits[1][0], images))
    means = [_means(group, images) for group in hits]
    gaps = [a - b for a, b in zip(*means, strict=True)]
    gap = sum(gaps) / images
    variance = statistics.pvariance(gaps, gap) / images
    deviations = [row.get("test_accuracy_sd") for row in (first, second)]
    known = [one for one in deviations if one is not None]
    for deviation, group in zip(deviations, hits, strict=True):
        variance += (max(known) if deviation is None else deviation) ** 2 / len(group)
    if variance == 0:
        return 1.0 if gap == 0 else 0.0
    return math.erfc(abs(gap) / math.sqrt(2 * variance))


def hits_of(row: Row) -> list[str]:
    """What a row says of its runs' hits: one text each, or none where it does not say."""
    found: list[str] = row.get("repeated_hits") or [row.get("test_hits") or ""]
    return [one for one in found if one]


def _aggregate_group(group: Sequence[Row], asked: int) -> Row:
    finished = [row for row in group if "error" not in row]
    if not finished:
        return group[0]
    first = finished[0]
    if _setting(first) is None:  # a baseline
        return first
    hits = [row["test_hits"] for row in finished if row.get("test_hits")]
    row = {
        **first,
        "runs": len(finished),
        "runs_asked": asked,
        "repeats": [one["run"] for one in finished],
        "repeated_hits": hits if len(hits) == len(finished) else [],
        "test_accuracy_sd": None,
        "failures": sorted({one["error"] for one in group if "error" in one}),
    }
    if len(finished) == 1:
        return row
    for key in _MEANS:
        values = [one.get(key) for one in finished]
        row[key] = None if None in values else statistics.fmean(values)  # type: ignore[arg-type]
    if all(one.get("confusion") for one in finished):
        shapes = {tuple(map(len, one["confusion"])) for one in finished}
        if len(shapes) > 1:
            raise CheckpointError(
                f"runs {', '.join(row['repeats'])} have the same settings and confusion matrices "
                "of different sizes: a result.json was edited; remove that run"
            )
        row["confusion"] = [
            [sum(cells) for cells in zip(*lines, strict=True)]
            for lines in zip(*(one["confusion"] for one in finished), strict=True)
        ]
        row["per_class_accuracy"] = [
            line[label] / sum(line) if sum(line) else None
            for label, line in enumerate(row["confusion"])
        ]
    accuracies = [one["test_accuracy"] for one in finished]
    row["test_accuracy_sd"] = statistics.stdev(accuracies)
    row["test_accuracy_interval"] = list(wilson_interval(row["test_accuracy"], row["test_images"]))
    return {key: value for key, value in row.items() if key not in _OF_ONE_RUN}


def _setting(row: Row) -> str | None:
    """What the repeats of a row have in common; None for a row that does not say."""
    if not row.get("config") or row.get("baseline"):
        return None
    config = {key: value for key, value in row["config"].items() if key not in _COUNTERS}
    return json.dumps([row["model"], config], sort_keys=True)


def _counters(row: Row) -> tuple[Any, ...]:
    return tuple(row.get("config", {}).get(key) for key in _COUNTERS)


def _means(hits: Sequence[int], images: int) -> list[float]:
    """The share of the runs that classified each image correctly."""
    bits = [f"{one:0{-(-images // 8) * 8}b}"[:images] for one in hits]
    return [sum(map(int, column)) / len(hits) for column in zip(*bits, strict=True)]
