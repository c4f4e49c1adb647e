"""Lists and describes models."""

import json
from typing import Annotated

import typer

from stl10bench.cli.options import (
    JSON,
    MODEL,
    PLUGIN,
    ModelOptions,
    load_plugin,
    with_options,
)
from stl10bench.cli.settings import key_values
from stl10bench.core.console import stdout
from stl10bench.models import registry
from stl10bench.models.factory import build_model, check_options
from stl10bench.results.table import print_table

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
    image_size: Annotated[int, typer.Option(help="Input size in pixels.", min=1)] = 64,
    num_classes: Annotated[int, typer.Option(help="Number of classes.", min=2)] = 10,
    batch_size: Annotated[
        int, typer.Option(help="Batch size of the memory estimate.", min=1)
    ] = 128,
    model_option: ModelOptions = None,
    plugin: str | None,
    as_json: bool,
) -> None:
    """Examples:
    stl10bench describe cnn
    stl10bench describe timm:resnet18 --image-size 96
    """
    from stl10bench.models import summary
    from stl10bench.models.check import check_logits
    from stl10bench.report.layers import layer_table, memory_table

    load_plugin(plugin)
    options = key_values("--model-option", model_option)
    module = build_model(model, num_classes, image_size, options)
    check_logits(model, module, num_classes, image_size)
    total, trainable = summary.parameters(module)
    layers = summary.layers(module, image_size)
    memory = summary.memory(layers, batch_size=batch_size, image_size=image_size)
    sizes = {**vars(memory), "total": memory.total}
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
            "memory_bytes": sizes,
            "layers": [vars(layer) for layer in layers],
        }
        typer.echo(json.dumps(facts))
        return
    print_table(
        layer_table(f"{model}, {image_size} px", layers),
        stdout(),
        expendable=("parameters are",),
        whole="--json",
    )
    if formula:
        typer.echo(f"{formula} = {total:,} parameters")
    typer.echo(f"{total:,} parameters ({trainable:,} trainable), {macs:,} MACs per image\n")
    title = f"training memory, batch {batch_size}"
    print_table(memory_table(title, {model: memory}), stdout())
