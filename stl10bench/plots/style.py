"""What all figures share: sizes, colours, legends, bands, and how they are saved."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from stl10bench.core import files
from stl10bench.core.console import clean
from stl10bench.core.errors import UsageError

DPI = 100
FORMATS = {".png": "png", ".svg": "svg", ".jpg": "jpg", ".jpeg": "jpg"}
BLUE, ORANGE = "#0072b2", "#d55e00"  # Okabe and Ito 2008: told apart with any colour vision
GREY = "#555555"
# Petroff 2021, "Accessible color sequences for data visualization"
COLOURS = tuple(map(to_rgb, matplotlib.color_sequences["petroff10"]))
_DROP = 0.3  # of the font's size, from the middle of a line down to its baseline
_MOST_PIXELS = 60_000  # a side; Agg takes 65,535

Pixels = NDArray[np.uint8]  # (H, W, 3)


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw and save with matplotlib's own defaults and these settings, then restore the user's.

    Text is text: `$x$` in a name is no formula. Works as a decorator too.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "font.size": 9,
                "text.parse_math": False,
                "axes.formatter.use_mathtext": False,
                "svg.hashsalt": "stl10bench",  # else ids are random
                "axes.prop_cycle": cycler(color=COLOURS),
                "axes.spines.top": False,
                "axes.spines.right": False,
                "legend.frameon": False,
            }
        )
        yield


def check_output(path: Path) -> Path:
    """`path`, if its suffix names a format; raises UsageError otherwise."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--output {path}: must end in .png, .svg or .jpg")
    return path


@figure_style()
def save(figure: Figure, path: Path) -> None:
    """Write a figure as its suffix says, whole or not at all; the same figure, the same bytes.

    Raises UsageError for another suffix, StorageError.
    """
    buffer = io.BytesIO()
    style = FORMATS[check_output(path).suffix.lower()]
    special: dict[str, Any] = {
        "svg": {"metadata": {"Date": None}},
        "jpg": {"pil_kwargs": {"quality": 80}},
    }
    figure.savefig(buffer, format=style, dpi=DPI, **special.get(style, {}))
    files.write(path, buffer.getvalue())


class Sheet:
    """Images and text placed by pixels from the top left; an image's pixel is a whole number."""

    def __init__(self, width: int, height: int) -> None:
        if max(width, height) > _MOST_PIXELS:
            raise UsageError(
                f"the picture would have {width}x{height} pixels, {_MOST_PIXELS} a side is the "
                "limit: ask for fewer images"
            )
        self.pixels = np.full((height, width, 3), 255, dtype=np.uint8)
        self.figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)

    def image(self, left: int, top: int, pixels: Pixels, *, scale: int = 1) -> None:
        """Paint uint8 pixels (H, W, 3), each as a square of `scale` pixels."""
        large = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
        self.pixels[top : top + large.shape[0], left : left + large.shape[1]] = large

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        width: float,
        size: float = 9,
        align: str = "center",
        colour: str = "black",
    ) -> None:
        """Write one line whose middle is `y` pixels down, cut where it would pass `width`."""
        height, whole = self.pixels.shape[:2]
        self.figure.text(
            x / whole,
            1 - (y + _DROP * size * DPI / 72) / height,
            fitted(text, width, size),
            size=size,
            color=colour,
            ha=align,
            va="baseline",
        )

    def finish(self) -> Figure:
        """The figure, its images in place."""
        axes = self.figure.add_axes((0, 0, 1, 1), zorder=-1)
        axes.imshow(self.pixels, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        return self.figure


def fitted(text: str, width: float, size: float) -> str:
    """Other people's text on one line of at most `width` pixels at `size` points, "…" if cut."""
    text = clean(text)
    font = FontProperties(size=size)

    def fits(part: str) -> bool:
        with warnings.catch_warnings(action="ignore"):  # of a missing glyph drawing it will warn
            points, _, _ = text_to_path.get_text_width_height_descent(part, font, ismath=False)
        return bool(points * DPI / 72 <= width)

    if fits(text):
        return text
    kept = next((n for n in range(min(len(text), 200), 0, -1) if fits(f"{text[:n]}…")), 0)
    return f"{text[:kept]}…"


def legend(
    figure: Figure, handles: Sequence[Artist], names: Sequence[str], *, columns: int = 1
) -> None:
    """A legend at the right of a figure with a constrained layout; names may be any text."""
    made = figure.legend(handles, ["?"] * len(names), loc="outside right center", ncols=columns)
    for text, name in zip(made.get_texts(), names, strict=True):
        text.set_text(fitted(name, 200, 9))  # given above, a leading underscore would hide it


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
