"""Text, pixels, axes and colours -> the look that all figures share, and files.

Shares (accuracies, confidences, variance) are fractions, 0 to 1, as in every table: never per cent.
"""

import io
import math
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
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from stl10bench.core import files
from stl10bench.core.console import clean
from stl10bench.core.errors import UsageError

DPI = 150  # of a file, unless asked otherwise; the pixels of a sheet are whole at it
FORMATS = {".png": "png", ".svg": "svg", ".jpg": "jpg", ".jpeg": "jpg"}
# Okabe and Ito 2008, "Color universal design": told apart with any colour vision.
BLUE, ORANGE = "#0072b2", "#d55e00"
GREY, LIGHT_GREY, GRID = "#555555", "#dddddd", "#e6e6e6"
# Petroff 2021, "Accessible color sequences for data visualization".
COLOURS = tuple(map(to_hex, matplotlib.color_sequences["petroff10"]))
SPLIT_LINES: dict[str, dict[str, Any]] = {
    "train": {"linestyle": "--", "linewidth": 1.0, "markersize": 2.5},
    "val": {"linestyle": "-", "linewidth": 1.7, "markersize": 4},
}
_MARGIN = 0.08  # inches around the title and the caption
_TITLE, _CAPTION = 11, 8  # points
_LINE = 1.35 / 72  # inches, the height of a line of text for each point of its size
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
        matplotlib.rc("figure", dpi=DPI)  # laid out as it is written, else text is a little wider
        matplotlib.rc("figure.constrained_layout", use=True)
        matplotlib.rc("axes", titlesize=9, grid=True, axisbelow=True)
        matplotlib.rc("axes", prop_cycle=cycler(color=COLOURS))
        matplotlib.rc("axes.formatter", use_mathtext=False, useoffset=False)
        matplotlib.rc("axes.spines", top=False, right=False)
        matplotlib.rc("grid", color=GRID, linewidth=0.6)
        matplotlib.rc("legend", frameon=False)
        yield


def check_output(path: Path) -> Path:
    """`path`, if its suffix names a format; raises UsageError otherwise."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--output {path}: must end in .png, .svg or .jpg")
    return path


def save(figure: Figure, path: Path, dpi: int = DPI) -> None:
    """Write a figure as its suffix says, whole or not at all; the same figure, the same bytes.

    A sheet's pixels stay whole where `dpi` is a multiple of `DPI`; else they are resampled.

    Raises UsageError for another suffix, StorageError.
    """
    files.write(path, encode(figure, check_output(path).suffix, dpi))


@figure_style()
def encode(figure: Figure, suffix: str, dpi: int = DPI) -> bytes:
    """The bytes of a figure as a file that ends in `suffix`, one of FORMATS."""
    buffer = io.BytesIO()
    file_format = FORMATS[suffix.lower()]
    options: dict[str, Any] = {
        "svg": {"metadata": {"Date": None}},  # else no two files have the same bytes
        "jpg": {"pil_kwargs": {"quality": 80}},
    }
    figure.savefig(buffer, format=file_format, dpi=dpi, **options.get(file_format, {}))
    return buffer.getvalue()


class Wording(NamedTuple):
    """What a user wants of a figure's words."""

    title: str | None = None  # in place of its own
    caption: bool = True  # whether to say below it how it is read


AS_IT_IS = Wording()


class Look(NamedTuple):
    """What a user wants of a figure's file."""

    wording: Wording = AS_IT_IS
    dpi: int = DPI


PLAIN_LOOK = Look()


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
        self._texts: list[tuple[float, float, str, TextStyle]] = []

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
        self._texts.append((x, baseline, fitted(text, width / DPI, style.size), style))

    @figure_style()
    def finish(self, title: str, caption: str = "", wording: Wording = AS_IT_IS) -> Figure:
        """The figure, its images in place between the title and the caption."""
        figure = Figure(figsize=(self.width / DPI, self.height / DPI), dpi=DPI)
        figure.set_layout_engine("none")
        left, bottom, width, height = frame(figure, title, caption, wording)
        axes = figure.add_axes((left, bottom, width, height), zorder=-1)
        axes.imshow(self.pixels, interpolation_stage="rgba", aspect="auto")
        axes.set_axis_off()
        for x, y, text, style in self._texts:
            at = x / self.width, bottom + height * (1 - y / self.height)
            drawn = figure.text(*at, text, size=style.size, color=style.colour)
            drawn.set(ha=style.align, va="baseline")
        return figure


def fitted(text: str, width: float, size: float = 9) -> str:
    """Other people's text on one line of at most `width` inches at `size` points, "…" if cut."""
    return wrapped(text, width, size, most=1)[0]


