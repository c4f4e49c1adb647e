"""Lists and describes models."""

import json
from typing import Annotated

import typer
from rich.markup import escape

from stl10bench.commands.options import JSON, MODEL, PLUGIN, key_values, load_plugin, with_options
from stl10bench.models import registry
from stl10bench.terminal import stdout

app = typer.Typer()


@app.command()
@with_options(PLUGIN, JSON)
def models(*, plugin: str | None, as_json: bool) -> None:
    """List the models."""
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
    image_size: Annotated[int, typer.Option(help="Input size, pixels.")] = 64,
    num_classes: Annotated[int, typer.Option(help="Number of classes.", min=2)] = 10,
    model_option: Annotated[
        list[str] | None, typer.Option(help="Any option of the model.", metavar="KEY=VALUE")
    ] = None,
    plugin: str | None,
    as_json: bool,
) -> None:
    """Print a model's layers, output shapes, parameters and MACs."""
    load_plugin(plugin)
    registry.check_name(model)
    given = key_values(model_option)

    from stl10bench.models import summary

    module = registry.build(model, num_classes, image_size, given)
    total, trainable = summary.parameters(module)
    macs = summary.macs(module, image_size)
    layers = summary.layers(module, image_size)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "model": model,
                    "options": registry.check_options(model, given),
                    "image_size": image_size,
                    "parameters": total,
                    "trainable_parameters": trainable,
                    "macs": macs,
                    "layers": [vars(layer) for layer in layers],
                }
            )
        )
        return
    from rich.table import Table

    grid = Table(title=f"{escape(model)}, {image_size} px", title_justify="left")
    grid.add_column("layer")
    grid.add_column("output", justify="right")
    grid.add_column("parameters", justify="right")
    for layer in layers:
        shape = "x".join(map(str, layer.shape))
        grid.add_row(layer.kind, shape, f"{layer.parameters:,}" if layer.parameters else "-")
    stdout().print(grid)
    typer.echo(f"{total:,} parameters, {trainable:,} of them trainable; {macs:,} MACs an image")
