"""Curves of runs."""

from pathlib import Path
from typing import Annotated

import typer

from stl10bench.errors import UsageError
from stl10bench.extras import require
from stl10bench.terminal import stdout

app = typer.Typer()


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
    watch: Annotated[
        bool, typer.Option("--watch", help="Draw in the terminal while they train.")
    ] = False,
    runs_dir: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("runs"),
) -> None:
    """Draw the curves of runs: loss, accuracy, learning rate and speed over the epochs.

    With --watch a picture is written at the end, if --output names one.
    """
    from stl10bench import history

    console = stdout()
    picture = output is not None or not watch
    if watch:
        require("plotille", extra="plots", purpose="--watch")
        if not console.is_terminal:
            raise UsageError("--watch draws in a terminal, and stdout is none: use --output FILE")
    if picture:
        require("matplotlib", extra="plots", purpose="a picture")
        from stl10bench.plots import figures

        figures.check_output(output or Path("curves.png"))
    folders = history.find(runs_dir, run or [])
    if watch:
        from stl10bench.plots.watch import watch as draw

        draw(folders, console)
    if picture:
        from stl10bench.plots.curves import curves

        output = output or Path(f"{folders[0].name if len(folders) == 1 else 'curves'}.png")
        figures.save(curves([history.read(folder) for folder in folders]), output)
        typer.echo(output)
