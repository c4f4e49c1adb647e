"""Studies: what a setting is worth, with its noise, over any number of processes."""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from stl10bench.cli import train
from stl10bench.cli.options import (
    DATA,
    JSON,
    MACHINE,
    PLUGIN,
    TRAINING,
    Specification,
    key_values,
    load_plugin,
    with_options,
)
from stl10bench.config import DERIVED, RunConfig
from stl10bench.core.console import clean, is_main, stderr, stdout
from stl10bench.core.errors import CheckpointError, UsageError, require, unknown
from stl10bench.studies.plan import Start
from stl10bench.studies.ranking import Trained
from stl10bench.studies.record import Record
from stl10bench.studies.study import Study

if TYPE_CHECKING:
    from stl10bench.studies.sampling import Plan


app = typer.Typer(help="List, show and run studies: what a setting is worth.", no_args_is_help=True)

_S = "Search (extra tune)"
FORMATS = ("table", "markdown", "csv")
RunsDir = Annotated[Path, typer.Option(help="Folder of the run folders.")]
_RECIPE = Annotated[str | None, typer.Option(help="Named settings, in place of the study's.")]
_NOT = ("overwrite", "config", "seed", "fold", "recipe")  # of train's options
_RUNNING: Specification = {k: v for k, v in TRAINING.items() if k not in _NOT}


@app.command("list")
def list_studies(*, runs_dir: RunsDir = Path("runs")) -> None:
    """List the named studies and those that ran here: what the report found, and what was found.

    Examples:
    stl10bench study list
    stl10bench study list --runs-dir runs
    """
    from stl10bench.studies import presets, ranking, record, summary

    lines, ran = [], record.names(runs_dir)
    for name in [*presets.NAMES, *(name for name in ran if name not in presets.NAMES)]:
        stored, failure = None, ""
        try:
            stored = record.read(runs_dir, name)
        except CheckpointError as error:
            failure = str(error)
        if stored is None:
            study = presets.get(name) if name in presets.NAMES else None
            lines.append((name, *((study.factors, study.finding) if study else ("", "")), failure))
            continue
        places = ranking.rank(record.trained(stored, runs_dir))
        here = summary.best(stored, places)
        if stored.study.finding:
            here += f" ({summary.held(stored, places)})"
        lines.append((name, stored.study.factors, stored.study.finding, here))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("study", no_wrap=True)
    for title in (
        "varied",
        "the report found",
        *(["found here"] if any(x[3] for x in lines) else ()),
    ):
        table.add_column(title)
    for line in lines:
        table.add_row(*(escape(clean(cell)) for cell in line[: len(table.columns)]))
    stdout().print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A study's name, or a .toml file.")],
    *,
    runs_dir: RunsDir = Path("runs"),
    style: Annotated[str, typer.Option("--format", help=f"{', '.join(FORMATS)}.")] = "table",
) -> None:
    """Show a study: what it varies, and the ranking of what was run of it.

    Examples:
    stl10bench study show cnn-dropout
    stl10bench study show mine.toml
    """
    from stl10bench.studies import parse, plan, record

    _check_style(style)
    stored = _stored(name, runs_dir)
    if stored is None:
        asked = parse.define(name, model=None, recipe=None, vary=(), seeds=None, settings={})
        _check(asked, name, plan.Start())
        stored = record.read(runs_dir, asked.name)
    if stored is None:
        _declare(asked)
        stderr().print(f"no run of it in {runs_dir}", markup=False, highlight=False)
        return
    if style == "table":
        _declare(stored.study)
    _rank(stored, record.trained(stored, runs_dir), style)


def _stored(name: str, runs_dir: Path) -> Record | None:
    """The record of the study of that name that has run; raises UsageError for no study's name."""
    from stl10bench.studies import presets, record

    ran = record.names(runs_dir)
    if name in ran:
        return record.read(runs_dir, name)
    if not name.endswith(".toml") and name not in presets.NAMES:
        known = dict.fromkeys([*presets.NAMES, *ran])
        raise unknown("study", name, known, remedy="('stl10bench study list' lists them)")
    return None


