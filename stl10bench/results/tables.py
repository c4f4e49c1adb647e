"""Rows -> tables, as text for a terminal, Markdown, CSV, LaTeX, HTML or JSON."""

import csv
import io
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stl10bench.core.console import clean, escape_csv, escape_html, escape_latex, escape_markdown
from stl10bench.core.errors import CheckpointError, unknown
from stl10bench.metrics.significance import SIGNIFICANCE
from stl10bench.results import columns, ranking
from stl10bench.results.aggregate import aggregate
from stl10bench.results.columns import Column
from stl10bench.results.rows import Failure, Row, parse_row
from stl10bench.results.run_folder import current_folders

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
        console.print(clean(note), markup=False, highlight=False)


def _width(grid: Grid, console: Console) -> int:
    return console.measure(_table(grid), options=console.options.update(max_width=1000)).maximum


def _table(grid: Grid) -> Table:
    title = escape(clean(grid.title))
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, (name, left) in enumerate(zip(grid.header, grid.is_left(), strict=True)):
        table.add_column(escape(name), justify="left" if left else "right", no_wrap=number > 0)
    for line in grid.lines:
        table.add_row(*(escape(clean(cell)) for cell in line))
    return table


def to_markdown(grid: Grid) -> str:
    """A title, a Markdown table and its notes."""
    lines = [[escape_markdown(cell) for cell in line] for line in (grid.header, *grid.lines)]
    lines.insert(1, ["---" if left else "---:" for left in grid.is_left()])
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "".join(f"\n{escape_markdown(note)}\n" for _, note in grid.notes)
    return f"{escape_markdown(grid.title)}\n\n{rows}\n{notes}"


def to_latex(grid: Grid) -> str:
    r"""A LaTeX table with its caption; needs \usepackage{booktabs}."""
    header, *lines = (
        f"{' & '.join(map(escape_latex, line))} \\\\" for line in (grid.header, *grid.lines)
    )
    notes = "".join(f"\\par {escape_latex(note)}\n" for _, note in grid.notes)
    return "\n".join(
        [
            r"\begin{table}  % \usepackage{booktabs}",
            rf"\caption{{{escape_latex(grid.title)}}}",
            rf"\begin{{tabular}}{{{''.join('l' if left else 'r' for left in grid.is_left())}}}",
            *(r"\toprule", header, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}"),
            notes + r"\end{table}",
            "",
        ]
    )


def to_html(grids: Sequence[Grid], title: str) -> str:
    """A page of its own: no script, and nothing that it would fetch."""
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>{escape_html(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>",
            *map(_html_table, grids),
            "</body>\n</html>\n",
        ]
    )


def _html_table(grid: Grid) -> str:
    def row(line: Sequence[str], tag: str) -> str:
        cells = (
            f"<{tag}{' class=left' if left else ''}>{escape_html(cell)}</{tag}>"
            for cell, left in zip(line, grid.is_left(), strict=True)
        )
        return f"<tr>{''.join(cells)}</tr>"

    return "\n".join(
        [
            f"<table>\n<caption>{escape_html(grid.title)}</caption>",
            f"<thead>{row(grid.header, 'th')}</thead>\n<tbody>",
            *(row(line, "td") for line in grid.lines),
            "</tbody>\n</table>",
            *(f"<p>{escape_html(note)}</p>" for _, note in grid.notes),
        ]
    )


FORMATS = ("table", "markdown", "csv", "latex", "html", "json")
_REFERENCE = Path(__file__).with_name("reference")
_LONGEST = 40  # characters of a failed run's reason that fit into a cell
_TIED = (
    "tied: cannot be told apart from the best on the same test images (exact McNemar test, or with "
    f"several seeds or folds a test of the means; Holm-corrected, p >= {SIGNIFICANCE})"
)
_UNFINISHED = "n/m: n of m runs are done; a row with fewer than the others is not ranked"
_CHANCE = "= chance: the interval reaches what a uniform guess or a constant class scores"


def stored_rows(runs_dir: Path) -> list[Row | Failure]:
    """The rows of all finished runs below `runs_dir`, by data and test accuracy, then the failed.

    One damaged file hides no other: it is named in a warning and left out. Raises the first of
    these errors where nothing else is left.
    """
    rows: list[Row] = []
    failures: list[Failure] = []
    damaged: list[CheckpointError] = []
    for folder in current_folders(runs_dir):
        try:
            if folder.is_finished:
                rows.append(folder.row())
            elif (failure := folder.failure()) is not None:
                failures.append(failure)
                continue
            else:
                continue
            rows[-1] = folder.with_hits(rows[-1])
        except CheckpointError as error:
            damaged.append(error)
            warnings.warn(str(error), stacklevel=2)
    if damaged and not rows and not failures:
        raise damaged[0]
    rows.sort(key=lambda row: (data_title(row), row.test_accuracy))
    return [*rows, *failures]


