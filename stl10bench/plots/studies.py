"""A study's runs -> its figures: one factor, two factors as a map, a search."""

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from stl10bench.core.console import clean
from stl10bench.core.errors import BenchError
from stl10bench.metrics.significance import least_significant_difference, pooled_variance
from stl10bench.plots import style
from stl10bench.plots.style import (
    BAND,
    COLOURS,
    GREY,
    LINES,
    Band,
    logarithmic,
    rename,
    shade,
    short,
)
from stl10bench.results import history
from stl10bench.results.history import History
from stl10bench.results.rows import Row
from stl10bench.results.run_folder import RunFolder
from stl10bench.studies import ranking, summary
from stl10bench.studies.ranking import Place, Trained
from stl10bench.studies.record import Record
from stl10bench.studies.study import Range, Study


def heat_map(
    title: str, factors: Sequence[str], trained: Sequence[Trained], places: Sequence[Place]
) -> Figure:
    """The mean validation accuracy of each pair; * marks the best, ≈ what is tied with it."""
    lines, values = (list(dict.fromkeys(one.labels[at] for one in trained)) for at in (0, 1))
    by_labels = {place.labels: place for place in places}
    means = [
        [
            place.sample.mean
            if (place := by_labels.get((line, value))) is not None and place.sample is not None
            else math.nan
            for value in values
        ]
        for line in lines
    ]
    figure = Figure(
        figsize=(max(4.6, 1.9 + 0.75 * len(values)), 1.6 + 0.42 * len(lines)), layout="constrained"
    )
    axes = figure.subplots()
    image = axes.imshow(means, cmap="cividis", aspect="auto")
    for y, line in enumerate(lines):
        for x, value in enumerate(values):
            place = by_labels.get((line, value))
            if place is None:
                continue
            axes.text(
                x,
                y,
                _cell(place),
                ha="center",
                va="center",
                size=8,
                color=_ink(means[y][x], *image.get_clim()),
            )
    axes.set_xticks(range(len(values)), [short([v]) for v in values])
    axes.set_yticks(range(len(lines)), [short([v]) for v in lines])
    axes.set_xlabel(clean(factors[1]))
    axes.set_ylabel(clean(factors[0]))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title(
        f"{fill(clean(title), 62)}\nvalidation accuracy, % (* best, ≈ tied with it)", size=8
    )
    return figure


def _cell(place: Place) -> str:
    if not place.is_whole:
        return "diverged" if "diverged" in place.verdict else "-"
    assert place.sample is not None
    mark = {ranking.TIED: "≈", ranking.BEST: "*"}.get(place.verdict, "")
    return f"{100 * place.sample.mean:.1f}{mark}"


def _ink(value: float, low: float, high: float) -> str:
    """Black or white, whichever can be read on a cell of the colour map."""
    return "white" if value < low + 0.55 * (high - low) else "black"


def search(title: str, study: Study, trained: Sequence[Trained], band: Band | None) -> Figure:
    """The validation accuracy of each trial in their order, and over the values of each factor."""
    reached, numbers = [], []
    for number, run in enumerate(trained, 1):
        if isinstance(run.row, Row) and run.row.val_accuracy is not None:
            reached.append((run.labels, run.row.val_accuracy))
            numbers.append(number)
    width = 2.8 * (1 + len(study.vary))
    figure = Figure(figsize=(width, 3.4), layout="constrained")
    figure.suptitle(clean(title), size=10)
    course, *others = figure.subplots(1, 1 + len(study.vary), sharey=True)
    best = list(accumulate((accuracy for _, accuracy in reached), max))
    course.step(numbers, best, where="post", color=COLOURS[0], linewidth=1.6)
    course.plot(numbers, [accuracy for _, accuracy in reached], "o", color=GREY, markersize=4)
    course.set_xlabel("trial (line: best so far)")
    course.set_ylabel("validation accuracy")
    course.xaxis.set_major_locator(MaxNLocator(integer=True))
    course.yaxis.set_major_formatter(PercentFormatter(1))
    for at, (axes, (name, factor)) in enumerate(zip(others, study.vary.items(), strict=True)):
        values: list[Any] = [short([labels[at]]) for labels, _ in reached]
        if isinstance(factor, Range):
            values = [float(labels[at]) for labels, _ in reached]
        axes.plot(
            values, [accuracy for _, accuracy in reached], "o", color=COLOURS[0], markersize=4
        )
        axes.set_xlabel(clean(name))
        if isinstance(factor, Range) and factor.log:
            logarithmic(axes, upright=False)
            axes.tick_params(axis="x", labelsize=7)
    for axes in (course, *others):
        shade(axes, band)
        axes.grid(color=LINES, linewidth=0.6)
        axes.set_axisbelow(True)
    if band is not None:
        figure.legend([Patch(color=BAND)], [band.name], loc="outside lower center", fontsize=8)
    return figure


