"""A report -> one self-contained HTML file."""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from importlib.resources import files as resources

from markupsafe import Markup

from stl10bench.core import __version__
from stl10bench.core.console import markup
from stl10bench.report import document
from stl10bench.report.figures import inline_svg
from stl10bench.results.table import Table, html_notes, html_table

_THEMES = ("Auto", "Light", "Dark")
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="{}" content="{}">
<link rel="icon" href="data:,">
<title>{}</title>
<style>{}</style>
</head>
<body>
{}
</body>
</html>
"""
_DASHBOARD = """<header><h1>{}</h1>{}</header>
{}
<main>
{}
</main>
<footer>Written by stl10bench {} from the files of the runs.</footer>
<script>{}</script>"""
_DOCUMENT = """<header><h1>{}</h1>{}<p class="summary">{}</p></header>
<main>
{}
</main>
<footer>Made with stl10bench {}.</footer>"""


def html_page(title: str, groups: Sequence[document.GroupReport]) -> str:
    """The whole file of the dashboard.

    The policy of a page allows its own style and script by their sums, images that are part of it,
    and nothing else: a name that were markup after all could neither run nor fetch a thing.
    """
    style, script = (_resource(name) for name in ("page.css", "page.js"))
    themes = _radios("Theme", "theme", _THEMES, "theme")
    content = _join(map(_group, groups, range(len(groups))), "\n")
    body = markup(_DASHBOARD, title, themes, _navigation(groups), content, __version__, script)
    policy = _policy(style, f"script-src '{_sum(script)}'; ")
    return markup(_PAGE, policy, "color-scheme", "light dark", title, style, body)


def html_document(title: str, author: str, report: document.GroupReport) -> str:
    """A document to print: each section with a figure or a table begins a page.

    Nothing in it is hidden or moves.
    """
    style = _resource("study.css")
    byline = markup('<p class="author">{}</p>', author) if author else Markup()
    content = _sections(report.sections, 0)
    body = markup(_DOCUMENT, title, byline, report.summary, content, __version__)
    return markup(_PAGE, _policy(style), "author", author, title, style, body)


def _policy(style: str, script: str = "") -> str:
    return (
        f"default-src 'none'; style-src '{_sum(style)}'; {script}img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _resource(name: str) -> Markup:
    return Markup((resources("stl10bench.report") / name).read_text(encoding="utf-8"))


def _sum(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _join(parts: Iterable[Markup], between: str = "") -> Markup:
    return Markup(between).join(parts)


def _radios(title: str, name: str, choices: Sequence[str], kind: str = "") -> Markup:
    """Buttons of which one is pressed, the first at first; CSS shows what it chooses."""
    button = '<label><input type="radio" name="{}" id="{}-{}"{}><span>{}</span></label>'
    buttons = (
        markup(button, name, name, number, Markup(" checked" if number == 0 else ""), choice)
        for number, choice in enumerate(choices)
    )
    switch = '<fieldset class="switch {}"><legend>{}</legend>{}</fieldset>'
    return markup(switch, kind, title, _join(buttons))


def _anchor(section: document.Section, number: int) -> str:
    """The id of a section; those of the first group have no number."""
    return section.title.lower().replace(" ", "-") + (f"-{number + 1}" if number else "")


def _navigation(groups: Sequence[document.GroupReport]) -> Markup:
    lists = []
    for number, group in enumerate(groups):
        link = '<li><a href="#{}">{}</a></li>'
        links = (markup(link, _anchor(each, number), each.title) for each in group.sections)
        heading = markup("<li class=data>{}</li>", group.title) if len(groups) > 1 else ""
        lists.append(markup("<ul>{}{}</ul>", heading, _join(links)))
    return markup('<nav aria-label="Sections">{}</nav>', _join(lists))


def _group(group: document.GroupReport, number: int) -> Markup:
    article = '<article><p class="data">{}</p><p class="summary">{}</p>\n{}\n</article>'
    return markup(article, group.title, group.summary, _sections(group.sections, number))


def _sections(sections: Sequence[document.Section], number: int) -> Markup:
    parts = []
    for section in sections:
        anchor = _anchor(section, number)
        body = _join(_block(block, anchor) for block in section.blocks)
        element = '<section id="{}"><h2>{}</h2>\n{}\n</section>'
        parts.append(markup(element, anchor, section.title, body))
    return _join(parts, "\n")


def _block(block: document.Block, anchor: str = "") -> Markup:
    match block:
        case document.Tabs(title, figures):
            radios = _radios(title, f"{anchor}-tab", [figure.title for figure in figures])
            return markup('<div class="tabs">{}{}</div>', radios, _join(map(_figure, figures)))
        case document.Text(text, kind):
            return markup('<p class="{}">{}</p>', kind, text)
        case document.Heading(text):
            return markup("<h3>{}</h3>", text)
        case document.Picture():
            return _picture(block)
        case document.Code(text):
            lines = _join((markup("{}", line) for line in text.split("\n")), "\n")
            return markup('<pre tabindex="0"><code>{}</code></pre>', lines)
        case Table():
            return _table(block)
        case document.DetailedTable(table, details):
            return _table(table, [_block(each) if each else None for each in details])
        case document.Details(summary, blocks, is_open):
            element = "<details{}><summary>{}</summary>{}</details>"
            opened = Markup(" open" if is_open else "")
            return markup(element, opened, summary, _join(map(_block, blocks), "\n"))
        case document.Figure():
            return _figure(block)
        case document.Tiles(figures):
            return markup('<div class="tiles">{}</div>', _join(map(_figure, figures)))
        case document.Gallery(title, mistakes):
            items = _join(map(_mistake, mistakes))
            return markup('<h3>{}</h3><ul class="gallery">{}</ul>', title, items)
    raise AssertionError(f"{type(block).__name__}: no such block")


def _table(table: Table, details: Sequence[Markup | None] = ()) -> Markup:
    scroll = '<div class="scroll" role="region" aria-label="{}" tabindex="0">{}</div>{}'
    return markup(scroll, table.title, html_table(table, details), html_notes(table))


def _figure(figure: document.Figure) -> Markup:
    drawn = inline_svg(figure.draw(), figure.text)
    if figure.draw_narrow is not None:
        both = '<div class="wide">{}</div><div class="narrow">{}</div>'
        drawn = markup(both, drawn, inline_svg(figure.draw_narrow(), figure.text))
    caption = markup("<small>{}</small>", figure.caption) if figure.caption else ""
    element = "<figure><figcaption>{}{}</figcaption>{}</figure>"
    return markup(element, figure.title, caption, drawn)


_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}


def _picture(picture: document.Picture) -> Markup:
    kind = _TYPES[picture.name[picture.name.rindex(".") :]]
    source = base64.b64encode(picture.content).decode()
    image = '<img src="data:{};base64,{}" width="{}" alt="{}">'
    drawn = markup(image, kind, source, picture.width, picture.text)
    caption = markup("<figcaption>{}</figcaption>", picture.caption) if picture.caption else ""
    return markup("<figure>{}{}</figure>", drawn, caption)


def _mistake(mistake: document.Mistake) -> Markup:
    image, label, predicted, confidence, others, png = mistake
    picture = Markup()
    if png is not None:
        element = '<img src="data:image/png;base64,{}" width="96" height="96" alt="{}">'
        text = f"test image {image}: {label}, predicted {predicted}"
        picture = markup(element, base64.b64encode(png).decode(), text)
    item = "<li>{}<b>{}</b> {}<br>is {}<br><small>test image {}<br>{}</small></li>"
    return markup(item, picture, predicted, f"{confidence:.3f}", label, f"{image:,}", others)
