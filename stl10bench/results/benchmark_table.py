"""Rows of runs -> the benchmark's tables: one for the data and each protocol."""

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from stl10bench.core.errors import CheckpointError, UsageError, unknown
from stl10bench.metrics.significance import SIGNIFICANCE
from stl10bench.results import columns, ranking
from stl10bench.results.aggregate import aggregate, unfinished_note
from stl10bench.results.columns import Column
from stl10bench.results.labels import data_title, row_label, row_labels
from stl10bench.results.rows import Failure, Row, parse_row
from stl10bench.results.run_folder import RunFolder, copy_error, current_folders
from stl10bench.results.table import Table, print_table, to_csv, to_html, to_latex, to_markdown

FORMATS = ("table", "markdown", "csv", "latex", "html", "json")
_REFERENCE = Path(__file__).with_name("reference")
_LONGEST = 120  # characters of a failed run's reason in a note
_TIED = (
    "tied: not significantly worse than the best on the same test images (exact McNemar test, or "
    "with several seeds or folds a test of the means; p >= "
    f"{SIGNIFICANCE} after Holm's correction)"
)
_STACKED = "trained together with other rows, by version 0.1.0: the seconds are those of all"
_GROUPS = (
    "group: rows that share a letter do not differ significantly (the same tests, after Holm's "
    "correction for all pairs of rows)"
)
_VERIFIED = (
    "verified: how far 'rows verify' checked somebody else's row here: whole (unchanged), "
    "recomputed (from its logits and your labels), re-evaluated (its checkpoint) or reproduced "
    "(trained again); refused: it is not ranked; -: your own"
)
_CHANCE = "at chance: the interval includes the accuracy of a uniform guess or of a constant class"


def stored_rows(runs_dir: Path) -> tuple[list[Row | Failure], list[CheckpointError]]:
    """What `read_rows` reads of all runs below `runs_dir`."""
    return read_rows(current_folders(runs_dir))


def read_rows(folders: Iterable[RunFolder]) -> tuple[list[Row | Failure], list[CheckpointError]]:
    """The rows of the finished runs, then those that failed; others are left out.

    One damaged file hides no other: the errors come second. A row whose predictions are damaged is
    kept, but cannot be ranked. A copy of a run is no second run of its setting: it is an error.
    """
    rows: list[Row] = []
    failures: list[Failure] = []
    damaged: list[CheckpointError] = []
    paths: dict[str, Path] = {}
    for folder in folders:
        try:
            if folder.is_finished:
                row = folder.row()
                if (first := paths.setdefault(row.run or folder.name, folder.path)) != folder.path:
                    raise copy_error(folder, first)
                rows.append(row)
                rows[-1] = folder.with_hits(rows[-1])
            elif (failure := folder.failure()) is not None:
                failures.append(failure)
        except CheckpointError as error:
            damaged.append(error)
    return [*rows, *failures], damaged


def reference_rows(name: str) -> list[Row]:
    """The rows of a file that ships with the package, each with the file's title.

    `report`: the course report's. `stl10`: ours. `photos96`, `folds`: of photos in its layout.
    """
    content = json.loads((_REFERENCE / f"{name}.json").read_text(encoding="utf-8"))
    title = f"reference: {content['title']}"
    return [parse_row({**row, "title": title}) for row in content["rows"]]


def all_reference_rows() -> list[Row]:
    """The rows of all these files."""
    return [row for path in sorted(_REFERENCE.glob("*.json")) for row in reference_rows(path.stem)]


def select(rows: Sequence[Row | Failure], conditions: Iterable[str]) -> list[Row | Failure]:
    """The rows that meet all `COLUMN=VALUE`; values are compared as numbers, else as they read.

    Raises UsageError for a condition without =, and for a column that no row has.
    """
    chosen = list(rows)
    for condition in conditions:
        key, separator, wanted = condition.partition("=")
        if not separator:
            raise UsageError(f"--where {condition}: must be COLUMN=VALUE, e.g. model=cnn")
        columns.choose([key], rows)
        chosen = [row for row in chosen if _is(columns.value(row, key), wanted)]
    return chosen


