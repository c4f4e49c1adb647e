"""What a report says, in the blocks that both of its formats, HTML and Markdown, show."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from matplotlib.figure import Figure as Drawing

from stl10bench.core.errors import CheckpointError
from stl10bench.results.table import Table


@dataclass(frozen=True)
class Text:
    """A paragraph; a note can be passed over, a legend speaks of what only HTML has."""

    text: str
    kind: Literal["plain", "note", "legend"] = "plain"


@dataclass(frozen=True)
class Code:
    """Lines for a shell."""

    text: str


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str


@dataclass(frozen=True)
class Picture:
    """A figure as a file: in HTML a part of the page, in Markdown a file beside it."""

    name: str  # of the file, with its suffix
    content: bytes
    text: str  # what it shows, for who does not see it
    width: int  # pixels, on a page that has as many
    caption: str = ""


@dataclass(frozen=True)
class Figure:
    """A drawing for a wide screen, another for a narrow one if it needs it, and a caption."""

    title: str
    text: str  # what it shows, for who does not see it
    draw: Callable[[], Drawing]  # only HTML does
    draw_narrow: Callable[[], Drawing] | None = None
    caption: str = ""


@dataclass(frozen=True)
class Tabs:
    """Figures of which one is shown at a time."""

    title: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Tiles:
    """Figures side by side, as many as fit."""

    figures: tuple[Figure, ...]


class Mistake(NamedTuple):
    """An image that a run got wrong, by its place in the test split."""

    image: int
    label: str
    predicted: str
    confidence: float
    others: str  # how many of all runs got it right
    png: bytes | None  # the image itself, where the data are at hand


@dataclass(frozen=True)
class Gallery:
    """Mistakes of one run."""

    title: str
    mistakes: tuple[Mistake, ...]


@dataclass(frozen=True)
class Details:
    """What is shown on a click."""

    summary: str
    blocks: tuple["Block", ...]
    open: bool = False


@dataclass(frozen=True)
class DetailedTable:
    """A table with details below each line, or None."""

    table: Table
    details: tuple[Details | None, ...]


Block = (
    Text
    | Heading
    | Code
    | Table
    | DetailedTable
    | Picture
    | Figure
    | Tabs
    | Tiles
    | Gallery
    | Details
)


@dataclass(frozen=True)
class Section:
    """A headed part of a report."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class GroupReport:
    """The report on the runs that can be compared: on the same images, by the same protocol."""

    title: str
    summary: str
    sections: tuple[Section, ...]
    damaged: tuple[CheckpointError, ...] = ()  # of files that could not be read
