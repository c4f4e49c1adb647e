"""Chapters -> Markdown: the same numbers, without the pictures."""

import re
from collections.abc import Sequence

from stl10bench.core.console import escape_markdown
from stl10bench.report.document import Block, Chapter, Code, Details, Gallery, Section, Table, Text
from stl10bench.results.tables import Grid, to_markdown


def markdown_document(title: str, chapters: Sequence[Chapter]) -> str:
    """The whole document; figures, and what is only said of them, are left out."""
    parts = [f"# {escape_markdown(title)}"]
    for chapter in chapters:
        parts += [escape_markdown(chapter.title), escape_markdown(chapter.summary)]
        for section in chapter.sections:
            parts += _section(section)
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _section(section: Section) -> list[str]:
    body = [part for block in section.blocks for part in _block(block)]
    return [f"## {escape_markdown(section.title)}", *body] if body else []


def _block(block: Block) -> list[str]:
    if isinstance(block, Text):
        return [] if block.kind == "legend" else [escape_markdown(block.text)]
    if isinstance(block, Code):
        return [_fenced(block.text)]
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Details):
        return [
            f"**{escape_markdown(block.summary)}**",
            *(p for b in block.blocks for p in _block(b)),
        ]
    return _gallery(block) if isinstance(block, Gallery) else []


def _table(table: Table) -> list[str]:
    """The table, then what folds out of its lines."""
    kept = [n for n, name in enumerate(table.header) if name not in table.pictures]
    header = (table.header[0] or table.corner, *table.header[1:])
    grid = Grid(
        table.title,
        tuple(header[n] for n in kept),
        tuple(tuple(line[n].text for n in kept) for line in table.lines),
        left=table.left,
    )
    more = [part for one in table.details if one is not None for part in _unfolded(one)]
    return [to_markdown(grid), *more]


def _unfolded(details: Details) -> list[str]:
    """A fold-out without its summary: the title of its table says more."""
    return [part for block in details.blocks for part in _block(block)]


def _gallery(gallery: Gallery) -> list[str]:
    lines = tuple(
        (str(one.row), one.truth, one.taken_for, f"{one.confidence:.3f}", one.others)
        for one in gallery.mistakes
    )
    header = ("test image", "class", "taken for", "confidence", "runs")
    return [to_markdown(Grid(gallery.title, header, lines, left=header[1:3]))]


def _fenced(code: str) -> str:
    """Code in a fence that is longer than any in it."""
    longest = max(map(len, re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{code}\n{fence}"
