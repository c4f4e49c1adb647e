"""Studies (ablations): list, show and run them."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from stl10bench.cli import train
from stl10bench.cli.options import (
    FIRST,
    JSON,
    LOOK,
    RUNS,
    TRAINING,
    WORKERS,
    RunsDir,
    Specification,
    check_format,
    choice,
    completing,
    hiding,
    in_a_folder,
    option,
    pop_look,
    with_options,
)
from stl10bench.cli.settings import run_settings, settings
from stl10bench.core.console import clean, is_main, stderr, stdout
from stl10bench.core.errors import CheckpointError, UsageError, require, unknown
from stl10bench.results.rows import Failure, has_damage
from stl10bench.studies.plan import Common, Planned, Start
from stl10bench.studies.ranking import Trained
from stl10bench.studies.record import Record
from stl10bench.studies.study import Study, points

if TYPE_CHECKING:
    from stl10bench.studies.cluster import Workers
    from stl10bench.studies.search import Search


app = typer.Typer(no_args_is_help=True)

FORMATS = ("table", "markdown", "csv")
_NOT = ("overwrite", "config", "seed", "fold", "k_fold_part", "recipe")  # of train's options
_option = partial(option, panel="Search (extra tune)", hidden=True)
_SEARCH: Specification = {
    "sampler": _option(str, "Search with Optuna: tpe, random or grid."),
    "trials": _option(int, "Total number of runs of the search.", min=1),
    "pruner": _option(str, "Stop poor runs early: none, median or hyperband."),
    "storage": _option(
        str, "Database URL to store the search in [default: a file].", envvar="STL10BENCH_STORAGE"
    ),
}
_RECIPE = option(str, "Recipe to use instead of the study's.", panel=FIRST, metavar="NAME")
_RUNNING: Specification = hiding(
    {"recipe": _RECIPE, **{k: v for k, v in TRAINING.items() if k not in _NOT}},
    *("lr", "batch_size", "image_size", "freeze", "weights"),
)


@app.command("list")
@with_options(JSON)
def list_studies(*, runs_dir: RunsDir = RUNS, as_json: bool) -> None:
    """List the built-in studies and those that have run here.

    Examples:
    stl10bench study list
    stl10bench study list --runs-dir runs
    """
    from stl10bench.studies import parse, ranking, record, summary

    lines: list[tuple[str, str, str, str]] = []
    ran, damaged = record.names(runs_dir), False
    for name in dict.fromkeys([*parse.PRESETS, *ran]):
        stored, problem = None, ""
        preset = parse.preset(name) if name in parse.PRESETS else None
        report = "" if preset is None else preset.finding
        try:
            stored = record.read(runs_dir, name)
        except CheckpointError as error:
            problem, damaged = str(error), True
        if stored is None:
            lines.append((name, "" if preset is None else preset.factors, report, problem))
            continue
        trained = record.trained(stored, runs_dir)
        damaged |= has_damage(run.row for run in trained)
        places = [] if stored.study.over_labels else ranking.rank(trained)
        done = sum(run.row is not None for run in trained)
        here = summary.best(stored, places) if places else f"{done} of {len(trained)} runs"
        if report := report or stored.study.finding:
            here += f" ({summary.held(stored, places)})"
        lines.append((name, stored.study.factors, report, here))
    if as_json:
        keys = ("name", "varied", "report_found", "found_here")
        typer.echo(json.dumps({"studies": [dict(zip(keys, line, strict=True)) for line in lines]}))
    else:
        _show_list(lines)
    if damaged:
        raise typer.Exit(CheckpointError.exit_code)


def _show_list(lines: Sequence[tuple[str, str, str, str]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("study", no_wrap=True)
    titles = ["varied", "the report found"]
    if any(line[3] for line in lines):
        titles.append("found here")
    for title in titles:
        table.add_column(title, overflow="fold")
    for line in lines:
        table.add_row(*(escape(clean(cell)) for cell in line[: len(table.columns)]))
    stdout().print(table)


def _names(context: typer.Context, incomplete: str) -> list[str]:
    """The named studies, and those that ran in the command's runs folder."""
    from stl10bench.studies import parse, record

    ran = record.names(Path(context.params.get("runs_dir") or RUNS))
    return completing([*dict.fromkeys([*parse.PRESETS, *ran])])(incomplete)


_NAME = typer.Argument(help="A study's name, or a .toml file.", autocompletion=_names)


