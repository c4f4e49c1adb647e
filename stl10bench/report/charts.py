"""Numbers -> SVG: points with intervals, curves, reliability diagrams."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import NamedTuple

from markupsafe import Markup

from stl10bench.core.console import markup
from stl10bench.metrics.calibration import Reliability
from stl10bench.report.document import Figure
from stl10bench.results.columns import si_number

WIDE, NARROW = 760, 340  # px
_LEFT, _BELOW = 46, 40  # px, for the ticks of the axes
_CHARACTER = 6.1  # px, the mean width of a character at the size of the labels

XY = tuple[float, float]  # px, from the upper left corner
Box = tuple[float, float, float, float]  # left, top, width, height


def path(points: Sequence[XY], class_: str) -> Markup:
    """A line through points; nothing without any."""
    steps = "L".join(f"{_number(x)} {_number(y)}" for x, y in points)
    return markup('<path d="M{}" class="{}"/>', steps, class_) if points else Markup()


def dot(center: XY, radius: float, class_: str, tooltip: str = "") -> Markup:
    """A disc, with a text that is shown where the mouse points at it."""
    title = markup("<title>{}</title>", tooltip) if tooltip else ""
    x, y = map(_number, center)
    circle = '<circle cx="{}" cy="{}" r="{}" class="{}">{}</circle>'
    return markup(circle, x, y, radius, class_, title)


def words(x: float, y: float, text: str, *, anchor: str = "start", class_: str = "") -> Markup:
    """A line of text, whose baseline is at y."""
    element = '<text x="{}" y="{}" text-anchor="{}" class="{}">{}</text>'
    return markup(element, _number(x), _number(y), anchor, class_, text)


def svg(parts: Sequence[Markup], width: int, height: int, title: str) -> Markup:
    """An SVG that fills the width of its place."""
    element = '<svg viewBox="0 0 {} {}" role="img"><title>{}</title>{}</svg>'
    return markup(element, width, height, title, Markup().join(parts))


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


@dataclass(frozen=True)
class Axis:
    """Values low..high -> pixels start..end."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        numbers = (self.low, self.high, value)
        low, high, at = map(math.log10, numbers) if self.log else numbers
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values within the axis, at most about `most`."""
        ticks = _log_ticks(self.low, self.high, most) if self.log else []
        return ticks if len(ticks) > 1 else _ticks(self.low, self.high, most)


def axis(values: Sequence[float], start: float, end: float, *, log: bool = False) -> Axis:
    """An axis on which all values have some room."""
    low, high = min(values), max(values)
    if log:
        room = (high / low) ** 0.06 if high > low else 2.0
        return Axis(low / room, high * room, start, end, log=True)
    room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return Axis(low - room, high + room, start, end)


def _ticks(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / most
    unit = 10 ** math.floor(math.log10(rough))
    widest = next(m for m in (1, 2, 5, 10) if m * unit >= rough * 0.999)
    for step in (m * unit for m in (10, 5, 2, 1) if m <= widest):
        first, last = math.ceil(low / step - 1e-10), math.floor(high / step + 1e-10)
        if first <= last:  # else the axis lies between two ticks of that step
            break
    return [round(number * step, 12) for number in range(first, last + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    chosen: list[float] = []
    for parts in ((1,), (1, 3), (1, 2, 5)):
        ticks = [m * 10.0**d for d in decades for m in parts if low <= m * 10.0**d <= high]
        if len(ticks) > most and chosen:
            break
        chosen = ticks
    return chosen[:: max(1, math.ceil(len(chosen) / (2 * most)))]


def _frame(x: Axis, y: Axis, title: str, x_ticks: Sequence[tuple[float, str]]) -> list[Markup]:
    """Grid lines, ticks and the title of the lower axis."""
    parts = []
    for value in y.ticks(round((y.start - y.end) / _BELOW)):
        text = f"{value:.3f}".rstrip("0").rstrip(".") if value else "0"
        parts.append(path([(x.start, y(value)), (x.end, y(value))], "grid"))
        parts.append(words(x.start - 6, y(value) + 3.5, text, anchor="end"))
    for value, text in x_ticks:
        parts.append(path([(x(value), y.start), (x(value), y.start + 4)], "rule"))
        parts.append(words(x(value), y.start + 16, text, anchor="middle"))
    parts.append(path([(x.start, y.start), (x.end, y.start)], "rule"))
    return [*parts, words(x.end, y.start + 32, title, anchor="end", class_="axis")]


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


def accuracy_against_cost(points: Sequence[Point], cost: str, unit: str) -> Figure:
    """Accuracy with intervals over a cost, and the Pareto front.

    Drawn twice: on a phone the labels of the wide one would shrink until nobody can read them.
    """
    front = pareto_front(points)

    def draw(width: int, height: int) -> Markup:
        log = min(point.cost for point in points) > 0
        x = axis([point.cost for point in points], _LEFT, width - 14, log=log)
        ends = [end for point in points for end in (point.low, point.high)]
        y = axis(ends, height - _BELOW, 10)
        x_ticks = [(value, si_number(value)) for value in x.ticks(4 if width < WIDE else 7)]
        parts = _frame(x, y, f"{cost}, {unit}" if unit else cost, x_ticks)
        corners = [(x(point.cost), y(point.accuracy)) for point in front]
        stairs = [xy for a, b in pairwise(corners) for xy in (a, (b[0], a[1]))] + corners[-1:]
        parts.append(path(stairs, "front"))
        taken = [(x(point.cost) - 5, y(point.accuracy) - 5, 10.0, 10.0) for point in points]
        taken += [_box(a, b) for a, b in pairwise(stairs)]
        for point in points:
            at, text = x(point.cost), f"{point.accuracy:.3f} [{point.low:.3f}, {point.high:.3f}]"
            whisker = "whisker" if point.marked else "whisker faded"
            parts.append(path([(at, y(point.low)), (at, y(point.high))], whisker))
            kind = "point" if point.marked else "hollow"
            parts.append(dot((at, y(point.accuracy)), 4.5, kind, f"{point.name}: {text}"))
        # Those on the front first: where there is not room for all names, theirs matter most.
        for point in sorted(points, key=lambda point: point not in front):
            center = x(point.cost), y(point.accuracy)
            parts.append(_place_label(point.name, center, (width, height), taken))
        return svg(parts, width, height, f"Test accuracy against {cost}")

    return Figure(cost, draw(WIDE, 380), draw(NARROW, 320))


_SIDES = ((-1, "end"), (1, "start"))


def _place_label(name: str, at: XY, size: XY, taken: list[Box]) -> Markup:
    """The name where it covers nothing: beside its point, or further up or down with a line to it.

    Of very many points the last have none; the tooltip still says it.
    """
    (x, y), (width, height) = at, size
    most = int(0.6 * width / _CHARACTER)  # characters: of a longer name the beginning
    text = name if len(name) <= most else f"{name[: most - 1]}…"
    length = _CHARACTER * len(text)
    starts = {"start": 0.0, "middle": -length / 2, "end": -length}
    places = [(9.0, 4.0, "start"), (-9.0, 4.0, "end")]  # the best first
    places += [(side * shift, 4.0, anchor) for shift in (28.0, 48.0) for side, anchor in _SIDES]
    for step in range(8):
        for down in (-8.0 - 15 * step, 17.0 + 15 * step):
            places += [(8.0, down, "start"), (-8.0, down, "end"), (0.0, down, "middle")]
    for right, down, anchor in places:
        start, base = x + right + starts[anchor], y + down
        box = start, base - 10, length, 13.0
        inside = start > _LEFT and start + length < width - 2 and 8 < base < height - _BELOW - 4
        if inside and not any(_overlap(box, other) for other in taken):
            taken.append(box)
            label = words(x + right, base, text, anchor=anchor)
            if abs(down) < 20 and abs(right) < 20:
                return label
            end = x + right, y if down == 4 else base + 3 if down < 0 else base - 10
            return Markup("").join([path([at, end], "grid"), label])
    return Markup()


def _box(a: XY, b: XY) -> Box:
    """The room of an upright or level line."""
    return min(a[0], b[0]), min(a[1], b[1]), abs(a[0] - b[0]), abs(a[1] - b[1])


def _overlap(a: Box, b: Box) -> bool:
    return all(a[i] < b[i] + b[i + 2] and b[i] < a[i] + a[i + 2] for i in (0, 1))


def interval_bar(accuracy: float, interval: tuple[float, float], reach: XY) -> Markup:
    """An accuracy as a dot with its interval, on the scale `reach` that all rows share."""
    x, (low, high) = Axis(*reach, 4, 116), interval
    parts = [path([(4, 9), (116, 9)], "rule"), path([(x(low), 9), (x(high), 9)], "bar")]
    parts.append(dot((x(accuracy), 9), 2, "point"))
    return svg(parts, 120, 18, f"{accuracy:.3f}, 95 % interval {low:.3f} to {high:.3f}")


Curve = tuple[Sequence[int], Sequence[float]]  # epochs, values; nan where one is missing


def learning_curves(
    training: Sequence[Sequence[Curve]],
    validation: Sequence[Sequence[Curve]],
    title: str,
    *,
    top: float,
) -> Markup:
    """One quantity over the epochs, 0 to `top`, of the runs of each setting.

    Several settings have a colour each; of one alone, training and validation differ in theirs.
    """
    width, height = 320, 200
    epochs = [float(e) for curves in training for epochs, _ in curves for e in epochs]
    x = axis(epochs, 40, width - 8)
    y = Axis(0, top, height - 34, 8)
    x_ticks = [(value, f"{value:.0f}") for value in x.ticks(4) if value == int(value)]
    parts = _frame(x, y, "epoch", x_ticks)
    for kind, settings in (("train", training), ("val", validation)):
        for number, curves in enumerate(settings):
            colour = f" c{number}" if len(settings) > 1 else ""
            for piece in (piece for curve in curves for piece in _pieces(curve, x, y)):
                is_line = len(piece) > 1
                line, point = f"{kind}{colour}", f"{kind}-dot{colour}"
                parts.append(path(piece, line) if is_line else dot(piece[0], 2.5, point))
    corner = height - 40 if title == "accuracy" else 16  # where no curve goes
    parts.append(words(width - 8, corner, title, anchor="end", class_="axis"))
    return svg(parts, width, height, f"{title} over the epochs")


def colour_key(names: Sequence[str]) -> Markup:
    """What each colour of `learning_curves` stands for."""
    parts = []
    for number, name in enumerate(names):
        y = 10 + 16 * number
        parts.append(path([(4, y), (26, y)], f"val c{number}"))
        parts.append(words(34, y + 4, name if len(name) <= 46 else f"{name[:45]}…"))
    return svg(parts, 320, 16 * len(names) + 4, "Colours of the settings")


def _pieces(curve: Curve, x: Axis, y: Axis) -> list[list[XY]]:
    """The points of a curve, parted where a value is missing; what is above the panel is cut."""
    runs = groupby(zip(*curve, strict=True), key=lambda point: math.isfinite(point[1]))
    pieces = (list(points) for is_finite, points in runs if is_finite)
    return [[(x(epoch), y(min(max(value, 0), y.high))) for epoch, value in p] for p in pieces]


def reliability_diagram(before: Sequence[Reliability], after: Sequence[Reliability]) -> Markup:
    """Accuracy over confidence of each bin, of several runs, before and after the temperature."""
    width, height = 320, 260
    x, y = Axis(0, 1, 40, width - 10), Axis(0, 1, height - 34, 8)
    parts = _frame(x, y, "confidence", [(value, f"{value:.1g}") for value in x.ticks(4)])
    parts.append(path([(x(0), y(0)), (x(1), y(1))], "faint"))
    for diagrams, kind in ((before, "train"), (after, "val")):
        for bins in diagrams:
            pairs = zip(bins.confidences.tolist(), bins.accuracies.tolist(), strict=True)
            points = [(x(confidence), y(accuracy)) for confidence, accuracy in pairs]
            parts += [path(points, kind), *(dot(point, 2.5, f"{kind}-dot") for point in points)]
    return svg(parts, width, height, "Accuracy over confidence")
