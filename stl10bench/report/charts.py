"""Numbers -> SVG: points with intervals, curves, reliability diagrams."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from stl10bench.core.console import escape_html
from stl10bench.report.document import Figure


def element(name: str, content: str = "", **attributes: object) -> str:
    """One element; `content` is markup, attributes are text: `text_anchor` is text-anchor."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{given}>{content}</{name}>" if content else f"<{name}{given}/>"


def words(x: float, y: float, text: str, *, anchor: str = "start", class_: str = "") -> str:
    """A line of text, whose baseline is at y."""
    where = None if anchor == "start" else anchor
    return element("text", escape_html(text), x=x, y=y, text_anchor=where, class_=class_ or None)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    """A straight line."""
    return element(
        "path", d=f"M{_number(x1)} {_number(y1)}L{_number(x2)} {_number(y2)}", class_=class_
    )


def path(points: list[tuple[float, float]], class_: str) -> str:
    """A line through points."""
    at = "L".join(f"{_number(x)} {_number(y)}" for x, y in points)
    return element("path", d=f"M{at}", class_=class_) if points else ""


def dot(x: float, y: float, radius: float, class_: str, title: str = "") -> str:
    """A disc, with a text for who points at it."""
    inside = element("title", escape_html(title)) if title else ""
    return element("circle", inside, cx=x, cy=y, r=radius, class_=class_)


def picture(content: str, width: float, height: float, title: str) -> str:
    """An SVG of its own, as wide as its place."""
    return element(
        "svg",
        element("title", escape_html(title)) + content,
        viewBox=f"0 0 {_number(width)} {_number(height)}",
        role="img",
    )


@dataclass(frozen=True)
class Axis:
    """Values low..high -> pixels start..end."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        share = (self._of(value) - self._of(self.low)) / (self._of(self.high) - self._of(self.low))
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values within the axis, at most about `most`."""
        return (
            _log_ticks(self.low, self.high, most) if self.log else _ticks(self.low, self.high, most)
        )

    def _of(self, value: float) -> float:
        return math.log10(value) if self.log else value


def axis(values: list[float], start: float, end: float, *, log: bool = False) -> Axis:
    """An axis on which all values have some room."""
    low, high = min(values), max(values)
    if log:
        room = (high / low) ** 0.06 if high > low else 2.0
        return Axis(low / room, high * room, start, end, log=True)
    room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return Axis(low - room, high + room, start, end)


