"""Stored rows -> one table, as text for a terminal, Markdown, CSV, LaTeX, HTML or JSON; light."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from stl10bench import escaping, files, runs
from stl10bench.errors import CheckpointError, unknown
from stl10bench.tables import columns, render, repeats, rows, standing
from stl10bench.tables.columns import Column
from stl10bench.tables.render import Grid
from stl10bench.tables.rows import Row

FORMATS = ("table", "markdown", "csv", "latex", "html", "json")
_REFERENCE = Path(__file__).parents[1] / "reference"
_LONGEST = 40  # characters of a failed run's reason that fit into a cell
_TIED = (
    "tied: cannot be told apart from the best on the same test images (exact McNemar test, or with "
    f"several seeds or folds a test of the means; Holm-corrected, p >= {standing.SIGNIFICANCE})"
)
_UNFINISHED = "n/m: n of m runs are done; a row with fewer than the others is not ranked"
_CHANCE = "= chance: the interval reaches what a uniform guess or a constant class scores"


def stored(runs_dir: Path) -> list[Row]:
    """The rows of all finished runs below `runs_dir`, by data and test accuracy, then the failed.

    Raises CheckpointError for a file that holds no row.
    """
    found = [rows.read(path) for path in results_in(runs_dir)]
    found.sort(key=lambda row: (data(row), row["test_accuracy"]))
    return found + rows.failures(runs_dir)


def results_in(runs_dir: Path) -> list[Path]:
    """The result.json of all finished runs below `runs_dir` but those that were moved aside."""
    found = sorted(runs_dir.glob("*/result.json"))
    return [path for path in found if runs.OLD not in path.parent.name]


def reference(name: str) -> list[Row]:
    """The rows of a file that ships with the package, each with the file's title.

    `report`: the course report's. `photos96`, `folds`: ours, of photos in STL-10's layout. Raises
    CheckpointError for a file that was changed into something else.
    """
    content = files.read_json(_REFERENCE / f"{name}.json", CheckpointError)
    return [{**row, "title": f"reference: {content['title']}"} for row in content["rows"]]


def references() -> list[Row]:
    """The rows of all these files."""
    return [row for path in sorted(_REFERENCE.glob("*.json")) for row in reference(path.stem)]


def label(row: Row) -> str:
    """The model as a reader knows it: its name, what learns, and options of its own."""
    marks = []
    options = dict(row.get("model_options", {}))
    if "freeze" in options:
        marks.append("frozen" if options.pop("freeze") else "learned")
        if not row.get("pretrained") and not row.get("error"):
            marks.append("from scratch")
    given = row.get("config", {}).get("model_options", {})
    marks += [f"{key} {_plain(options[key])}" for key in given if key in options]
    if row.get("selection") == "last epoch":
        marks.append("last epoch")
    if row.get("stacked", 1) > 1:  # its seconds are those of all that were trained with it
        marks.append(f"{row['stacked']} stacked")
    if row.get("baseline"):
        marks.append("baseline")
    return f"{row['model']} ({', '.join(marks)})" if marks else str(row["model"])


def data(row: Row) -> str:
    """Which images a finished row was tested on; only the official ones are called STL-10 alone."""
    if "title" in row:
        return f"{row['title']}{_protocol(row)}"
    name, fingerprint = row["dataset"], row["config"]["data"][:12]
    note = {"STL-10": "", "demo": f" {fingerprint}: drawn images, not STL-10"}.get(
        name, f" {fingerprint}: not the STL-10 images"
    )
    return escaping.clean(f"{name}{note}, {row['test_images']:,} test images{_protocol(row)}")


def _protocol(row: Row) -> str:
    """How the training images were chosen, where they are not all but a hold-out."""
    config = row["config"]
    if config.get("fold") is not None:
        shared = row.get("fold_overlap")
        overlap = "" if shared is None else f", which share {shared:.1%} of their images pairwise"
        return f", each trained on one of the pre-defined folds{overlap}"
    if config.get("labels_per_class"):
        return f", {config['labels_per_class']:,} labelled images a class"
    return ""


def show(
    given: Sequence[Row],
    style: str,
    console: Console,
    *,
    keys: Sequence[str] = (),
    sort: str | None = None,
    descending: bool = False,
    baselines: bool = False,
    combine: bool = True,
) -> None:
    """Print rows to `console`, a table for the data and each protocol.

    `keys` name the columns beside the model, `sort` the one that orders the rows (else they stay
    in their order), `baselines` adds what needs no image, and `combine` makes one row of the seeds
    or folds of a setting. Raises UsageError, with the nearest name, for another style or a column
    that no row has.
    """
    if style not in FORMATS:
        raise unknown("format", style, FORMATS)
    parts = [(title, repeats.combine(part) if combine else part) for title, part in by_data(given)]
    parts = [
        (title, standing.annotate([*(standing.baselines(part) if baselines else ()), *part]))
        for title, part in parts
    ]
    shown = [row for _, part in parts for row in part]
    chosen = columns.choose(keys or columns.DEFAULT, shown)
    if sort is not None:
        columns.choose([sort], shown)
        parts = [(title, ordered(part, sort, descending=descending)) for title, part in parts]
    everything = [
        row
        for number, (_, part) in enumerate(parts)
        for row in part
        if number == 0 or "error" not in row  # a failed row is in each part
    ]
    if style == "json":
        console.out(to_json(everything, keys), highlight=False)
        return
    if style == "csv":
        console.out(to_csv(everything, keys), end="", highlight=False)
        return
    if not keys:  # a column that tells nothing is no column
        idle = {
            key
            for key in ("vs_best", "test_accuracy_sd", "contamination")
            if all(columns.value(row, key) in (None, "none") for row in everything)
        }
        if all(row.get("runs_asked", 1) == 1 for row in everything):
            idle.add("runs")
        chosen = [column for column in chosen if column.key not in idle]
    grids = [to_grid(title, part, chosen) for title, part in parts]
    if style == "html":
        console.out(render.html(grids, "stl10bench table"), end="", highlight=False)
    for grid in grids:
        if style == "table":
            render.print_table(grid, console, expendable=columns.EXPENDABLE)
        elif style != "html":
            draw = render.markdown if style == "markdown" else render.latex
            console.out(draw(grid), highlight=False)


def by_data(given: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Rows on the same images by the same protocol, with a title.

    A failed one that does not say on which data it was is in each part.
    """
    finished = [row for row in given if "error" not in row]
    titles = {(*_split(row), _named(row)): data(row) for row in finished}
    for row in given:
        if "error" in row and row.get("config") and _split(row) not in {key[:3] for key in titles}:
            titles[*_split(row), ""] = f"data {row['config']['data'][:12]}{_protocol(row)}"
    parts = []
    for key in sorted(titles, key=lambda key: (titles[key], key)) or [("", "", "", "")]:
        part = [
            row
            for row in given
            if not row.get("config")
            or (_split(row) == key[:3] and ("error" in row or _named(row) == key[3]))
        ]
        parts.append((titles.get(key, ""), part))
    return parts


