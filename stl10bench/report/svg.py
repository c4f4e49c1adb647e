"""Numbers and words -> SVG markup; colours are classes, which the page's style gives; light."""

import math
from dataclasses import dataclass

from stl10bench.escaping import html


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
    return element("text", html(text), x=x, y=y, text_anchor=where, class_=class_ or None)


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
    inside = element("title", html(title)) if title else ""
    return element("circle", inside, cx=x, cy=y, r=radius, class_=class_)


def picture(content: str, width: float, height: float, title: str) -> str:
    """An SVG of its own, as wide as its place."""
    return element(
        "svg",
        element("title", html(title)) + content,
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


def si(value: float) -> str:
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
    return _number(value) if isinstance(value, int | float) else html(str(value))


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
