"""The study document's own figures: augmentations before and after, curves with all settings."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
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
from stl10bench.plots.studies import Labels, Results, shown

Figure = matplotlib.figure.Figure

# The report's augmentations, each with the settings of a run that are of it.
OPERATIONS = {
    "colour jitter": ("brightness", "contrast", "saturation", "hue"),
    "horizontal flip": ("flip",),
    "rotation": ("rotation",),
}
_WIDTH = 7.08  # inches: a page's, less its margins
_MOST_COLUMNS = 6
_SMALL = 8  # points, of a legend
_SAMPLE = 0.36  # inches, of the sample of a line and the space around it
_CUT = 1.5  # of the median loss: above it, and above guessing, lie runs that do not converge
_GUESSING = 1.2 * math.log(10)  # a loss a little above that of a uniform guess of ten classes
_SPLITS = {"train": "training", "val": "validation"}


def before_after(
    split: Split, row: int, config: RunConfig, operation: str, *, draws: int = 5
) -> Figure:
    """The image `row` as it is, and `draws` results of one of OPERATIONS with a run's settings."""
    off = {key: off for key, off in galleries.OFF.items() if key not in OPERATIONS[operation]}
    alone = config.model_copy(update=off)
    original, variants = galleries.variants(split, row, alone, draws)
    values = variants[0].values
    if len(OPERATIONS[operation]) > 1:
        values = tuple(f"draw {number}" for number in range(1, draws + 1))
    pixels = galleries.hwc(variants[-1].images)  # of all that `alone` leaves on
    tiles = [galleries.Tile(galleries.hwc(original), ("before",))]
    tiles += [galleries.Tile(image, (text,)) for image, text in zip(pixels, values, strict=True)]
    return galleries.gallery(galleries.Words(""), [galleries.Section("", tiles)], columns=draws + 1)


@style.figure_style()
def overlaid(results: Results) -> Figure:
    """Loss and accuracy over the epochs, in training and in validation: a line for each setting.

    A line is the mean over the seeds.
    """
    figure = Figure(figsize=(_WIDTH, 1.6))
    axes = figure.subplots(1, 2 * len(_SPLITS)).tolist()
    colours = dict(zip(results.histories, cycle(style.COLOURS), strict=False))
    for column, (split, title) in enumerate(_SPLITS.items()):
        for panel, metric in ((axes[column], "loss"), (axes[2 + column], "accuracy")):
            _draw(panel, f"{split}/{metric}", colours, results)
            panel.set_title(f"{title} {metric}")
            panel.tick_params(labelleft=column == 0)
            style.over_epochs(panel, 4)
    _scale(axes[:2], axes[2:], results)
    names = (", ".join(map(shown, labels)) for labels in results.histories)
    _name_lines(figure, colours.values(), names, ", ".join(results.factors))
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
    figure = Figure(figsize=(_WIDTH, 2.4 * bands))
    axes = figure.subplots(2 * bands, columns, squeeze=False)
    colours = dict(zip(lines, cycle(style.COLOURS), strict=False))
    losses, accuracies = axes[::2].ravel().tolist(), axes[1::2].ravel().tolist()
    for number, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True)):
        if number >= len(values):
            loss.set_axis_off()
            accuracy.set_axis_off()
            continue
        value = values[number]
        drawn = {labels: colours[labels[0]] for labels in results.histories if labels[1] == value}
        loss.set_title(f"{results.factors[1]} {shown(value)}")
        for panel, metric in ((loss, "loss"), (accuracy, "accuracy")):
            for split in _SPLITS:
                _draw(panel, f"{split}/{metric}", drawn, results, style.SPLIT_LINES[split])
            panel.tick_params(labelleft=number % columns == 0)
        loss.tick_params(labelbottom=False)
        style.over_epochs(accuracy, 4 if columns > 3 else 10)
        if number % columns == 0:
            loss.set_ylabel("loss")
            accuracy.set_ylabel("accuracy")
    _scale(losses[: len(values)], accuracies[: len(values)], results)
    _name_lines(figure, colours.values(), map(shown, lines), results.factors[0], _SPLITS)
    style.frame(figure, "")
    return figure


