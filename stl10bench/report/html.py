"""A report -> one HTML file that needs nothing but itself."""

import base64
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files as resources
from typing import Any

from stl10bench.core import __version__
from stl10bench.core.console import escape_html as escape
from stl10bench.report.document import (
    Block,
    Cell,
    Chapter,
    Choice,
    Code,
    Details,
    Figure,
    Gallery,
    Mistake,
    Section,
    Table,
    Text,
    Tiles,
)

_STEPS = 10  # of colour
_LINE = 30  # characters


def html_table(table: Table, *, fold: Callable[[Details], str]) -> str:
    """The markup; `fold` gives that of a fold-out."""
    lefts = [number == 0 or name in table.left for number, name in enumerate(table.header)]
    heads = "".join(
        _head(table, name, left) for name, left in zip(table.header, lefts, strict=True)
    )
    bodies = []
    details = table.details or (None,) * len(table.lines)
    for line, more in zip(table.lines, details, strict=True):
        body = f"<tr>{''.join(map(_cell, line, lefts, range(len(line))))}</tr>"
        if more is not None:
            inside = f'<div class="fold">{fold(more)}</div>'
            body += f'<tr class="more"><td colspan="{len(line)}">{inside}</td></tr>'
        bodies.append(f"<tbody>{body}</tbody>" if table.sortable else body)
    whole = "".join(bodies) if table.sortable else f"<tbody>{''.join(bodies)}</tbody>"
    kind = ' class="matrix"' if table.corner or not table.header[0] else ""
    return (
        f'<div class="scroll" role="region" aria-label="{escape(table.title)}" tabindex="0">'
        f"<table{kind}><caption>{escape(table.title)}</caption>"
        f"<thead><tr>{heads}</tr></thead>{whole}</table></div>"
    )


def _head(table: Table, name: str, left: bool) -> str:
    kind = _classes(["left"] * left, name)
    if not name:
        return f"<th scope=col{kind}><small>{escape(table.corner)}</small></th>"
    if not table.sortable or name in table.pictures:
        return f"<th scope=col{kind}>{escape(name)}</th>"
    order = ' aria-sort="descending"' if name == table.sorted_by else ""
    return f'<th scope=col{kind}{order}><button type="button">{escape(name)}</button></th>'


def _cell(cell: Cell, left: bool, number: int) -> str:
    heat = [] if cell.heat is None else [f"h{round(cell.heat * _STEPS)}"]
    kind = _classes(["left"] * left + heat, cell.text)
    value = "" if cell.value is None else f' data-value="{escape(str(cell.value))}"'
    tag = "th scope=row" if number == 0 else "td"
    return f"<{tag}{kind}{value}>{cell.svg or escape(cell.text)}</{tag[:2]}>"


def _classes(names: list[str], text: str) -> str:
    """The attribute; a text that is too long for one line is `long`."""
    names = names + ["long"] * (len(text) > _LINE)
    return f' class="{" ".join(names)}"' if names else ""


_THEMES = ("Auto", "Light", "Dark")


def html_page(title: str, chapters: Sequence[Chapter]) -> str:
    """The whole file.

    Its policy allows its own style and script by their sums, images that are part of it, and
    nothing else: a name that were markup after all could neither run nor fetch a thing.
    """
    style, script = (_resource(name) for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; style-src '{_sum(style)}'; script-src '{_sum(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    names = _anchors(chapters)
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>",
            f"<header><h1>{escape(title)}</h1>{_themes()}</header>",
            _navigation(chapters, names),
            "<main>",
            *(_chapter(chapter, anchors) for chapter, anchors in zip(chapters, names, strict=True)),
            f"</main>\n<footer>Written by stl10bench {escape(__version__)} from the files "
            "of the runs; nothing in it is fetched.</footer>",
            f"<script>{script}</script>\n</body>\n</html>\n",
        ]
    )


def _resource(name: str) -> str:
    return (resources("stl10bench.report") / name).read_text(encoding="utf-8")


