"""The report page."""

from pathlib import Path
from typing import Annotated

import typer

from stl10bench.errors import unknown

app = typer.Typer()
FORMATS = ("html", "markdown")
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
    style: Annotated[str, typer.Option("--format", help=f"{', '.join(FORMATS)}.")] = "html",
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
    if style not in FORMATS:
        raise unknown("format", style, FORMATS)

    from stl10bench import files
    from stl10bench.report.chapters import chapters
    from stl10bench.report.page import page
    from stl10bench.report.text import text

    found = chapters(runs_dir, run or [], data_dir=data_dir)
    content = page(title, found) if style == "html" else text(title, found)
    path = output or Path("report.html" if style == "html" else "report.md")
    files.write(path, content.encode())
    typer.echo(path)