@app.command()
@with_options(JSON)
def show(
    name: Annotated[str, _NAME],
    *,
    runs_dir: RunsDir = RUNS,
    style: Annotated[str, choice("format", FORMATS, "--format")] = "table",
    as_json: bool,
) -> None:
    """Show what a study varies, and the ranking of its runs.

    Examples:
    stl10bench study show cnn-dropout
    stl10bench study show mine.toml
    """
    from stl10bench.studies import parse, plan, record, summary

    check_format(style, as_json)
    stored = _stored(name, runs_dir)
    if stored is None:
        study = parse.define(name)
        _check(study, name, plan.Start())
        stored = record.read(runs_dir, study.name)
    if stored is None:
        if as_json:
            facts = study.model_dump(mode="json")
            typer.echo(json.dumps({"study": facts, "ranking": [], "findings": [], "runs": []}))
        else:
            _declare(study)
        line = f"study {study.name} has no runs in {runs_dir}"
        stderr().print(line, markup=False, highlight=False, soft_wrap=True)
        return
    trained = record.trained(stored, runs_dir)
    if as_json:
        typer.echo(json.dumps(summary.study_to_json(stored, trained)))
    else:
        if style == "table":
            _declare(stored.study)
        _rank(stored, trained, style)
    if has_damage(run.row for run in trained):  # the good ones are shown first
        raise typer.Exit(CheckpointError.exit_code)


def _stored(name: str, runs_dir: Path) -> Record | None:
    """The record of the study of that name that has run; raises UsageError for no study's name."""
    from stl10bench.studies import parse, record

    ran = record.names(runs_dir)
    if name in ran:
        return record.read(runs_dir, name)
    if not name.endswith(".toml") and name not in parse.PRESETS:
        names = dict.fromkeys([*parse.PRESETS, *ran])
        raise unknown("study", name, names, remedy="('stl10bench study list' lists them)")
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


