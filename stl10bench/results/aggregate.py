"""Rows of one setting with several seeds, or on several folds -> one row of their means."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl10bench.core.errors import CheckpointError
from stl10bench.metrics.significance import count_pairs, decode_hits, mcnemar_p, wilson_interval
from stl10bench.results.rows import LEVELS, Failure, Level, Row

_COUNTERS = ("seed", "fold", "k_fold_part")  # what tells the repeats of a setting apart
_MEANS = (
    *("test_loss", "test_accuracy", "test_macro_f1", "test_ece", "test_brier"),
    *("test_temperature", "test_loss_scaled", "test_ece_scaled", "test_brier_scaled"),
    *("tta_accuracy", "tta_loss"),
    *("val_accuracy", "val_loss", "train_seconds", "seconds_to", "pretrain_seconds"),
    "images_per_second",
    *("peak_memory_mb", "latency_ms", "latency_p95_ms", "inference_images_per_second"),
)


def aggregate(
    rows: Sequence[Row | Failure], of_studies: Mapping[str, int] = {}
) -> list[Row | Failure]:
    """Each setting as one row, in the order of their first rows; raises CheckpointError for edits.

    The means of what was measured, `test_accuracy_sd`, the standard deviation over the repeats
    (n - 1), the Wilson interval of the mean on the test split, the sum of the confusion matrices,
    `runs`, how many finished, and `runs_asked`, the most that any setting here has. `of_studies`
    has how many seeds a study asked of the setting of a run: of that setting, and of no other. What
    is of one run alone is left out, but for `repeats`, their names, and `repeated_hits`. A setting
    without a finished run keeps one failure. Rows of no run (baselines, published results) and
    failures of settings that were refused stay as they are.
    """
    groups: dict[str, list[Row | Failure]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(_setting(row) or str(number), []).append(row)
    own: list[int] = []  # what is asked of each setting itself
    shared: dict[str, int] = {}  # of all; of each archive by itself: others may have other plans
    for group in groups.values():
        by_studies = [_seeds_of_study(row, of_studies) for row in group]
        own.append(max(len({_counters(row) for row in group}), *by_studies))
        if not all(by_studies):
            shared[_source(group[0])] = max(shared.get(_source(group[0]), 1), own[-1])
    return [
        _aggregate_group(group, max(asked, shared.get(_source(group[0]), 1)))
        for group, asked in zip(groups.values(), own, strict=True)
    ]


def run_count(row: Row) -> str | None:
    """How many of the repeats are finished: 3, or 2/3; None for a row of no run."""
    if row.runs is None:
        return None
    return str(row.runs) if row.runs == row.runs_asked else f"{row.runs}/{row.runs_asked}"


def unfinished_note(rows: Sequence[Row]) -> str | None:
    """What a count of runs with a slash says, of the first row that has one; None without any."""
    for row in rows:
        if row.runs != row.runs_asked:
            finished = "1 of {} runs is" if row.runs == 1 else f"{row.runs} of {{}} runs are"
            finished = finished.format(row.runs_asked)
            return f"{run_count(row)}: {finished} finished; such a row is not ranked"
    return None


def rows_p_value(first: Row, second: Row) -> float:
    """The two-sided p-value for equal accuracies of two aggregated rows on the same images, 0..1.

    Of single runs by the exact McNemar test. Else both the images and the repeats are taken for
    random samples: a normal test of the difference of means, whose variance is that of the images'
    differences of mean hits over their number, and that of each setting's accuracies over its
    number of repeats. A single run among repeats is given the other's variance.
    """
    if len(hits_of(first)) == len(hits_of(second)) == 1:
        one, other = (decode_hits(hits_of(row)[0]) for row in (first, second))
        return mcnemar_p(count_pairs(one, other, first.test_images))
    difference, error = mean_difference(first, second)
    if error == 0:
        return 1.0 if difference == 0 else 0.0
    return math.erfc(abs(difference) / (error * math.sqrt(2)))


def mean_difference(first: Row, second: Row) -> tuple[float, float]:
    """The first's mean accuracy less the second's, and its standard error as in `rows_p_value`."""
    hits = [hit_matrix(row) for row in (first, second)]
    differences = hits[0].mean(0) - hits[1].mean(0)
    difference = float(differences.mean())
    variance = float(differences.var()) / first.test_images
    deviations = [row.test_accuracy_sd for row in (first, second)]
    highest = max((deviation for deviation in deviations if deviation is not None), default=0.0)
    for deviation, group in zip(deviations, hits, strict=True):
        variance += (highest if deviation is None else deviation) ** 2 / len(group)
    return difference, math.sqrt(variance)


def hits_of(row: Row) -> tuple[str, ...]:
    """What a row says of its runs' hits: one text each, or none where it does not say."""
    return row.repeated_hits or ((row.test_hits,) if row.test_hits else ())


