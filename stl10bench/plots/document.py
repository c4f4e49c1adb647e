"""The study document's own figures: augmentations before and after, curves with all settings."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from stl10bench.config import RunConfig
from stl10bench.core.console import clean
from stl10bench.data.stl10 import Split
from stl10bench.plots import galleries, style
from stl10bench.plots.curves import over_seeds
from stl10bench.plots.studies import Labels, Results

Figure = matplotlib.figure.Figure

# The report's augmentations, each with the settings of a run that are of it.
OPERATIONS = {
    "colour jitter": ("brightness", "contrast", "saturation", "hue"),
    "horizontal flip": ("flip",),
    "rotation": ("rotation",),
}
_WIDTH = 7.2  # inches: a page's, less its margins
_MOST_COLUMNS = 3
_CUT = 2.5  # of the median loss: above it lie the losses of runs that do not converge
_NAMES = {"lr": "learning rate"}
_SPLITS = {"train": "Training", "val": "Validation"}


def before_after(
    split: Split, row: int, config: RunConfig, operation: str, *, draws: int = 5
) -> Figure:
    """The image `row` as it is, and `draws` results of one of OPERATIONS with a run's settings."""
    off = {key: off for key, off in galleries.OFF.items() if key not in OPERATIONS[operation]}
    alone = config.model_copy(update=off)
    original, variants = galleries.variants(split, row, alone, draws)
    values = variants[0].values if len(OPERATIONS[operation]) == 1 else ("after",) * draws
    pixels = galleries.hwc(variants[-1].images)  # of all that `alone` leaves on
    tiles = [galleries.Tile(galleries.hwc(original), ("before",))]
    tiles += [galleries.Tile(image, (text,)) for image, text in zip(pixels, values, strict=True)]
    return galleries.gallery(galleries.Words(""), [galleries.Section("", tiles)], columns=draws + 1)


@style.figure_style()
def overlaid(results: Results) -> Figure:
    """Loss and accuracy over the epochs, in training and in validation: a line for each setting.

    A line is the mean over the seeds.
    """
    figure = Figure(figsize=(_WIDTH, 3.5))
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    colours = dict(zip(results.histories, cycle(style.COLOURS), strict=False))
    for column, (split, title) in enumerate(_SPLITS.items()):
        for panel, metric in zip(axes[:, column], ("loss", "accuracy"), strict=True):
            _draw(panel, f"{split}/{metric}", colours, results)
        axes[0, column].set_title(title)
        style.over_epochs(axes[1, column])
    _scale(axes[0], axes[1])
    names = [", ".join(map(clean, labels)) for labels in results.histories]
    _name_lines(figure, list(colours.values()), names, ", ".join(map(factor, results.factors)))
    style.frame(figure, "")
    return figure


@style.figure_style()
def overlaid_grid(results: Results) -> Figure:
    """Two factors: loss above accuracy for each value of the second, a line for each of the first.

    Training is dashed, validation solid; a line is the mean over the seeds.
    """
    lines, values = results.values(0), results.values(1)
    columns = min(_MOST_COLUMNS, len(values))
    bands = -(-len(values) // columns)
    figure = Figure(figsize=(_WIDTH, 0.5 + 2.7 * bands))
    axes = figure.subplots(2 * bands, columns, squeeze=False)
    colours = dict(zip(lines, cycle(style.COLOURS), strict=False))
    losses, accuracies = axes[::2].ravel().tolist(), axes[1::2].ravel().tolist()
    for number, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True)):
        if number >= len(values):
            loss.set_axis_off()
            accuracy.set_axis_off()
            continue
        value = values[number]
        shown = {labels: colours[labels[0]] for labels in results.histories if labels[1] == value}
        loss.set_title(f"{factor(results.factors[1])} {clean(value)}", size=9)
        for panel, metric in ((loss, "loss"), (accuracy, "accuracy")):
            for split in _SPLITS:
                _draw(panel, f"{split}/{metric}", shown, results, style.SPLIT_LINES[split])
            panel.tick_params(labelleft=number % columns == 0)
        loss.tick_params(labelbottom=False)
        style.over_epochs(accuracy)
    _scale(losses[: len(values)], accuracies[: len(values)], first_of=columns)
    _name_lines(figure, list(colours.values()), lines, factor(results.factors[0]))
    style.legend(figure, *style.split_handles(), "lower center", ncols=2)
    style.frame(figure, "")
    return figure


def factor(name: str) -> str:
    """A setting as a reader calls it: lr is the learning rate."""
    return clean(_NAMES.get(name, name.replace("_", " ")))


def _draw(
    axes: Axes,
    path: str,
    colours: Mapping[Labels, str],
    results: Results,
    look: Mapping[str, Any] = {},
) -> None:
    for labels, colour in colours.items():
        points = over_seeds(results.histories[labels], path)
        means = [statistics.fmean(values) for values in points.values()]
        marker = {"marker": "o"} if len(points) == 1 else {}
        axes.plot(list(points), means, color=colour, **{**look, **marker})


def _scale(losses: Sequence[Axes], accuracies: Sequence[Axes], *, first_of: int = 2) -> None:
    """The same scale for all panels of a metric, from 0; losses far above the median are cut."""
    values = _drawn(losses)
    top = min(1.05 * max(values), _CUT * statistics.median(values))
    highest = min(1.0, 1.05 * max(_drawn(accuracies)))
    for number, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True)):
        loss.set_ylim(0, top)
        accuracy.set_ylim(0, highest)
        if number % first_of == 0:
            loss.set_ylabel("loss")
            accuracy.set_ylabel("accuracy")


def _drawn(axes: Sequence[Axes]) -> list[float]:
    """All values of the panels' lines; 1 where there is none."""
    lines = [np.asarray(line.get_ydata(), float) for panel in axes for line in panel.lines]
    return [value for line in lines for value in line.tolist()] or [1.0]


def _name_lines(figure: Figure, colours: Sequence[str], names: Sequence[str], title: str) -> None:
    handles = [Line2D([], [], color=colour, linewidth=2.5) for colour in colours]
    style.legend(figure, handles, names, "center right", title=title)
