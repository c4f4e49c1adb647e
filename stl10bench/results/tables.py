"""Rows -> tables, as text for a terminal, Markdown, CSV, LaTeX, HTML or JSON."""

import csv
import io
import json
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from markupsafe import Markup
from rich import box
from rich import table as rich_table
from rich.console import Console
from rich.markup import escape

from stl10bench.config import RunConfig
from stl10bench.core.console import clean, escape_csv, escape_latex, escape_markdown, markup
from stl10bench.core.errors import CheckpointError, unknown
from stl10bench.metrics.significance import SIGNIFICANCE
from stl10bench.results import columns, ranking
from stl10bench.results.aggregate import aggregate
from stl10bench.results.columns import Column, plain
from stl10bench.results.rows import Failure, Row, parse_row
from stl10bench.results.run_folder import current_folders


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

    Then a line says that the option `whole` shows them. What is not a terminal has room for all.
    """
    if not console.is_terminal:
        console = Console(file=console.file, width=max(80, _width(table, console)))
    hidden = []
    for title in expendable:
        if title in table.header and _width(table, console) > console.width:
            table = table.without(title)
            hidden.append(title)
    console.print(_to_rich(table))
    if hidden:
        names = escape(", ".join(reversed(hidden)))
        console.print(f"[dim]no room for: {names} ({whole} shows all)[/dim]", highlight=False)
    for _, note in table.notes:
        console.print(clean(note), markup=False, highlight=False)


def _width(table: Table, console: Console) -> int:
    return console.measure(_to_rich(table), options=console.options.update(max_width=1000)).maximum


def _to_rich(table: Table) -> rich_table.Table:
    title = escape(clean(table.title))
    shown = rich_table.Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, (name, left) in enumerate(zip(table.header, table.is_left(), strict=True)):
        shown.add_column(escape(name), justify="left" if left else "right", no_wrap=number > 0)
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
    bodies = []
    for number, line in enumerate(table.lines):
        cells = Markup().join(map(_html_cell, line, table.is_left(), range(len(line))))
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
    return markup("<th scope=col{}{}>{}</th>", _html_classes(name, left), order, text)


def _html_cell(cell: str, left: bool, column: int) -> Markup:
    tag = "td" if column else "th scope=row"
    cell = cell if isinstance(cell, Cell) else Cell(cell)
    classes = _html_classes(cell, left, cell.heat)
    key = Markup() if cell.sort_key is None else markup(' data-value="{}"', cell.sort_key)
    return markup("<{}{}{}>{}</{}>", tag, classes, key, cell.picture or cell, tag[:2])


def _html_classes(text: str, left: bool, heat: float | None = None) -> Markup:
    """The attribute that says how a cell looks."""
    names = ["left"] * left + ["long"] * (len(text) > _LONG)
    names += [] if heat is None else [f"h{round(heat * _HEAT_STEPS)}"]
    return markup(' class="{}"', " ".join(names)) if names else Markup()


FORMATS = ("table", "markdown", "csv", "latex", "html", "json")
_REFERENCE = Path(__file__).with_name("reference")
_SHOWN = 3  # settings that tell rows of one label apart
_LONGEST = 40  # characters of a failed run's reason that fit into a cell
_TIED = (
    "tied: not significantly worse than the best on the same test images (exact McNemar test, or "
    "with several seeds or folds a test of the means; p >= "
    f"{SIGNIFICANCE} after Holm's correction)"
)
UNFINISHED = "2/3: only 2 of 3 runs are finished, so the row is not ranked"
_CHANCE = "at chance: the interval includes the accuracy of a uniform guess or of a constant class"


def stored_rows(runs_dir: Path) -> tuple[list[Row | Failure], list[CheckpointError]]:
    """The rows of all finished runs below `runs_dir`, by data and test accuracy, then the failed.

    One damaged file hides no other: each is a warning, and one of the errors that come second. A
    row whose predictions are damaged is kept, but cannot be ranked.
    """
    rows: list[Row] = []
    failures: list[Failure] = []
    damaged: list[CheckpointError] = []
    for folder in current_folders(runs_dir):
        try:
            if folder.is_finished:
                rows.append(folder.row())
                rows[-1] = folder.with_hits(rows[-1])
            elif (failure := folder.failure()) is not None:
                failures.append(failure)
        except CheckpointError as error:
            damaged.append(error)
            warnings.warn(str(error), stacklevel=2)
    rows.sort(key=lambda row: (data_title(row), row.test_accuracy))
    return [*rows, *failures], damaged


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
    """The model as a reader knows it: its name, what is trained, and its options."""
    marks = []
    options = dict(row.model_options)
    if "freeze" in options:
        from_scratch = isinstance(row, Row) and not row.pretrained
        tuned = "from scratch" if from_scratch else "fine-tuned"
        marks.append("frozen" if options.pop("freeze") else tuned)
    changed = row.config.model_options if row.config is not None else {}
    marks += [f"{key} {plain(options[key])}" for key in changed if key in options]
    if isinstance(row, Row):
        if row.selection == "last epoch":
            marks.append("last epoch")
        if row.stacked > 1:  # its seconds are those of all that were trained with it
            marks.append(f"{row.stacked} stacked")
        if row.baseline:
            marks.append("baseline")
    return f"{row.model} ({', '.join(marks)})" if marks else row.model


def row_labels(rows: Sequence[Row | Failure]) -> list[str]:
    """The label of each row; rows of one label are told apart by settings, then by a number."""
    labels = [clean(row_label(row)) for row in rows]
    names: list[str] = []
    seen: Counter[str] = Counter()
    for row, label in zip(rows, labels, strict=True):
        alike = [other for other, text in zip(rows, labels, strict=True) if text == label]
        configs = [other.config for other in alike if other is not row and other.config is not None]
        keys = _distinguishing(row, configs)
        texts = [f"{key} {plain(getattr(row.config, key))}" for key in keys]
        name = clean(", ".join([label, *texts]))
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return names


def _distinguishing(row: Row | Failure, others: Sequence[RunConfig]) -> list[str]:
    """The settings, in their order, that tell a row from others; at most `_SHOWN`.

    Each is the one that tells it from most of those that are still the same. A row that combines
    seeds or folds is not told by these.
    """
    combined = isinstance(row, Row) and row.runs is not None
    left_out = ("model_options", *(("seed", "fold") if combined else ()))
    keys = [key for key in RunConfig.model_fields if key not in left_out]
    chosen: list[str] = []
    while row.config is not None and others and len(chosen) < _SHOWN:
        alike = {
            key: [other for other in others if getattr(other, key) == getattr(row.config, key)]
            for key in keys
        }
        best = min(keys, key=lambda key: len(alike[key]))
        if len(alike[best]) == len(others):
            break
        others = alike[best]
        chosen.append(best)
    return sorted(chosen, key=keys.index)


def data_title(row: Row) -> str:
    """Which images a finished row was tested on; only the official ones are called STL-10 alone."""
    if row.title:
        return f"{row.title}{_training_images(row)}"
    data = row.config.data[:12]
    notes = {"STL-10": "", "demo": f" {data}: drawn images, not STL-10"}
    note = notes.get(row.dataset, f" {data}: not the STL-10 images")
    return clean(f"{row.dataset}{note}, {row.test_images:,} test images{_training_images(row)}")


def _training_images(row: Row | Failure) -> str:
    """How the protocol differs from training on all images but those of validation."""
    config = row.config
    if config is None:
        return ""
    if config.fold is not None:
        shared = row.fold_overlap if isinstance(row, Row) else None
        overlap = "" if shared is None else f", which share {shared:.1%} of their images pairwise"
        return f", each trained on one of the pre-defined folds{overlap}"
    if config.labels_per_class:
        return f", {config.labels_per_class:,} labelled images a class"
    return "" if config.val_fraction else ", last epoch (without validation images)"


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
    if view.sort is not None:
        columns.choose([view.sort], shown)
        parts = [(title, ordered(part, view.sort, view.descending)) for title, part in parts]
    chosen = columns.choose(view.columns, shown) or columns.informative(columns.DEFAULT, shown)
    part_tables = [rows_to_table(title, part, chosen) for title, part in parts]
    if style == "table":
        for table in part_tables:
            print_table(table, console, expendable=columns.EXPENDABLE)
        return
    if style in ("json", "csv"):  # a failure that names no data is in each part
        first, *others = (part for _, part in parts)
        listed = [*first, *(row for part in others for row in part if row.config is not None)]
        text = (rows_to_json if style == "json" else rows_to_csv)(listed, view.columns)
    elif style == "html":
        text = to_html(part_tables, "stl10bench table")
    else:
        render = to_markdown if style == "markdown" else to_latex
        text = "".join(f"{render(table)}\n" for table in part_tables)
    console.out(text, end="", highlight=False)


def by_protocol(rows: Sequence[Row | Failure]) -> list[tuple[str, list[Row | Failure]]]:
    """Rows of the same protocol on the same images, with a title.

    Reference rows stand apart from one's own. A failure that does not say on which data it was is
    in each part.
    """
    titles = {_part_key(row): data_title(row) for row in rows if isinstance(row, Row)}
    protocols = {protocol for protocol, _ in titles}
    for row in rows:
        if isinstance(row, Failure) and row.config is not None and row.protocol not in protocols:
            key = str(row.protocol), ""
            titles[key] = f"data {row.config.data[:12]}{_training_images(row)}"

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

    def order(row: Row | Failure) -> tuple[int, float, str]:
        value = columns.value(row, key)
        return (0, value, "") if isinstance(value, int | float) else (1, 0, str(value))

    missing = [row for row in part if columns.value(row, key) is None]
    present = [row for row in part if columns.value(row, key) is not None]
    return sorted(present, key=order, reverse=descending) + missing


def rows_to_table(title: str, part: Sequence[Row | Failure], chosen: Sequence[Column]) -> Table:
    """One table as text; a failed run says why in place of its accuracy, at length in a note."""
    lines, notes = [], []
    for row, label in zip(part, row_labels(part), strict=True):
        if isinstance(row, Failure):
            reason = textwrap.shorten(row.error, _LONGEST, placeholder=" ...")
            cells = [reason if column.key == "test_accuracy" else "" for column in chosen]
            if reason not in cells or reason != row.error:
                notes.append((columns.LABEL, f"{label}: {row.error}"))
        else:
            cells = [columns.text(row, column) for column in chosen]
            notes += [(columns.LABEL, f"{label}: {error}") for error in row.failures]
        lines.append((label, *cells))
    titles = {column.key: column.title for column in chosen}
    finished = [row for row in part if isinstance(row, Row)]
    if "vs_best" in titles and any(row.vs_best == "tied" for row in finished):
        notes.append((titles["vs_best"], _TIED))
    if "runs" in titles and any(row.runs != row.runs_asked for row in finished):
        notes.append((titles["runs"], UNFINISHED))
    if "test_accuracy" in titles and any(row.at_chance for row in finished):
        notes.append((titles["test_accuracy"], _CHANCE))
    header = (columns.LABEL, *(column.title for column in chosen))
    left = (columns.COLUMNS["test_accuracy"].title,)  # for some say more than a number
    return Table(title, header, tuple(lines), tuple(notes), left)


def rows_to_csv(rows: Sequence[Row | Failure], keys: Sequence[str] = ()) -> str:
    """Rows as CSV with full numbers."""
    names = ("label", *keys) if keys else columns.CSV
    return to_csv(names, [record.values() for record in records(rows, names)])


def to_csv(header: Iterable[str], lines: Iterable[Iterable[Any]]) -> str:
    """CSV; text that a spreadsheet would run is quoted with '."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([escape_csv(cell) for cell in line] for line in (header, *lines))
    return out.getvalue()


def rows_to_json(rows: Sequence[Row | Failure], keys: Sequence[str] = ()) -> str:
    """Rows as a JSON list: all that they say, or their label and the columns `keys`."""
    whole = [] if keys else [row.model_dump(mode="json") for row in rows]
    return json.dumps(whole or records(rows, ("label", *keys)), indent=2) + "\n"


def records(rows: Sequence[Row | Failure], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Of each row the values of the columns `keys`, its label among them.

    A row's label is the same whatever other rows there are, so that it can be a key.
    """
    content = []
    for row in rows:
        values = {key: columns.value(row, key) for key in keys}
        lists = {key: list(value) for key, value in values.items() if isinstance(value, tuple)}
        label = {"label": row_label(row)} if "label" in keys else {}
        content.append(values | lists | label)
    return content
