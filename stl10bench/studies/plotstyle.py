"""What the figures of a study share: the noise as a band, short labels, plain logarithmic axes."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from stl10bench.escaping import clean

BAND, LINES = "#dddddd", "#eeeeee"
_LONGEST = 28  # characters of a label


class Band(NamedTuple):
    """Between which accuracies a setting cannot be told from another, and from which one."""

    low: float
    high: float
    name: str


def short(labels: Sequence[str]) -> str:
    """Other people's text on one line that is not too long."""
    text = clean(", ".join(labels))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def shade(axes: Axes, band: Band | None, *, upright: bool = False) -> None:
    """Paint the band behind what is drawn, across or along."""
    if band is not None:
        (axes.axvspan if upright else axes.axhspan)(band.low, band.high, color=BAND, zorder=0)


def logarithmic(axes: Axes, *, upright: bool) -> None:
    """A logarithmic axis, the upright or the other, whose numbers are plain text."""
    (axes.set_yscale if upright else axes.set_xscale)("log")
    axis: Axis = axes.yaxis if upright else axes.xaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def rename(texts: Sequence[Text], names: Sequence[str]) -> None:
    """Give a legend's entries names of any kind; a leading underscore would have hidden one."""
    for text, name in zip(texts, names, strict=True):
        text.set_text(short([name]))
