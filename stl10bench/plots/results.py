"""What finished runs reached -> figures: accuracy against a cost, and reliability diagrams."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from stl10bench.metrics.calibration import Reliability
from stl10bench.plots import style
from stl10bench.results.columns import si_number

_NAME = 7.5  # points
_LINE = 1.35 * _NAME / 72  # inches, the height of a line of a name


class Point(NamedTuple):
    """A setting in a plot of accuracy against a cost."""

    name: str
    cost: float
    accuracy: float
    low: float  # the ends of the accuracy's interval
    high: float
    marked: bool  # whether it stands out


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points of which none is as cheap or cheaper and more accurate, by rising cost."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


@style.figure_style()
def accuracy_against_cost(points: Sequence[Point], cost: str, *, width: float) -> Figure:
    """Accuracy with intervals over a cost, `width` inches wide, and the Pareto front.

    The names stand beside the panel, in the order of the accuracies, with a line to their points:
    however close these lie, each has its own.
    """
    names = {point: style.wrapped(point.name, 0.36 * width, _NAME, most=4) for point in points}
    lines = sum(map(len, names.values()))
    height = max(0.42 * width, 2, lines * _LINE)
    figure, axes = _panel(width, height, right=0.06 + 0.38 * width)
    front = pareto_front(points)
    stairs = [point.cost for point in front], [point.accuracy for point in front]
    axes.step(*stairs, where="post", color=style.BLUE, linewidth=1, alpha=0.55)
    for point in points:
        colour = style.BLUE if point.marked else style.GREY
        filled = colour if point.marked else "white"
        axes.vlines(point.cost, point.low, point.high, color=colour, linewidth=1.2)
        axes.plot(point.cost, point.accuracy, "o", color=colour, mfc=filled, markersize=4.5)
    axes.set_title("test accuracy", loc="left", size=_NAME + 1)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(cost)
    if min(point.cost for point in points) > 0:
        style.logarithmic(axes, "x")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: si_number(value)))
    _name_points(axes, names, height)
    return figure


def _name_points(axes: Axes, names: dict[Point, list[str]], height: float) -> None:
    """Names beside the panel, `height` inches high, as level with their points as there is room."""
    low, high = axes.get_ylim()
    bottom, placed = 0.0, []
    for point in sorted(names, key=lambda point: point.accuracy):
        size = len(names[point]) * _LINE / height
        middle = max((point.accuracy - low) / (high - low), bottom + size / 2)
        bottom = middle + size / 2
        placed.append((point, middle, size))
    top = 1.0
    for point, middle, size in reversed(placed):  # what stands too high moves down
        middle = min(middle, top - size / 2)
        top = middle - size / 2
        axes.annotate(
            "\n".join(names[point]),
            (point.cost, point.accuracy),
            (1.04, middle),
            textcoords="axes fraction",
            va="center",
            size=_NAME,
            arrowprops={"arrowstyle": "-", "color": style.LIGHT_GREY, "relpos": (0, 0.5)},
        )


@style.figure_style()
def reliability_diagram(before: Sequence[Reliability], after: Sequence[Reliability]) -> Figure:
    """Accuracy over confidence of each bin, of several runs, before and after the temperature."""
    figure, axes = _panel(3.2, 2)
    axes.plot((0, 1), (0, 1), color=style.GREY, linewidth=0.8)
    looks = (
        (before, style.ORANGE, style.SPLIT_LINES["train"]),
        (after, style.BLUE, style.SPLIT_LINES["val"]),
    )
    for diagrams, colour, look in looks:
        for bins in diagrams:
            axes.plot(bins.confidences, bins.accuracies, "o", color=colour, mew=0, **look)
    ticks = (0, 0.5, 1)
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=ticks, yticks=ticks, xlabel="confidence")
    axes.set_title("accuracy", loc="left")
    return figure


def _panel(width: float, height: float, right: float = 0.1) -> tuple[Figure, Axes]:
    """A panel `height` inches high in a figure `width` inches wide, with room at the right.

    Its margins are set: to find them takes matplotlib longer than to draw it.
    """
    below, above = 0.45, 0.25
    figure = Figure(figsize=(width, below + height + above))
    figure.set_layout_engine("none")
    left, across = 0.52 / width, 1 - (0.52 + right) / width
    total = figure.get_figheight()
    axes = figure.add_axes((left, below / total, across, height / total))
    axes.tick_params(which="both", length=0)
    return figure, axes
