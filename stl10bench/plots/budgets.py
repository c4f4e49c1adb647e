"""The runs of a study over numbers of labels -> accuracy over labels, a panel for each kind."""

import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from stl10bench.core.console import clean
from stl10bench.plots import style
from stl10bench.plots.style import Wording
from stl10bench.results.rows import Row
from stl10bench.studies.budgets import KINDS, kind, labels_of
from stl10bench.studies.ranking import Trained
from stl10bench.studies.study import Study

_SEEDS = "Lines: means over the seeds; shaded: lowest to highest seed."

Lines = dict[str, dict[int, list[float]]]  # setting -> labels per class -> accuracies of the seeds


def over_labels(
    title: str, study: Study, trained: Sequence[Trained], wording: Wording = style.AS_IT_IS
) -> Figure:
    """Test accuracy over the number of labels: lines are means, bands from lowest to highest seed.

    What is learned from labels only, from unlabelled images as well, and from weights from
    elsewhere, has a panel each.
    """
    panels = _panels(study, trained)
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    figure = Figure(figsize=(max(6.0, 4 * len(panels)), 4.0))
    if not panels:
        style.frame(figure, title, "No run is finished.", wording)
        return figure
    axes_of = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    handles = {}
    for axes, (what, lines) in zip(axes_of, panels.items(), strict=True):
        axes.set_title(what.capitalize())
        for name, points in lines.items():
            colour = style.COLOURS[names.index(name) % len(style.COLOURS)]
            budgets = sorted(points)
            means = [statistics.fmean(points[budget]) for budget in budgets]
            (handles[name],) = axes.plot(budgets, means, marker="o", markersize=4, color=colour)
            low, high = ([end(points[budget]) for budget in budgets] for end in (min, max))
            axes.fill_between(budgets, low, high, color=colour, alpha=0.15, linewidth=0)
        ticks = sorted({budget for points in lines.values() for budget in points})
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_major_formatter(FixedFormatter([f"{tick:,}" for tick in ticks]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("labels per class (log scale)")
    axes_of[0].set_ylabel("test accuracy")
    factors = ", ".join(name for name in study.vary if name != "labels_per_class")
    look: Any = {"title": clean(factors) or None, "ncols": 2 if len(panels) == 1 else 4}
    style.legend(figure, [*handles.values()], [*handles], "lower center", **look)
    every = (points for lines in panels.values() for points in lines.values())
    has_seeds = any(len(values) > 1 for points in every for values in points.values())
    style.frame(figure, title, _SEEDS if has_seeds else "", wording)
    return figure


def _panels(study: Study, trained: Sequence[Trained]) -> dict[str, Lines]:
    """The lines of each kind; a setting is called by its values of the other factors."""
    place = list(study.vary).index("labels_per_class")
    panels: dict[str, Lines] = {}
    for name in KINDS:
        lines: Lines = {}
        for run in trained:
            if isinstance(run.row, Row) and kind(run.row) == name:
                labels = [*run.labels[:place], *run.labels[place + 1 :]]
                points = lines.setdefault(", ".join(labels) or study.model, {})
                points.setdefault(labels_of(run.row), []).append(run.row.test_accuracy)
        if lines:
            panels[name] = lines
    return panels
