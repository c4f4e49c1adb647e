"""Text, pixels, axes and colours -> the look that all figures share, and files."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from stl10bench.core import files
from stl10bench.core.console import clean
from stl10bench.core.errors import UsageError

DPI = 100
FORMATS = {".png": "png", ".svg": "svg", ".jpg": "jpg", ".jpeg": "jpg"}
# Okabe and Ito 2008, "Color universal design": told apart with any colour vision.
BLUE, ORANGE = "#0072b2", "#d55e00"
GREY, LIGHT_GREY = "#555555", "#dddddd"
# Petroff 2021, "Accessible color sequences for data visualization".
COLOURS = tuple(map(to_hex, matplotlib.color_sequences["petroff10"]))
SPLIT_LINES: dict[str, dict[str, Any]] = {
    "train": {"linestyle": "--", "linewidth": 1.0, "markersize": 2.5},
    "val": {"linestyle": "-", "linewidth": 1.7, "markersize": 4},
}
_BASELINE = 0.3  # of the font's size, from the middle of a line of text down to its baseline
_MAX_SIDE = 60_000  # pixels; Agg takes 65,535
_LOG_RATIO = 5  # between the highest values of two lines, from which on their axis is logarithmic

Pixels = NDArray[np.uint8]  # (H, W, 3)


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw and save with matplotlib's own defaults and these settings, then restore the user's.

    Text is text: `$x$` in a name is no formula. Works as a decorator too.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rc("font", size=9)
        matplotlib.rc("text", parse_math=False)
        matplotlib.rc("svg", hashsalt="stl10bench")  # else ids are random
        matplotlib.rc("figure", titlesize=10)
        matplotlib.rc("figure.constrained_layout", use=True)
        matplotlib.rc("axes", titlesize=10, grid=True, axisbelow=True)
        matplotlib.rc("axes", prop_cycle=cycler(color=COLOURS))
        matplotlib.rc("axes.formatter", use_mathtext=False)
        matplotlib.rc("axes.spines", top=False, right=False)
        matplotlib.rc("grid", color="#e6e6e6", linewidth=0.6)
        matplotlib.rc("legend", frameon=False)
        yield


def check_output(path: Path) -> Path:
    """`path`, if its suffix names a format; raises UsageError otherwise."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--output {path}: must end in .png, .svg or .jpg")
    return path


def save(figure: Figure, path: Path) -> None:
    """Write a figure as its suffix says, whole or not at all; the same figure, the same bytes.

    Raises UsageError for another suffix, StorageError.
    """
    files.write(path, encode(figure, check_output(path).suffix))


@figure_style()
def encode(figure: Figure, suffix: str) -> bytes:
    """The bytes of a figure as a file that ends in `suffix`, one of FORMATS."""
    buffer = io.BytesIO()
    file_format = FORMATS[suffix.lower()]
    options: dict[str, Any] = {
        "svg": {"metadata": {"Date": None}},  # else no two files have the same bytes
        "jpg": {"pil_kwargs": {"quality": 80}},
    }
    figure.savefig(buffer, format=file_format, dpi=DPI, **options.get(file_format, {}))
    return buffer.getvalue()


class TextStyle(NamedTuple):
    """How a line of text on a sheet looks; `size` in points."""

    size: float = 9
    align: str = "center"
    colour: str = "black"


PLAIN = TextStyle()