def ordered(part: Sequence[Row], key: str, *, descending: bool) -> list[Row]:
    """Rows sorted by a column: numbers before text, and what lacks it last."""
    found = [(columns.value(row, key), row) for row in part]
    known = [(value, row) for value, row in found if value is not None]
    known.sort(
        key=lambda pair: (
            (0, pair[0], "") if isinstance(pair[0], int | float) else (1, 0, str(pair[0]))
        ),
        reverse=descending,
    )
    return [row for _, row in known] + [row for value, row in found if value is None]


def to_grid(title: str, part: Sequence[Row], chosen: Sequence[Column]) -> Grid:
    """One table as text; a failed run says why in place of its accuracy, at length in a note."""
    lines, notes = [], []
    for row in part:
        if "error" in row:
            reason = _short(row)
            cells = [reason if column.key == "test_accuracy" else "" for column in chosen]
            if reason not in cells or reason != row["error"]:
                notes.append((columns.LABEL, f"{label(row)}: {row['error']}"))
        else:
            cells = [columns.text(row, column) for column in chosen]
            notes += [(columns.LABEL, f"{label(row)}: {one}") for one in row.get("failures", ())]
        lines.append((label(row), *cells))
    titles = {column.key: column.title for column in chosen}
    if "vs_best" in titles and any(row["vs_best"] == "tied" for row in part):
        notes.append((titles["vs_best"], _TIED))
    if "runs" in titles and any(row.get("runs") != row.get("runs_asked") for row in part):
        notes.append((titles["runs"], _UNFINISHED))
    if "test_accuracy" in titles and any(row["at_chance"] for row in part):
        notes.append((titles["test_accuracy"], _CHANCE))
    header = (columns.LABEL, *(column.title for column in chosen))
    left = (columns.COLUMNS["test_accuracy"].title,)  # for some say more than a number
    return Grid(title, header, tuple(lines), tuple(notes), left)


def to_csv(given: Sequence[Row], keys: Sequence[str] = ()) -> str:
    """Rows as CSV with full numbers; text that a spreadsheet would run is quoted with '."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = ("label", *keys) if keys else columns.CSV
    writer.writerow(names)
    for row in given:
        named = {**row, "label": label(row)}
        writer.writerow([escaping.csv(columns.value(named, name)) for name in names])
    return out.getvalue()


def to_json(given: Sequence[Row], keys: Sequence[str] = ()) -> str:
    """Rows as a JSON list: all that they say, or their label and the columns `keys`."""
    if keys:
        given = [{"label": label(row), **{k: columns.value(row, k) for k in keys}} for row in given]
    return json.dumps(given, indent=2)


def _split(row: Row) -> tuple[str, str, str]:
    """What rows of one table have in common: the data, and how training images were chosen."""
    config = row["config"]
    folds = "folds" if config.get("fold") is not None else ""
    return config["data"], folds, str(config.get("labels_per_class") or "")


def _named(row: Row) -> str:
    """What a finished row's table is called, but for the number of images."""
    return str(row.get("title", row["dataset"]))


def _short(row: Row) -> str:
    """The part of a failed run's reason that fits into a cell."""
    reason: str = row["error"]
    return reason.partition(",")[0] if len(reason) > _LONGEST else reason


def _plain(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
