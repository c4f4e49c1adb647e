"""Makes a stored run again."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from stl10bench import runs
from stl10bench.commands.options import DATA, JSON, MACHINE, PLUGIN, load_plugin, with_options
from stl10bench.errors import DifferentError
from stl10bench.tables.standing import SIGNIFICANCE
from stl10bench.terminal import stderr

app = typer.Typer()


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
    from stl10bench import reproduce as again

    load_plugin(plugin)
    folder = runs.find(runs_dir, run)
    found = again.reproduce(
        folder, into, console=stderr(), weights=weights, tracker="none", **where
    )
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
