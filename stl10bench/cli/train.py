"""train, evaluate, benchmark and reproduce."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from stl10bench.cli.options import (
    DATA_OF_RUN,
    JSON,
    MACHINE,
    MODEL,
    MODELS,
    OVERWRITE,
    PLUGIN,
    RUNS,
    TRAINING,
    WORKERS,
    Checkpoint,
    Picture,
    RunName,
    RunsDir,
    check_format,
    choice,
    hiding,
    load_plugin,
    with_options,
)
from stl10bench.cli.results import end_with
from stl10bench.cli.settings import run_settings, settings
from stl10bench.config import STEPPED, Limits
from stl10bench.core.console import clean, is_main, stderr, stdout
from stl10bench.core.errors import CheckpointError, DifferentError, UsageError
from stl10bench.core.launcher import count_of
from stl10bench.data.load import data_folder
from stl10bench.metrics.significance import SIGNIFICANCE
from stl10bench.models import registry
from stl10bench.models.factory import check_freeze
from stl10bench.models.methods import SUPERVISED
from stl10bench.models.pretrained import TEST_IMAGES
from stl10bench.results import comparison
from stl10bench.results.benchmark_table import FORMATS, read_rows, show_rows, shown_records
from stl10bench.results.rows import Failure, Row, has_damage
from stl10bench.results.run_folder import RunFolder, default_runs_dir, find_run

if TYPE_CHECKING:
    from stl10bench.studies.plan import Common, Planned
    from stl10bench.studies.progress import Forecast


app = typer.Typer()


@app.command()
@with_options(TRAINING, JSON)
def train(
    context: typer.Context,
    model: Annotated[str | None, MODEL] = None,
    *,
    as_json: bool,
    job: Annotated[Path | None, typer.Option(hidden=True)] = None,
    **options: Any,
) -> None:
    """Under 60 s for logistic on the demo data.

    Examples:
    stl10bench train mlp --dataset demo --recipe quick
    stl10bench train mobilenetv2 --no-freeze
    """
    from stl10bench.core.device import leave_process_group
    from stl10bench.training.job import read_job
    from stl10bench.training.run import run_job, train

    if job is not None:
        sources = {key: context.get_parameter_source(key) for key in context.params}
        typed = [key for key, source in sources.items() if source and source.name == "COMMANDLINE"]
        if others := set(typed) - {"job", "as_json"}:
            raise UsageError(f"--job has all settings: leave out {', '.join(sorted(others))}")
        read = read_job(job)
        runs_dir, data_dir, row = read.runs_dir, read.data_dir, run_job(read, stderr())
    else:
        model, keywords = _with_model(model, settings(context, options, [model] if model else []))
        runs_dir, data_dir = keywords["runs_dir"], keywords["data_dir"]
        row = train(model, console=stderr(), **keywords)
    leave_process_group()
    if not is_main():
        return
    if as_json:
        typer.echo(json.dumps(row.stored()))
    else:
        show_rows([row], "table", stdout())
        _name_next(Path(runs_dir) / str(row.run), data_dir)
        if row.config.unlabeled is not None:
            typer.echo(_verdict(RunFolder(Path(runs_dir) / str(row.run))))
        _name_copies(row)


def _name_next(path: Path, data_dir: Path | None) -> None:
    """Say where the run is, and what is often done next."""
    is_default = path.parent == default_runs_dir()
    words = {
        "run": path.name if is_default else path,
        "runs": "" if is_default else f" --runs-dir {path.parent}",
        "data": "" if data_folder(data_dir) == data_folder(None) else f" --data-dir {data_dir}",
    }
    line = f"{path} has the row, the curves and the weights. Next:"
    stderr().print(line, highlight=False, soft_wrap=True)
    commands = [f"stl10bench {command.format_map(words)}" for command in _NEXT]
    width = max(map(len, commands))
    for command, does in zip(commands, _NEXT.values(), strict=True):
        stderr().print(f"  {command:{width}}  # {does}", highlight=False, soft_wrap=True)


_NEXT = {
    "table{runs}": "beside your other runs",
    "plot {run}": "its curves",
    "visualize predictions {run}{data}": "right and wrong images",
    "predict {run} IMAGE": "your own images",
    "report{runs}": "a page of all runs",
}


def _name_copies(row: Row) -> None:
    """What became of copies of test images, whose columns a narrow terminal leaves out."""
    if row.copies_dropped:
        one = row.copies_dropped == 1
        were = "copy of a test image was" if one else "copies of test images were"
        typer.echo(f"{row.copies_dropped:,} {were} dropped from the unlabelled images")
    if TEST_IMAGES in row.contamination.split(" + "):
        warnings.warn(
            "the model has learned from copies of test images, so its test accuracy cannot be "
            "compared with others: train, and pretrain, without --keep-copies",
            stacklevel=2,
        )


def _verdict(folder: RunFolder) -> str:
    """Whether unlabelled images helped, or how to find out."""
    without = comparison.without_unlabelled(folder)
    if without is None or not without.is_finished:
        return (
            "unlabelled images: no verdict yet; train the same with --unlabeled none, then see "
            f"'stl10bench compare {folder.name}'"
        )
    text = comparison.verdict(comparison.load_run(folder), comparison.load_run(without))
    return f"unlabelled images: {text}, against {without.name} on the same test images"


def _with_model(model: str | None, keywords: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The model that an argument or a file names, and the other keywords of `train`."""
    model = keywords.pop("model", model)
    if model is None:
        raise UsageError("Missing model: 'stl10bench models' lists them")
    return model, keywords