def reference_rows(name: str) -> list[Row]:
    """The rows of a file that ships with the package, each with the file's title.

    `report`: the course report's. `photos96`, `folds`: ours, of photos in STL-10's layout.
    """
    content = json.loads((_REFERENCE / f"{name}.json").read_text(encoding="utf-8"))
    title = f"reference: {content['title']}"
    return [parse_row({**row, "title": title}) for row in content["rows"]]


def all_reference_rows() -> list[Row]:
    """The rows of all these files."""
    return [row for path in sorted(_REFERENCE.glob("*.json")) for row in reference_rows(path.stem)]


def row_label(row: Row | Failure) -> str:
    """The model as a reader knows it: its name, what learns, and options of its own."""
    marks = []
    options = dict(row.model_options)
    if "freeze" in options:
        marks.append("frozen" if options.pop("freeze") else "fine-tuned")
        if isinstance(row, Row) and not row.pretrained:
            marks[-1] = marks[-1] if marks[-1] == "frozen" else "from scratch"
    given = row.config.model_options if row.config is not None else {}
    marks += [f"{key} {_plain(options[key])}" for key in given if key in options]
    if isinstance(row, Row):
        if row.selection == "last epoch":
            marks.append("last epoch")
        if row.stacked > 1:  # its seconds are those of all that were trained with it
            marks.append(f"{row.stacked} stacked")
        if row.baseline:
            marks.append("baseline")
    return f"{row.model} ({', '.join(marks)})" if marks else row.model


def data_title(row: Row) -> str:
    """Which images a finished row was tested on; only the official ones are called STL-10 alone."""
    if row.title:
        return f"{row.title}{_training_images(row)}"
    note = {
        "STL-10": "",
        "demo": f" {row.config.data[:12]}: drawn images, not STL-10",
    }.get(row.dataset, f" {row.config.data[:12]}: not the STL-10 images")
    return clean(f"{row.dataset}{note}, {row.test_images:,} test images{_training_images(row)}")


def _training_images(row: Row | Failure) -> str:
    """How the training images were chosen, where they are not all but the validation images."""
    config = row.config
    if config is None:
        return ""
    if config.fold is not None:
        shared = row.fold_overlap if isinstance(row, Row) else None
        overlap = "" if shared is None else f", which share {shared:.1%} of their images pairwise"
        return f", each trained on one of the pre-defined folds{overlap}"
    if config.labels_per_class:
        return f", {config.labels_per_class:,} labelled images a class"
    return ""


@dataclass(frozen=True)
class View:
    """What of the rows a table shows.

    `columns` name those beside the model (none: the default ones), `sort` the one that orders the
    rows (else they stay in their order), `baselines` adds what needs no image, and `combine` makes
    one row of the seeds or folds of a setting.
    """

    columns: tuple[str, ...] = ()
    sort: str | None = None
    descending: bool = False
    baselines: bool = False
    combine: bool = True


def show_rows(
    rows: Sequence[Row | Failure], style: str, console: Console, view: View = View()
) -> None:
    """Print rows to `console` in one of FORMATS, a table for the data and each protocol.

    Raises UsageError, with the nearest name, for another style or a column that no row has.
    """
    if style not in FORMATS:
        raise unknown("format", style, FORMATS)
    parts: list[tuple[str, list[Row | Failure]]] = []
    for title, part in by_protocol(rows):
        combined = aggregate(part) if view.combine else part
        baselines = ranking.baselines(combined) if view.baselines else []
        parts.append((title, ranking.annotate([*baselines, *combined])))
    shown = [row for _, part in parts for row in part]
    chosen = columns.choose(view.columns or columns.DEFAULT, shown)
    if view.sort is not None:
        columns.choose([view.sort], shown)
        parts = [(title, ordered(part, view.sort, view.descending)) for title, part in parts]
    everything = [
        row
        for number, (_, part) in enumerate(parts)
        for row in part
        if number == 0 or isinstance(row, Row) or row.config is not None
    ]  # a failure without data is in each part
    if style == "json":
        console.out(rows_to_json(everything, view.columns), highlight=False)
        return
    if style == "csv":
        console.out(rows_to_csv(everything, view.columns), end="", highlight=False)
        return
    if not view.columns:  # a column that tells nothing is no column
        idle = {
            key
            for key in ("vs_best", "test_accuracy_sd", "contamination")
            if all(columns.value(row, key) in (None, "none") for row in everything)
        }
        if all(row.runs_asked in (None, 1) for row in everything if isinstance(row, Row)):
            idle.add("runs")
        chosen = [column for column in chosen if column.key not in idle]
    grids = [rows_to_grid(title, part, chosen) for title, part in parts]
    if style == "html":
        console.out(to_html(grids, "stl10bench table"), end="", highlight=False)
    for grid in grids:
        if style == "table":
            print_table(grid, console, expendable=columns.EXPENDABLE)
        elif style != "html":
            render = to_markdown if style == "markdown" else to_latex
            console.out(render(grid), highlight=False)


