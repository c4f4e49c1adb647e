"""Histories of runs -> a picture of loss, accuracy, learning rate and speed over the epochs."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)

from stl10bench.core.errors import UsageError
from stl10bench.plots.style import COLOURS, GREY, figure_style, fitted
from stl10bench.results.history import History, labels

MOST = len(COLOURS)  # runs
_POINTS = 40  # epochs, up to which each is marked
_WIDTH, _HEIGHT, _LINE = 10.0, 6.4, 0.2  # inches; the last of a line of the legend
_PANELS = (
    ("loss", ("train/loss", "val/loss")),
    ("accuracy", ("train/accuracy", "val/accuracy")),
    ("learning rate", ("lr",)),
    ("images/s in training", ("images_per_second",)),
)


@figure_style()
def curves(histories: Sequence[History]) -> Figure:
    """A panel for each quantity; a run is a colour, its hold-out solid and its training dashed.

    Raises UsageError for more than ten runs, and when none has finished an epoch.
    """
    if len(histories) > MOST:
        raise UsageError(f"{len(histories)} runs: at most {MOST} can be told apart in one picture")
    if not any(history.epochs for history in histories):
        names = ", ".join(history.name for history in histories)
        raise UsageError(f"no epoch is finished yet in {names}")
    figure = Figure(figsize=(_WIDTH, _HEIGHT + _LINE * len(histories)), layout="constrained")
    for axes, (title, paths) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
        for history, colour in zip(histories, COLOURS, strict=False):
            for path in paths:
                _line(axes, history, path, colour)
        axes.set_title(title, size=10)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        if title == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        else:
            _scale(axes, [history.series(paths[0]) for history in histories])
    _legends(figure, histories)
    return figure


def _line(axes: Axes, history: History, path: str, colour: tuple[float, float, float]) -> None:
    training = path.startswith("train/")
    axes.plot(
        history.epochs,
        history.series(path),
        color=colour,
        linestyle="--" if training else "-",
        linewidth=1.2 if training else 1.8,
        marker="o" if len(history.epochs) <= _POINTS else "",
        markersize=2.5 if training else 4,
    )


def _legends(figure: Figure, histories: Sequence[History]) -> None:
    """Whose the colours are, below the panels; what the kinds of lines are, in the first."""
    handles = [Line2D([], [], color=colour, linewidth=3) for colour in COLOURS[: len(histories)]]
    made = figure.legend(handles, ["?"] * len(handles), loc="outside lower left")
    for text, name in zip(made.get_texts(), labels(histories), strict=True):
        text.set_text(fitted(name, 780, 9))  # given above, a leading underscore would hide it
    kinds = [Line2D([], [], color=GREY, linewidth=1.8), Line2D([], [], color=GREY, linestyle="--")]
    figure.legend(kinds, ["hold-out", "training, augmented"], loc="outside lower right")


def _scale(axes: Axes, series: Sequence[Sequence[float]]) -> None:
    """From 0, or logarithmic where the runs' highest values are a factor of ten or more apart."""
    finite = [[value for value in one if math.isfinite(value)] for one in series]
    highest = [max(values) for values in finite if values]
    positive = all(value > 0 for values in finite for value in values)
    if highest and positive and max(highest) >= 10 * min(highest):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif highest and max(highest) > 0:
        axes.set_ylim(0, 1.05 * max(axes.dataLim.y1, max(highest)))