def si_number(value: float) -> str:
    """A short number: 25.2M, 1.5k, 0.25."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def _ticks(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / most
    unit = 10 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [round((first + n) * step, 12) for n in range(count)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for parts in ((1,), (1, 3), (1, 2, 5)):
        ticks = [m * 10.0**d for d in decades for m in parts if low <= m * 10.0**d <= high]
        if len(ticks) > most and found:
            break
        found = ticks
    return found[:: max(1, math.ceil(len(found) / (2 * most)))]


def _attribute(value: object) -> str:
    return _number(value) if isinstance(value, int | float) else escape_html(str(value))


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


CHARACTER = 6.1  # px, of a mean character at the size of the labels
_LONGEST = 26  # characters

Box = tuple[float, float, float, float]  # left, top, width, height


def place_label(
    name: str,
    x: float,
    y: float,
    width: int,
    height: int,
    boxes: list[Box],
) -> str:
    """The name beside its point, where it covers nothing; else none (the point still tells it)."""
    text = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
    long = CHARACTER * len(text)
    places = [
        (x + 9, y + 4, "start"), (x - 9, y + 4, "end"), (x + 8, y - 8, "start"),
        (x - 8, y - 8, "end"), (x + 8, y + 17, "start"), (x - 8, y + 17, "end"),
    ]  # fmt: skip
    for left, base, anchor in places:
        start = left - long if anchor == "end" else left
        room = start, base - 10, long, 13.0
        inside = start > 46 and start + long < width - 2 and 8 < base < height - 44
        if inside and not any(_overlap(room, other) for other in boxes):
            boxes.append(room)
            return words(left, base, text, anchor=anchor)
    return ""


def box(a: tuple[float, float], b: tuple[float, float]) -> Box:
    """The room of an upright or level line."""
    return min(a[0], b[0]), min(a[1], b[1]), abs(a[0] - b[0]), abs(a[1] - b[1])


def _overlap(one: Box, other: Box) -> bool:
    return (
        one[0] < other[0] + other[2]
        and other[0] < one[0] + one[2]
        and one[1] < other[1] + other[3]
        and other[1] < one[1] + one[3]
    )


WIDE, NARROW = 760, 340  # px


class Point(NamedTuple):
    """A setting in a plot of accuracy against something else."""

    name: str
    x: float
    accuracy: float
    low: float
    high: float
    marked: bool  # whether it stands out
    each: tuple[float, ...] = ()  # of its runs, where there are several


def both(title: str, caption: str, draw: Callable[[int], str]) -> Figure:
    """A figure drawn for a wide and for a narrow screen."""
    return Figure(title, draw(WIDE), draw(NARROW), caption)


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points of which none is as cheap or cheaper and more accurate, by rising cost."""
    best: list[Point] = []
    for point in sorted(points, key=lambda one: (one.x, -one.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


def cost(points: Sequence[Point], title: str, unit: str) -> Callable[[int], str]:
    """Accuracy with intervals over a cost, and the line of what nothing cheaper surpasses."""
    front = frontier(points)

    def draw(width: int) -> str:
        height = 380 if width == WIDE else 320
        log = min(p.x for p in points) > 0
        x = axis([p.x for p in points], 46, width - 14, log=log)
        y = axis([v for p in points for v in (p.low, p.high)], height - 40, 10)
        parts = _frame(x, y, width, height, f"{title}{f', {unit}' if unit else ''}", si_number)
        steps = [(x(p.x), y(p.accuracy)) for p in front]
        stairs = [xy for a, b in pairwise(steps) for xy in (a, (b[0], a[1]))]
        parts.append(path([*stairs, *steps[-1:]], "front"))
        boxes = [(x(p.x) - 5, y(p.accuracy) - 5, 10.0, 10.0) for p in points]
        boxes += [box(a, b) for a, b in pairwise([*stairs, *steps[-1:]])]
        for point in points:
            parts += _point(point, x(point.x), y)
        for point in sorted(points, key=lambda one: one not in front):
            parts.append(
                place_label(point.name, x(point.x), y(point.accuracy), width, height, boxes)
            )
        return picture("".join(parts), width, height, f"Test accuracy against {title}")

    return draw


def levels(
    points: Sequence[Point], ticks: Sequence[str] | None, title: str, band: tuple[float, float]
) -> Callable[[int], str]:
    """Accuracy over the values of one setting; with `ticks` these are words at 0, 1, 2, ..."""

    def draw(width: int) -> str:
        height = 260
        xs = [p.x for p in points]
        if ticks is None:
            log = min(xs) > 0 and max(xs) >= 10 * min(xs)
            x = axis(xs, 46, width - 14, log=log)
        else:
            x = Axis(-0.5, len(ticks) - 0.5, 46, width - 14)
        heights = [v for p in points for v in (p.low, p.high, *p.each)]
        y = axis([*heights, *band], height - 40, 10)
        left, right, top, bottom = x.start, x.end, y(band[1]), y(band[0])
        shade = f"M{left} {top:.1f}H{right}V{bottom:.1f}H{left}Z"
        parts = [f'<path class="band" d="{shade}"/>']
        parts += _frame(x, y, width, height, title, si_number, ticks=ticks)
        parts.append(path([(x(p.x), y(p.accuracy)) for p in points], "faint"))
        for point in points:
            parts += [dot(x(point.x), y(one), 2, "each") for one in point.each]
            parts += _point(point, x(point.x), y)
        return picture("".join(parts), width, height, f"Test accuracy over {title}")

    return draw


def interval(row: Any, reach: tuple[float, float]) -> str:
    """A row's accuracy as a dot with its interval, on the scale that all rows share."""
    x = Axis(*reach, 4, 116)
    low, high = row.test_accuracy_interval
    parts = [line(4, 9, 116, 9, "rule"), line(x(low), 9, x(high), 9, "bar")]
    parts.append(dot(x(row.test_accuracy), 9, 2, "point"))
    text = f"{row.test_accuracy:.3f}, 95 % interval {low:.3f} to {high:.3f}"
    return picture("".join(parts), 120, 18, text)


def curves(
    runs: Sequence[tuple[Sequence[float], Sequence[float], Sequence[float]]],
    title: str,
    *,
    top: float,
) -> str:
    """One quantity over the epochs: (epochs, training, hold-out) of each run, in one panel."""
    width, height = 320, 200
    x = axis([float(epoch) for epochs, _, _ in runs for epoch in epochs], 40, width - 8)
    y = Axis(0, top, height - 34, 8)
    parts = _frame(x, y, width, height, "epoch", si_number, whole=True)
    for epochs, train, val in runs:
        for values, kind in ((train, "train"), (val, "val")):
            for piece in _pieces(epochs, values, x, y, top):
                parts.append(
                    path(piece, kind) if len(piece) > 1 else dot(*piece[0], 2.5, f"{kind}-dot")
                )
    corner = height - 40 if title == "accuracy" else 16  # where no curve goes
    parts.append(words(width - 8, corner, title, anchor="end", class_="axis"))
    return picture("".join(parts), width, height, f"{title} over the epochs")


def reliability(before: Sequence[Any], after: Sequence[Any]) -> str:
    """Accuracy over confidence of each bin, of several runs, before and after the temperature."""
    width, height = 320, 260
    x, y = Axis(0, 1, 40, width - 10), Axis(0, 1, height - 34, 8)
    parts = _frame(x, y, width, height, "confidence", _tick)
    parts.append(line(x(0), y(0), x(1), y(1), "faint"))
    for bins, kind in [(one, "train") for one in before] + [(one, "val") for one in after]:
        at = [
            (x(float(c)), y(float(a)))
            for c, a in zip(bins.confidences, bins.accuracies, strict=True)
        ]
        parts += [path(at, kind), *(dot(*one, 2.5, f"{kind}-dot") for one in at)]
    return picture("".join(parts), width, height, "Accuracy over confidence")


def _frame(
    x: Axis,
    y: Axis,
    width: int,
    height: int,
    title: str,
    read: Callable[[float], str],
    *,
    ticks: Sequence[str] | None = None,
    whole: bool = False,
) -> list[str]:
    """Grid lines, ticks and the title of the lower axis."""
    right = width - 2
    parts = []
    for value in y.ticks(round((y.start - y.end) / 40)):
        parts.append(line(x.start, y(value), x.end, y(value), "grid"))
        parts.append(words(x.start - 6, y(value) + 3.5, _tick(value), anchor="end"))
    marks = (
        [(float(n), text) for n, text in enumerate(ticks)]
        if ticks is not None
        else [
            (value, f"{value:.0f}" if whole else read(value))
            for value in x.ticks(4 if width < WIDE else 7)
            if not whole or value == int(value)
        ]
    )
    for value, text in marks:
        parts.append(line(x(value), y.start, x(value), y.start + 4, "rule"))
        parts.append(words(x(value), y.start + 16, text[:14], anchor="middle"))
    parts.append(line(x.start, y.start, x.end, y.start, "rule"))
    return [*parts, words(min(x.end, right), height - 4, title, anchor="end", class_="axis")]


def _point(point: Point, at: float, y: Axis) -> list[str]:
    text = f"{point.name}: {point.accuracy:.3f} [{point.low:.3f}, {point.high:.3f}]"
    return [
        line(at, y(point.low), at, y(point.high), "whisker" if point.marked else "whisker faded"),
        dot(at, y(point.accuracy), 4.5, "point" if point.marked else "hollow", text),
    ]


def _pieces(
    epochs: Sequence[float], values: Sequence[float], x: Axis, y: Axis, top: float
) -> list[list[tuple[float, float]]]:
    """The points of a curve, parted where a value is missing; what is above the panel is cut."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for epoch, value in zip(epochs, values, strict=True):
        if math.isfinite(value):
            pieces[-1].append((x(epoch), y(min(max(value, 0), top))))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _tick(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") if value else "0"