def _declare(study: Study) -> None:
    """Print what a study is."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(overflow="fold")
    for key, fact in study.facts.items():
        table.add_row(f"[dim]{key}[/dim]", escape(clean(fact)))
    stdout().print(table)


def _rank(stored: Record, trained: Sequence[Trained], style: str) -> None:
    """Print the ranking of a study and what it found."""
    from stl10bench.results.columns import EXPENDABLE
    from stl10bench.results.table import print_table
    from stl10bench.studies import summary

    if style != "table":
        render = summary.study_to_csv if style == "csv" else summary.study_to_markdown
        stdout().out(render(stored, trained), end="", highlight=False)
        return
    expendable = ("test accuracy", "seeds", "behind")
    for table in summary.study_to_tables(stored, trained):
        print_table(
            table, stdout(), expendable=EXPENDABLE if stored.study.over_labels else expendable
        )
    for line in summary.findings(stored, trained):
        stdout().print(clean(line), markup=False, highlight=False)


@app.command()
@with_options(_SEARCH, _RUNNING, WORKERS, hiding(LOOK, *LOOK), JSON)
def run(
    context: typer.Context,
    name: Annotated[str | None, _NAME] = None,
    *,
    model: Annotated[
        str | None, typer.Option(help="Model to use instead of the study's.", metavar="NAME")
    ] = None,
    recipe: str | None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            help="Vary a setting: lr=1e-3,1e-4 or hidden=512,256/128 or lr=1e-5..1e-1:log.",
            metavar="NAME=A,B",
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            help="Train each setting with seeds 0 to N - 1.", min=1, max=1000, metavar="N"
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help=r"Folder for figures and CSV \[default: RUNS_DIR/studies/NAME].",
            hidden=True,
            callback=in_a_folder,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the runs, with estimated times.")
    ] = False,
    style: Annotated[str, choice("format", FORMATS, "--format", hidden=True)] = "table",
    as_json: bool,
    **options: Any,
) -> Any:  # of a dry run its forecasts
    """Train or resume a study's missing runs, rank its settings and plot them.

    Examples:
    stl10bench study run --model cnn --vary dropout=0,0.2
    stl10bench study run mlp-hidden --seeds 3 --dry-run
    """
    from stl10bench.studies import cluster, parse, plan, record, summary

    check_format(style, as_json)
    searching = {key: options.pop(key) for key in _SEARCH}
    workers = cluster.Workers(**{key: options.pop(key) for key in WORKERS})
    look = {key: options.pop(key) for key in LOOK}
    options = settings(context, options, [model] if model else [])
    model, recipe = options.pop("model", model), recipe or options.pop("recipe", None)
    stored = None
    if name is not None and name not in parse.PRESETS:
        stored = _stored(name, Path(options["runs_dir"]))
    changes = parse.Changes(model, recipe, vary or (), seeds, run_settings(options))
    study = parse.define(name, changes, None if stored is None else stored.study)
    start = plan.make_start(options)
    _check(study, name, start)
    search = _search(study, searching, dry_run, seeds)
    if search is not None:  # beside the grid of that name
        new_name = f"{study.name[:50]}-{search.sampler}"
        study = study.model_copy(update={"seeds": study.seeds[:1], "name": new_name})
    if not is_main():  # of a launcher: the first process has the plan
        if not dry_run:
            cluster.serve(workers)
        return None

    common = plan.prepare(start, options, stderr(), dry=dry_run)
    grid = [] if search is not None else points(study)
    planned = plan.plan_runs(grid, study.recipe, common)
    if dry_run:
        return train.show_forecast(planned, common, as_json)
    new = record.make(study, planned, common)
    old = record.read(common.runs_dir, study.name)
    if old is not None and (note := record.changes(old, new, common.runs_dir)):
        stderr().print(note, markup=False, highlight=False, soft_wrap=True)
    new, trained = _train(new, planned, search, common, workers)
    if not as_json:
        _rank(new, trained, style)
    folder = output or record.folder(common.runs_dir, study.name)
    paths = _draw(new, trained, folder, common.runs_dir, look)
    if as_json:
        found = summary.study_to_json(new, trained)
        typer.echo(json.dumps({**found, "files": [str(path) for path in paths]}))
    for path in paths:
        stderr().print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
    if trained and all(
        run.row is None or (isinstance(run.row, Failure) and run.row.state in ("failed", "damaged"))
        for run in trained
    ):
        raise train.none_succeeded(as_json)
    if has_damage(run.row for run in trained):
        raise typer.Exit(CheckpointError.exit_code)
    return None


def _search(
    study: Study, options: dict[str, Any], dry_run: bool, seeds: int | None
) -> "Search | None":
    """How to search, if that is asked for: sampler, trials, pruner, storage."""
    sampler, trials, pruner, storage = options.values()
    if sampler is None:
        if trials is not None or pruner is not None:
            option = "--trials" if trials is not None else "--pruner"
            raise UsageError(f"{option} needs a search: add --sampler tpe, random or grid")
        return None
    if study.over_labels:
        raise UsageError(
            "--sampler: a study over labels_per_class chooses nothing: leave it out, or set "
            "--labels-per-class"
        )
    require("optuna", extra="tune", purpose="--sampler")
    if dry_run:
        raise UsageError(
            "--dry-run: a search chooses its runs as it goes; leave out --dry-run or --sampler"
        )
    if seeds is not None and seeds > 1:
        raise UsageError(
            f"--seeds {seeds}: a search uses one seed; compare its best settings afterwards with "
            "--vary and --seeds"
        )
    from stl10bench.studies import search

    chosen = search.Search(sampler, trials or 20, pruner or "none", storage)
    search.check(study, chosen)
    return chosen


def _train(
    new: Record,
    planned: Sequence[Planned],
    search: "Search | None",
    common: Common,
    workers: "Workers",
) -> tuple[Record, list[Trained]]:
    """Train what is missing of a study; returns its record and what there is of each run then."""
    from stl10bench.studies import cluster, engine, record
    from stl10bench.studies.progress import Progress

    name = new.study.name
    logs = record.folder(common.runs_dir, name) / "log"
    batch = engine.Batch(name, common, workers, logs)
    if search is not None:
        from stl10bench.studies.search import train

        trained = train(new, search, batch, stderr())
        cluster.dismiss()
        return trained
    record.write(common.runs_dir, new)
    outcomes = engine.train(planned, batch, Progress(name, planned, stderr()))
    cluster.dismiss()
    new = record.note_failures(common.runs_dir, new, outcomes)
    return new, record.trained(new, common.runs_dir, outcomes)


def _draw(
    stored: Record,
    trained: Sequence[Trained],
    folder: Path,
    runs_dir: Path,
    look: dict[str, Any],
) -> list[Path]:
    """Write a study's CSV, its figures and a page; returns the files."""
    from stl10bench.core import files
    from stl10bench.plots import studies
    from stl10bench.studies import summary

    name = stored.study.name
    table, page = folder / f"{name}.csv", folder / f"{name}.md"
    files.write(table, summary.study_to_csv(stored, trained).encode())
    figures = studies.write(folder, stored, trained, runs_dir, pop_look(look))
    shown = [path.name for path in figures if path.suffix == ".png"]
    files.write(page, summary.study_to_markdown(stored, trained, shown).encode())
    return [page, table, *figures]
