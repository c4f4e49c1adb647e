"""The runs of a report -> their results: the table, accuracy against cost, learning curves."""

import math
from collections.abc import Sequence
from functools import partial

from markupsafe import Markup

from stl10bench.core.console import markup
from stl10bench.metrics.significance import SIGNIFICANCE
from stl10bench.plots.curves import MAX_RUNS, settings_overlaid
from stl10bench.plots.results import Point, accuracy_against_cost
from stl10bench.report.document import Block, DetailedTable, Figure, Section, Tabs, Text, Tiles
from stl10bench.report.load import RunGroup, Setting
from stl10bench.report.provenance import failure_table, run_details
from stl10bench.results import columns, ranking
from stl10bench.results.aggregate import unfinished_note
from stl10bench.results.rows import Row
from stl10bench.results.table import Cell, Table

_COLUMNS = (
    *("test_accuracy", "test_loss"),  # first, and so what a phone shows of a line
    *("runs", "test_accuracy_sd", "vs_best", "group", "verified", "test_macro_f1"),
    *("test_ece", "parameters", "trainable_parameters", "macs", "image_size", "latency_ms"),
    *("train_seconds", "images_per_second", "precision", "contamination"),
)
_COSTS = (
    ("macs", "MACs", "per image"),
    ("latency_ms", "latency", "ms for one image"),
    ("parameters", "parameters", ""),
    ("train_seconds", "training time", "s"),
)
_TABLE = (
    "Accuracy on the test split with its 95 % Wilson interval, which covers the noise of a finite "
    "test split; the SD over runs covers that of the seed. The epoch is the best on the validation "
    "images, or the last where a name says so. vs best: exact McNemar test, or with several runs a "
    f"test of the means; tied: p >= {SIGNIFICANCE} after Holm's correction."
)
_COST = (
    "Line: Pareto front. Bars: 95 % intervals. Hollow points: significantly worse than the best. "
    "Latency and training time were measured on the machines under Environment."
)
_CURVES = (
    "Training (dashed; augmented images) and validation (solid), all settings of a model in one "
    "figure. With several runs, the line is their mean and the shading spans the lowest to the "
    "highest. The dot marks the epoch that the table reports. All models share their scales; "
    "losses above the panel are cut."
)
_WIDTHS = 7.6, 3.5  # inches, of a figure on a desk and on a phone
_BAR = (
    '<svg viewBox="0 0 120 18" aria-hidden="true"><path d="M4 9H116" class="scale"/>'
    '<path d="M{} 9H{}" class="interval"/><circle cx="{}" cy="9" r="2" class="accuracy"/></svg>'
)
# Paper has the interval as numbers, and no room for these.
_MINOR = ("test_macro_f1", "test_ece", "trainable_parameters", "precision", "images_per_second")
_NAMED = 4  # settings that the summary names


def results_table(group: RunGroup) -> Section:
    """The results, the most accurate first, the baselines among them; then what failed."""
    blocks: list[Block] = [Text(_TABLE), _results(group)] if group.settings else []
    if group.failures:
        blocks.append(failure_table(group.failures))
    return Section("Results", tuple(blocks))


def _results(group: RunGroup) -> DetailedTable:
    settings = sorted(
        [*group.settings, *group.baselines], key=lambda setting: ranking.best_first(setting.row)
    )
    rows = [setting.row for setting in settings]
    chosen = columns.informative(_COLUMNS, rows)
    ends = [end for row in rows for end in row.test_accuracy_interval or ()]
    reach = (min(ends), max(ends)) if len(set(ends)) > 1 else (0.0, 1.0)
    lines = []
    for name, row, _ in settings:
        bar, cells = _interval_bar(row, reach), cells_of(row, chosen)
        lines.append((Cell(name, name), *cells[:2], Cell("", picture=bar), *cells[2:]))
    titles = [column.title for column in chosen]
    header = (columns.LABEL, *titles[:2], "interval", *titles[2:])
    unfinished = unfinished_note(rows)
    notes = (("runs", unfinished),) if unfinished else ()
    minor = ("interval", *(columns.column(key).title for key in _MINOR))
    first = titles[0]
    table = Table("Results", header, tuple(lines), notes, (first,), first, minor)
    details = (run_details(setting) if setting.runs else None for setting in settings)
    return DetailedTable(table, tuple(details))