# A range test leaves no run.
_NO_RUN = (
    *("runs_dir", "tracker", "note", "wandb_images", "wandb_artifact", "overwrite"),
    *Limits.model_fields,
)


@app.command()
@with_options(
    hiding({k: v for k, v in TRAINING.items() if k not in _NO_RUN}, "epochs", "lr", "seed"), JSON
)
def lr_find(
    context: typer.Context,
    model: Annotated[str | None, MODEL] = None,
    *,
    steps: Annotated[
        int, typer.Option(help="Steps to take.", min=2, max=100_000, metavar="N")
    ] = 100,
    lowest: Annotated[
        float, typer.Option(help="Learning rate of the first step.", metavar="X")
    ] = 1e-7,
    highest: Annotated[
        float, typer.Option(help="Learning rate of the last step.", metavar="X")
    ] = 10.0,
    output: Picture = Path("lr-find.png"),
    as_json: bool,
    **options: Any,
) -> None:
    """Suggests the rate where the smoothed loss falls fastest over
    the logarithm of the rate. Stops when the loss explodes.
    Under 60 s for mlp with --dataset demo.

    Examples:
    stl10bench lr-find cnn
    stl10bench lr-find mobilenetv2 --no-freeze --batch-size 64
    """
    from stl10bench.plots import style
    from stl10bench.plots.curves import loss_over_rates
    from stl10bench.training.run import find_rate

    style.check_output(output)
    model, keywords = _with_model(model, settings(context, options, [model] if model else []))
    keywords |= {"steps": steps, "lowest": lowest, "highest": highest}
    test = find_rate(model, console=stderr(), **keywords)
    if not is_main():
        return
    style.save(loss_over_rates(test, model), output)
    if as_json:
        typer.echo(json.dumps({"model": model, **asdict(test), "picture": str(output)}))
    elif test.suggestion is None:
        typer.echo(
            f"no suggestion: the loss does not fall between {lowest:g} and {highest:g}; "
            "try another --lowest or --highest"
        )
    else:
        typer.echo(f"--lr {test.suggestion:.2g}")
    if not as_json:
        typer.echo(output)


