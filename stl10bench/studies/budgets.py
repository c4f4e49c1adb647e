"""The runs of a study over numbers of labels -> a table for each number, and what was gained.

Rows that know different things never share a table: labels only, labels and unlabelled images, or
external weights, whatever else they have.
"""

from collections.abc import Sequence

from stl10bench.metrics.significance import Z95
from stl10bench.models.pretrained import TEST_IMAGES, UNLABELLED_IMAGES
from stl10bench.results import columns, ranking
from stl10bench.results.aggregate import aggregate, hits_of, mean_difference
from stl10bench.results.benchmark_table import rows_to_table
from stl10bench.results.comparison import gain
from stl10bench.results.labels import row_label, tested_on
from stl10bench.results.rows import Failure, Row
from stl10bench.results.table import Table
from stl10bench.studies.ranking import Trained

LABELS, UNLABELLED = "labels only", "labels and unlabelled images"
EXTERNAL = "external weights"
KINDS = (LABELS, UNLABELLED, EXTERNAL)
_OWN = {"none", TEST_IMAGES, "validation images"}  # of the same data
_COLUMNS = (
    *("test_accuracy", "runs", "test_accuracy_sd", "vs_best", "labels_used", "unlabeled_used"),
    *("copies_dropped", "contamination", "image_size", "train_seconds"),
)


def kind(row: Row) -> str:
    """Which of KINDS a row is of, by what its model has learned from."""
    seen = set(row.contamination.split(" + "))
    if seen - _OWN - {UNLABELLED_IMAGES}:
        return EXTERNAL
    learned = row.config.unlabeled is not None or UNLABELLED_IMAGES in seen
    return UNLABELLED if learned else LABELS


def labels_of(row: Row) -> int:
    """The labels per class of a run, which every run of a study over labels sets."""
    budget = row.config.labels_per_class
    assert budget is not None
    return budget


def tables(trained: Sequence[Trained]) -> list[Table]:
    """A table for each of KINDS and each number of labels, seeds combined, the best first."""
    made = []
    for name, budget, rows in _parts(trained):
        shown = sorted(ranking.annotate(aggregate(rows)), key=ranking.best_first)
        title = f"{name}, {budget} per class: {tested_on(rows[0])}"
        made.append(rows_to_table(title, shown, columns.informative(_COLUMNS, shown)))
    return made


def _parts(trained: Sequence[Trained]) -> list[tuple[str, int, list[Row]]]:
    """The rows of each kind and number of labels."""
    parts: dict[tuple[str, int], list[Row]] = {}
    for run in trained:
        if isinstance(run.row, Row):
            parts.setdefault((kind(run.row), labels_of(run.row)), []).append(run.row)
    order = sorted(parts, key=lambda part: (KINDS.index(part[0]), part[1]))
    return [(*part, parts[part]) for part in order]


def gains(trained: Sequence[Trained]) -> list[str]:
    """Whether unlabelled images helped beyond noise, for each number of labels; what failed.

    Each setting is compared with the same one without them, on the same test images; images and
    seeds are random samples (`rows_p_value`). The intervals are not corrected for their number.
    """
    rows = [run.row for run in trained if isinstance(run.row, Row)]
    combined = [row for row in aggregate(rows) if isinstance(row, Row)]
    without = {_setting(row): row for row in combined if row.config.unlabeled is None}
    lines = []
    for row in combined:
        other = None if row.config.unlabeled is None else without.get(_setting(row))
        if other is None or not (hits_of(row) and hits_of(other)):
            continue
        difference, error = mean_difference(row, other)
        text = gain(difference, (difference - Z95 * error, difference + Z95 * error))
        seeds = f"{row.runs} seeds" if (row.runs or 1) > 1 else "1 seed"
        budget = row.config.labels_per_class
        lines.append(
            f"{row_label(row)} with unlabelled images, {budget} labels per class: {text} ({seeds})"
        )
    failed = [run.row for run in trained if isinstance(run.row, Failure)]
    return lines + [f"{row.run or row.model}: {row.state}: {row.error}" for row in failed]


def _setting(row: Row) -> str:
    config = row.config.without_unlabelled().model_copy(update={"seed": 0})
    return config.name
