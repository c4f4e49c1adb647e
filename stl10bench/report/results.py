"""The runs of a report -> their results: the table, accuracy against cost, curves."""

import math
from collections.abc import Sequence

from stl10bench.core.console import clean
from stl10bench.report import charts
from stl10bench.report.charts import Point
from stl10bench.report.document import Block, Cell, Choice, Figure, Section, Table, Text, Tiles
from stl10bench.report.load import Part, Setting
from stl10bench.report.provenance import details, failures
from stl10bench.results import columns
from stl10bench.results.rows import Row
from stl10bench.results.tables import row_label
from stl10bench.studies.summary import some

_COLUMNS = (
    *("test_accuracy", "runs", "test_accuracy_sd", "vs_best", "test_loss", "test_macro_f1"),
    *("test_ece", "parameters", "trainable_parameters", "macs", "image_size", "latency_ms"),
    *("train_seconds", "images_per_second", "precision", "contamination"),
)
_COSTS = (
    ("macs", "MACs", "per image"),
    ("latency_ms", "latency", "ms for one image"),
    ("parameters", "parameters", ""),
    ("train_seconds", "training time", "s"),
)
_INTERVAL = "interval"
_TABLE = (
    "Accuracy on the test split, with Wilson's 95 % interval: the noise of a finite test split "
    "alone, not that of the seed (the SD over runs is). The epoch is the best on the hold-out, or "
    "the last where a name says so. vs best: exact McNemar test, or with several runs a test of "
    "the means, Holm-corrected; tied is what it cannot tell apart from the best."
)
_UNFINISHED = "Runs as 1/3: one of three is finished, and the setting is not ranked."
_COST = (
    "The line joins the settings that nothing cheaper, or as cheap, surpasses. Bars are 95 % "
    "intervals; hollow points are worse than the best by the test of the table. Latency and time "
    "are those of the machines under Environment."
)
_CURVES = (
    "Training (dashed; augmented images) and hold-out (solid) of every run; all settings share "
    "their scales, and losses above the panel are cut at its top."
)


def results_table(part: Part) -> Section:
    """The results, the most accurate first, what needs no image last; then what failed."""
    rows = [setting.row for setting in part.settings]
    blocks: list[Block] = [Text(_TABLE), _results(part)] if rows else []
    if any(row.runs < row.runs_asked for row in rows):
        blocks.append(Text(_UNFINISHED, "note"))
    if part.failures:
        blocks.append(failures(part.failures))
    return Section("Results", tuple(blocks))


def _results(part: Part) -> Table:
    rows = [setting.row for setting in part.settings] + list(part.baselines)
    chosen = [
        column
        for column in columns.choose(_COLUMNS, rows)
        if any(columns.value(row, column.key) not in (None, "none") for row in rows)
        and not (column.key == "runs" and all(row.runs_asked == 1 for row in rows))
    ]
    reach = _reach(rows)
    names = [setting.name for setting in part.settings]
    names += [clean(row_label(row)) for row in part.baselines]
    titles = [column.title for column in chosen]
    lines = []
    for name, row in zip(names, rows, strict=True):
        cells = [Cell(columns.text(row, one), _sortable(row, one.key)) for one in chosen]
        drawn = charts.interval(row, reach) if row.test_accuracy_interval else ""
        bar = Cell("", row.test_accuracy, svg=drawn)
        lines.append((Cell(name, name), cells[0], bar, *cells[1:]))
    return Table(
        "Results",
        (columns.LABEL, titles[0], _INTERVAL, *titles[1:]),
        tuple(lines),
        (*(details(one) for one in part.settings), *(None for _ in part.baselines)),
        left=(titles[0],),
        sortable=True,
        sorted_by=titles[0],
        pictures=(_INTERVAL,),
    )


def costs(part: Part) -> Section | None:
    """Accuracy against each cost that two settings or more know."""
    figures = []
    for key, title, unit in _COSTS:
        points = [
            point(one.name, columns.value(one.row, key), one.row)
            for one in part.settings
            if columns.value(one.row, key) is not None
        ]
        if len(points) > 1 and len({point.x for point in points}) > 1:
            figures.append(charts.both(title, "", charts.cost(points, title, unit)))
    if not figures:
        return None
    return Section("Accuracy against cost", (Text(_COST, "legend"), Choice("Cost", tuple(figures))))


def curves(part: Part) -> Section | None:
    """Loss and accuracy over the epochs, a figure for each setting."""
    kinds = ("train/loss", "val/loss", "train/accuracy", "val/accuracy")
    known = [
        (setting.name, [run.history for run in setting.runs if run.history and run.history.epochs])
        for setting in part.settings
    ]
    known = [(name, histories) for name, histories in known if histories]
    losses = [
        value
        for _, histories in known
        for history in histories
        for kind in kinds[:2]
        for value in history.series(kind)
        if math.isfinite(value)
    ]
    if not losses:
        return None
    top = max(1e-3, 1.05 * min(max(losses), 1.25 * math.log(max(2, len(part.class_names)))))
    figures = []
    for name, histories in known:
        series = [(h.epochs, *(h.series(kind) for kind in kinds)) for h in histories]
        loss = charts.curves([(e, t, v) for e, t, v, _, _ in series], "loss", top=top)
        share = charts.curves([(e, t, v) for e, _, _, t, v in series], "accuracy", top=1)
        figures.append(Figure(name, loss + share, ""))
    return Section("Learning curves", (Text(_CURVES, "legend"), Tiles(tuple(figures))))


def summary(part: Part) -> str:
    """A sentence or two on what came out."""
    runs = sum(len(setting.runs) for setting in part.settings)
    if not runs:
        return "No run is finished."
    first = part.settings[0]
    best = next((one for one in part.settings if one.row.vs_best == "best"), first)
    text = (
        f"{_count(runs, 'run')} of {_count(len(part.settings), 'setting')}. Most accurate: "
        f"{_reached(best)}"
    )
    tied = [setting.name for setting in part.settings if setting.row.vs_best == "tied"]
    if tied:
        text += f"; tied with it: {some(tied)}"
    if best is not first:
        text += f". Not ranked, for want of runs: {_reached(first)}"
    return f"{text}."


def _reached(setting: Setting) -> str:
    low, high = setting.row.test_accuracy_interval
    return f"{setting.name}, {setting.row.test_accuracy:.3f} [{low:.3f}, {high:.3f}]"


def point(name: str, x: float, row: Row) -> Point:
    """A row in a plot; it stands out unless it is worse than the best."""
    low, high = row.test_accuracy_interval
    return Point(name, x, row.test_accuracy, low, high, row.vs_best != "worse")


def _sortable(row: Row, key: str) -> float | str | None:
    found = columns.value(row, key)
    if isinstance(found, bool):
        return str(found)
    return found if isinstance(found, int | float | str) else None


def _reach(rows: Sequence[Row]) -> tuple[float, float]:
    """The lowest and the highest accuracy that the intervals' scale has to show."""
    values = [v for row in rows for v in (row.test_accuracy_interval or ())]
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (0.0, 1.0)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
