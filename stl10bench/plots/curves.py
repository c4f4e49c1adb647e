"""What runs have logged over the epochs, and a range test over the rates -> figures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stl10bench.core.errors import UsageError
from stl10bench.plots import style
from stl10bench.results.history import History, labels

if TYPE_CHECKING:  # it imports torch
    from stl10bench.training.lr_finder import RangeTest

MAX_RUNS = len(style.COLOURS)
_MAX_MARKED = 40  # epochs; of more, the markers would run into each other
_WIDTH, _HEIGHT, _LEGEND_LINE = 10.0, 6.4, 0.2  # inches
_PANELS = {
    "Loss": ("train/loss", "val/loss"),
    "Accuracy": ("train/accuracy", "val/accuracy"),
    "Learning rate": ("lr",),
    "Training speed (images/s)": ("images_per_second",),
}


@style.figure_style()
def curves(histories: Sequence[History]) -> Figure:
    """A panel for each quantity; a run is a colour, its validation solid and its training dashed.

    Raises UsageError for more than ten runs, and when none has finished an epoch.
    """
    if len(histories) > MAX_RUNS:
        raise UsageError(f"{len(histories)} runs: a figure shows at most {MAX_RUNS}; name fewer")
    if not any(history.epochs for history in histories):
        names = ", ".join(history.name for history in histories)
        raise UsageError(f"no finished epoch in {names}: plot again after the first one")
    figure = Figure(figsize=(_WIDTH, _HEIGHT + _LEGEND_LINE * len(histories)))
    for axes, (title, paths) in zip(figure.subplots(2, 2).flat, _PANELS.items(), strict=True):
        for history, colour in zip(histories, style.COLOURS, strict=False):
            marker = "o" if len(history.epochs) <= _MAX_MARKED else ""
            for path in paths:
                look = style.SPLIT_LINES["train" if path.startswith("train/") else "val"]
                values = history.series(path)
                axes.plot(history.epochs, values, color=colour, marker=marker, **look)
        axes.set_title(title)
        style.over_epochs(axes)
        if title == "Accuracy":
            style.percent(axes.yaxis)
        else:
            style.scale_values(axes)
    pairs = zip(histories, style.COLOURS, strict=False)
    handles = [Line2D([], [], color=colour, linewidth=3) for _, colour in pairs]
    style.legend(figure, handles, labels(histories), "lower left", width=720)
    style.legend(figure, *style.split_handles(), "lower right")
    return figure


@style.figure_style()
def loss_over_rates(test: "RangeTest", model: str) -> Figure:
    """A range test: the loss of each step over its rate, smoothed in front, and the suggestion.

    Up to some way above the loss of the first steps: beyond, it only explodes.
    """
    figure = Figure(figsize=(7, 4.2))
    axes = figure.subplots()
    axes.plot(test.rates, test.losses, color=style.LIGHT_GREY, label="of a step")
    axes.plot(test.rates, test.smoothed, color=style.BLUE, label="smoothed")
    if test.suggestion is not None:
        label = f"suggestion: {test.suggestion:.2g}"
        axes.axvline(test.suggestion, color=style.ORANGE, linestyle="--", label=label)
    if test.smoothed:
        low, first = min(test.smoothed), test.smoothed[0]
        room = max(first - low, 0.1 * first)
        axes.set_ylim(low - 0.2 * room, first + room)
        style.logarithmic(axes, "x")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.legend()
    style.headline(figure, f"{model}: range test, {len(test.rates)} steps ({test.ended})")
    return figure
