"""train, evaluate, benchmark and reproduce."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

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
    RUNS,
    TRAINING,
    RunName,
    RunsDir,
    load_plugin,
    settings,
    with_options,
)
from stl10bench.config import RunConfig
from stl10bench.core.console import clean, is_main, stderr, stdout
from stl10bench.core.errors import DifferentError, UsageError, unknown
from stl10bench.data.stl10 import Dataset
from stl10bench.metrics.significance import SIGNIFICANCE
from stl10bench.results.run_folder import find_run
from stl10bench.results.tables import FORMATS, show_rows
from stl10bench.studies.benchmark import fit_options, plan_benchmark
from stl10bench.studies.jobs import Known

_FREE = {  # settings without effect on the time of a step
    *("seed", "lr", "backbone_lr", "momentum", "weight_decay", "label_smoothing", "schedule"),
    *("warmup", "step_epochs", "step_gamma"),
}


def show_forecast(
    planned: Sequence[tuple[str, Known]], data: Dataset, kind: str, runs_dir: Path
) -> None:
    """Print the runs, done or missing; minutes are known, or measured on a few steps."""
    from stl10bench.results import run_folder
    from stl10bench.studies.estimate import estimate_seconds

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("run")
    table.add_column("state")
    table.add_column("minutes", justify="right")
    left = 0.0
    measured: dict[str, float] = {}
    with stderr().status("taking a few steps of each model"):
        for name, (_, config, row) in planned:
            title = escape(clean(name))
            if config is None or (row is not None and "error" in row):
                table.add_row(title, escape(clean(f"failed: {row and row['error']}")), "")
            elif row is not None:
                table.add_row(title, "done", f"{row['train_seconds'] / 60:.1f}")
            else:
                alike = _alike(config)
                if alike.name not in measured:
                    measured[alike.name] = estimate_seconds(alike, data, kind) / 60
                minutes = measured[alike.name]
                left += minutes
                state = run_folder.status(runs_dir / config.name)["state"]
                state = "missing" if state == "new" else state
                table.add_row(title, state, f"~{minutes:.1f}")
    stdout().print(table)
    stdout().print(f"about {left:.1f} minutes are left to do", highlight=False)


def _alike(config: RunConfig) -> RunConfig:
    """One config for all that take as long."""
    defaults = {key: RunConfig.model_fields[key].default for key in _FREE}
    fold = None if config.fold is None else 0
    return config.model_copy(update={**defaults, "fold": fold})


app = typer.Typer()


@app.command()
@with_options(TRAINING, JSON)
def train(model: Annotated[str, MODEL], *, as_json: bool, **options: Any) -> None:
    """Under 60 s for logistic with --dataset demo --recipe quick.

    Examples:
    stl10bench train mlp --dataset demo --recipe quick
    stl10bench train cnn --epochs 5
    stl10bench train mobilenetv2 --no-freeze
    """
    from stl10bench.training.run import train

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
    split: Annotated[
        str, typer.Option(help="test, train, or val: the run's validation images.")
    ] = "test",
    plugin: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """It needs only the checkpoint and the data.

    Examples:
    stl10bench evaluate runs/RUN/best.safetensors
    """
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
    style: Annotated[str, typer.Option("--format", help=f"{', '.join(FORMATS)}.")] = "table",
    freeze: bool | None,
    **options: Any,
) -> None:
    """Each model is trained in its own process.

    Examples:
    stl10bench benchmark --all
    stl10bench benchmark cnn timm:resnet18 --epochs 10
    stl10bench benchmark logistic mlp --seeds 3
    """
    if style not in FORMATS:
        raise unknown("format", style, FORMATS)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("benchmark starts its own processes: run it without a launcher")
    load_plugin(options["plugin"])
    entries = plan_benchmark(
        models or [], everything=everything, freeze=freeze, seeds=seeds, protocol=protocol
    )
    fitted = fit_options(entries, options)
    from stl10bench.core.device import choose_device
    from stl10bench.data.load import open_data
    from stl10bench.studies.jobs import (
        Trial,
        command_line,
        failed_row,
        look_up,
        stored_row,
        train_in_child,
    )

    console, runs_dir = stderr(), Path(options["runs_dir"])
    where = {key: options[key] for key in ("dataset", "data_dir", "download", "verify")}
    data = open_data(where.pop("dataset"), where.pop("data_dir"), **where, console=console)
    kind = choose_device(options["device"])
    planned = [
        look_up(
            Trial(entry.model, tuple(entry.arguments), {**settings(own), **entry.keywords}),
            *(data, kind, runs_dir),
            overwrite=options["overwrite"],
        )
        for entry, own in zip(entries, fitted, strict=True)
    ]
    if dry_run:
        show_forecast([(known.trial.title, known) for known in planned], data, kind, runs_dir)
        return

    rows = []
    for number, ((trial, config, row), own) in enumerate(zip(planned, fitted, strict=True), 1):
        note = "" if row is None else ": failed" if "error" in row else ": done"
        title = f"[{number}/{len(planned)}] {trial.title}{note}"
        console.print(title, style="bold", markup=False, highlight=False)
        if row is None:
            assert config is not None  # else the row had an error
            code, answer = train_in_child(trial, command_line(own))
            row = stored_row(runs_dir, answer) if code == 0 else failed_row(config, answer)
        rows.append(row)
    show_rows(rows, style, stdout(), baselines=False)
    if all("error" in row for row in rows):
        raise UsageError("no run succeeded; the table says why")


@app.command()
@with_options(DATA, MACHINE, PLUGIN, JSON)
def reproduce(
    run: RunName,
    *,
    runs_dir: RunsDir = RUNS,
    into: Annotated[Path, typer.Option(help="Folder of the new run.")] = Path("reproduced"),
    weights: Annotated[
        Path | None, typer.Option(help="The run's initial weights, if they came from a file.")
    ] = None,
    plugin: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """The bits of weights and predictions are compared, then the
    accuracies; the exit code is 8 if these differ significantly.

    Examples:
    stl10bench reproduce logistic-1a2b
    """
    from stl10bench.training.job import Job
    from stl10bench.training.reproduce import reproduce_run

    load_plugin(plugin)
    folder = find_run(runs_dir, run)
    options |= {"weights": weights, "runs_dir": into, "tracker": "none", "plugin": plugin}
    outcome = reproduce_run(folder, Job(config=folder.config(), **options), stderr())
    first, second = outcome.first.test_accuracy, outcome.second.test_accuracy
    if as_json:
        facts = {"run": folder.name, "bits": outcome.bits, "p": outcome.p}
        facts |= {"accuracies": [first, second], "differences": outcome.differences}
        typer.echo(json.dumps(facts))
    elif outcome.bits:
        typer.echo(f"{folder.name}: the same bits, weights and predictions")
    else:
        typer.echo(
            f"{folder.name}: other bits; test accuracy {first:.4f} and {second:.4f}, "
            f"exact McNemar p = {outcome.p:.3f}"
        )
        for key, (stored, new) in outcome.differences.items():
            typer.echo(f"  {key}: {stored} and {new}")
    if not outcome.bits and outcome.p < SIGNIFICANCE:
        raise DifferentError(
            f"{folder.name} was not reproduced: accuracies {first:.4f} and {second:.4f} differ "
            f"significantly (p = {outcome.p:.3g}); differences of machine and versions stand above"
        )