_MOST = 40  # settings in one panel
Labels = tuple[str, ...]
Histories = dict[Labels, list[History]]  # of each setting, of each of its runs


def overview(
    title: str,
    histories: Histories,
    places: Sequence[Place],
    band: Band | None,
) -> Figure:
    """Curves of accuracy and loss, where the colours suffice, and what each setting reaches."""
    curves = len(histories) <= len(COLOURS)
    shown = min(len(places), _MOST)
    figure = Figure(
        figsize=(11 if curves else 6, max(3.6, 1.2 + 0.28 * shown)), layout="constrained"
    )
    figure.suptitle(clean(title), size=10)
    colours: Mapping[Labels, Any] = dict.fromkeys(histories, GREY)
    if curves:
        colours = dict(zip(histories, COLOURS, strict=False))
        accuracy, loss, reached = figure.subplots(1, 3, width_ratios=(1, 1, 1.1))
        _curves(accuracy, "accuracy", colours, histories)
        shade(accuracy, band)
        accuracy.set_title("accuracy", size=9)
        _curves(loss, "loss", colours, histories)
        loss.set_title("loss", size=9)
        _limit_loss(loss)
    else:
        reached = figure.subplots()
    _reached(reached, places[:shown], colours)
    shade(reached, band, upright=True)
    _legend(figure, band, curves=curves)
    return figure


