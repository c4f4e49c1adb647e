"""Trains many models and prints their table."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from stl10bench import benchmark as benchmarks
from stl10bench.commands import forecast
from stl10bench.commands.options import (
    MODELS,
    TRAINING,
    load_plugin,
    settings,
    with_options,
)
from stl10bench.errors import UsageError, unknown
from stl10bench.tables import results
from stl10bench.terminal import stderr, stdout

app = typer.Typer()


@app.command()
@with_options(TRAINING)
def benchmark(
    models: Annotated[list[str] | None, MODELS] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="The report's five rows.")] = False,
    seeds: Annotated[
        int | None, typer.Option(help="Repeat each with the seeds 0 to N - 1.", min=1, metavar="N")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="full, or folds: each of the ten pre-defined folds of 1,000 images.")
    ] = "full",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs, done or missing, with minutes.")
    ] = False,
    style: Annotated[
        str, typer.Option("--format", help=f"{', '.join(results.FORMATS)}.")
    ] = "table",
    freeze: bool | None,
    **options: Any,
) -> None:
    """Train what is missing, each model in its own process, and print one table."""
    if style not in results.FORMATS:
        raise unknown("format", style, results.FORMATS)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("benchmark starts its own processes: run it without a launcher")
    load_plugin(options["plugin"])
    entries = benchmarks.plan(
        models or [], everything=everything, freeze=freeze, seeds=seeds, protocol=protocol
    )
    fitted = benchmarks.fit(entries, options)

    from stl10bench import device, trials
    from stl10bench.data.datasets import open_data

    console, runs_dir = stderr(), Path(options["runs_dir"])
    where = {key: options[key] for key in ("dataset", "data_dir", "download", "verify")}
    data = open_data(where.pop("dataset"), where.pop("data_dir"), **where, console=console)
    kind = device.choose_device(options["device"])
    planned = [
        trials.look(
            trials.Trial(entry.model, tuple(entry.arguments), {**settings(own), **entry.keywords}),
            *(data, kind, runs_dir),
            overwrite=options["overwrite"],
        )
        for entry, own in zip(entries, fitted, strict=True)
    ]
    if dry_run:
        forecast.show([(known.trial.title, known) for known in planned], data, kind, runs_dir)
        return

    rows = []
    for number, ((trial, config, row), own) in enumerate(zip(planned, fitted, strict=True), 1):
        note = "" if row is None else ": failed" if "error" in row else ": done"
        title = f"[{number}/{len(planned)}] {trial.title}{note}"
        console.print(title, style="bold", markup=False, highlight=False)
        if row is None:
            assert config is not None  # else the row had an error
            code, answer = trials.train(trial, trials.command_line(own))
            row = trials.row(runs_dir, answer) if code == 0 else trials.failed(config, answer)
        rows.append(row)
    results.show(rows, style, stdout(), baselines=False)
    if all("error" in row for row in rows):
        raise UsageError("no run succeeded; the table says why")
