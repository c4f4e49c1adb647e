"""A table -> text for a terminal, Markdown, CSV, LaTeX or HTML."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from markupsafe import Markup
from rich import box
from rich import table as rich_table
from rich.console import Console
from rich.markup import escape

from stl10bench.core.console import clean, escape_csv, escape_latex, escape_markdown, markup


class Cell(str):
    """The text of a cell, and what an HTML page adds to it; other formats show the text alone."""

    sort_key: float | str | None  # a column that has any can be sorted by a click
    heat: float | None  # how strong its colour is, 0..1
    picture: Markup | None  # in place of the text

    def __new__(
        cls,
        text: str,
        sort_key: float | str | None = None,
        *,
        heat: float | None = None,
        picture: Markup | None = None,
    ) -> Self:
        cell = super().__new__(cls, text)
        cell.sort_key, cell.heat, cell.picture = sort_key, heat, picture
        return cell


@dataclass(frozen=True)
class Table:
    """A table as text that is not escaped yet; the first column names the lines."""

    title: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    notes: tuple[tuple[str, str], ...] = ()  # the column that it explains, and what it says
    left: tuple[str, ...] = ()  # columns of text beside the first; others are right-aligned
    sorted_by: str = ""  # the column by which the lines stand, the highest first
    minor: tuple[str, ...] = ()  # columns for which a printed page has no room
    wrapped: tuple[str, ...] = ()  # columns that a narrow terminal wraps in place of the first

    def without(self, title: str) -> "Table":
        """The table without one of its columns."""
        at = self.header.index(title)
        return replace(
            self,
            header=self.header[:at] + self.header[at + 1 :],
            lines=tuple(line[:at] + line[at + 1 :] for line in self.lines),
            notes=tuple(note for note in self.notes if note[0] != title),
        )

    def is_left(self) -> list[bool]:
        """Of each column, whether its cells are left-aligned."""
        return [number == 0 or name in self.left for number, name in enumerate(self.header)]


def print_table(
    table: Table,
    console: Console,
    *,
    expendable: Sequence[str] = (),
    whole: str = "--format markdown",
) -> None:
    """Print a table; on a narrow terminal the columns `expendable` go first, in their order.

    Then a line says that the option `whole` shows them. Long names are wrapped before that, and
    every cell where names would be left without room.
    """
    hidden = []
    for title in expendable:
        if title in table.header and _width(table, console, _LONG) > console.width:
            table = table.without(title)
            hidden.append(title)
    if _width(table, console, _SHORTEST) > console.width:
        table = replace(table, wrapped=table.header)
    console.print(_to_rich(table))
    if hidden:
        names = escape(", ".join(reversed(hidden)))
        console.print(f"[dim]no room for: {names} ({whole} shows all)[/dim]", highlight=False)
    for _, note in table.notes:
        console.print(clean(note), markup=False, highlight=False)


def _width(table: Table, console: Console, longest: int) -> int:
    """The characters of a line, where names longer than `longest` are wrapped."""
    options = console.options.update(max_width=10_000)
    return console.measure(_to_rich(table, longest), options=options).maximum


def _to_rich(table: Table, longest: int | None = None) -> rich_table.Table:
    """The table for rich; columns that wrap share `longest` characters."""
    wrapped = [name for name in table.header if name in table.wrapped] or table.header[:1]
    width = longest and max(_SHORTEST, longest // len(wrapped))
    title = escape(clean(table.title))
    shown = rich_table.Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, left in zip(table.header, table.is_left(), strict=True):
        justify: Any = "left" if left else "right"
        wraps: Any = {"max_width": width} if name in wrapped else {"no_wrap": True}
        shown.add_column(escape(name), justify=justify, overflow="fold", **wraps)
    for line in table.lines:
        shown.add_row(*(escape(clean(cell)) for cell in line))
    return shown


def to_markdown(table: Table) -> str:
    """A title, a Markdown table and its notes."""
    lines = [[escape_markdown(cell) for cell in line] for line in (table.header, *table.lines)]
    lines.insert(1, ["---" if left else "---:" for left in table.is_left()])
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "".join(f"\n{escape_markdown(note)}\n" for _, note in table.notes)
    return f"{escape_markdown(table.title)}\n\n{rows}\n{notes}"


def to_latex(table: Table) -> str:
    r"""A LaTeX table with its caption; needs \usepackage{booktabs}."""
    header, *lines = (
        f"{' & '.join(map(escape_latex, line))} \\\\" for line in (table.header, *table.lines)
    )
    notes = "".join(f"\\par {escape_latex(note)}\n" for _, note in table.notes)
    return "\n".join(
        [
            r"\begin{table}  % \usepackage{booktabs}",
            rf"\caption{{{escape_latex(table.title)}}}",
            rf"\begin{{tabular}}{{{''.join('l' if left else 'r' for left in table.is_left())}}}",
            *(r"\toprule", header, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}"),
            notes + r"\end{table}",
            "",
        ]
    )


_CSS = Markup(
    "body{font:14px/1.5 system-ui,sans-serif;margin:2rem;overflow-x:auto}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "caption{text-align:left;font-weight:600;padding:.5rem 0}"
    "th,td{padding:.2rem .8rem;text-align:right;white-space:nowrap}"
    ".left{text-align:left}tbody th{font-weight:400}"
    "thead{border-bottom:1px solid}p{max-width:60rem}"
)
_HEAT_STEPS = 10  # the classes h0 to h10 of the report's style
_LONG = 30  # characters of a cell that may wrap
_SHORTEST = 10  # characters of a cell that wraps and is still read


def to_html(tables: Sequence[Table], title: str) -> str:
    """A page of its own: no script, and nothing that it would fetch."""
    return markup(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width">\n'
        "<title>{}</title>\n<style>{}</style>\n</head>\n<body>\n{}\n</body>\n</html>\n",
        title,
        _CSS,
        Markup("\n").join(html_table(table) + html_notes(table) for table in tables),
    )


def html_table(table: Table, details: Sequence[Markup | None] = ()) -> Markup:
    """The table without its notes; `details` says what stands below each line, or None."""
    heads = (_html_head(table, column, left) for column, left in enumerate(table.is_left()))
    minor = [name in table.minor for name in table.header]
    bodies = []
    for number, line in enumerate(table.lines):
        columns = zip(line, table.is_left(), minor, strict=True)
        cells = Markup().join(
            _html_cell(cell, left, column, is_minor)
            for column, (cell, left, is_minor) in enumerate(columns)
        )
        body = markup("<tr>{}</tr>", cells)
        if details and (below := details[number]) is not None:
            row = '<tr class="more"><td colspan="{}"><div class="details">{}</div></td></tr>'
            body += markup(row, len(line), below)
        bodies.append(markup("<tbody>{}</tbody>", body))  # sorting moves a line with its details
    element = "<table><caption>{}</caption><thead><tr>{}</tr></thead>{}</table>"
    return markup(element, table.title, Markup().join(heads), Markup().join(bodies))


def html_notes(table: Table) -> Markup:
    """A paragraph for each note."""
    return Markup().join(markup('\n<p class="note">{}</p>', note) for _, note in table.notes)


def _html_head(table: Table, column: int, left: bool) -> Markup:
    name, cells = table.header[column], [line[column] for line in table.lines]
    sortable = any(isinstance(cell, Cell) and cell.sort_key is not None for cell in cells)
    text = markup('<button type="button">{}</button>', name) if sortable else name
    order = Markup(' aria-sort="descending"' if name and name == table.sorted_by else "")
    classes = _html_classes(name, left, is_minor=name in table.minor)
    return markup("<th scope=col{}{}>{}</th>", classes, order, text)


def _html_cell(cell: str, left: bool, column: int, is_minor: bool) -> Markup:
    tag = "td" if column else "th scope=row"
    cell = cell if isinstance(cell, Cell) else Cell(cell)
    classes = _html_classes(cell, left, cell.heat, is_minor=is_minor)
    key = Markup() if cell.sort_key is None else markup(' data-value="{}"', cell.sort_key)
    return markup("<{}{}{}>{}</{}>", tag, classes, key, cell.picture or cell, tag[:2])


def _html_classes(
    text: str, left: bool, heat: float | None = None, *, is_minor: bool = False
) -> Markup:
    """The attribute that says how a cell looks."""
    names = ["left"] * left + ["long"] * (len(text) > _LONG) + ["minor"] * is_minor
    names += [] if heat is None else [f"h{round(heat * _HEAT_STEPS)}"]
    return markup(' class="{}"', " ".join(names)) if names else Markup()


def to_csv(header: Iterable[str], lines: Iterable[Iterable[Any]]) -> str:
    """CSV; text that a spreadsheet would run is quoted with '."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([escape_csv(cell) for cell in line] for line in (header, *lines))
    return out.getvalue()
