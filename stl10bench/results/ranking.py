"""Rows on the same images -> baselines, rows at chance level, and who ties with the best."""

import math
from collections.abc import Sequence
from itertools import combinations

from stl10bench.config import make_config
from stl10bench.metrics.significance import SIGNIFICANCE, holm, letter_groups
from stl10bench.results.aggregate import hits_of, rows_p_value
from stl10bench.results.rows import Failure, Row

_GROUPED = 50  # rows whose pairs are all tested


def annotate(rows: Sequence[Row | Failure]) -> list[Row | Failure]:
    """Copies of rows on one test split that say where they stand among each other.

    - `at_chance`: whether the 95 % interval reaches what needs no image: 1 / C, or the share of
      the most frequent class. None where no row has the counts of the classes.
    - `p_vs_best`: the p-value (`rows_p_value`) against the row with the highest accuracy (then
      the lowest loss), Holm-corrected for all that could be tested against it.
    - `vs_best`: best; tied where that p-value is SIGNIFICANCE or more; else worse.
    - `group`: letters; rows share one unless they differ, Holm-corrected for all their pairs. None
      for more than _GROUPED rows, of which that would take long.

    The last three are None where there is nothing to test: a baseline, a row without hits, with
    repeats that are missing or that was refused when it was verified, or one that saw another part
    of the images than the best.
    """
    shares = class_shares(rows)
    unknown = ("at_chance", "vs_best", "p_vs_best", "group")
    marks: list[dict[str, object]] = [dict.fromkeys(unknown) for _ in rows]
    pairs = zip(rows, marks, strict=True)
    finished = [(row, mark) for row, mark in pairs if isinstance(row, Row) and not row.baseline]
    for row, mark in finished:
        if shares and row.test_accuracy_interval is not None:
            low, high = row.test_accuracy_interval
            mark["at_chance"] = low <= max(shares) and high >= 1 / len(shares)
    ranked = [
        (row, mark)
        for row, mark in finished
        if row.runs == row.runs_asked and row.verified != "refused"
    ]
    if len(ranked) > 1:
        best, best_mark = min(ranked, key=lambda pair: best_first(pair[0]))
        best_mark["vs_best"] = "best"
        rule = input_rule(best)
        tested = [
            (row, mark)
            for row, mark in ranked
            if mark is not best_mark and input_rule(row) == rule and hits_of(row) and hits_of(best)
        ]
        p_values = holm([rows_p_value(best, row) for row, _ in tested])
        for (_, mark), p in zip(tested, p_values, strict=True):
            mark.update(p_vs_best=p, vs_best="tied" if p >= SIGNIFICANCE else "worse")
        if 0 < len(tested) < _GROUPED:
            placed = [(best, best_mark), *sorted(tested, key=lambda pair: best_first(pair[0]))]
            for (_, mark), letters in zip(placed, tie_groups([r for r, _ in placed]), strict=True):
                mark["group"] = letters
    pairs = zip(rows, marks, strict=True)
    return [row.model_copy(update=mark) if isinstance(row, Row) else row for row, mark in pairs]


def tie_groups(rows: Sequence[Row]) -> list[str]:
    """The letters of rows on the same images, best first, see `significance.letter_groups`."""
    pairs = list(combinations(range(len(rows)), 2))
    p_values = holm([rows_p_value(rows[first], rows[second]) for first, second in pairs])
    tested = zip(pairs, p_values, strict=True)
    return letter_groups(len(rows), [pair for pair, p in tested if p < SIGNIFICANCE])


def baselines(rows: Sequence[Row | Failure]) -> list[Row]:
    """What needs no image, as rows: a uniform guess, and always the most frequent class.

    Their losses are those of equal probabilities, and of the classes' shares of the test split as
    probabilities. None where no row has the counts of the classes.
    """
    shares = class_shares(rows)
    if not shares:
        return []
    count, most = len(shares), max(shares)
    first = next(row for row in rows if isinstance(row, Row))
    entropy = -sum(share * math.log(share) for share in shares if share)
    brier = 1 - sum(share**2 for share in shares)
    constant_f1 = 2 * most / (1 + most) / sum(share > 0 for share in shares)
    scores = {
        "chance": (1 / count, math.log(count), 1 - 1 / count, None),
        "constant class": (most, entropy, brier, constant_f1),
    }
    return [
        Row(
            model=model,
            baseline=True,
            dataset=first.dataset,
            config=make_config({"model": model, "data": first.config.data}),
            test_images=first.test_images,
            test_accuracy=accuracy,
            test_loss=loss,
            test_brier=brier,
            test_macro_f1=f1,
        )
        for model, (accuracy, loss, brier, f1) in scores.items()
    ]


def class_shares(rows: Sequence[Row | Failure]) -> list[float]:
    """Each class's share of the test split; empty where no row has a confusion matrix."""
    for row in rows:
        if isinstance(row, Row) and row.confusion:
            counts = [sum(line) for line in row.confusion]
            return [count / sum(counts) for count in counts]
    return []


def input_rule(row: Row) -> str:
    """Which part of each test image the run saw.

    The whole, at whatever resolution (that is the model's choice), or with `--input crop` a square
    in its centre, smaller the smaller the input size.
    """
    if row.config.input == "crop" and row.image_size < row.config.data_size:
        return f"the central {row.image_size}x{row.image_size} px"
    return "the whole image"


def best_first(row: Row | Failure) -> tuple[float, float]:
    """The key that sorts rows by falling accuracy, then by rising loss; what failed comes last."""
    if isinstance(row, Failure):
        return math.inf, math.inf
    return -row.test_accuracy, math.inf if row.test_loss is None else row.test_loss


def best_validated(row: Row) -> tuple[float, float]:
    """The key that sorts rows by falling validation accuracy, then by rising validation loss."""
    loss = math.inf if row.val_loss is None else row.val_loss
    return (math.inf if row.val_accuracy is None else -row.val_accuracy), loss