def _check(study: Study, name: str | None, start: Start) -> None:
    """Raise UsageError for a study that cannot be; of a file with the line."""
    from stl10bench.studies import parse, plan

    try:
        plan.check(study, start)
    except UsageError as error:
        if name is None or not name.endswith(".toml"):
            raise
        raise parse.located(Path(name), error) from None


def _check_style(style: str) -> None:
    if style not in FORMATS:
        raise unknown("format", style, FORMATS)


def _declare(study: Study) -> None:
    """Print what a study is."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, fact in study.facts.items():
        table.add_row(f"[dim]{key}[/dim]", escape(clean(fact)))
    stdout().print(table)


def _rank(stored: Record, trained: Sequence[Trained], style: str) -> None:
    """Print the ranking of a study and what it found."""
    from stl10bench.results.tables import print_table
    from stl10bench.studies import summary

    if style == "csv":
        stdout().out(summary.study_to_csv(stored, trained), end="", highlight=False)
        return
    if style == "markdown":
        stdout().out(summary.study_to_markdown(stored, trained), end="", highlight=False)
        return
    grid = summary.study_to_table(stored, trained)
    print_table(grid, stdout(), expendable=("test accuracy", "seeds", "behind"))
    for line in summary.said(stored, trained):
        stdout().print(clean(line), markup=False, highlight=False)


@app.command()
@with_options(_RUNNING)
def run(
    name: Annotated[str | None, typer.Argument(help="A study's name, or a .toml file.")] = None,
    *,
    model: Annotated[str | None, typer.Option(help="Another model than the study's.")] = None,
    recipe: _RECIPE = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            help="A factor: lr=1e-3,1e-4; hidden=512,256/128; lr=1e-5..1e-1:log; repeatable.",
            metavar="NAME=A,B",
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Repeat each with the seeds 0 to N - 1.", min=1, max=1000)
    ] = None,
    stack: Annotated[
        bool, typer.Option(help="Train small models that share their batches together.")
    ] = True,
    ddp: Annotated[
        bool, typer.Option("--ddp", help="Under a launcher: all processes train each run together.")
    ] = False,
    sampler: Annotated[
        str | None,
        typer.Option(help="Search with Optuna: tpe, random or grid.", rich_help_panel=_S),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="Runs of a search, in all.", min=1, rich_help_panel=_S)
    ] = None,
    pruner: Annotated[
        str | None,
        typer.Option(help="End poor runs early: none, median or hyperband.", rich_help_panel=_S),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="Database URL that machines share, else a file.", rich_help_panel=_S),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help=r"Folder of figures and CSV \[default: RUNS_DIR/studies/NAME]."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs, done or missing, with minutes.")
    ] = False,
    style: Annotated[str, typer.Option("--format", help=f"{', '.join(FORMATS)}.")] = "table",
    **options: Any,
) -> None:
    """Train what is missing of a study, rank its settings and draw it.

    The same command goes on after any end; under a launcher each process takes the next open run.

    Examples:
    stl10bench study run logistic-lr
    stl10bench study run --model cnn --vary dropout=0,0.2
    stl10bench study run mlp-hidden --seeds 3 --dry-run
    """
    from stl10bench.studies import parse, plan, presets, record, search, study, sweep
    from stl10bench.studies.jobs import look_up

    _check_style(style)
    load_plugin(options["plugin"])
    given = [key for key in RunConfig.model_fields if key not in DERIVED]
    own = {key: options[key] for key in given if options.get(key) is not None}
    own |= {k: options[k] for k in ("freeze", "hidden", "dropout") if options[k] is not None}
    own |= key_values(options["model_option"])
    again = None
    if name is not None and name not in presets.NAMES:
        again = _stored(name, Path(options["runs_dir"]))
    asked = parse.define(
        name,
        model=model,
        recipe=recipe,
        vary=vary or (),
        seeds=seeds,
        settings=own,
        stored=None if again is None else again.study,
    )
    start = plan.Start(options["weights"], options["pretrained"])
    _check(asked, name, start)
    how = _search(asked, sampler, trials, pruner, storage, seeds)
    if dry_run and how is not None:
        raise UsageError(
            "--dry-run: a search decides as it goes; without --sampler runs are listed"
        )
    if how is not None:
        own_name = f"{asked.name[:50]}-{how.sampler}"  # beside the grid of that name
        asked = asked.model_copy(update={"seeds": asked.seeds[:1], "name": own_name})
    points = study.points(asked) if how is None else []

    console = stderr()
    made = sweep.prepare(asked, points, start, options, console)
    if dry_run:
        known = [
            (one.title, look_up(one.trial, made.data, made.device, made.runs_dir))
            for one in made.planned
        ]
        train.show_forecast(known, made.data, made.device, made.runs_dir)
        return
    if how is None:
        found, trained = made.record, sweep.train(made, console, stack=stack, ddp=ddp)
    else:
        found, trained = search.train(made, how, console, ddp=ddp)
    if not is_main():
        return
    _rank(found, trained, style)
    folder = output or record.folder(made.runs_dir, asked.name)
    for path in _draw(found, trained, folder, made.runs_dir):
        console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
    states = [(one.row or {}).get("state", "missing" if one.row is None else "") for one in trained]
    if states and all(state in ("missing", "failed") for state in states):
        raise UsageError("no run succeeded; the table says why")


def _search(
    asked: Study,
    sampler: str | None,
    trials: int | None,
    pruner: str | None,
    storage: str | None,
    seeds: int | None,
) -> "Plan | None":
    """How to search, if that is asked for."""
    if sampler is None:
        given = {"--trials": trials, "--pruner": pruner, "--storage": storage}
        if wrong := [name for name, value in given.items() if value is not None]:
            raise UsageError(f"{wrong[0]} is of a search: it needs --sampler tpe, random or grid")
        return None
    require("optuna", extra="tune", purpose="--sampler")
    if seeds is not None and seeds > 1:
        raise UsageError(
            f"--seeds {seeds}: a search has one seed; compare its best settings afterwards, with "
            "--vary and --seeds"
        )
    from stl10bench.studies import sampling

    how = sampling.Plan(sampler, trials or 20, pruner or "none", storage)
    sampling.check(asked, how)
    return how


def _draw(stored: Record, trained: Sequence[Trained], folder: Path, runs_dir: Path) -> list[Path]:
    """Write a study's CSV, with matplotlib its figures, and a page of all; returns the files."""
    from stl10bench.core import files
    from stl10bench.plots import studies
    from stl10bench.studies import summary

    name = stored.study.name
    table, page, figures = folder / f"{name}.csv", folder / f"{name}.md", []
    files.write(table, summary.study_to_csv(stored, trained).encode())
    if find_spec("matplotlib") is None:
        stderr().print("no figures: they need pip install 'stl10bench[plots]'", markup=False)
    else:
        figures = studies.write(folder, stored, trained, runs_dir)
    shown = [path.name for path in figures if path.suffix == ".png"]
    files.write(page, summary.study_to_markdown(stored, trained, shown).encode())
    return [page, table, *figures]


@app.command(hidden=True)
@with_options(DATA, MACHINE, PLUGIN, JSON)
def stack(
    model: str,
    *,
    members: Annotated[str, typer.Option(help="Settings of each member: a list in JSON.")],
    recipe: Annotated[str, typer.Option()],
    runs_dir: RunsDir = Path("runs"),
    tracker: Annotated[str, typer.Option()] = "none",
    as_json: bool,
    plugin: str | None,
    **options: Any,
) -> None:
    """Train several settings of a small model on the same batches: a worker's child."""
    from stl10bench.training.run import train_stack

    load_plugin(plugin)
    rows = train_stack(
        *(model, json.loads(members)),
        **{"recipe": recipe, "runs_dir": runs_dir, "tracker": tracker, **options},
        console=stderr(),
    )
    if as_json:
        typer.echo(json.dumps({"runs": [row["run"] for row in rows]}))