def caption(results: Results) -> str:
    """How the curves are to be read: over how many seeds, and which losses are cut."""
    seeds = max((len(runs) for runs in results.histories.values()), default=0)
    parts = [f"Each line is the mean over {seeds} seeds."] if seeds > 1 else []
    limit = _limit(results)
    lowest = {labels: min(_losses(results, labels), default=0) for labels in results.histories}
    if any(loss > limit for labels in lowest for loss in _losses(results, labels)):
        hidden = [" with ".join(map(shown, labels)) for labels in lowest if lowest[labels] > limit]
        factors = " with ".join(results.factors)
        which = f"; those of {factors} {', '.join(hidden)} are all higher" if hidden else ""
        parts.append(f"Losses above {limit:.1f} are cut{which}.")
    return " ".join(parts)


def _draw(
    axes: Axes,
    path: str,
    colours: Mapping[Labels, str],
    results: Results,
    look: Mapping[str, Any] = {},
) -> None:
    for labels, colour in colours.items():
        means = _means(results, labels, path)
        marker = {"marker": "o"} if len(means) == 1 else {}
        axes.plot(list(means), list(means.values()), color=colour, **{**look, **marker})


def _means(results: Results, labels: Labels, path: str) -> dict[int, float]:
    """A metric of a setting after each epoch, the mean over its seeds."""
    points = over_seeds(results.histories[labels], path)
    return {epoch: statistics.fmean(values) for epoch, values in points.items()}


def _losses(results: Results, labels: Labels) -> list[float]:
    """All losses of a setting that are finite."""
    means = [_means(results, labels, f"{split}/loss") for split in _SPLITS]
    return [loss for of_split in means for loss in of_split.values() if math.isfinite(loss)]


def _limit(results: Results) -> float:
    """The highest loss that the figures show."""
    losses = [loss for labels in results.histories for loss in _losses(results, labels)]
    return max(_CUT * statistics.median(losses or [0]), _GUESSING)


def _scale(losses: Sequence[Axes], accuracies: Sequence[Axes], results: Results) -> None:
    """The same scale for all panels of a metric; losses above the limit are cut."""
    limit = _limit(results)
    values = [loss for labels in results.histories for loss in _losses(results, labels)]
    visible = [loss for loss in values if loss <= limit] or [0.0, limit]
    margin = 0.05 * (max(visible) - min(visible)) or 0.1
    highest = min(1.0, 1.05 * max(_drawn(accuracies)))
    for loss, accuracy in zip(losses, accuracies, strict=True):
        loss.set_ylim(min(visible) - margin, max(visible) + margin)
        accuracy.set_ylim(0, highest)


def _drawn(axes: Sequence[Axes]) -> list[float]:
    """All values of the panels' lines; 1 where there is none."""
    lines = [np.asarray(line.get_ydata(), float) for panel in axes for line in panel.lines]
    return [value for line in lines for value in line[np.isfinite(line)].tolist()] or [1.0]


def _name_lines(
    figure: Figure,
    colours: Iterable[str],
    names: Iterable[str],
    title: str,
    splits: Iterable[str] = (),
) -> None:
    """A legend below the panels: what the colours are, and the kinds of lines of the `splits`."""
    lines = [Line2D([], [], color=colour, linewidth=2.5) for colour in colours]
    kinds = [Line2D([], [], color=style.GREY, **style.SPLIT_LINES[split]) for split in splits]
    handles = [Line2D([], [], linewidth=0), *lines, *kinds]
    texts = [f"{title}:", *names, *(_SPLITS[split] for split in splits)]
    widths = [style.text_width(clean(text), _SMALL) + _SAMPLE for text in texts]
    columns = len(texts) if sum(widths) < _WIDTH else max(1, int(_WIDTH / max(widths)))
    look = {"fontsize": _SMALL, "handlelength": 1.5, "handletextpad": 0.5, "columnspacing": 1.2}
    style.legend(figure, handles, texts, "lower center", width=3, ncols=columns, **look)
