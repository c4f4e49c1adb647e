"""report and plot: what finished runs tell, as pages and figures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from stl10bench.cli.options import (
    JSON,
    LOOK,
    RUNS,
    RunNames,
    RunsDir,
    choice,
    in_a_folder,
    pop_look,
    with_options,
)
from stl10bench.cli.results import Studies, With, end_with, find_study_runs
from stl10bench.core.errors import CheckpointError, UsageError
from stl10bench.results import history
from stl10bench.results.row_archive import shared_rows

app = typer.Typer()
_STEMS = {"dashboard": "report", "study": "study"}  # template -> its file: none replaces another's


@app.command()
@with_options(JSON)
def report(
    run: RunNames = None,
    *,
    runs_dir: RunsDir = RUNS,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help=r"File to write \[default: report.html, or study.html for --template study; .md].",
            callback=in_a_folder,
        ),
    ] = None,
    style: Annotated[str, choice("format", ("html", "markdown"), "--format")] = "html",
    template: Annotated[
        str,
        choice(
            "template",
            tuple(_STEMS),
            help_text="dashboard (all runs), or study: the document to hand in.",
        ),
    ] = "dashboard",
    title: Annotated[str | None, typer.Option(help="The heading.")] = None,
    author: Annotated[str, typer.Option(help="Your name, for the template study.")] = "",
    shared: With = None,
    studies: Studies = False,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the data, for pictures of samples and mistakes "
            r"\[default: $STL10BENCH_DATA or data, if the images are there]."
        ),
    ] = None,
    as_json: bool,
) -> None:
    """Without names it covers all runs but those that a study
    varied, which its studies show: the table, intervals,
    accuracy against cost, learning curves, studies, calibration,
    confusion, agreement, worst mistakes, machines, and the
    command that trains each run again. If a run's files are
    damaged or missing, its row stays, with a note.
    Under 20 s for fifteen runs.

    The template study is the document to hand in: samples,
    augmentations, models, the report's ablations, the table.

    Examples:
    stl10bench report
    stl10bench report cnn mlp-3c4d --format markdown
    stl10bench report --template study --author "A. Student"
    """
    suffix = ".html" if style == "html" else ".md"
    path = output or Path(_STEMS[template] + suffix)
    if path.suffix != suffix:
        raise UsageError(
            f"--output {path}: --format {style} is written to a file that ends in {suffix}"
            + ("; a browser prints the page as a PDF" if path.suffix == ".pdf" else "")
        )
    if template == "study":
        if run or shared:
            raise UsageError("--template study is made from the whole runs folder: name no runs")
        damaged = _write_study(path, style, runs_dir, data_dir, (title or _STUDY, author))
        _print_path("report", path, as_json)
        end_with(damaged)
        return
    if author:
        raise UsageError("--author needs --template study")
    from stl10bench.core import files
    from stl10bench.report.build import build_report
    from stl10bench.report.html import html_page
    from stl10bench.report.markdown import markdown_document

    with shared_rows(shared or [], runs_dir) as others:
        # The section on studies names the damaged ones.
        of_studies, _ = find_study_runs(runs_dir, shown=bool(run or studies))
        groups = build_report(
            runs_dir, run or [], data_dir=data_dir, shared=others, of_studies=of_studies
        )
    write = html_page if style == "html" else markdown_document
    files.write(path, write(title or "stl10bench report", groups).encode())
    _print_path("report", path, as_json)
    end_with([error for group in groups for error in group.damaged])


_STUDY = "Five image classifiers"  # on which images is said below it


def _write_study(
    path: Path, style: str, runs_dir: Path, data_dir: Path | None, head: tuple[str, str]
) -> Sequence[CheckpointError]:
    """Write the document to hand in, as Markdown with its pictures in a folder beside it.

    Returns what could not be read.
    """
    from stl10bench.core import files
    from stl10bench.report.html import html_document
    from stl10bench.report.markdown import pictures, study_markdown
    from stl10bench.report.study_document import build_study_document

    suffix = ".svg" if style == "html" else ".png"
    built = build_study_document(runs_dir, data_dir=data_dir, suffix=suffix)
    if style == "html":
        files.write(path, html_document(*head, built).encode())
    else:
        folder = path.with_name(f"{path.stem}_pictures")
        for name, content in pictures(built).items():
            files.write(folder / name, content)
        files.write(path, study_markdown(*head, built, folder.name).encode())
    return built.damaged


@app.command()
@with_options(LOOK, JSON)
def plot(
    run: RunNames = None,
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help=r"File to write: .png, .svg or .jpg \[default: RUN.png or curves.png].",
            callback=in_a_folder,
        ),
    ] = None,
    runs_dir: RunsDir = RUNS,
    as_json: bool,
    **options: Any,
) -> None:
    """They show loss, accuracy, learning rate and speed over the
    epochs. Under 20 s for ten runs.

    Examples:
    stl10bench plot cnn-1a2b mlp-3c4d --output both.svg
    """
    from stl10bench.plots import style
    from stl10bench.plots.curves import curves

    style.check_output(output or Path("curves.png"))
    look = pop_look(options)
    folders = history.find_runs(runs_dir, run or [])
    output = output or Path(f"{folders[0].name if len(folders) == 1 else 'curves'}.png")
    histories: list[history.History] = []
    damaged: list[CheckpointError] = []
    for folder in folders:
        try:
            histories.append(history.read(folder))
        except CheckpointError as error:
            damaged.append(error)
    if damaged and not histories:
        raise damaged[0]
    style.save(curves(histories, look.wording), output, look.dpi)
    _print_path("picture", output, as_json)
    end_with(damaged)


def _print_path(key: str, path: Path, as_json: bool) -> None:
    typer.echo(json.dumps({key: str(path)}) if as_json else path)
