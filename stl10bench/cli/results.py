"""table, compare, report and plot: what finished runs tell."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from stl10bench.cli.options import JSON, with_options
from stl10bench.core.console import escape_csv, stderr, stdout
from stl10bench.core.errors import UsageError, require, unknown
from stl10bench.metrics.significance import RESAMPLES, SIGNIFICANCE
from stl10bench.results.columns import p_value
from stl10bench.results.comparison import Difference, Run
from stl10bench.results.tables import (
    FORMATS,
    Grid,
    all_reference_rows,
    data_title,
    print_table,
    row_label,
    show_rows,
    stored_rows,
    to_markdown,
)

app = typer.Typer()


@app.command()
def table(
    runs_dir: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("runs"),
    style: Annotated[str, typer.Option("--format", help=f"{', '.join(FORMATS)}.")] = "table",
    columns: Annotated[
        str | None,
        typer.Option(help="What to show: test_accuracy,test_ece,lr and the like.", metavar="A,B"),
    ] = None,
    sort: Annotated[
        str | None, typer.Option(help="The column that orders the rows of each table.")
    ] = None,
    descending: Annotated[
        bool, typer.Option("--descending", help="Sort the highest first.")
    ] = False,
    combine: Annotated[
        bool, typer.Option(help="One row for the seeds or folds of a setting, or one each.")
    ] = True,
    reference: Annotated[
        bool, typer.Option("--reference", help="Show the course report's rows and ours as well.")
    ] = False,
    baselines: Annotated[
        bool, typer.Option(help="Show what a uniform guess and a constant class score.")
    ] = True,
) -> None:
    """Print the table of all finished runs.

    Any entry of a row, its settings or its model's options can be a column.
    """
    found = stored_rows(runs_dir) + (all_reference_rows() if reference else [])
    if not found:
        raise UsageError(f"no finished run in {runs_dir}: train one, or give --runs-dir")
    if descending and sort is None:
        raise UsageError("--descending: must go with --sort COLUMN")
    show_rows(
        found,
        style,
        stdout(),
        keys=[key.strip() for key in columns.split(",")] if columns else (),
        sort=sort,
        descending=descending,
        baselines=baselines,
        combine=combine,
    )


COMPARE_FORMATS = ("table", "markdown", "csv")
_NOTE = (
    "difference: accuracy of the first less that of the second on the same test images, with its "
    f"95 % paired-bootstrap interval ({RESAMPLES:,} resamples); p: exact McNemar test, and "
    f"Holm-corrected for all pairs; *: corrected p < {SIGNIFICANCE}"
)


@app.command()
@with_options(JSON)
def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="Run folders: a name, its beginning, or a path. None: all."),
    ] = None,
    *,
    runs_dir: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("runs"),
    style: Annotated[
        str, typer.Option("--format", help=f"{', '.join(COMPARE_FORMATS)}.")
    ] = "table",
    as_json: bool,
) -> None:
    """Compare finished runs, image by image, pair by pair.

    They must have been tested on the same part of the same images, at any resolution.
    """
    if style not in COMPARE_FORMATS:
        raise unknown("format", style, COMPARE_FORMATS)
    if as_json and style != "table":
        raise UsageError(f"--format {style} and --json: must be one of them")
    from stl10bench.results.comparison import (
        check_same_images,
        differences,
        finished_folders,
        load_run,
    )

    loaded = [load_run(folder) for folder in finished_folders(runs_dir, runs or [])]
    check_same_images(loaded)
    loaded.sort(key=lambda run: run.row["test_accuracy"], reverse=True)
    found = differences(loaded, stderr())
    if as_json:
        typer.echo(json.dumps(_to_json(loaded, found)))
    elif style == "csv":
        typer.echo(_to_csv(loaded, found), nl=False)
    else:
        matrix, pairs = _matrix(loaded, found), _pairs(found)
        if style == "markdown":
            typer.echo(f"{to_markdown(matrix)}\n{to_markdown(pairs)}", nl=False)
        else:
            first_to_go = ["model", *reversed(matrix.header[3:])]
            print_table(matrix, stdout(), expendable=first_to_go)
            print_table(pairs, stdout(), expendable=("only second", "only first"))


def _matrix(runs: Sequence[Run], found: Sequence[Difference]) -> Grid:
    """A line for each run, and its accuracy less that of each run below it."""
    cells = {(one.first, one.second): _signed(one.counts.difference) for one in found}
    cells |= {
        (o.first, o.second): f"{cells[o.first, o.second]} *" for o in found if o.p_holm < 0.05
    }
    lines = tuple(
        (
            f"{i + 1} {run.row['run']}",
            row_label(run.row),
            f"{run.row['test_accuracy']:.3f}",
            *(cells.get((i, j), "") for j in range(1, len(runs))),
        )
        for i, run in enumerate(runs)
    )
    columns = (f"less {j + 1}" for j in range(1, len(runs)))
    header = ("run", "model", "test accuracy", *columns)
    return Grid(data_title(runs[0].row), header, lines, left=("model",))


def _pairs(found: Sequence[Difference]) -> Grid:
    lines = tuple(
        (
            f"{one.first + 1} - {one.second + 1}",
            f"{_signed(one.counts.difference)} [{', '.join(map(_signed, one.interval))}]",
            p_value(one.p),
            f"{p_value(one.p_holm)}{' *' if one.p_holm < SIGNIFICANCE else ''}",
            f"{one.counts.first:,}",
            f"{one.counts.second:,}",
        )
        for one in found
    )
    header = ("runs", "difference [95 %]", "p", "p (Holm)", "only first", "only second")
    return Grid("Pair by pair", header, lines, (("runs", _NOTE),), left=("p (Holm)",))


def _to_json(runs: Sequence[Run], found: Sequence[Difference]) -> dict[str, Any]:
    first = runs[0].row
    return {
        **{key: first[key] for key in ("dataset", "test_images")},
        "data": first["config"]["data"],
        "resamples": RESAMPLES,
        "runs": [
            {
                "run": run.row["run"],
                "label": row_label(run.row),
                "test_accuracy": run.row["test_accuracy"],
                "test_accuracy_interval": run.row["test_accuracy_interval"],
            }
            for run in runs
        ],
        "pairs": [
            {
                "first": runs[one.first].row["run"],
                "second": runs[one.second].row["run"],
                "difference": one.counts.difference,
                "interval": list(one.interval),
                "p": one.p,
                "p_holm": one.p_holm,
                "both": one.counts.both,
                "only_first": one.counts.first,
                "only_second": one.counts.second,
                "neither": one.counts.neither,
            }
            for one in found
        ],
    }


def _to_csv(runs: Sequence[Run], found: Sequence[Difference]) -> str:
    """A line for each pair, with full numbers."""
    out = io.StringIO()
    lines = []
    for pair in _to_json(runs, found)["pairs"]:
        low, high = pair.pop("interval")
        lines.append({**pair, "low": low, "high": high})
    writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: escape_csv(value) for key, value in line.items()} for line in lines)
    return out.getvalue()


def _signed(share: float) -> str:
    return f"{share:+.3f}"


REPORT_FORMATS = ("html", "markdown")
_TITLE = "stl10bench report"


@app.command()
def report(
    run: Annotated[
        list[str] | None,
        typer.Argument(help="Run folders: a name, its beginning, or a path. None: all."),
    ] = None,
    *,
    runs_dir: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("runs"),
    output: Annotated[
        Path | None, typer.Option(help=r"File to write \[default: report.html or report.md].")
    ] = None,
    style: Annotated[str, typer.Option("--format", help=f"{', '.join(REPORT_FORMATS)}.")] = "html",
    title: Annotated[str, typer.Option(help="The heading.")] = _TITLE,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the data, for pictures of mistakes "
            r"\[default: $STL10BENCH_DATA or data, where the images are there].",
        ),
    ] = None,
) -> None:
    """Write one page of all that the runs tell, a file that needs nothing but itself.

    The table, intervals, accuracy against cost, learning curves,
    studies, calibration, confusion, agreement, worst mistakes,
    machines, and the command that trains each run again. Damaged
    or missing files of a run are noted, its row stays.
    """
    if style not in REPORT_FORMATS:
        raise unknown("format", style, REPORT_FORMATS)
    from stl10bench.core import files
    from stl10bench.report.build import chapters
    from stl10bench.report.html import html_page
    from stl10bench.report.markdown import markdown_document

    found = chapters(runs_dir, run or [], data_dir=data_dir)
    content = html_page(title, found) if style == "html" else markdown_document(title, found)
    path = output or Path("report.html" if style == "html" else "report.md")
    files.write(path, content.encode())
    typer.echo(path)


@app.command()
def plot(
    run: Annotated[
        list[str] | None, typer.Argument(help="A run's name, how it begins, or its folder.")
    ] = None,
    *,
    output: Annotated[
        Path | None,
        typer.Option(help=r"File to write: .png, .svg or .jpg \[default: RUN.png or curves.png]."),
    ] = None,
    runs_dir: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("runs"),
) -> None:
    """Draw the curves of runs: loss, accuracy, learning rate and speed over the epochs."""
    require("matplotlib", extra="plots", purpose="a picture")
    from stl10bench.plots import style
    from stl10bench.plots.curves import curves
    from stl10bench.results import history

    style.check_output(output or Path("curves.png"))
    folders = history.find_runs(runs_dir, run or [])
    output = output or Path(f"{folders[0].name if len(folders) == 1 else 'curves'}.png")
    style.save(curves([history.read(folder) for folder in folders]), output)
    typer.echo(output)
