"""The epochs of a study's runs -> figures of curves; and what each setting reaches."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from stl10bench.escaping import clean
from stl10bench.history import History
from stl10bench.plots.figures import COLOURS, GREY
from stl10bench.studies import ranking
from stl10bench.studies.plotstyle import BAND, LINES, Band, logarithmic, rename, shade, short
from stl10bench.studies.ranking import Place

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
    """A line for each setting, hold-out solid and training dashed, from lowest to highest seed."""
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
    """The hold-out accuracy of each setting's best epochs: a dot for each seed, a bar the mean."""
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
    axes.set_title("best epoch, hold-out (* best, ≈ not distinguishable)", size=9, loc="right")
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
        names = ["hold-out (band: lowest to highest seed)", "training, augmented"]
    if band is not None:
        handles.append(Patch(color=BAND))
        names.append(band[2])
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8)
