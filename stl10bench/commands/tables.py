"""Tables of what has been trained."""

from pathlib import Path
from typing import Annotated

import typer

from stl10bench import results
from stl10bench.errors import UsageError
from stl10bench.terminal import stdout

app = typer.Typer()


@app.command()
def table(
    runs_dir: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("runs"),
    style: Annotated[
        str, typer.Option("--format", help=f"{', '.join(results.FORMATS)}.")
    ] = "table",
) -> None:
    """Print the table of all finished runs."""
    rows = results.stored(runs_dir)
    if not rows:
        raise UsageError(f"no finished run in {runs_dir}: train one, or give --runs-dir")
    results.show(rows, style, stdout())