@app.command()
@with_options(PLUGIN, DATA_OF_RUN, MACHINE, JSON)
def evaluate(
    checkpoint: Checkpoint,
    *,
    split: Annotated[
        str, typer.Option(help="Split: test, train, or val (the run's validation images).")
    ] = "test",
    plugin: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Needs only the checkpoint and the data.

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
            f"loss {_four_digits(row[f'{split}_loss'])}"
        )


def _four_digits(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.4f}"


# `--help` stays a page: of many models the first settings to change are others.
_OF_ALL = hiding(TRAINING, "lr", "batch_size", "seed", "freeze", "weights", "config")


@app.command()
@with_options(_OF_ALL, WORKERS, JSON)
def benchmark(
    context: typer.Context,
    models: Annotated[list[str] | None, MODELS] = None,
    *,
    everything: Annotated[
        bool, typer.Option("--all", help="All models of the course report (five rows).")
    ] = False,
    seeds: Annotated[
        int | None, typer.Option(help="Train each with seeds 0 to N - 1.", min=1, metavar="N")
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(
            help="full, folds (the ten pre-defined ones of 1,000 images), or k-fold (--k-fold K).",
            hidden=True,
        ),
    ] = "full",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the runs, with estimated times.")
    ] = False,
    style: Annotated[str, choice("format", FORMATS, "--format", hidden=True)] = "table",
    as_json: bool,
    **options: Any,
) -> Any:  # of a dry run its forecasts
    """Trains one run at a time, each in its own process, so that the
    timings are comparable.

    Examples:
    stl10bench benchmark --all
    stl10bench benchmark logistic mlp --seeds 3
    """
    from stl10bench.studies import plan

    if count_of("WORLD_SIZE") > 1:
        raise UsageError("benchmark starts its own processes: run this command without a launcher")
    check_format(style, as_json)
    workers = {key: options.pop(key) for key in WORKERS}
    names = [*(plan.REPORT_MODELS if everything else ()), *(models or ())]
    keywords = settings(context, options, names)
    if not names and "model" in keywords:
        names = [keywords["model"]]
    start = plan.make_start(keywords)
    freeze = keywords.pop("freeze", None)
    if keywords.get("method", SUPERVISED) not in STEPPED and freeze is None:
        freeze = True  # the other row of a backbone cannot be
    if not keywords.get("pretrained", True) and freeze is None:
        freeze = False
        if any(registry.backbone_name(name) is not None for name in names):
            stderr().print("frozen backbones left out: with random weights they cannot learn")
    points = plan.benchmark_points(
        names,
        run_settings(keywords),
        freeze=None if freeze is None else check_freeze(freeze),
        seeds=seeds,
        protocol=protocol,
    )
    common = plan.prepare(start, keywords, stderr(), dry=dry_run)
    planned = plan.plan_runs(points, keywords["recipe"], common)
    if dry_run:
        return show_forecast(planned, common, as_json)

    from stl10bench.studies.cluster import Workers
    from stl10bench.studies.engine import Batch, train
    from stl10bench.studies.progress import Progress

    if workers["workers"] is None and workers["scheduler"] is None:
        workers["workers"] = 1
    several = workers["workers"] != 1
    logs = common.runs_dir / "studies" / "benchmark" / "log" if several else None
    progress = Progress("benchmark", planned, stderr(), live=several)
    batch = Batch("benchmark", common, Workers(**workers), logs)
    outcomes = train(planned, batch, progress)
    trained = [outcomes[place.run] if place.run else place.failure for place in planned]
    finished = (common.runs_dir / str(row.run) for row in trained if isinstance(row, Row))
    rows, damaged = read_rows(map(RunFolder, finished))  # with what a ranking needs
    rows += [row for row in trained if isinstance(row, Failure)]
    if as_json:
        typer.echo(json.dumps({"rows": shown_records(rows)}))
    else:
        show_rows(rows, style, stdout())
    if not any(isinstance(row, Row) for row in rows):
        raise none_succeeded(as_json)
    end_with(damaged)
    if has_damage(rows):
        raise typer.Exit(CheckpointError.exit_code)
    return None


