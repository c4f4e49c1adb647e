"""Says whether a run would work here."""

import json
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stl10bench import doctor as checks
from stl10bench.commands.options import DATA, JSON, TRAINING, with_options
from stl10bench.terminal import stdout

app = typer.Typer()

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


@app.command()
@with_options(
    {"dataset": DATA["dataset"], "data_dir": DATA["data_dir"], "runs_dir": TRAINING["runs_dir"]},
    JSON,
)
def doctor(*, dataset: str, data_dir: Path, runs_dir: Path, as_json: bool) -> None:
    """Say whether a run would work here, and what to do where it would not.

    Examples: stl10bench doctor / stl10bench doctor --dataset demo --json
    """
    findings = list(checks.examine(dataset, data_dir, runs_dir))
    problems = [one for one in findings if one.state == "problem"]
    code = problems[0].exit_code if problems else 0
    if as_json:
        shown = [one._asdict() for one in findings]
        typer.echo(json.dumps({"works": not problems, "exit_code": code, "findings": shown}))
    else:
        show(findings, stdout())
    raise typer.Exit(code)


def show(findings: list[checks.Finding], console: Console) -> None:
    """Print a table to a terminal, a line for each finding to anything else."""
    grid = Table.grid(padding=(0, 2))
    for one in findings:
        text = f"{one.text}; {one.remedy}" if one.remedy else one.text
        text = "".join(c if c.isprintable() else "?" for c in text)
        if console.is_terminal:
            grid.add_row(f"[{_STYLES[one.state]}]{one.state}[/]", one.subject, escape(text))
        else:  # a line each, for grep
            typer.echo(f"{one.state:7}  {one.subject:9}  {text}")
    if console.is_terminal:
        console.print(grid, highlight=False)
    states = [one.state for one in findings]
    found = [f"{states.count(kind)} {kind}(s)" for kind in ("problem", "warning") if kind in states]
    works = "a run would not work" if "problem" in states else "a run would work"
    typer.echo(", ".join([works, *found]))
