"""Train and evaluate one model."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from stl10bench.commands.options import (
    DATA,
    JSON,
    MACHINE,
    MODEL,
    PLUGIN,
    TRAINING,
    load_plugin,
    settings,
    with_options,
)
from stl10bench.tables import results
from stl10bench.terminal import is_main, stderr, stdout

app = typer.Typer()


@app.command()
@with_options(TRAINING, JSON)
def train(
    model: Annotated[str, MODEL],
    **options: Any,
) -> None:
    """Train one model and print its row."""
    from stl10bench import api

    as_json = options.pop("as_json")
    row = api.train(model, console=stderr(), **settings(options))
    if not is_main():
        return
    if as_json:
        typer.echo(json.dumps(row))
    else:
        results.show([row], "table", stdout())


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
    from stl10bench import api

    load_plugin(plugin)
    row = api.evaluate(checkpoint, split=split, console=stderr(), **options)
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