def _is(value: Any, wanted: str) -> bool:
    texts = {str(value).casefold(), columns.plain(value).casefold()}
    try:
        return wanted.casefold() in texts or float(value) == float(wanted)
    except (TypeError, ValueError):
        return False


@dataclass(frozen=True)
class View:
    """What of the rows a table shows.

    `columns` name those beside the model (none: the default ones), `sort` the one that orders the
    rows (none: the best first), `baselines` adds what needs no image, and `combine` makes one row
    of the seeds or folds of a setting; for `of_studies` see `aggregate`.
    """

    columns: tuple[str, ...] = ()
    sort: str | None = None
    descending: bool = False
    baselines: bool = False
    combine: bool = True
    of_studies: Mapping[str, int] = field(default_factory=dict)


def show_rows(
    rows: Sequence[Row | Failure], style: str, console: Console, view: View = View()
) -> None:
    """Print rows to `console` in one of FORMATS, a table for the data and each protocol.

    Raises UsageError, with the nearest name, for another style or a column that no row has.
    """
    if style not in FORMATS:
        raise unknown("format", style, FORMATS)
    if style == "json":
        text = json.dumps(shown_records(rows, view), indent=2) + "\n"
        console.out(text, end="", highlight=False)
        return
    parts = _parts(rows, view)
    asked = columns.choose(view.columns, [row for _, part in parts for row in part])
    asked = [column for column in asked if column.title != columns.LABEL]  # every table has it
    reasons = apart_notes(rows, [part for _, part in parts])
    part_tables = [
        rows_to_table(title, part, asked if view.columns else _default(part), reason)
        for (title, part), reason in zip(parts, reasons, strict=True)
    ]
    if style == "table":
        for table in part_tables:
            print_table(table, console, expendable=() if view.columns else columns.EXPENDABLE)
        return
    if style == "csv":
        text = rows_to_csv(_listed(parts), view.columns)
    elif style == "html":
        text = to_html(part_tables, "stl10bench table")
    else:
        render = to_markdown if style == "markdown" else to_latex
        text = "".join(f"{render(table)}\n" for table in part_tables)
    console.out(text, end="", highlight=False)


def _default(part: Sequence[Row | Failure]) -> list[Column]:
    return columns.informative(columns.DEFAULT, part)


def shown_records(rows: Sequence[Row | Failure], view: View = View()) -> list[dict[str, Any]]:
    """What `show_rows` shows, for JSON: all that the rows say, or the label and the view's columns.

    Raises UsageError, with the nearest name, for a column that no row has.
    """
    listed = _listed(_parts(rows, view))
    columns.choose(view.columns, listed)
    if view.columns:
        return records(listed, ("label", *view.columns))
    return [row.model_dump(mode="json") for row in listed]


def _parts(rows: Sequence[Row | Failure], view: View) -> list[tuple[str, list[Row | Failure]]]:
    """The title and the rows of each table, in their order."""
    parts = []
    for title, part in by_protocol(rows):
        combined = aggregate(part, view.of_studies) if view.combine else part
        baselines = ranking.baselines(combined) if view.baselines else []
        shown = ranking.annotate([*baselines, *combined])
        parts.append((title, sorted(shown, key=ranking.best_first)))
    if view.sort is None:
        return parts
    columns.choose([view.sort], [row for _, part in parts for row in part])
    return [(title, ordered(part, view.sort, view.descending)) for title, part in parts]


def _listed(parts: Sequence[tuple[str, list[Row | Failure]]]) -> list[Row | Failure]:
    """The rows of all tables; a failure that names no data, which is in each, once."""
    first, *others = (part for _, part in parts)
    return [*first, *(row for part in others for row in part if row.config is not None)]


