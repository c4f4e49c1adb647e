"""pretrain: images without labels -> a backbone for --weights."""

from typing import Annotated, Any

import typer

from stl10bench.cli.options import FIRST, JSON, PRETRAINING, completing, with_options
from stl10bench.cli.settings import settings
from stl10bench.config import SELF_SUPERVISED
from stl10bench.core.console import is_main, stderr
from stl10bench.core.errors import UsageError, unknown
from stl10bench.models import registry

app = typer.Typer()


@app.command()
@with_options(PRETRAINING, JSON)
def pretrain(
    context: typer.Context,
    method: Annotated[str, typer.Argument(help="simclr.", metavar="METHOD")],
    *,
    backbone: Annotated[
        str,
        typer.Option(
            help="cnn, resnet9, mobilenetv2, timm:NAME or a plug-in's model.",
            autocompletion=completing([*registry.names(), registry.TIMM]),
            metavar="NAME",
            rich_help_panel=FIRST,
        ),
    ],
    as_json: bool,
    **options: Any,
) -> None:
    """Starts from random weights, or --weights. Unset, it learns for
    100 epochs in batches of 256 from --unlabeled rest, the training
    images that do not validate. --method-option temperature=0.5,
    projection=128, knn_every=5. The run is what --weights of train
    takes. Under 60 s for resnet9 on the demo data.

    Examples:
    stl10bench pretrain simclr --backbone resnet9
    stl10bench pretrain simclr --backbone cnn --unlabeled all
    """
    from stl10bench.core.device import leave_process_group
    from stl10bench.training.run import pretrain

    if method != SELF_SUPERVISED:
        raise unknown("method of pretraining", method, [SELF_SUPERVISED])
    keywords = settings(context, options, [backbone])
    if keywords.pop("method", SELF_SUPERVISED) != SELF_SUPERVISED:
        raise UsageError("method: pretrain has its own: leave it out")
    named = keywords.pop("model", backbone)
    result = pretrain(named, console=stderr(), **keywords)
    leave_process_group()
    if not is_main():
        return
    if as_json:
        typer.echo(result.model_dump_json())
        return
    knn = ""
    if result.knn_accuracy is not None and result.knn_interval is not None:
        low, high = result.knn_interval
        knn = f", kNN {result.knn_accuracy:.4f} [{low:.4f}, {high:.4f}] (it chose nothing)"
    typer.echo(
        f"{result.unlabeled_used:,} images without labels, {result.seconds:,.0f} s{knn}\n"
        f"stl10bench train {backbone} --weights {result.run}"
    )
