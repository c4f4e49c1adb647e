"""train, evaluate, benchmark and reproduce."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from stl10bench.cli.options import (
    DATA,
    JSON,
    MACHINE,
    MODEL,
    MODELS,
    PLUGIN,
    TRAINING,
    WORKERS,
    load_plugin,
    settings,
    with_options,
)
from stl10bench.config import RunConfig
from stl10bench.core.console import clean, is_main, stderr, stdout
from stl10bench.core.errors import DifferentError, UsageError, unknown
from stl10bench.metrics.significance import SIGNIFICANCE
from stl10bench.results import run_folder
from stl10bench.results.rows import Row
from stl10bench.results.tables import FORMATS, show_rows

if TYPE_CHECKING:
    from stl10bench.studies.plan import Common, Planned


def show_forecast(planned: "Sequence[Planned]", common: "Common") -> None:
    """Print the runs, done or missing; minutes are known, or measured on a few steps."""
    from stl10bench.studies.estimate import forecast
    from stl10bench.studies.progress import duration

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("run")
    table.add_column("state")
    table.add_column("time", justify="right")
    with stderr().status("taking a few steps of each model"):
        forecasts = forecast(planned, common)
    for line in forecasts:
        time = "" if line.seconds is None else duration(line.seconds)
        title, state = escape(clean(line.planned.title)), escape(clean(line.state))
        table.add_row(title, state, f"~{time}" if line.is_left else time)
    left = sum(line.seconds or 0.0 for line in forecasts if line.is_left)
    stdout().print(table)
    stdout().print(f"Estimated time left: {duration(left)}, one run at a time", highlight=False)


app = typer.Typer()


@app.command()
@with_options(TRAINING, JSON)
def train(
    context: typer.Context,
    model: Annotated[str | None, MODEL] = None,
    *,
    job: Annotated[Path | None, typer.Option(hidden=True)] = None,
    **options: Any,
) -> None:
    """Train one model and print its row."""
    from stl10bench.training.job import read_job
    from stl10bench.training.run import run_job, train

    as_json = options.pop("as_json")
    if job is not None:
        sources = {key: context.get_parameter_source(key) for key in context.params}
        typed = [key for key, source in sources.items() if source and source.name == "COMMANDLINE"]
        if others := set(typed) - {"job", "as_json"}:
            raise UsageError(f"--job holds all of a run: leave out {', '.join(sorted(others))}")
        row = run_job(read_job(job), stderr())
    elif model is None:
        raise UsageError("Missing model: 'stl10bench models' lists them")
    else:
        row = train(model, console=stderr(), **settings(options))
    if not is_main():
        return
    if as_json:
        typer.echo(json.dumps(row.stored()))
    else:
        show_rows([row], "table", stdout())


@app.command()
@with_options(PLUGIN, DATA, MACHINE, JSON)
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A run's best.safetensors.")],
    *,
    split: Annotated[str, typer.Option(help="test, train, or val: the run's hold-out.")] = "test",
    as_json: bool,
    plugin: str | None,
    **options: Any,
) -> None:
    """Measure a checkpoint; needs only the file and the data."""
    from stl10bench.inference.evaluate import evaluate

    load_plugin(plugin)
    row = evaluate(checkpoint, split=split, console=stderr(), **options)
    if not is_main():
        return
    if as_json:
        typer.echo(json.dumps(row))
    else:
        low, high = row[f"{split}_accuracy_interval"]
        typer.echo(
            f"{row['model']} on {row['dataset']}, {split} split, {row[f'{split}_images']:,} "
            f"images: accuracy {row[f'{split}_accuracy']:.4f} [{low:.4f}, {high:.4f}], "
            f"loss {row[f'{split}_loss']}"
        )


@app.command()
@with_options(TRAINING, WORKERS)
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
        bool, typer.Option("--dry-run", help="List the runs, done or missing, with their times.")
    ] = False,
    style: Annotated[str, typer.Option("--format", help=f"{', '.join(FORMATS)}.")] = "table",
    freeze: bool | None,
    **options: Any,
) -> None:
    """Train what is missing, each model in its own process, and print one table.

    One run at a time, so that none disturbs the times of another, unless --workers says more.
    """
    from stl10bench.studies import plan

    if style not in FORMATS:
        raise unknown("format", style, FORMATS)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("benchmark starts its own processes: run it without a launcher")
    load_plugin(options["plugin"])
    entries = plan.list_entries(
        models or [], everything=everything, freeze=freeze, seeds=seeds, protocol=protocol
    )
    workers = {key: options.pop(key) for key in WORKERS}
    keywords = settings(options)
    start = plan.Start(options["weights"], options["pretrained"])
    own = {k: v for k, v in keywords.items() if k not in {*TRAINING} - {*RunConfig.model_fields}}
    own |= {key: keywords[key] for key in ("hidden", "dropout") if key in keywords}
    list(plan.fit_settings(entries, own))  # raises before the data are opened
    common = plan.prepare(start, options, stderr())
    planned = plan.plan_benchmark(entries, own, options["recipe"], common)
    if dry_run:
        show_forecast(planned, common)
        return

    from stl10bench.studies.engine import Batch, Workers, train
    from stl10bench.studies.progress import Progress

    if workers["workers"] is None and workers["scheduler"] is None:
        workers["workers"] = 1
    several = workers["workers"] != 1
    logs = common.runs_dir / "studies" / "benchmark" / "log" if several else None
    progress = Progress("benchmark", planned, stderr(), live=several)
    batch = Batch("benchmark", common, Workers(**workers), logs)
    outcomes = train(planned, batch, progress)
    rows = [outcomes[place.run] if place.run else place.failure for place in planned]
    show_rows([row for row in rows if row is not None], style, stdout())
    if not any(isinstance(row, Row) for row in rows):
        raise UsageError("no run succeeded; the table says why")


@app.command()
@with_options(DATA, MACHINE, PLUGIN, JSON)
def reproduce(
    run: Annotated[str, typer.Argument(help="A run's name, its beginning, or its folder.")],
    *,
    runs_dir: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("runs"),
    into: Annotated[Path, typer.Option(help="Folder of the copy.")] = Path("reproduced"),
    weights: Annotated[
        Path | None, typer.Option(help="The weights that the run began from, if it had a file.")
    ] = None,
    plugin: str | None,
    as_json: bool,
    **where: Any,
) -> None:
    """Train a stored run again and say whether bits, or only statistics, agree."""
    from stl10bench.training.reproduce import reproduce_run

    load_plugin(plugin)
    folder = run_folder.find(runs_dir, run)
    found = reproduce_run(folder, into, console=stderr(), weights=weights, tracker="none", **where)
    accuracies = [row["test_accuracy"] for row in (found.first, found.second)]
    if as_json:
        facts = {"run": folder.name, "bits": found.bits, "p": found.p, "accuracies": accuracies}
        typer.echo(json.dumps({**facts, "differences": found.differences}))
    elif found.bits:
        typer.echo(f"{folder.name}: the same bits, weights and predictions")
    else:
        typer.echo(
            f"{folder.name}: other bits; test accuracy {accuracies[0]:.4f} and "
            f"{accuracies[1]:.4f}, exact McNemar p = {found.p:.3f}"
        )
        for key, (stored, new) in found.differences.items():
            typer.echo(f"  {key}: {stored} and {new}")
    if not found.bits and found.p < SIGNIFICANCE:
        raise DifferentError(
            f"{folder.name} was not reproduced: accuracies {accuracies[0]:.4f} and "
            f"{accuracies[1]:.4f} differ by more than chance (p = {found.p:.3g}); what differs in "
            "machine and versions stands above"
        )