def _interval_bar(row: Row, reach: tuple[float, float]) -> Markup | None:
    """The accuracy as a dot within its interval, on the scale `reach` that all rows share."""
    if row.test_accuracy_interval is None:
        return None
    places = (
        f"{4 + 112 * (share - reach[0]) / (reach[1] - reach[0]):.1f}"
        for share in (*row.test_accuracy_interval, row.test_accuracy)
    )
    return markup(_BAR, *places)


def cells_of(row: Row, chosen: Sequence[columns.Column]) -> list[Cell]:
    """The cells of a row in a table that can be sorted."""
    cells = []
    for column in chosen:
        value = columns.value(row, column.key)
        sortable = isinstance(value, int | float | str) and not isinstance(value, bool)
        cells.append(Cell(columns.text(row, column), value if sortable else None))
    return cells


def costs(group: RunGroup) -> Section | None:
    """Accuracy against each cost that is known of two settings or more."""
    figures = []
    for key, title, unit in _COSTS:
        points = []
        for name, row, _ in group.settings:
            cost, interval = columns.value(row, key), row.test_accuracy_interval
            if cost is not None and interval is not None:
                marked = row.vs_best != "worse"
                points.append(Point(name, cost, row.test_accuracy, *interval, marked))
        if len({point.cost for point in points}) > 1:
            label = f"{title}, {unit}" if unit else title
            wide, narrow = (partial(accuracy_against_cost, points, label, width=w) for w in _WIDTHS)
            figures.append(Figure(title, f"Test accuracy against {title}", wide, narrow))
    if not figures:
        return None
    return Section("Accuracy against cost", (Text(_COST, "legend"), Tabs("Cost", tuple(figures))))


def curves(group: RunGroup) -> Section | None:
    """Loss and accuracy over the epochs: a figure for each model, with all its settings.

    Of a model with more settings than colours, the most accurate ones.
    """
    models: dict[str, list[Setting]] = {}
    for setting in group.settings:
        if any(run.history and run.history.epochs for run in setting.runs):
            models.setdefault(setting.row.model, []).append(setting)
    histories = [run.history for setting in group.settings for run in setting.runs if run.history]
    series = [history.series(key) for history in histories for key in ("train/loss", "val/loss")]
    losses = [loss for values in series for loss in values if math.isfinite(loss)]
    if not losses:
        return None
    # A guess has the loss ln C: far above it there is nothing to see.
    top = max(1e-3, 1.05 * min(max(losses), 1.25 * math.log(max(2, len(group.class_names)))))
    figures = [_curves_of_model(model, of_model, top) for model, of_model in models.items()]
    return Section("Learning curves", (Text(_CURVES, "legend"), Tiles(tuple(figures))))


def _curves_of_model(model: str, settings: Sequence[Setting], top: float) -> Figure:
    shown = {
        each.name.removeprefix(f"{model}, "): [
            (run.history, run.row.best_epoch) for run in each.runs if run.history
        ]
        for each in settings[:MAX_RUNS]
    }
    draw = partial(settings_overlaid, shown, top=top)
    left_out = len(settings) - len(shown)
    caption = f"the best {len(shown)} settings; {left_out} more in the table" if left_out else ""
    title = settings[0].name if len(settings) == 1 else model
    return Figure(title, f"Loss and accuracy over the epochs: {title}", draw, caption=caption)


def summary(group: RunGroup) -> str:
    """A sentence or two on what came out."""
    runs = sum(len(setting.runs) for setting in group.settings)
    if not runs:
        return "No run is finished."
    first = group.settings[0]
    best = next((setting for setting in group.settings if setting.row.vs_best == "best"), first)
    tied = [setting.name for setting in group.settings if setting.row.vs_best == "tied"]
    sentences = [f"{_count(runs, 'run')} of {_count(len(group.settings), 'setting')}"]
    if best is not first:  # it stands first in the table
        done = f"{columns.value(first.row, 'runs')} runs"
        sentences.append(f"Highest: {_reached(first)}, not ranked, because it has only {done}")
    sentences.append(f"{'Best' if best is first else 'Best with all runs'}: {_reached(best)}")
    if tied:
        more = [f"{len(tied) - _NAMED} more"] if len(tied) > _NAMED else []
        sentences.append(f"Tied with it: {'; '.join(tied[:_NAMED] + more)}")  # names have commas
    return f"{'. '.join(sentences)}."


def _reached(setting: Setting) -> str:
    accuracy = columns.text(setting.row, columns.column("test_accuracy"))
    return f"{setting.name}, test accuracy {accuracy}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