def wrapped(text: str, width: float, size: float = 9, *, most: int = 3) -> list[str]:
    """Other people's text in lines of at most `width` inches; "…" where `most` are not enough.

    Lines end at a space where they can, else within the word.
    """
    lines: list[str] = []
    rest = clean(text)
    while rest and len(lines) < most - 1 and text_width(rest, size) > width:
        length = max(1, _length(rest, width, size))
        space = rest.rfind(" ", 1, length + 1)
        length = space if space > 0 else length
        lines.append(rest[:length].rstrip(" "))
        rest = rest[length:].lstrip(" ")
    if rest and text_width(rest, size) > width:
        rest = f"{rest[: _length(rest, width, size, '…')]}…"
    return [*lines, rest] if rest or not lines else lines


def text_width(text: str, size: float = 9) -> float:
    """The width of one line of text, in inches."""
    with warnings.catch_warnings(action="ignore"):  # of a missing glyph drawing it will warn
        font = FontProperties(size=size)
        points, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return float(points) / 72


def _length(text: str, width: float, size: float, end: str = "") -> int:
    """How many characters of a text, and `end` after them, fit."""
    lengths = range(min(len(text), 200), 0, -1)
    return next((n for n in lengths if text_width(f"{text[:n]}{end}", size) <= width), 0)


def frame(
    figure: Figure, title: str, caption: str = "", wording: Wording = AS_IT_IS
) -> tuple[float, float, float, float]:
    """Add a title above all that a figure holds and a caption below it; the figure grows by them.

    Both are wrapped to its width. Comes last. Returns what is left between them: left, bottom,
    width and height, as shares of the figure.
    """
    title = title if wording.title is None else wording.title
    room = figure.get_figwidth() - 2 * _MARGIN
    above = wrapped(title, room, _TITLE, most=6) if title else []
    below = wrapped(caption, room, _CAPTION, most=12) if caption and wording.caption else []
    top, bottom = (  # in whole pixels, or a sheet's would be blurred
        math.ceil(DPI * (bool(lines) * 2 * _MARGIN + len(lines) * size * _LINE)) / DPI
        for lines, size in ((above, _TITLE), (below, _CAPTION))
    )
    height = figure.get_figheight() + top + bottom
    figure.set_figheight(height)
    x, pad = _MARGIN / figure.get_figwidth(), _MARGIN / height
    look: dict[str, Any] = {"linespacing": 1.2, "ha": "left"}
    if above:
        figure.text(x, 1 - pad, "\n".join(above), size=_TITLE, va="top", **look)
    if below:
        text = "\n".join(below)
        figure.text(x, pad, text, size=_CAPTION, va="bottom", color=GREY, **look)
    body = 0.0, bottom / height, 1.0, (height - top - bottom) / height
    if isinstance(engine := figure.get_layout_engine(), ConstrainedLayoutEngine):
        # Its own "outside" legends would lie over the title and the caption.
        across, up = _beside(figure, "right")[0], _beside(figure, "lower")[1] / height
        rest = 1 - across / figure.get_figwidth()
        engine.set(rect=(0, body[1] + up, rest, body[3] - up))
    for each in figure.legends:
        each.set_bbox_to_anchor(body, transform=figure.transFigure)
    return body


def _beside(figure: Figure, side: str) -> tuple[float, float]:
    """Width and height in inches of the largest legend on a side."""
    boxes = [each.get_window_extent() for each in figure.legends if side in str(each.get_gid())]
    return (
        max((box.width / figure.dpi + _MARGIN for box in boxes), default=0.0),
        max((box.height / figure.dpi + _MARGIN for box in boxes), default=0.0),
    )


def legend(
    figure: Figure,
    handles: Sequence[Artist],
    names: Sequence[str],
    place: str,
    *,
    width: float = 2.2,
    **options: Any,
) -> None:
    """A legend outside a figure's axes; names may be any text, wrapped at `width` inches.

    `place` is matplotlib's, like "center right"; `options` go to `Figure.legend`. The figure grows
    where its height would not do.
    """
    if not names:
        return
    where: Any = place
    drawn = figure.legend(handles, ["?"] * len(names), loc=where, borderaxespad=0.2, **options)
    drawn.set_gid(place)  # for `frame`
    for text, name in zip(drawn.get_texts(), names, strict=True):
        # Passed above, a leading underscore would hide it.
        text.set_text("\n".join(wrapped(name, width)))
    side, height = "right" if "right" in place else "lower", figure.get_figheight()
    needed = _beside(figure, side)[1]
    figure.set_figheight(max(height, needed) if side == "right" else height + needed)


def split_handles() -> tuple[list[Artist], list[str]]:
    """What a legend shows for the two kinds of lines, and what it calls them."""
    names = {"val": "validation", "train": "training (augmented images)"}
    return [Line2D([], [], color=GREY, **SPLIT_LINES[split]) for split in names], [*names.values()]


def over_epochs(axes: Axes, ticks: int = 10) -> None:
    """Label the x axis of curves, in whole epochs, at most so many `ticks`."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))


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
    """Make the axis "x" or "y" of what is already drawn logarithmic; its label then says so."""
    axes.set(**{f"{name}scale": "log"})
    axis: Axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_label_text(f"{axis.get_label_text()} (log scale)".lstrip())
    low, high = axis.get_view_interval()
    few_decades = high < 100 * low
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few_decades else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
