"""Cells of text -> a table for a terminal, Markdown, LaTeX or HTML; light."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stl10bench import escaping

_CSS = (
    "body{font:14px/1.5 system-ui,sans-serif;margin:2rem;overflow-x:auto}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "caption{text-align:left;font-weight:600;padding:.5rem 0}"
    "th,td{padding:.2rem .8rem;text-align:right;white-space:nowrap}"
    ".left{text-align:left}"
    "thead{border-bottom:1px solid}p{max-width:60rem}"
)


@dataclass(frozen=True)
class Grid:
    """A table as text that is not escaped yet; the first column names the lines."""

    title: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    notes: tuple[tuple[str, str], ...] = ()  # the column that it explains, and what it says
    left: tuple[str, ...] = ()  # columns of text beside the first; others are right-aligned

    def without(self, title: str) -> "Grid":
        """The grid without one of its columns."""
        at = self.header.index(title)
        return replace(
            self,
            header=self.header[:at] + self.header[at + 1 :],
            lines=tuple(line[:at] + line[at + 1 :] for line in self.lines),
            notes=tuple(note for note in self.notes if note[0] != title),
        )

    def is_left(self) -> list[bool]:
        """Of each column, whether its cells begin together."""
        return [number == 0 or name in self.left for number, name in enumerate(self.header)]


def print_table(
    grid: Grid,
    console: Console,
    *,
    expendable: Sequence[str] = (),
    whole: str = "--format markdown",
) -> None:
    """Print a rich table; on a narrow terminal the columns `expendable` go first, in their order.

    Then a line says that the option `whole` shows them. What is not a terminal has room for all.
    """
    if not console.is_terminal:
        console = Console(file=console.file, width=max(80, _width(grid, console)))
    hidden = []
    for title in expendable:
        if _width(grid, console) <= console.width:
            break
        if title in grid.header:
            grid = grid.without(title)
            hidden.append(title)
    console.print(_table(grid))
    if hidden:
        names = escape(", ".join(reversed(hidden)))
        console.print(f"[dim]no room for: {names} ({whole} has all)[/dim]", highlight=False)
    for _, note in grid.notes:
        console.print(escaping.clean(note), markup=False, highlight=False)


def _width(grid: Grid, console: Console) -> int:
    return console.measure(_table(grid), options=console.options.update(max_width=1000)).maximum


def _table(grid: Grid) -> Table:
    title = escape(escaping.clean(grid.title))
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, (name, left) in enumerate(zip(grid.header, grid.is_left(), strict=True)):
        table.add_column(escape(name), justify="left" if left else "right", no_wrap=number > 0)
    for line in grid.lines:
        table.add_row(*(escape(escaping.clean(cell)) for cell in line))
    return table


def markdown(grid: Grid) -> str:
    """A title, a Markdown table and its notes."""
    lines = [[escaping.markdown(cell) for cell in line] for line in (grid.header, *grid.lines)]
    lines.insert(1, ["---" if left else "---:" for left in grid.is_left()])
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "".join(f"\n{escaping.markdown(note)}\n" for _, note in grid.notes)
    return f"{escaping.markdown(grid.title)}\n\n{rows}\n{notes}"


def latex(grid: Grid) -> str:
    r"""A LaTeX table with its caption; needs \usepackage{booktabs}."""
    header, *lines = (
        f"{' & '.join(map(escaping.latex, line))} \\\\" for line in (grid.header, *grid.lines)
    )
    notes = "".join(f"\\par {escaping.latex(note)}\n" for _, note in grid.notes)
    return "\n".join(
        [
            r"\begin{table}  % \usepackage{booktabs}",
            rf"\caption{{{escaping.latex(grid.title)}}}",
            rf"\begin{{tabular}}{{{''.join('l' if left else 'r' for left in grid.is_left())}}}",
            *(r"\toprule", header, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}"),
            notes + r"\end{table}",
            "",
        ]
    )


def html(grids: Sequence[Grid], title: str) -> str:
    """A page of its own: no script, and nothing that it would fetch."""
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>{escaping.html(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>",
            *map(_html_table, grids),
            "</body>\n</html>\n",
        ]
    )


def _html_table(grid: Grid) -> str:
    def row(line: Sequence[str], tag: str) -> str:
        cells = (
            f"<{tag}{' class=left' if left else ''}>{escaping.html(cell)}</{tag}>"
            for cell, left in zip(line, grid.is_left(), strict=True)
        )
        return f"<tr>{''.join(cells)}</tr>"

    return "\n".join(
        [
            f"<table>\n<caption>{escaping.html(grid.title)}</caption>",
            f"<thead>{row(grid.header, 'th')}</thead>\n<tbody>",
            *(row(line, "td") for line in grid.lines),
            "</tbody>\n</table>",
            *(f"<p>{escaping.html(note)}</p>" for _, note in grid.notes),
        ]
    )