def by_protocol(rows: Sequence[Row | Failure]) -> list[tuple[str, list[Row | Failure]]]:
    """Rows of the same protocol on the same images, with a title.

    Reference rows stand apart from one's own. A failure that does not say on which data it was is
    in each part.
    """
    titles = {_part_key(row): data_title(row) for row in rows if isinstance(row, Row)}
    protocols = {protocol for protocol, _ in titles}
    for row in rows:
        if isinstance(row, Failure) and row.config is not None and row.protocol not in protocols:
            title = f"data {row.config.data[:12]}{_training_images(row)}"
            titles[str(row.protocol), ""] = title

    def belongs(row: Row | Failure, key: tuple[str, str]) -> bool:
        if isinstance(row, Failure):
            return row.protocol in (None, key[0])
        return _part_key(row) == key

    keys = sorted(titles, key=lambda key: (titles[key], key)) or [("", "")]
    return [(titles.get(key, ""), [row for row in rows if belongs(row, key)]) for key in keys]


def _part_key(row: Row) -> tuple[str, str]:
    return row.protocol, row.title or row.dataset


def ordered(
    part: Sequence[Row | Failure], key: str, descending: bool = False
) -> list[Row | Failure]:
    """Rows sorted by a column: numbers before text, and what lacks it last."""
    values = [(columns.value(row, key), row) for row in part]
    present = [(value, row) for value, row in values if value is not None]
    present.sort(
        key=lambda pair: (
            (0, pair[0], "") if isinstance(pair[0], int | float) else (1, 0, str(pair[0]))
        ),
        reverse=descending,
    )
    return [row for _, row in present] + [row for value, row in values if value is None]


def rows_to_grid(title: str, part: Sequence[Row | Failure], chosen: Sequence[Column]) -> Grid:
    """One table as text; a failed run says why in place of its accuracy, at length in a note."""
    lines, notes = [], []
    for row in part:
        if isinstance(row, Failure):
            reason = _short(row.error)
            cells = [reason if column.key == "test_accuracy" else "" for column in chosen]
            if reason not in cells or reason != row.error:
                notes.append((columns.LABEL, f"{row_label(row)}: {row.error}"))
        else:
            cells = [columns.text(row, column) for column in chosen]
            notes += [(columns.LABEL, f"{row_label(row)}: {error}") for error in row.failures]
        lines.append((row_label(row), *cells))
    titles = {column.key: column.title for column in chosen}
    finished = [row for row in part if isinstance(row, Row)]
    if "vs_best" in titles and any(row.vs_best == "tied" for row in finished):
        notes.append((titles["vs_best"], _TIED))
    if "runs" in titles and any(row.runs != row.runs_asked for row in finished):
        notes.append((titles["runs"], _UNFINISHED))
    if "test_accuracy" in titles and any(row.at_chance for row in finished):
        notes.append((titles["test_accuracy"], _CHANCE))
    header = (columns.LABEL, *(column.title for column in chosen))
    left = (columns.COLUMNS["test_accuracy"].title,)  # for some say more than a number
    return Grid(title, header, tuple(lines), tuple(notes), left)


def rows_to_csv(rows: Sequence[Row | Failure], keys: Sequence[str] = ()) -> str:
    """Rows as CSV with full numbers; text that a spreadsheet would run is quoted with '."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = ("label", *keys) if keys else columns.CSV
    writer.writerow(names)
    for row in rows:
        values = [row_label(row) if key == "label" else columns.value(row, key) for key in names]
        cells = [list(value) if isinstance(value, tuple) else value for value in values]
        writer.writerow([escape_csv(cell) for cell in cells])
    return out.getvalue()


def rows_to_json(rows: Sequence[Row | Failure], keys: Sequence[str] = ()) -> str:
    """Rows as a JSON list: all that they say, or their label and the columns `keys`."""
    if keys:
        content = [
            {"label": row_label(row), **{key: columns.value(row, key) for key in keys}}
            for row in rows
        ]
    else:
        content = [row.model_dump(mode="json") for row in rows]
    return json.dumps(content, indent=2)


def _short(reason: str) -> str:
    """The part of a failed run's reason that fits into a cell."""
    return shorten(reason, _LONGEST, placeholder=" ...")


def _plain(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
