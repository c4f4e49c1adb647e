"""Comparisons of finished runs."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stl10bench import escaping, paired
from stl10bench.commands.options import JSON, with_options
from stl10bench.errors import UsageError, unknown
from stl10bench.tables import render, results
from stl10bench.tables.columns import p_value
from stl10bench.tables.render import Grid
from stl10bench.tables.standing import SIGNIFICANCE
from stl10bench.terminal import stderr, stdout

if TYPE_CHECKING:
    from stl10bench.tables.comparison import Difference, Run

app = typer.Typer()
FORMATS = ("table", "markdown", "csv")
_NOTE = (
    "difference: accuracy of the first less that of the second on the same test images, with its "
    f"95 % paired-bootstrap interval ({paired.RESAMPLES:,} resamples); p: exact McNemar test, and "
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
    style: Annotated[str, typer.Option("--format", help=f"{', '.join(FORMATS)}.")] = "table",
    as_json: bool,
) -> None:
    """Compare finished runs, image by image, pair by pair.

    They must have been tested on the same part of the same images, at any resolution.
    """
    if style not in FORMATS:
        raise unknown("format", style, FORMATS)
    if as_json and style != "table":
        raise UsageError(f"--format {style} and --json: must be one of them")

    from stl10bench.tables import comparison

    loaded = [comparison.load(folder) for folder in comparison.find(runs_dir, runs or [])]
    comparison.check_same_images(loaded)
    loaded.sort(key=lambda run: run.row["test_accuracy"], reverse=True)
    found = comparison.differences(loaded, stderr())
    if as_json:
        typer.echo(json.dumps(_to_json(loaded, found)))
    elif style == "csv":
        typer.echo(_to_csv(loaded, found), nl=False)
    else:
        matrix, pairs = _matrix(loaded, found), _pairs(found)
        if style == "markdown":
            typer.echo(f"{render.markdown(matrix)}\n{render.markdown(pairs)}", nl=False)
        else:
            first_to_go = ["model", *reversed(matrix.header[3:])]
            render.print_table(matrix, stdout(), expendable=first_to_go)
            render.print_table(pairs, stdout(), expendable=("only second", "only first"))


def _matrix(runs: Sequence["Run"], found: Sequence["Difference"]) -> Grid:
    """A line for each run, and its accuracy less that of each run below it."""
    cells = {(one.first, one.second): _signed(one.counts.difference) for one in found}
    cells |= {
        (o.first, o.second): f"{cells[o.first, o.second]} *" for o in found if o.p_holm < 0.05
    }
    lines = tuple(
        (
            f"{i + 1} {run.row['run']}",
            results.label(run.row),
            f"{run.row['test_accuracy']:.3f}",
            *(cells.get((i, j), "") for j in range(1, len(runs))),
        )
        for i, run in enumerate(runs)
    )
    columns = (f"less {j + 1}" for j in range(1, len(runs)))
    header = ("run", "model", "test accuracy", *columns)
    return Grid(results.data(runs[0].row), header, lines, left=("model",))


def _pairs(found: Sequence["Difference"]) -> Grid:
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


def _to_json(runs: Sequence["Run"], found: Sequence["Difference"]) -> dict[str, Any]:
    first = runs[0].row
    return {
        **{key: first[key] for key in ("dataset", "test_images")},
        "data": first["config"]["data"],
        "resamples": paired.RESAMPLES,
        "runs": [
            {
                "run": run.row["run"],
                "label": results.label(run.row),
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


def _to_csv(runs: Sequence["Run"], found: Sequence["Difference"]) -> str:
    """A line for each pair, with full numbers."""
    out = io.StringIO()
    lines = []
    for pair in _to_json(runs, found)["pairs"]:
        low, high = pair.pop("interval")
        lines.append({**pair, "low": low, "high": high})
    writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: escaping.csv(value) for key, value in line.items()} for line in lines)
    return out.getvalue()


def _signed(share: float) -> str:
    return f"{share:+.3f}"