def panels(
    title: str,
    factors: Sequence[str],
    histories: Histories,
    band: Band | None,
) -> Figure:
    """A panel for each value of the second factor, a line for each of the first."""
    lines, values = (list(dict.fromkeys(labels[at] for labels in histories)) for at in (0, 1))
    columns = min(3, len(values))
    rows = -(-len(values) // columns)
    figure = Figure(figsize=(3.4 * columns, 0.9 + 2.3 * rows), layout="constrained")
    figure.suptitle(clean(title), size=10)
    axes = figure.subplots(rows, columns, sharey=True, sharex=True, squeeze=False).flat
    colours = dict(zip(lines, [*COLOURS] * (1 + len(lines) // len(COLOURS)), strict=False))
    for value, panel in zip(values, axes, strict=False):
        chosen = {labels: colours[labels[0]] for labels in histories if labels[1] == value}
        _curves(panel, "accuracy", chosen, histories)
        shade(panel, band)
        panel.set_title(f"{clean(factors[1])} = {short([value])}", size=9)
    for panel in list(axes)[len(values) :]:
        panel.set_axis_off()
    handles = [Line2D([], [], color=colours[line], linewidth=3) for line in lines]
    made = figure.legend(
        handles, ["?"] * len(lines), loc="outside right upper", title=clean(factors[0])
    )
    rename(made.get_texts(), lines)
    _legend(figure, band, curves=True)
    return figure


def _curves(
    axes: Axes,
    metric: str,
    colours: Mapping[Labels, Any],
    histories: Histories,
) -> None:
    """A line for each setting, validation solid, training dashed, from lowest to highest seed."""
    for labels, colour in colours.items():
        for split in ("train", "val"):
            logged = [history.series(f"{split}/{metric}") for history in histories[labels]]
            longest = max(map(len, logged), default=0)
            columns = [[one[at] for one in logged if at < len(one)] for at in range(longest)]
            finite = [[value for value in column if math.isfinite(value)] for column in columns]
            points = [(at, values) for at, values in enumerate(finite, 1) if values]
            if not points:
                continue
            xs = [at for at, _ in points]
            style = {"val": "-", "train": "--"}[split]
            marker = "o" if len(xs) == 1 else ""
            means = [statistics.fmean(values) for _, values in points]
            axes.plot(
                xs,
                means,
                style,
                color=colour,
                linewidth=1.6 if split == "val" else 1,
                marker=marker,
                markersize=3,
            )
            if split == "val" and len(logged) > 1:
                low, high = [min(v) for _, v in points], [max(v) for _, v in points]
                axes.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color=LINES, linewidth=0.6)
    axes.set_axisbelow(True)
    if metric == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1))


def _limit_loss(axes: Axes) -> None:
    """Logarithmic where the losses of a setting explode, else all others lie on one line."""
    low, high = axes.dataLim.y0, axes.dataLim.y1
    if low > 0 and high > 4 * low:
        logarithmic(axes, upright=True)


def _reached(axes: Axes, places: Sequence[Place], colours: Mapping[Labels, Any]) -> None:
    """The validation accuracy of each setting's best epochs: dots for the seeds, a bar the mean."""
    for at, place in enumerate(places):
        if place.sample is None:
            continue
        colour = colours[place.labels]
        axes.plot(
            place.sample.accuracies,
            [at] * len(place.sample.accuracies),
            "o",
            color=colour,
            alpha=0.6,
            markersize=4,
        )
        axes.plot([place.sample.mean], [at], "|", color=colour, markersize=16, markeredgewidth=2)
    names = []
    for place in places:
        mark = {ranking.TIED: " ≈", ranking.BEST: " *"}.get(place.verdict, "")
        names.append(short(place.labels) + (mark if place.is_whole else f" ({place.verdict[:18]})"))
    axes.set_yticks(range(len(places)), names)
    axes.set_ylim(len(places) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_title("best epoch, validation (* best, ≈ tied with it)", size=9, loc="right")
    axes.grid(axis="x", color=LINES, linewidth=0.6)
    axes.set_axisbelow(True)


def _legend(figure: Figure, band: Band | None, *, curves: bool) -> None:
    handles: list[Line2D | Patch] = []
    names = []
    if curves:
        handles = [
            Line2D([], [], color=GREY, linewidth=1.6),
            Line2D([], [], color=GREY, linestyle="--", linewidth=1),
        ]
        names = ["validation (band: lowest to highest seed)", "training, augmented"]
    if band is not None:
        handles.append(Patch(color=BAND))
        names.append(band[2])
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8)


def write(folder: Path, record: Record, trained: Sequence[Trained], runs_dir: Path) -> list[Path]:
    """Draw a study as PNG and SVG into `folder`; returns the files.

    One factor: curves of accuracy and loss and what each value reaches. Two: a panel of curves for
    each value of the second, and a heat map. More: what each setting reaches. A search: its course,
    and what it reached over each factor. Raises StorageError.
    """
    name, factors = record.study.name, list(record.study.vary)
    title = summary.title(record, trained)
    places = ranking.rank(trained)
    histories = _histories(trained, runs_dir)
    base = next((tuple(e.labels) for e in record.runs if e.run and e.run == record.base), None)
    band = _band(places, base)
    written = []
    with style.figure_style():
        made: dict[str, Figure] = {}
        if not record.study.is_grid:
            made[name] = search(title, record.study, trained, band)
        elif len(factors) == 2:
            made[name] = panels(title, factors, histories, band)
            made[f"{name}-map"] = heat_map(title, factors, trained, places)
        else:
            made[name] = overview(title, histories, places, band)
        for stem, figure in made.items():
            for suffix in ("png", "svg"):
                written.append(folder / f"{stem}.{suffix}")
                style.save(figure, written[-1])
    return written


def _histories(trained: Sequence[Trained], runs_dir: Path) -> Histories:
    """The epochs of each setting's runs, those that diverged included, in the study's order."""
    found: Histories = {}
    for one in trained:
        group = found.setdefault(one.labels, [])
        if one.run is None or one.row is None:
            continue
        try:
            group.append(history.read(RunFolder(runs_dir / one.run)))
        except BenchError as error:
            warnings.warn(f"no curve of {one.run}: {error}", stacklevel=2)
    return found


def _band(places: Sequence[Place], base: Labels | None) -> Band | None:
    """Between which accuracies a setting cannot be told from the base, or else from the best."""
    whole = [place for place in places if place.is_whole]
    chosen = next((place for place in whole if place.labels == base), None)
    what = "base"
    if chosen is None and whole:
        chosen, what = whole[0], "best"
    if chosen is None or chosen.sample is None:
        return None
    mean, least = (
        chosen.sample.mean,
        least_significant_difference(
            chosen.sample, pooled_variance([place.sample for place in whole if place.sample])
        ),
    )
    return Band(mean - least, mean + least, f"noise around the {what} ({short(chosen.labels)})")
