"""Lists, shows and removes run folders."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from stl10bench.cli.options import JSON, with_options
from stl10bench.core import files
from stl10bench.core.console import clean, stdout
from stl10bench.core.errors import CheckpointError, UsageError
from stl10bench.results.run_folder import find_run, run_folders

app = typer.Typer(help="List, show and remove runs.", no_args_is_help=True)

RunsDir = Annotated[Path, typer.Option(help="Folder of the run folders.")]
_STATES = "running, interrupted, killed, finished, diverged, failed, damaged, old"


@app.command("list")
@with_options(JSON)
def list_runs(*, runs_dir: RunsDir = Path("runs"), as_json: bool) -> None:
    """List the runs with their states and sizes, finished or not."""
    found = [folder.describe() for folder in run_folders(runs_dir)]
    if as_json:
        typer.echo(json.dumps({"runs": found}))
        return
    if not found:
        raise UsageError(f"no run in {runs_dir}: train one, or give --runs-dir")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("run", "state", "epoch", "size", "reason"):
        table.add_column(name, justify="right" if name in ("epoch", "size") else "left")
    for run in found:
        epoch = f"{'-' if run['epoch'] is None else run['epoch']}/{run['epochs']}"
        cells = [run["run"], run["state"], epoch, size(run["bytes"]), run["reason"]]
        table.add_row(*(escape(clean(str(cell))) for cell in cells))
    total = size(sum(run["bytes"] for run in found))
    stdout().print(table)
    stdout().print(f"{total} in {len(found)} run(s)", highlight=False)


@app.command()
@with_options(JSON)
def show(
    run: Annotated[str, typer.Argument(help="A run's name, or its beginning.")],
    *,
    runs_dir: RunsDir = Path("runs"),
    as_json: bool,
) -> None:
    """Show one run: its state, its settings and its files."""
    folder = find_run(runs_dir, run)
    facts = folder.describe()
    config = files.read_json(folder.config_file, CheckpointError)
    sizes = files.sizes(folder.path)
    if as_json:
        typer.echo(json.dumps({**facts, "config": config, "files": sizes}))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value in {**facts, "bytes": size(facts["bytes"])}.items():
        table.add_row(key, escape(clean(str(value))))
    for key, value in config.items():
        table.add_row(f"[dim]{escape(clean(key))}[/dim]", escape(clean(str(value))))
    for name, length in sizes.items():
        table.add_row(f"[dim]{escape(clean(name))}[/dim]", size(length))
    stdout().print(table)


@app.command()
def rm(
    run: Annotated[list[str] | None, typer.Argument(help="Names, or their beginnings.")] = None,
    *,
    runs_dir: RunsDir = Path("runs"),
    state: Annotated[str | None, typer.Option(help=f"All in a state: {_STATES}.")] = None,
) -> None:
    """Remove runs, by name or by state; one that is at work is not removed."""
    chosen = [find_run(runs_dir, name) for name in run or []]
    if state is not None:
        if state not in _STATES.split(", "):
            raise UsageError(f"state {state!r}: must be one of {_STATES}")
        chosen += [f for f in run_folders(runs_dir) if f.describe()["state"] == state]
    if not run and state is None:
        raise UsageError("remove what? Name runs (stl10bench runs list has them), or --state")
    for folder in dict.fromkeys(chosen):
        typer.echo(f"removed {clean(folder.name)}: {size(folder.remove())}")


def size(count: int) -> str:
    """Bytes, as people read them."""
    from rich.filesize import decimal

    return decimal(count)