def _sum(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _themes() -> str:
    buttons = "".join(
        f'<label><input type="radio" name="theme" id="theme-{name.lower()}"'
        f"{' checked' if name == 'Auto' else ''}><span>{name}</span></label>"
        for name in _THEMES
    )
    return f'<fieldset class="switch theme"><legend>Theme</legend>{buttons}</fieldset>'


def _anchors(chapters: Sequence[Chapter]) -> list[list[str]]:
    """An id for each section: of the first chapter its name, of others with a number."""
    return [
        [
            section.title.lower().replace(" ", "-") + (f"-{number}" if number > 1 else "")
            for section in chapter.sections
        ]
        for number, chapter in enumerate(chapters, 1)
    ]


def _navigation(chapters: Sequence[Chapter], anchors: Sequence[Sequence[str]]) -> str:
    lines = []
    for chapter, names in zip(chapters, anchors, strict=True):
        links = "".join(
            f'<li><a href="#{escape(name)}">{escape(section.title)}</a></li>'
            for section, name in zip(chapter.sections, names, strict=True)
        )
        heading = f"<li class=data>{escape(chapter.title)}</li>" if len(chapters) > 1 else ""
        lines.append(f"<ul>{heading}{links}</ul>")
    return f'<nav aria-label="Sections">{"".join(lines)}</nav>'


def _chapter(chapter: Chapter, anchors: Sequence[str]) -> str:
    sections = "\n".join(map(_section, chapter.sections, anchors))
    return (
        f'<article><p class="data">{escape(chapter.title)}</p>'
        f'<p class="summary">{escape(chapter.summary)}</p>\n{sections}\n</article>'
    )


def _section(section: Section, anchor: str) -> str:
    body = "\n".join(
        _choice(block, anchor) if isinstance(block, Choice) else _block(block)
        for block in section.blocks
    )
    return f'<section id="{escape(anchor)}"><h2>{escape(section.title)}</h2>\n{body}\n</section>'


def _block(block: Block) -> str:
    draw: Callable[[Any], str] = _DRAW[type(block)]
    return draw(block)


def _text(block: Text) -> str:
    kind = ' class="note"' if block.kind == "note" else ""
    return f"<p{kind}>{escape(block.text)}</p>"


def _code(block: Code) -> str:
    lines = "\n".join(map(escape, block.text.split("\n")))
    return f'<pre tabindex="0"><code>{lines}</code></pre>'


def _details(block: Details) -> str:
    body = "\n".join(map(_block, block.blocks))
    opened = " open" if block.open else ""
    return f"<details{opened}><summary>{escape(block.summary)}</summary>{body}</details>"


def _figure(block: Figure) -> str:
    drawn = f'<div class="wide">{block.wide}</div><div class="narrow">{block.narrow}</div>'
    if not block.narrow:
        drawn = block.wide
    caption = f"<small>{escape(block.caption)}</small>" if block.caption else ""
    return f"<figure><figcaption>{escape(block.title)}{caption}</figcaption>{drawn}</figure>"


def _choice(block: Choice, anchor: str) -> str:
    buttons = "".join(
        f'<label><input type="radio" name="{escape(anchor)}"{"" if number else " checked"}>'
        f"<span>{escape(figure.title)}</span></label>"
        for number, figure in enumerate(block.figures)
    )
    switch = f'<fieldset class="switch"><legend>{escape(block.title)}</legend>{buttons}</fieldset>'
    return f'<div class="choice">{switch}{"".join(map(_figure, block.figures))}</div>'


def _tiles(block: Tiles) -> str:
    return f'<div class="tiles">{"".join(map(_block, block.blocks))}</div>'


def _gallery(block: Gallery) -> str:
    items = "".join(map(_mistake, block.mistakes))
    return f'<h3>{escape(block.title)}</h3><ul class="gallery">{items}</ul>'


def _mistake(one: Mistake) -> str:
    picture = ""
    if one.png is not None:
        data = base64.b64encode(one.png).decode()
        text = f"test image {one.row}: {one.truth}, taken for {one.taken_for}"
        picture = (
            f'<img src="data:image/png;base64,{data}" width="96" height="96" alt="{escape(text)}">'
        )
    return (
        f"<li>{picture}<b>{escape(one.taken_for)}</b> {one.confidence:.3f}"
        f"<br>is {escape(one.truth)}<br><small>test image {one.row:,}<br>{escape(one.others)}"
        "</small></li>"
    )


_DRAW: dict[type, Callable[[Any], str]] = {
    Text: _text,
    Code: _code,
    Details: _details,
    Figure: _figure,
    Tiles: _tiles,
    Gallery: _gallery,
    Table: partial(html_table, fold=_details),
}
