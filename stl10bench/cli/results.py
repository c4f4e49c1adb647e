"""table and compare: what finished runs tell, in tables."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from stl10bench.cli.options import (
    JSON,
    RUNS,
    RunNames,
    RunsDir,
    check_format,
    choice,
    with_options,
)
from stl10bench.core.console import muted_stderr, stderr, stdout
from stl10bench.core.errors import CheckpointError, UsageError
from stl10bench.metrics.significance import RESAMPLES, SIGNIFICANCE
from stl10bench.results import benchmark_table, comparison, history
from stl10bench.results.aggregate import aggregate, hits_of
from stl10bench.results.columns import p_value
from stl10bench.results.comparison import Difference, Run
from stl10bench.results.detectable import POWER, settings_to_plan
from stl10bench.results.labels import common_title, row_labels, trained_on
from stl10bench.results.row_archive import shared_rows
from stl10bench.results.rows import Row
from stl10bench.results.run_folder import current_folders
from stl10bench.results.study_runs import StudyRuns, study_runs
from stl10bench.results.table import Table, print_table, to_csv, to_markdown

app = typer.Typer()
With = Annotated[
    list[Path] | None,
    typer.Option(
        "--with", help="Add the rows of an archive from 'rows share'; repeatable.", metavar="FILE"
    ),
]
Studies = Annotated[bool, typer.Option("--studies", help="Add the runs that studies varied.")]


@app.command()
@with_options(JSON)
def table(
    run: RunNames = None,
    *,
    runs_dir: RunsDir = RUNS,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="Rows in which a column has a value; repeatable.", metavar="COLUMN=VALUE"
        ),
    ] = None,
    style: Annotated[str, choice("format", benchmark_table.FORMATS, "--format")] = "table",
    columns: Annotated[
        str | None,
        typer.Option(help="Columns to show, e.g. test_accuracy,test_ece,lr.", metavar="A,B"),
    ] = None,
    sort: Annotated[str | None, typer.Option(help="Column to sort each table by.")] = None,
    descending: Annotated[bool, typer.Option("--descending", help="Sort high to low.")] = False,
    combine: Annotated[bool, typer.Option(help="Combine seeds or folds into one row.")] = True,
    reference: Annotated[
        bool, typer.Option("--reference", help="Add the course report's rows and ours.")
    ] = False,
    shared: With = None,
    studies: Studies = False,
    baselines: Annotated[
        bool, typer.Option(help="Add the scores of a uniform guess and a constant class.")
    ] = True,
    as_json: bool,
) -> None:
    """Any entry of a row, its settings or its model's options can be a column.
    Without names, runs in which a study varied something are left out.

    Examples:
    stl10bench table --sort test_loss
    stl10bench table --columns test_accuracy,test_ece,lr
    stl10bench table --where model=cnn --where lr=0.001
    stl10bench table --with rows.tar
    """
    check_format(style, as_json)
    if descending and sort is None:
        raise UsageError("--descending needs --sort COLUMN")
    folders = history.find_runs(runs_dir, run) if run else current_folders(runs_dir)
    of_studies, unread = find_study_runs(runs_dir, shown=bool(run or studies))
    varied = of_studies.varied
    rows, damaged = benchmark_table.read_rows(f for f in folders if f.name not in varied)
    damaged += unread
    rows += benchmark_table.all_reference_rows() if reference else []
    with shared_rows(shared or [], runs_dir) as others:
        rows += [row for _, row in others]
    rows = benchmark_table.select(rows, where or [])
    if not rows:
        if damaged:
            raise damaged[0]
        sought = f" with {', '.join(where)}" if where else ""
        kind = " that no study varied" if varied else ""
        remedy = "add --studies" if varied else "train one, or pass --runs-dir"
        raise UsageError(f"no finished run{sought}{kind} in {runs_dir}: {remedy}")
    keys = tuple(key.strip() for key in columns.split(",")) if columns else ()
    view = benchmark_table.View(
        keys, sort, descending, baselines=baselines, combine=combine, of_studies=of_studies.seeds
    )
    if as_json:
        typer.echo(json.dumps({"rows": benchmark_table.shown_records(rows, view)}))
    else:
        benchmark_table.show_rows(rows, style, stdout(), view)
    end_with(damaged)


def find_study_runs(runs_dir: Path, *, shown: bool) -> tuple[StudyRuns, list[CheckpointError]]:
    """Of the studies: the varied runs that `--studies` would add, and the damaged records.

    Neither where the varied runs are shown: then nothing is left out.
    """
    from stl10bench.studies import record

    runs = study_runs(runs_dir)
    if shown:
        return runs._replace(varied=frozenset()), []
    varied = frozenset(name for name in runs.varied if (runs_dir / name).exists())
    if varied:
        count = f"{len(varied):,} run{'s' * (len(varied) > 1)}"
        stderr().print(f"{count} of studies left out (--studies adds them)", highlight=False)
    return runs._replace(varied=varied), record.damaged(runs_dir)


_NOTE = (
    "difference: accuracy of the first minus that of the second on the same test images, with its "
    f"95 % paired-bootstrap interval ({RESAMPLES:,} resamples); only first, only second: images "
    "that one alone classified correctly; p: exact McNemar test, and Holm-corrected for all pairs; "
    f"*: corrected p < {SIGNIFICANCE}"
)


@app.command()
@with_options(JSON)
def compare(
    runs: RunNames = None,
    *,
    runs_dir: RunsDir = RUNS,
    everything: Annotated[bool, typer.Option("--all", help="Compare all runs.")] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="How many seeds would show a difference?")
    ] = False,
    detect: Annotated[
        float, typer.Option(help="The difference to plan for: 0.01 is one point.", min=0, max=1)
    ] = 0.01,
    style: Annotated[str, choice("format", benchmark_table.FORMATS[:3], "--format")] = "table",
    as_json: bool,
) -> None:
    """Without names the best run of each model is compared, by its
    validation accuracy; a model with several runs that have none is
    left out. All must be tested on the same images, at any
    resolution. One run alone that has unlabelled images is compared
    with the same one without them.

    Examples:
    stl10bench compare
    stl10bench compare --all
    stl10bench compare --plan --detect 0.01
    stl10bench compare cnn mlp-1a2b3c4d other/cnn-5e6f7a8b
    """
    check_format(style, as_json)
    if plan:
        _plan(runs_dir, runs or [], detect, "json" if as_json else style)
        return
    loaded: list[Run] = []
    damaged: list[CheckpointError] = []
    for folder in comparison.finished_folders(runs_dir, runs or []):
        try:
            loaded.append(comparison.load_run(folder))
        except CheckpointError as error:
            damaged.append(error)
    if not runs and not everything:
        loaded, left_out = comparison.best_of_each_model(loaded)
        if left_out:
            stderr().print(
                f"left out: {', '.join(left_out)}: which run is the best is not known without "
                "validation images; name the runs to compare",
                markup=False,
                highlight=False,
            )
    if damaged and len(loaded) < 2:
        raise damaged[0]
    comparison.check_same_images(loaded)
    loaded.sort(key=lambda run: run.row.test_accuracy, reverse=True)
    pairs = comparison.differences(loaded, stderr())
    _show_differences(loaded, pairs, "json" if as_json else style)
    if not as_json and style == "table" and len(loaded) == 2:
        run, without = sorted(loaded, key=lambda run: run.row.config.unlabeled is None)
        config = run.row.config
        if config.unlabeled and config.without_unlabelled().name == without.row.config.name:
            typer.echo(f"unlabelled images: {comparison.verdict(run, without)}")
    end_with(damaged)


_PLAN = (
    "1 seed, 3, 5, 10: the smallest true difference that {power:.0%} of such comparisons would "
    "call significant (p < 0.05, the test of the means of 'vs best') with that many seeds of each "
    "setting; limit: the same with any number of seeds, which this test split sets; needed: the "
    "seeds of each setting that show a difference of {detect:g}"
)
_PLANNED = ("settings", "difference", "1 seed", "3", "5", "10", "limit", "needed")
_SEEDS = (1, 3, 5, 10)


def _plan(runs_dir: Path, names: Sequence[str], detect: float, style: str) -> None:
    """Print how many seeds of the best setting and of each other would show a difference."""
    rows, damaged = benchmark_table.read_rows(comparison.finished_folders(runs_dir, names))
    plans: list[dict[str, str]] = []
    for title, part in benchmark_table.by_protocol(rows):
        combined = [row for row in aggregate(part) if isinstance(row, Row) and hits_of(row)]
        pairs = settings_to_plan(combined)
        if not pairs:
            continue
        labels = dict(zip(map(id, combined), row_labels(combined), strict=True))
        lines = []
        for first, second, noise in pairs:
            needed = noise.seeds_for(detect)
            lines.append(
                (
                    f"{labels[id(first)]} - {labels[id(second)]}",
                    _signed(first.test_accuracy - second.test_accuracy),
                    *(f"{noise.detectable(seeds):.3f}" for seeds in _SEEDS),
                    f"{noise.detectable(10**9):.3f}",
                    "none" if needed is None else str(needed),
                )
            )
        counts = (f"detectable: {seeds} seed{'s'[: seeds - 1]}" for seeds in _SEEDS)
        keys = ("settings", "difference", *counts, "any number", f"seeds for {detect:g}")
        plans += [{**dict(zip(keys, line, strict=True)), "data": title} for line in lines]
        note = _PLAN.format(power=POWER, detect=detect)
        table = Table(f"{title}: seeds to plan", _PLANNED, tuple(lines), (("settings", note),))
        if style == "table":
            print_table(table, stdout())
        elif style == "markdown":
            typer.echo(to_markdown(table), nl=False)
    if not plans:
        raise UsageError(
            "--plan needs two settings on the same test images, one of them with two seeds or "
            "more: stl10bench benchmark MODEL... --seeds 3"
        )
    if style == "csv":
        typer.echo(to_csv(plans[0], (line.values() for line in plans)), nl=False)
    elif style == "json":
        typer.echo(json.dumps({"detect": detect, "power": POWER, "plans": plans}))
    end_with(damaged)


def _show_differences(runs: Sequence[Run], pairs: Sequence[Difference], style: str) -> None:
    matrix, listed = _matrix(runs, pairs), _pairs(pairs)
    if style == "json":
        typer.echo(json.dumps(_to_json(runs, pairs)))
    elif style == "csv":
        lines = _to_json(runs, pairs)["pairs"]
        for line in lines:
            line["low"], line["high"] = line.pop("interval")
        typer.echo(to_csv(lines[0], (line.values() for line in lines)), nl=False)
    elif style == "markdown":
        typer.echo(f"{to_markdown(matrix)}\n{to_markdown(listed)}", nl=False)
    else:
        differences = [name for name in matrix.header if name.startswith("minus ")]
        print_table(matrix, stdout(), expendable=differences[::-1])
        print_table(listed, stdout(), expendable=("only second", "only first"))


def _matrix(runs: Sequence[Run], pairs: Sequence[Difference]) -> Table:
    """A line for each run, and its accuracy less that of each run below it."""
    cells = {pair[:2]: f"{_signed(pair.counts.difference)}{_star(pair)}" for pair in pairs}
    rows, others = [run.row for run in runs], range(1, len(runs))
    lines = []
    for i, (row, label) in enumerate(zip(rows, row_labels(rows), strict=True)):
        differences = (cells.get((i, j), "") for j in others)
        facts = (f"{i + 1} {row.run}", label, trained_on(row), f"{row.test_accuracy:.3f}")
        lines.append((*facts, *differences))
    header = ("run", "model", "trained on", "test accuracy", *(f"minus {j + 1}" for j in others))
    text = ("model", "trained on")
    table = Table(common_title(rows), header, tuple(lines), left=text, wrapped=text)
    return table if len({trained_on(row) for row in rows}) > 1 else table.without("trained on")


def _pairs(pairs: Sequence[Difference]) -> Table:
    lines = tuple(
        (
            f"{pair.first + 1} - {pair.second + 1}",
            f"{_signed(pair.counts.difference)} [{', '.join(map(_signed, pair.interval))}]",
            p_value(pair.p),
            f"{p_value(pair.p_holm)}{_star(pair)}",
            f"{pair.counts.first:,}",
            f"{pair.counts.second:,}",
        )
        for pair in pairs
    )
    header = ("runs", "difference [95 %]", "p", "p (Holm)", "only first", "only second")
    return Table("Pair by pair", header, lines, (("runs", _NOTE),), left=("p (Holm)",))


def _to_json(runs: Sequence[Run], pairs: Sequence[Difference]) -> dict[str, Any]:
    rows = [run.row for run in runs]
    (data,) = benchmark_table.records(rows[:1], ("dataset", "test_images", "data"))
    return {
        **data,
        "resamples": RESAMPLES,
        "runs": benchmark_table.records(
            rows, ("run", "label", "test_accuracy", "test_accuracy_interval")
        ),
        "pairs": [
            {
                "first": rows[pair.first].run,
                "second": rows[pair.second].run,
                "difference": pair.counts.difference,
                "interval": list(pair.interval),
                "p": pair.p,
                "p_holm": pair.p_holm,
                "both": pair.counts.both,
                "only_first": pair.counts.first,
                "only_second": pair.counts.second,
                "neither": pair.counts.neither,
            }
            for pair in pairs
        ],
    }


def _star(pair: Difference) -> str:
    return " *" if pair.p_holm < SIGNIFICANCE else ""


def _signed(share: float) -> str:
    return f"{share:+.3f}"


def end_with(damaged: Sequence[CheckpointError]) -> None:
    """Name what could not be read, after all that could; then end with its exit code."""
    for text in dict.fromkeys(map(str, damaged)):
        typer.echo(f"warning: {text}", file=muted_stderr())
    if damaged:
        raise typer.Exit(CheckpointError.exit_code)
