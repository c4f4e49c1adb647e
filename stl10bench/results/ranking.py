"""Rows on the same images -> baselines, rows at chance level, and who ties with the best."""

import math
from collections.abc import Sequence
from typing import Any

from stl10bench.metrics.significance import SIGNIFICANCE, holm
from stl10bench.results.aggregate import hits_of, rows_p_value

Row = dict[str, Any]
_SIDE = 96  # pixels of an image; a crop of as many is the whole


def annotate(rows: Sequence[Row]) -> list[Row]:
    """Copies of rows on one test split that say where they stand among each other.

    - `at_chance`: whether the 95 % interval reaches what needs no image: 1 / C, or the share of
      the most frequent class. None where no row has the counts of the classes.
    - `p_vs_best`: the p-value (`repeats.p_value`) against the row with the highest accuracy (then
      the lowest loss), Holm-corrected for all that could be tested against it.
    - `vs_best`: best; tied where that p-value is SIGNIFICANCE or more; else worse.

    The last two are None where there is nothing to test: a failed run, a baseline, a row without
    hits or with repeats that are missing, or one that saw another part of the images than the best.
    """
    rows = [{**row, "at_chance": None, "vs_best": None, "p_vs_best": None} for row in rows]
    finished = [row for row in rows if "error" not in row and not row.get("baseline")]
    if shares := class_shares(finished):
        for row in finished:
            low, high = row["test_accuracy_interval"]
            row["at_chance"] = low <= max(shares) and high >= 1 / len(shares)
    ranked = [row for row in finished if row.get("runs") == row.get("runs_asked")]
    if len(ranked) < 2:
        return rows
    best = max(ranked, key=lambda row: (row["test_accuracy"], -_loss(row)))
    best["vs_best"] = "best"
    others = [
        row
        for row in ranked
        if row is not best
        and input_rule(row) == input_rule(best)
        and hits_of(row)
        and hits_of(best)
    ]
    p_values = [rows_p_value(best, row) for row in others]
    for row, p in zip(others, holm(p_values), strict=True):
        row["p_vs_best"] = p
        row["vs_best"] = "tied" if p >= SIGNIFICANCE else "worse"
    return rows


def baselines(rows: Sequence[Row]) -> list[Row]:
    """What needs no image, as rows: a uniform guess, and always the most frequent class.

    Their losses are those of equal probabilities, and of the classes' shares of the test split as
    probabilities. None where no row has the counts of the classes.
    """
    shares = class_shares(rows)
    if not shares:
        return []
    count, most = len(shares), max(shares)
    first = next(row for row in rows if "error" not in row)
    given: Row = {
        "baseline": True,
        "run": None,
        "model_options": {},
        "dataset": first["dataset"],
        "test_images": first["test_images"],
        "config": {"data": first["config"]["data"], "model_options": {}},
    }
    return [
        {
            **given,
            "model": "chance",
            "test_accuracy": 1 / count,
            "test_loss": math.log(count),
            "test_brier": 1 - 1 / count,
        },
        {
            **given,
            "model": "constant class",
            "test_accuracy": most,
            "test_loss": -sum(share * math.log(share) for share in shares if share),
            "test_brier": 1 - sum(share**2 for share in shares),
            "test_macro_f1": 2 * most / (1 + most) / sum(share > 0 for share in shares),
        },
    ]


def class_shares(rows: Sequence[Row]) -> list[float]:
    """Each class's share of the test split; empty where no row has a confusion matrix."""
    for row in rows:
        if row.get("confusion"):
            counts = [sum(line) for line in row["confusion"]]
            return [count / sum(counts) for count in counts]
    return []


def input_rule(row: Row) -> str:
    """Which part of each test image the run saw.

    The whole, at whatever resolution (that is the model's choice), or with `--input crop` a square
    in its centre, smaller the smaller the input size.
    """
    size = row["image_size"]
    if row["config"].get("input", "resize") == "crop" and size < _SIDE:
        return f"the central {size}x{size} px"
    return "the whole image"


def _loss(row: Row) -> float:
    return math.inf if row["test_loss"] is None else float(row["test_loss"])
