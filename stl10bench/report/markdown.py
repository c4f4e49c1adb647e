"""A report -> Markdown: the same numbers; pictures are files beside it, charts are left out."""

import re
from collections.abc import Sequence
from urllib.parse import quote

from stl10bench.core.console import escape_markdown
from stl10bench.report import document
from stl10bench.results.table import Cell, Table, to_markdown


def markdown_document(title: str, groups: Sequence[document.GroupReport]) -> str:
    """The whole document; figures, and what is only said of them, are left out."""
    parts = [f"# {escape_markdown(title)}"]
    for group in groups:
        parts += [escape_markdown(group.title), escape_markdown(group.summary)]
        for section in group.sections:
            parts += _section(section)
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def study_markdown(title: str, author: str, report: document.GroupReport, folder: str) -> str:
    """The study's document; its pictures are in `folder` beside it."""
    parts = [f"# {escape_markdown(title)}", *([escape_markdown(author)] if author else [])]
    parts.append(escape_markdown(report.summary))
    for section in report.sections:
        parts += _section(section, folder)
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def pictures(report: document.GroupReport) -> dict[str, bytes]:
    """The files of a document's pictures, by their names."""
    blocks = (block for section in report.sections for block in section.blocks)
    return {block.name: block.content for block in blocks if isinstance(block, document.Picture)}


def _section(section: document.Section, folder: str = "") -> list[str]:
    body = [part for block in section.blocks for part in _block(block, folder)]
    return [f"## {escape_markdown(section.title)}", *body] if body else []


def _block(block: document.Block, folder: str = "") -> list[str]:
    match block:
        case document.Heading(text):
            return [f"### {escape_markdown(text)}"]
        case document.Picture():
            link = f"{quote(folder)}/{quote(block.name)}"
            caption = [f"*{escape_markdown(block.caption)}*"] if block.caption else []
            return [f"![{escape_markdown(block.text)}]({link})", *caption]
        case document.Text(text, kind):
            return [] if kind == "legend" else [escape_markdown(text)]
        case document.Code(text):  # in a fence that is longer than any in it
            longest = max(map(len, re.findall("`+", text)), default=0)
            fence = "`" * max(3, longest + 1)
            return [f"{fence}sh\n{text}\n{fence}"]
        case Table():
            text = to_markdown(_without_pictures(block))
            return [text.partition("\n\n")[2] if folder else text]  # a heading is its title
        case document.DetailedTable(table, details):  # whose tables' titles say what they belong to
            blocks = (table, *(block for each in details if each for block in each.blocks))
            return [part for block in blocks for part in _block(block)]
        case document.Details(summary, blocks):
            parts = [part for block in blocks for part in _block(block)]
            return [f"**{escape_markdown(summary)}**", *parts]
        case document.Gallery(title, mistakes):
            header = ("test image", "class", "predicted", "confidence", "runs")
            lines = ((str(m[0]), *m[1:3], f"{m.confidence:.3f}", m.others) for m in mistakes)
            return [to_markdown(Table(title, header, tuple(lines), left=header[1:3]))]
    return []


def _without_pictures(table: Table) -> Table:
    cells = [cell for line in table.lines for cell in zip(table.header, line, strict=True)]
    for name in {name for name, cell in cells if isinstance(cell, Cell) and cell.picture}:
        table = table.without(name)
    return table
