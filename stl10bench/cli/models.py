"""Lists and describes models."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stl10bench.cli.options import (
    JSON,
    MODEL,
    PLUGIN,
    ModelOptions,
    key_values,
    load_plugin,
    with_options,
)
from stl10bench.core.console import stdout
from stl10bench.models import registry
from stl10bench.models.factory import build_model, check_options

if TYPE_CHECKING:
    from stl10bench.models.summary import Layer

app = typer.Typer()


@app.command()
@with_options(PLUGIN, JSON)
def models(*, plugin: str | None, as_json: bool) -> None:
    """Examples:
    stl10bench models
    stl10bench models --json
    """
    load_plugin(plugin)
    names = registry.names()
    if as_json:
        typer.echo(json.dumps({"models": names, "prefix": registry.TIMM}))
    else:
        typer.echo("\n".join([*names, f"{registry.TIMM}<any timm model>, e.g. timm:resnet18"]))


@app.command()
@with_options(PLUGIN, JSON)
def describe(
    model: Annotated[str, MODEL],
    *,
    image_size: Annotated[int, typer.Option(help="Input size, pixels.", min=1)] = 64,
    num_classes: Annotated[int, typer.Option(help="Number of classes.", min=2)] = 10,
    batch_size: Annotated[int, typer.Option(help="Images a step, for the memory.", min=1)] = 128,
    model_option: ModelOptions = None,
    plugin: str | None,
    as_json: bool,
) -> None:
    """Examples:
    stl10bench describe cnn
    stl10bench describe timm:resnet18 --image-size 96
    """
    from stl10bench.models import summary

    load_plugin(plugin)
    options = key_values(model_option)
    module = build_model(model, num_classes, image_size, options)
    total, trainable = summary.parameters(module)
    layers = summary.layers(module, image_size)
    memory = summary.memory(layers, batch_size=batch_size, image_size=image_size)
    memory_bytes = {**vars(memory), "total": memory.total}
    formula = summary.formula(layers)
    macs = sum(layer.macs for layer in layers)
    if as_json:
        facts = {
            "model": model,
            "options": check_options(model, options),
            "image_size": image_size,
            "parameters": total,
            "trainable_parameters": trainable,
            "macs": macs,
            "formula": formula,
            "batch_size": batch_size,
            "memory_bytes": memory_bytes,
            "layers": [vars(layer) for layer in layers],
        }
        typer.echo(json.dumps(facts))
        return
    console = stdout()
    if not console.is_terminal:
        console = Console(file=console.file, width=200)
    title = f"{model}, {image_size} px"
    table = _layer_table(title, layers, formulas=True)
    wide = console.options.update(max_width=1000)
    if console.measure(table, options=wide).maximum > console.width:
        table = _layer_table(title, layers, formulas=False)
    console.print(table)
    if formula and (len(layers) == 1 or len(table.columns) == 4):
        console.print(f"{formula} = {total:,} parameters", highlight=False)
    console.print(
        f"{total:,} parameters, {trainable:,} of them trainable; {macs:,} MACs an image\n\n"
        f"memory of a training step, batch {batch_size}, fp32, 1 MB = 2^20 bytes:",
        highlight=False,
    )
    parts = Table(box=None, show_header=False)
    parts.add_column()
    parts.add_column(justify="right")
    for part, size in memory_bytes.items():
        parts.add_row(part.replace("_", "/"), f"{size / 2**20:.2f} MB")
    console.print(parts)
    console.print("forward/backward: twice the outputs of the layers above", highlight=False)


def _layer_table(title: str, layers: "Sequence[Layer]", *, formulas: bool) -> Table:
    """A line for each layer, then the totals."""
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", overflow="ellipsis", no_wrap=True)
    for name in ("output", "parameters", "MACs"):
        table.add_column(name, justify="right", no_wrap=True)
    if formulas:
        table.add_column("parameters are", no_wrap=True)

    for layer in layers:
        shape = "x".join(map(str, layer.shape)) or "-"
        counts = [f"{count:,}" if count else "-" for count in (layer.parameters, layer.macs)]
        table.add_row(escape(layer.kind), shape, *counts, *([layer.formula] if formulas else []))
    table.add_section()
    totals = (sum(layer.parameters for layer in layers), sum(layer.macs for layer in layers))
    table.add_row("total", "", *(f"{total:,}" for total in totals))
    return table
