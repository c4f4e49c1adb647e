"""pretrain: images without labels -> a backbone for --weights."""

import shlex
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from stl10bench.cli.options import FIRST, JSON, PRETRAINING, completing, with_options
from stl10bench.cli.settings import Setting, as_keywords, collect
from stl10bench.config import SELF_SUPERVISED
from stl10bench.core.console import is_main, stderr
from stl10bench.core.errors import UsageError, unknown
from stl10bench.models import registry

app = typer.Typer()

# What `train` must have as well, to find the run and the data, and for the same input.
_REPEATED = {
    *("dataset", "data_dir", "verify", "runs_dir", "plugin"),
    *("image_size", "input", "seed"),
}


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
    collected = collect(context, options, [backbone])
    keywords = as_keywords(collected)
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
    dropped = ""
    if result.copies_dropped:
        dropped = f" ({result.copies_dropped:,} copies of test images were dropped)"
    typer.echo(
        f"{result.unlabeled_used:,} images without labels{dropped}, {result.seconds:,.0f} s{knn}\n"
        f"{_next_command(named, str(result.run), collected)}"
    )


def _next_command(model: str, run: str, collected: Mapping[str, Setting]) -> str:
    """The command that trains a classifier on the backbone, with the settings that it needs."""
    words = ["stl10bench", "train", model, "--weights", run]
    for key, (value, source) in collected.items():
        kind, _, name = key.rpartition(".")
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        if source == "default" or source.startswith("STL10BENCH_") or value is None:
            continue
        if kind == "model_options":
            words += ["--model-option", f"{name}={text}"]
        elif key in _REPEATED and value is not True:
            option = f"--{key.replace('_', '-')}"
            words += ["--no-verify"] if value is False else [option, text]
    return shlex.join(words)