def hit_matrix(row: Row) -> NDArray[np.uint8]:
    """uint8 (runs, images): 1 where a run classified an image correctly."""
    bits = [np.frombuffer(bytes.fromhex(text), np.uint8) for text in hits_of(row)]
    return np.unpackbits(np.stack(bits), axis=1, count=row.test_images)


def _aggregate_group(group: Sequence[Row | Failure], asked: int) -> Row | Failure:
    rows = [row for row in group if isinstance(row, Row)]
    if not rows or _setting(rows[0]) is None:  # all failed, or of no run
        return group[0]
    hits = tuple(row.test_hits for row in rows if row.test_hits)
    combined: dict[str, Any] = {
        "runs": len(rows),
        "runs_asked": asked,
        "repeats": tuple(str(row.run) for row in rows),
        "repeated_hits": hits if len(hits) == len(rows) else (),
        "failures": tuple(sorted({row.error for row in group if isinstance(row, Failure)})),
    }
    if len(rows) > 1:
        for key in _MEANS:
            values = [getattr(row, key) for row in rows]
            combined[key] = None if None in values else statistics.fmean(values)
        accuracy, images = combined["test_accuracy"], rows[0].test_images
        combined["test_accuracy_interval"] = wilson_interval(accuracy, images)
        combined["test_accuracy_sd"] = statistics.stdev(row.test_accuracy for row in rows)
        combined |= _summed_confusion(rows)
        of_one_run = {"run": None, "checkpoint": None, "test_hits": None, "seed": None}
        combined |= {**of_one_run, "test_notes": (), "verified": _lowest(rows)}
        combined["note"] = "; ".join(dict.fromkeys(row.note for row in rows if row.note)) or None
    return rows[0].model_copy(update=combined)


def _lowest(rows: Sequence[Row]) -> Level | None:
    """How far all of the rows were verified; None for one's own."""
    levels = [row.verified for row in rows if row.verified is not None]
    return min(levels, key=("refused", *LEVELS).index, default=None)


def _summed_confusion(rows: Sequence[Row]) -> dict[str, Any]:
    """The sum of the confusion matrices and the accuracy of each class in it; None without them."""
    matrices = [row.confusion for row in rows if row.confusion is not None]
    if len(matrices) < len(rows):
        return {"confusion": None, "per_class_accuracy": None}
    if len({len(matrix) for matrix in matrices}) > 1:
        raise CheckpointError(
            f"runs {', '.join(str(row.run) for row in rows)} have the same settings and confusion "
            "matrices of different sizes: a result.json was edited; remove that run"
        )
    summed = tuple(map(tuple, np.sum(matrices, axis=0).tolist()))
    lines = enumerate(summed)
    accuracies = (line[label] / sum(line) if any(line) else None for label, line in lines)
    return {"confusion": summed, "per_class_accuracy": tuple(accuracies)}


def _setting(row: Row | Failure) -> str | None:
    """What the repeats of a row have in common; None for one of no run, or refused settings."""
    if row.config is None or (isinstance(row, Row) and row.run is None):
        return None
    settings = row.config.model_dump(mode="json", exclude=set(_COUNTERS))
    return json.dumps([_source(row), settings], sort_keys=True)


def _seeds_of_study(row: Row | Failure, of_studies: Mapping[str, int]) -> int:
    """How many seeds a study asked of the setting; 0 without one, and for rows of others."""
    if row.run is None or (isinstance(row, Row) and (row.source or row.title)):
        return 0
    return of_studies.get(row.run, 0)


def _source(row: Row | Failure) -> str:
    return row.source if isinstance(row, Row) else ""


def _counters(row: Row | Failure) -> tuple[Any, ...]:
    return tuple(getattr(row.config, key, None) for key in _COUNTERS)
