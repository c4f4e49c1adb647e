"""Lists, shows and removes run folders."""

import json
import textwrap
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer
from rich import table as rich_table
from rich.filesize import decimal
from rich.markup import escape

from stl10bench.cli.options import (
    JSON,
    RUNS,
    RunName,
    RunsDir,
    SingleRunNames,
    choice,
    with_options,
)
from stl10bench.core import files
from stl10bench.core.console import clean, stdout
from stl10bench.core.errors import CheckpointError, UsageError
from stl10bench.results import columns
from stl10bench.results.rows import Row
from stl10bench.results.run_folder import STATES, find_run, run_folders, run_labels
from stl10bench.results.table import Table, print_table

app = typer.Typer(no_args_is_help=True)

_LONGEST = 200  # characters of a reason in the list; `show` has all of it
_STATES = (*STATES, "killed", "damaged", "old")
_RESULT = (
    *("test_accuracy", "test_loss", "val_accuracy", "val_loss", "best_epoch", "train_seconds"),
    *("test_macro_f1", "test_ece", "parameters", "macs", "note"),
)


@app.command("list")
@with_options(JSON)
def list_runs(*, runs_dir: RunsDir = RUNS, as_json: bool) -> None:
    """List all runs with their states, accuracies and sizes.

    Examples:
    stl10bench runs list --runs-dir runs
    """
    folders = run_folders(runs_dir)
    runs = [folder.describe() for folder in folders]
    if as_json:
        typer.echo(json.dumps({"runs": runs}))
    elif not runs:
        raise UsageError(f"no run in {runs_dir}: train one, or pass --runs-dir")
    else:
        total = decimal(sum(run["bytes"] for run in runs))
        table = _to_table(runs, run_labels(folders))
        print_table(table, stdout(), expendable=("size", "since", "epoch"), whole="--json")
        stdout().print(f"{total} in {len(runs)} run{'s' * (len(runs) > 1)}", highlight=False)
    if any(run["state"] == "damaged" for run in runs):
        raise typer.Exit(CheckpointError.exit_code)


def _to_table(runs: Sequence[dict[str, Any]], labels: Sequence[str]) -> Table:
    lines, notes = [], []
    for run, label in zip(runs, labels, strict=True):
        done = "-" if run["epoch"] is None else run["epoch"]
        epoch = "" if run["epochs"] is None else f"{done}/{run['epochs']}"
        accuracy = "" if run["test_accuracy"] is None else f"{run['test_accuracy']:.3f}"
        texts = (label, run["run"], run["state"], _date(run["since"]), epoch, accuracy)
        lines.append((*texts, decimal(run["bytes"])))
        if run["reason"]:
            notes.append(("run", f"{run['run']}: {textwrap.shorten(run['reason'], _LONGEST)}"))
    header = ("model", "run", "state", "since", "epoch", "test accuracy", "size")
    return Table("Runs", header, tuple(lines), tuple(notes), left=("run", "state", "since"))


def _date(since: Any) -> str:
    """Local time, to the minute; nothing for what is no time."""
    if since is None:  # which localtime takes for now
        return ""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(since))
    except (TypeError, ValueError, OverflowError, OSError):
        return ""


@app.command()
@with_options(JSON)
def show(run: RunName, *, runs_dir: RunsDir = RUNS, as_json: bool) -> None:
    """Show a run's state, result, settings and files.

    Examples:
    stl10bench runs show cnn-1a2b
    """
    folder = find_run(runs_dir, run)
    facts, row, config = folder.describe(), None, {}
    with suppress(CheckpointError):  # then the state is "damaged", and says why
        config = files.read_json(folder.config_file, CheckpointError)
    with suppress(CheckpointError):
        row = folder.row() if folder.is_finished else None
    sizes = files.sizes(folder.path)
    if as_json:
        result = None if row is None else row.stored()
        typer.echo(json.dumps({**facts, "result": result, "config": config, "files": sizes}))
    else:
        reached = {} if row is None else {c.title: columns.text(row, c) for c in _columns(row)}
        facts |= {"since": _date(facts["since"]), "bytes": decimal(facts["bytes"])}
        del facts["test_accuracy"]  # which the result has with its interval
        parts = {"": {**facts, **reached}, "settings": config}
        parts["files"] = {name: decimal(size) for name, size in sizes.items()}
        _print_facts(parts)
    if facts["state"] == "damaged":
        raise typer.Exit(CheckpointError.exit_code)


def _columns(row: Row) -> list[columns.Column]:
    """What is known of a result, in a few lines."""
    return [columns.column(key) for key in _RESULT if columns.value(row, key) is not None]


def _print_facts(parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Print each part as lines of a name and a value, below its title."""
    table = rich_table.Table(box=None, show_header=False, pad_edge=False)
    for title, facts in parts.items():
        if title:
            table.add_row(f"\n[bold]{title}[/bold]")
        for key, value in facts.items():
            table.add_row(f"[dim]{escape(clean(key))}[/dim]", escape(clean(str(value))))
    stdout().print(table)


@app.command()
@with_options(JSON)
def rm(
    run: SingleRunNames = None,
    *,
    runs_dir: RunsDir = RUNS,
    state: Annotated[
        str | None,
        choice("state", _STATES, help_text=f"Remove all in a state: {', '.join(_STATES)}."),
    ] = None,
    as_json: bool,
) -> None:
    """Remove runs by name or by state, unless they are running.

    Examples:
    stl10bench runs rm cnn-1a2b
    stl10bench runs rm --state old
    """
    if not run and state is None:
        raise UsageError("Missing run: pass names (stl10bench runs list shows them), or --state")
    folders = [find_run(runs_dir, name, guess=False) for name in run or []]
    if state is not None:
        folders += [run for run in run_folders(runs_dir) if run.describe()["state"] == state]
    removed = {}
    for folder in dict.fromkeys(folders):
        removed[folder.name] = size = folder.remove()
        if not as_json:
            typer.echo(f"removed {clean(folder.name)}: {decimal(size)}")
    if as_json:
        typer.echo(json.dumps({"removed": removed}))
