"""Lists, shows and removes run folders."""

import json
from typing import Annotated

import typer
from rich import box
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from stl10bench.cli.options import JSON, RUNS, RunName, RunNames, RunsDir, choice, with_options
from stl10bench.core import files
from stl10bench.core.console import clean, stdout
from stl10bench.core.errors import CheckpointError, UsageError
from stl10bench.results.run_folder import STATES, find_run, run_folders

app = typer.Typer(no_args_is_help=True)

_STATES = (*STATES, "killed", "damaged", "old")


@app.command("list")
@with_options(JSON)
def list_runs(*, runs_dir: RunsDir = RUNS, as_json: bool) -> None:
    """List all runs with their states and sizes.

    Examples:
    stl10bench runs list --runs-dir runs
    """
    runs = [folder.describe() for folder in run_folders(runs_dir)]
    if as_json:
        typer.echo(json.dumps({"runs": runs}))
        return
    if not runs:
        raise UsageError(f"no run in {runs_dir}: train one, or give --runs-dir")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("run", "state", "epoch", "size", "reason"):
        table.add_column(name, justify="right" if name in ("epoch", "size") else "left")
    for run in runs:
        epoch = f"{'-' if run['epoch'] is None else run['epoch']}/{run['epochs']}"
        cells = [run["run"], run["state"], epoch, decimal(run["bytes"]), run["reason"]]
        table.add_row(*(escape(clean(str(cell))) for cell in cells))
    stdout().print(table)
    total = decimal(sum(run["bytes"] for run in runs))
    stdout().print(f"{total} in {len(runs)} run{'s' * (len(runs) > 1)}", highlight=False)


@app.command()
@with_options(JSON)
def show(run: RunName, *, runs_dir: RunsDir = RUNS, as_json: bool) -> None:
    """Show a run's state, settings and files.

    Examples:
    stl10bench runs show cnn-1a2b
    """
    folder = find_run(runs_dir, run)
    facts = folder.describe()
    config = files.read_json(folder.config_file, CheckpointError)
    sizes = files.sizes(folder.path)
    if as_json:
        typer.echo(json.dumps({**facts, "config": config, "files": sizes}))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value in {**facts, "bytes": decimal(facts["bytes"])}.items():
        table.add_row(key, escape(clean(str(value))))
    for key, value in {**config, **{name: decimal(size) for name, size in sizes.items()}}.items():
        table.add_row(f"[dim]{escape(clean(key))}[/dim]", escape(clean(str(value))))
    stdout().print(table)


@app.command()
def rm(
    run: RunNames = None,
    *,
    runs_dir: RunsDir = RUNS,
    state: Annotated[
        str | None,
        choice("state", _STATES, help_text=f"Remove all in a state: {', '.join(_STATES)}."),
    ] = None,
) -> None:
    """Remove runs by name or by state, unless they are running.

    Examples:
    stl10bench runs rm cnn-1a2b
    stl10bench runs rm --state old
    """
    if not run and state is None:
        raise UsageError("Missing run: give names (stl10bench runs list shows them), or --state")
    folders = [find_run(runs_dir, name) for name in run or []]
    if state is not None:
        folders += [run for run in run_folders(runs_dir) if run.describe()["state"] == state]
    for folder in dict.fromkeys(folders):
        typer.echo(f"removed {clean(folder.name)}: {decimal(folder.remove())}")
