"""Rows, histories and bins -> the figures of a report, as SVG; light."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from stl10bench.report import placement
from stl10bench.report.blocks import Figure
from stl10bench.report.svg import Axis, axis, dot, line, path, picture, si, words

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
        parts = _frame(x, y, width, height, f"{title}{f', {unit}' if unit else ''}", si)
        steps = [(x(p.x), y(p.accuracy)) for p in front]
        stairs = [xy for a, b in pairwise(steps) for xy in (a, (b[0], a[1]))]
        parts.append(path([*stairs, *steps[-1:]], "front"))
        boxes = [(x(p.x) - 5, y(p.accuracy) - 5, 10.0, 10.0) for p in points]
        boxes += [placement.box(a, b) for a, b in pairwise([*stairs, *steps[-1:]])]
        for point in points:
            parts += _point(point, x(point.x), y)
        for point in sorted(points, key=lambda one: one not in front):
            parts.append(
                placement.label(point.name, x(point.x), y(point.accuracy), width, height, boxes)
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
        parts += _frame(x, y, width, height, title, si, ticks=ticks)
        parts.append(path([(x(p.x), y(p.accuracy)) for p in points], "faint"))
        for point in points:
            parts += [dot(x(point.x), y(one), 2, "each") for one in point.each]
            parts += _point(point, x(point.x), y)
        return picture("".join(parts), width, height, f"Test accuracy over {title}")

    return draw


def interval(row: Any, reach: tuple[float, float]) -> str:
    """A row's accuracy as a dot with its interval, on the scale that all rows share."""
    x = Axis(*reach, 4, 116)
    low, high = row["test_accuracy_interval"]
    parts = [line(4, 9, 116, 9, "rule"), line(x(low), 9, x(high), 9, "bar")]
    parts.append(dot(x(row["test_accuracy"]), 9, 2, "point"))
    text = f"{row['test_accuracy']:.3f}, 95 % interval {low:.3f} to {high:.3f}"
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
    parts = _frame(x, y, width, height, "epoch", si, whole=True)
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
