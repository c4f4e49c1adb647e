"""What runs have logged over the epochs, and a range test over the rates -> figures."""

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stl10bench.core.errors import UsageError
from stl10bench.plots import style
from stl10bench.plots.style import Wording
from stl10bench.results.history import History, labels

if TYPE_CHECKING:  # it imports torch
    from stl10bench.training.lr_finder import RangeTest

MAX_RUNS = len(style.COLOURS)
_MAX_MARKED = 12  # epochs; of more, the markers would run into each other
_PANELS = {
    "loss": ("train/loss", "val/loss"),
    "accuracy": ("train/accuracy", "val/accuracy"),
    "learning rate": ("lr",),
    "images per second": ("images_per_second",),
}


@style.figure_style()
def curves(histories: Sequence[History], wording: Wording = style.AS_IT_IS) -> Figure:
    """A panel for each quantity; a run is a colour, its validation solid and its training dashed.

    Raises UsageError for more than ten runs, and when none has finished an epoch.
    """
    if len(histories) > MAX_RUNS:
        raise UsageError(f"{len(histories)} runs: a figure shows at most {MAX_RUNS}; name fewer")
    if not any(history.epochs for history in histories):
        names = ", ".join(history.name for history in histories)
        raise UsageError(f"no finished epoch in {names}: plot again after the first one")
    figure = Figure(figsize=(9, 5.6))
    for axes, (name, paths) in zip(figure.subplots(2, 2).flat, _PANELS.items(), strict=True):
        for history, colour in zip(histories, style.COLOURS, strict=False):
            marker = "o" if len(history.epochs) <= _MAX_MARKED else ""
            for path in paths:
                look = style.SPLIT_LINES["train" if path.startswith("train/") else "val"]
                values = history.series(path)
                axes.plot(history.epochs, values, color=colour, marker=marker, **look)
        axes.set_ylabel(name)
        style.over_epochs(axes)
        if name != "accuracy":
            style.scale_values(axes)
    what, run_names = labels(histories)
    if len(histories) > 1:
        pairs = zip(histories, style.COLOURS, strict=False)
        handles = [Line2D([], [], color=colour, linewidth=3) for _, colour in pairs]
        style.legend(figure, handles, run_names, "center right", width=2.4)
    style.legend(figure, *style.split_handles(), "lower center", ncols=2)
    style.frame(figure, f"{what}: training curves", wording=wording)
    return figure


def over_seeds(histories: Sequence[History], path: str) -> dict[int, list[float]]:
    """The finite values of a metric over the seeds, at each epoch that has any.

    Runs that diverged are shorter or end in nan: an epoch is of those that have it.
    """
    logged = zip_longest(*(run.series(path) for run in histories), fillvalue=math.nan)
    finite = {epoch: [*filter(math.isfinite, values)] for epoch, values in enumerate(logged, 1)}
    return {epoch: values for epoch, values in finite.items() if values}


def draw_mean_curves(axes: Axes, histories: Sequence[History], metric: str, colour: str) -> None:
    """A setting's mean over its seeds, the validation shaded from the lowest to the highest."""
    for split, look in style.SPLIT_LINES.items():
        points = over_seeds(histories, f"{split}/{metric}")
        if not points:
            continue
        means = [statistics.fmean(values) for values in points.values()]
        marker = "o" if len(points) == 1 else ""
        axes.plot(list(points), means, color=colour, marker=marker, **look)
        if split == "val" and len(histories) > 1:
            low, high = (list(map(end, points.values())) for end in (min, max))
            axes.fill_between(list(points), low, high, color=colour, alpha=0.15, linewidth=0)


@style.figure_style()
def settings_overlaid(
    settings: Mapping[str, Sequence[tuple[History, int | None]]], *, top: float
) -> Figure:
    """Loss, up to `top`, above accuracy over the epochs: a colour for each of at most ten settings.

    The runs of a setting come with the epoch that their row is of, which a dot marks; a line is
    their mean.
    What leaves a panel is cut by its values: in a page no panel cuts.
    """
    figure = Figure(figsize=(3.4, 4.0))
    panels = figure.subplots(2, 1, sharex=True)
    for runs, colour in zip(settings.values(), style.COLOURS, strict=False):
        for axes, metric in zip(panels, ("loss", "accuracy"), strict=True):
            draw_mean_curves(axes, [history for history, _ in runs], metric, colour)
            for history, best in runs:
                if best in history.epochs:
                    value = history.series(f"val/{metric}")[history.epochs.index(best)]
                    axes.plot(best, value, "o", color=colour, markersize=4)
    for axes, metric, highest in zip(panels, ("loss", "accuracy"), (top, 1), strict=True):
        axes.set_title(metric, loc="left")
        axes.set_ylim(0, highest)
        for line in axes.lines:
            line.set_ydata(np.clip(np.asarray(line.get_ydata(), float), 0, highest))
        for area in (path for band in axes.collections for path in band.get_paths()):
            area.vertices = np.clip(area.vertices, (-math.inf, 0), (math.inf, highest))
    style.over_epochs(panels[1])
    if len(settings) > 1:
        pairs = zip(settings, style.COLOURS, strict=False)
        handles = [Line2D([], [], color=colour, linewidth=3) for _, colour in pairs]
        style.legend(figure, handles, [*settings], "lower center", width=2.8)
    style.frame(figure, "")
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
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    if test.smoothed:
        style.logarithmic(axes, "x")
    axes.legend()
    style.frame(figure, f"{model}: range test, {len(test.rates)} steps ({test.ended})")
    return figure
