"""What the settings of a study reach -> a heat map of two factors, or the course of a search."""

import math
from collections.abc import Sequence
from itertools import accumulate
from textwrap import fill
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from stl10bench.escaping import clean
from stl10bench.plots.figures import COLOURS, GREY
from stl10bench.studies import ranking
from stl10bench.studies.plotstyle import BAND, LINES, Band, logarithmic, shade, short
from stl10bench.studies.ranking import Place, Trained
from stl10bench.studies.study import Range, Study


def heat_map(
    title: str, factors: Sequence[str], trained: Sequence[Trained], places: Sequence[Place]
) -> Figure:
    """The mean hold-out accuracy of each pair; * marks the best, ≈ what cannot be told from it."""
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
        f"{fill(clean(title), 62)}\nhold-out accuracy, % (* best, ≈ not distinguishable)", size=8
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
    """The hold-out accuracy of each trial in their order, and over the values of each factor."""
    reached, numbers = [], []
    for number, one in enumerate(trained, 1):
        if one.row is not None and "error" not in one.row:
            reached.append((one.labels, one.row["val_accuracy"]))
            numbers.append(number)
    width = 2.8 * (1 + len(study.vary))
    figure = Figure(figsize=(width, 3.4), layout="constrained")
    figure.suptitle(clean(title), size=10)
    course, *others = figure.subplots(1, 1 + len(study.vary), sharey=True)
    best = list(accumulate((accuracy for _, accuracy in reached), max))
    course.step(numbers, best, where="post", color=COLOURS[0], linewidth=1.6)
    course.plot(numbers, [accuracy for _, accuracy in reached], "o", color=GREY, markersize=4)
    course.set_xlabel("trial (line: best so far)")
    course.set_ylabel("hold-out accuracy")
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