def none_succeeded(as_json: bool) -> Exception:
    """How to end after the rows of runs that all failed; stdout holds no second JSON object."""
    error = UsageError("no run succeeded; the table says why")
    return typer.Exit(error.exit_code) if as_json else error


def show_forecast(
    planned: "Sequence[Planned]", common: "Common", as_json: bool
) -> "list[Forecast]":
    """Print the runs, done or missing; times are known, or measured on a few steps."""
    from stl10bench.studies.progress import duration, forecast

    say = partial(stderr().print, markup=False, highlight=False, soft_wrap=True)
    forecasts = forecast(planned, common, say)
    left = sum(line.seconds or 0.0 for line in forecasts if line.is_left)
    if as_json:
        runs = [line._asdict() for line in forecasts]
        typer.echo(json.dumps({"runs": runs, "seconds_left": left}))
        return forecasts
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("run")
    table.add_column("state")
    table.add_column("time", justify="right")
    for line in forecasts:
        time = "" if line.seconds is None else duration(line.seconds)
        title, state = escape(clean(line.title)), escape(clean(line.state))
        table.add_row(title, state, f"~{time}" if line.is_left else time)
    stdout().print(table)
    stdout().print(f"Estimated time left: {duration(left)}, one run at a time", highlight=False)
    return forecasts


@app.command()
@with_options(DATA_OF_RUN, MACHINE, PLUGIN, OVERWRITE, JSON)
def reproduce(
    run: RunName,
    *,
    runs_dir: RunsDir = RUNS,
    into: Annotated[Path, typer.Option(help="Folder of the new run.")] = Path("reproduced"),
    weights: Annotated[
        Path | None, typer.Option(help="Initial weights of the run, if they came from a file.")
    ] = None,
    plugin: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Compares weights and predictions bit by bit, then the
    accuracies. Exits with 8 if these differ significantly. A run
    that this code trained again before counts, with its date.

    Examples:
    stl10bench reproduce logistic-1a2b
    """
    from stl10bench.models.pretrained import find_weights
    from stl10bench.training.job import make_job
    from stl10bench.training.reproduce import reproduce_run

    load_plugin(plugin)
    folder = find_run(runs_dir, run)
    file = None if weights is None else find_weights(weights, runs_dir)
    options["dataset"] = options["dataset"] or folder.dataset()
    options |= {"weights": file, "runs_dir": into, "tracker": "none", "plugin": plugin}
    outcome = reproduce_run(folder, make_job(folder.config(), **options), stderr())
    first, second = outcome.first.test_accuracy, outcome.second.test_accuracy
    differs = not outcome.bits and outcome.p < SIGNIFICANCE
    if as_json:
        facts = {"run": folder.name, "bits": outcome.bits, "p": outcome.p}
        facts |= {"accuracies": [first, second], "differences": outcome.differences}
        facts["earlier"] = outcome.earlier
        code = DifferentError.exit_code if differs else 0
        typer.echo(json.dumps({**facts, "exit_code": code}))
        raise typer.Exit(code)
    if outcome.bits:
        same = "predictions" if outcome.weights is None else "weights and predictions"
        typer.echo(f"{folder.name}: {same} are bitwise identical{outcome.note}")
    else:
        typer.echo(
            f"{folder.name}: not bitwise identical; test accuracy {first:.4f} and {second:.4f}, "
            f"exact McNemar p = {outcome.p:.3f}{outcome.note}"
        )
        for key, (stored, new) in outcome.differences.items():
            typer.echo(f"  {key}: {stored} then, {new} now")
    if differs:
        raise DifferentError(
            f"{folder.name} was not reproduced: accuracies {first:.4f} and {second:.4f} differ "
            f"significantly (p = {outcome.p:.3g}); see the other differences above"
        )
