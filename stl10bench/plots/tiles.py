"""Small images with a line or two of text each -> sheets of them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from stl10bench.errors import UsageError
from stl10bench.plots.figures import GREY, Pixels, Sheet, look

GAP = 4  # pixels between tiles
LINE = 16  # pixels, the height of a line of text
SIDE = 96  # pixels, the least side of a tile; smaller images are enlarged by whole numbers
COLUMNS = 10  # of a gallery, and the classes of a band of samples
_LEFT = 120  # pixels for the headings of rows
TITLE = 560  # pixels that a title has at least


class Tile(NamedTuple):
    """One image and the lines of text below it."""

    pixels: Pixels  # uint8 (H, W, 3)
    lines: tuple[str, ...] = ()
    colour: str = "black"


class Section(NamedTuple):
    """Tiles that belong together, and what they are."""

    heading: str
    tiles: Sequence[Tile]


class Measures(NamedTuple):
    """Of tiles of one size, in pixels of the picture."""

    scale: int
    width: int
    height: int

    @classmethod
    def of(cls, sections: Sequence[Section], least: int) -> "Measures":
        """Raises UsageError when there is no tile."""
        tiles = [tile for section in sections for tile in section.tiles]
        if not tiles:
            raise UsageError("there is nothing to show")
        height, width = tiles[0].pixels.shape[:2]
        scale = math.ceil(least / max(height, width))
        return cls(scale, width * scale, height * scale)

    @property
    def across(self) -> int:
        """From the left of a tile to that of the next."""
        return self.width + GAP

    def down(self, section: Section) -> int:
        """From the top of a tile to that of the one below, its lines of text between."""
        return (
            self.height + GAP + LINE * max((len(tile.lines) for tile in section.tiles), default=0)
        )


@look()
def table(title: str, rows: Sequence[Section], columns: Sequence[str]) -> Figure:
    """Rows of tiles with their headings at the left, and a heading over each column."""
    size = Measures.of(rows, SIDE)
    width = max(TITLE, _LEFT + len(columns) * size.across)
    top = 2 * LINE + GAP
    sheet = Sheet(width, top + sum(map(size.down, rows)))
    title_line(sheet, title)
    for place, name in enumerate(columns):
        middle = _LEFT + place * size.across + size.width / 2
        sheet.text(middle, 1.5 * LINE, name, width=size.width)
    for row in rows:
        middle = top + size.height / 2
        sheet.text(_LEFT - 2 * GAP, middle, row.heading, width=_LEFT - 3 * GAP, align="right")
        for place, tile in enumerate(row.tiles):
            _paint(sheet, _LEFT + place * size.across, top, tile, size.scale)
        top += size.down(row)
    return sheet.finish()


@look()
def gallery(
    title: str, sections: Sequence[Section], *, columns: int = COLUMNS, least: int = SIDE
) -> Figure:
    """Sections of tiles, each under its heading ("": none), wrapped after `columns`.

    `least` is the least side of a tile in the picture.
    """
    size = Measures.of(sections, least)
    used = min(columns, max(len(section.tiles) for section in sections))
    width = max(TITLE, used * size.across + GAP)
    heads = [(LINE + GAP) * bool(section.heading) for section in sections]
    bodies = [math.ceil(len(section.tiles) / used) * size.down(section) for section in sections]
    sheet = Sheet(width, LINE + GAP + sum(heads) + sum(bodies))
    title_line(sheet, title)
    top = LINE + GAP
    for section, head, body in zip(sections, heads, bodies, strict=True):
        if head:
            text, room = section.heading, width - 2 * GAP
            sheet.text(GAP, top + LINE / 2, text, width=room, size=10, align="left")
        for number, tile in enumerate(section.tiles):
            left = GAP + number % used * size.across
            below = top + head + number // used * size.down(section)
            _paint(sheet, left, below, tile, size.scale)
        top += head + body
    return sheet.finish()


def title_line(sheet: Sheet, text: str) -> None:
    """What the picture is, small, at its top."""
    width = sheet.pixels.shape[1] - 2 * GAP
    sheet.text(GAP, LINE / 2, text, width=width, size=8, align="left", colour=GREY)


def _paint(sheet: Sheet, left: int, top: int, tile: Tile, scale: int) -> None:
    sheet.image(left, top, tile.pixels, scale=scale)
    height, width = (scale * side for side in tile.pixels.shape[:2])
    for number, line in enumerate(tile.lines):
        middle = top + height + (number + 0.5) * LINE
        sheet.text(left + width / 2, middle, line, width=width, size=8, colour=tile.colour)
