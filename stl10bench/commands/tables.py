"""Tables of what has been trained."""

from pathlib import Path
from typing import Annotated

import typer

from stl10bench.errors import UsageError
from stl10bench.tables import results
from stl10bench.terminal import stdout

app = typer.Typer()


@app.command()
def table(
    runs_dir: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("runs"),
    style: Annotated[
        str, typer.Option("--format", help=f"{', '.join(results.FORMATS)}.")
    ] = "table",
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
    found = results.stored(runs_dir) + (results.references() if reference else [])
    if not found:
        raise UsageError(f"no finished run in {runs_dir}: train one, or give --runs-dir")
    if descending and sort is None:
        raise UsageError("--descending: must go with --sort COLUMN")
    results.show(
        found,
        style,
        stdout(),
        keys=[key.strip() for key in columns.split(",")] if columns else (),
        sort=sort,
        descending=descending,
        baselines=baselines,
        combine=combine,
    )