class Sheet:
    """Images and text placed by pixels from the top left; an image's pixel is a whole number.

    Raises UsageError for a sheet that is too large to be drawn.
    """

    def __init__(self, width: int, height: int) -> None:
        if max(width, height) > _MAX_SIDE:
            raise UsageError(
                f"the figure would have {width}x{height} pixels; at most {_MAX_SIDE} a side can be "
                "drawn: ask for fewer images"
            )
        self.width, self.height = width, height
        self.pixels = np.full((height, width, 3), 255, dtype=np.uint8)
        self.figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
        self.figure.set_layout_engine("none")

    def image(self, left: int, top: int, pixels: Pixels, *, scale: int = 1) -> None:
        """Paint uint8 pixels (H, W, 3), each as a square of `scale` pixels."""
        large = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
        self.pixels[top : top + large.shape[0], left : left + large.shape[1]] = large

    def text(
        self, x: float, y: float, text: str, *, width: float, style: TextStyle = PLAIN
    ) -> None:
        """Write one line whose middle is `y` pixels down, cut where it would pass `width`."""
        # By the baseline: centred, names with and without descenders would not stand on one line.
        baseline = y + _BASELINE * style.size * DPI / 72
        shown = fitted(text, width, style.size)
        at = x / self.width, 1 - baseline / self.height
        drawn = self.figure.text(*at, shown, size=style.size, color=style.colour)
        drawn.set(ha=style.align, va="baseline")

    def finish(self) -> Figure:
        """The figure, its images in place."""
        axes = self.figure.add_axes((0, 0, 1, 1), zorder=-1)
        axes.imshow(self.pixels, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        return self.figure


def fitted(text: str, width: float, size: float = 9) -> str:
    """Other people's text on one line of at most `width` pixels at `size` points, "…" if cut."""
    text = clean(text)
    font = FontProperties(size=size)

    def fits(part: str) -> bool:
        with warnings.catch_warnings(action="ignore"):  # of a missing glyph drawing it will warn
            points, _, _ = text_to_path.get_text_width_height_descent(part, font, ismath=False)
        return bool(points * DPI / 72 <= width)

    if fits(text):
        return text
    length = next((n for n in range(min(len(text), 200), 0, -1) if fits(f"{text[:n]}…")), 0)
    return f"{text[:length]}…"


def headline(figure: Figure, text: str) -> None:
    """A title over the whole figure, wrapped to its width."""
    figure.suptitle(fill(clean(text), int(12 * figure.get_figwidth())))  # characters an inch


def legend(
    figure: Figure,
    handles: Sequence[Artist],
    names: Sequence[str],
    place: str,
    *,
    width: float = 200,
    **options: Any,
) -> None:
    """A legend outside a figure's axes; names may be any text, cut at `width` pixels.

    `place` is matplotlib's, like "right center"; `options` go to `Figure.legend`.
    """
    where: Any = f"outside {place}"
    drawn = figure.legend(handles, ["?"] * len(names), loc=where, **options)
    for text, name in zip(drawn.get_texts(), names, strict=True):
        text.set_text(fitted(name, width))  # passed above, a leading underscore would hide it


def split_handles() -> tuple[list[Artist], list[str]]:
    """What a legend shows for the two kinds of lines, and what it calls them."""
    names = {"val": "validation", "train": "training (augmented images)"}
    return [Line2D([], [], color=GREY, **SPLIT_LINES[split]) for split in names], [*names.values()]


def percent(axis: Axis) -> None:
    """Shares 0..1 as per cent."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))


def over_epochs(axes: Axes) -> None:
    """Label the x axis of curves, in whole epochs."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def scale_values(axes: Axes) -> None:
    """From 0, or logarithmic where lines are so far apart that the lower ones would look flat."""
    drawn = [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]
    lines = [values[np.isfinite(values)].tolist() for values in drawn]
    highest = [max(values) for values in lines if values]
    if not highest or max(highest) <= 0:
        return
    positive = all(value > 0 for values in lines for value in values)
    if positive and max(highest) >= _LOG_RATIO * min(highest):
        logarithmic(axes, "y")
    else:
        axes.set_ylim(0, 1.05 * max(axes.dataLim.y1, *highest))


def logarithmic(axes: Axes, name: str) -> None:
    """Make the axis "x" or "y" of what is already drawn logarithmic, its numbers plain text."""
    axes.set(**{f"{name}scale": "log"})
    axis: Axis = axes.xaxis if name == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    few_decades = high < 100 * low
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few_decades else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
