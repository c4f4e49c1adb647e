"""What a report says, in the parts that both of its sinks, HTML and Markdown, know."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple


class Cell(NamedTuple):
    """What a cell says, what it is sorted by, how strong its colour is (0..1), and a picture."""

    text: str
    value: float | str | None = None
    heat: float | None = None
    svg: str = ""  # in place of the text, which then is its description


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
class Table:
    """Cells; the first column names the lines. `details` has a fold-out for each line, or none."""

    title: str
    header: tuple[str, ...]
    lines: tuple[tuple[Cell, ...], ...]
    details: tuple["Details | None", ...] = ()
    left: tuple[str, ...] = ()  # columns of text beside the first
    sortable: bool = False
    sorted_by: str = ""  # the column by which the lines stand, the highest first
    pictures: tuple[str, ...] = ()  # columns of pictures alone, which Markdown leaves out
    corner: str = ""  # what the lines and the columns are, where they are of one kind


@dataclass(frozen=True)
class Figure:
    """SVG for a wide and for a narrow screen, and the words that say what it shows."""

    title: str
    wide: str
    narrow: str
    caption: str = ""


@dataclass(frozen=True)
class Choice:
    """Figures of which one is seen at a time."""

    title: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Tiles:
    """Small figures or tables side by side, as many as fit."""

    blocks: tuple["Block", ...]


class Mistake(NamedTuple):
    """An image that a run got wrong, by its place in the test split."""

    row: int
    truth: str
    taken_for: str
    confidence: float
    others: str  # how many of the other runs got it right
    png: bytes | None  # the image itself, where it is at hand


@dataclass(frozen=True)
class Gallery:
    """Mistakes of one run."""

    title: str
    mistakes: tuple[Mistake, ...]


@dataclass(frozen=True)
class Details:
    """What is shown when it is asked for."""

    summary: str
    blocks: tuple["Block", ...]
    open: bool = False


Block = Text | Code | Table | Figure | Choice | Tiles | Gallery | Details


@dataclass(frozen=True)
class Section:
    """A headed part of a report on the same test images."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Chapter:
    """All that is said of the runs on the same images by the same protocol."""

    title: str
    summary: str
    sections: tuple[Section, ...]


def notes(lines: Sequence[str]) -> Iterator[Text]:
    """Each line once, as a note."""
    for line in dict.fromkeys(lines):
        yield Text(line, "note")