def by_protocol(rows: Sequence[Row | Failure]) -> list[tuple[str, list[Row | Failure]]]:
    """Rows of the same protocol on the same images, with a title.

    Reference rows stand apart from one's own. A failure that does not say on which data it was is
    in each part.
    """
    groups: dict[tuple[str, str], list[Row | Failure]] = {}
    for row in rows:
        if isinstance(row, Row):
            groups.setdefault(_part_key(row), []).append(row)
    titles = {key: data_title(group) for key, group in groups.items()}
    protocols = {protocol for protocol, _ in titles}
    for row in rows:
        if isinstance(row, Failure) and row.config is not None and row.protocol not in protocols:
            titles[str(row.protocol), ""] = data_title([row])

    def belongs(row: Row | Failure, key: tuple[str, str]) -> bool:
        if isinstance(row, Failure):
            return row.protocol in (None, key[0])
        return _part_key(row) == key

    keys = sorted(titles, key=lambda key: (titles[key], key)) or [("", "")]
    return [(titles.get(key, ""), [row for row in rows if belongs(row, key)]) for key in keys]


def apart_notes(
    rows: Sequence[Row | Failure], parts: Sequence[Sequence[Row | Failure]]
) -> list[str]:
    """Of each part, why somebody else's rows do not stand beside one's own; empty where they do."""
    own = [row for row in rows if isinstance(row, Row) and not row.source and not row.title]
    notes = []
    for part in parts:
        finished = [row for row in part if isinstance(row, Row) and not row.baseline]
        shared = [row for row in finished if row.source]
        apart = own and shared and len(shared) == len(finished)
        notes.append(_difference(shared[0], own) if apart else "")
    return notes


def _difference(shared: Row, own: Sequence[Row]) -> str:
    """What of its protocol differs from the nearest of one's own."""

    def differing(row: Row) -> list[str]:
        ours, theirs = ({**r.protocol_parts, "name of the data": r.dataset} for r in (row, shared))
        return [
            f"{key} {theirs[key]}, yours {ours[key]}" for key in ours if ours[key] != theirs[key]
        ]

    nearest = min((differing(row) for row in own), key=len)
    return f"{shared.source} stands apart: {'; '.join(nearest)}"


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


def rows_to_table(
    title: str, part: Sequence[Row | Failure], chosen: Sequence[Column], reason: str = ""
) -> Table:
    """One table as text; of a failed run the state in place of its accuracy, and why in a note.

    `reason` says why the rows stand apart from others.
    """
    lines, notes = [], [(columns.LABEL, reason)] if reason else []
    for row, label in zip(part, row_labels(part), strict=True):
        lines.append((label, *(columns.text(row, column) for column in chosen)))
        errors = row.failures if isinstance(row, Row) else (_reason(row),)
        notes += [(columns.LABEL, f"{label}: {error}") for error in errors]
    titles = {column.key: column.title for column in chosen}
    finished = [row for row in part if isinstance(row, Row)]
    if "vs_best" in titles and any(row.vs_best == "tied" for row in finished):
        notes.append((titles["vs_best"], _TIED))
    if "group" in titles and any(row.group for row in finished):
        notes.append((titles["group"], _GROUPS))
    if "verified" in titles and any(row.source for row in finished):
        notes.append((titles["verified"], _VERIFIED))
    if "runs" in titles and (unfinished := unfinished_note(finished)):
        notes.append((titles["runs"], unfinished))
    if "train_seconds" in titles and any(row.stacked > 1 for row in finished):
        notes.append((titles["train_seconds"], _STACKED))
    if "test_accuracy" in titles and any(row.at_chance for row in finished):
        notes.append((titles["test_accuracy"], _CHANCE))
    header = (columns.LABEL, *(column.title for column in chosen))
    left = (columns.COLUMNS["test_accuracy"].title,)  # for some say more than a number
    return Table(title, header, tuple(lines), tuple(notes), left)


def _reason(failure: Failure) -> str:
    """Why a run has no row, in a line; `runs show` has all of it."""
    text = failure.error.removeprefix(f"{failure.state}: ")
    text = f"{failure.state}: {text}"
    if failure.run is None or len(text) <= _LONGEST:
        return text
    return f"{textwrap.shorten(text, _LONGEST, placeholder=' ...')} (runs show {failure.run})"


def rows_to_csv(rows: Sequence[Row | Failure], keys: Sequence[str] = ()) -> str:
    """Rows as CSV with full numbers."""
    names = ("label", *keys) if keys else columns.CSV
    return to_csv(names, [record.values() for record in records(rows, names)])


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
