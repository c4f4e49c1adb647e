"""predict and export: a finished model at work."""

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stl10bench.cli.options import (
    JSON,
    MACHINE,
    PLUGIN,
    Checkpoint,
    check_format,
    choice,
    in_a_folder,
    load_plugin,
    with_options,
)
from stl10bench.core.console import clean, progress, stdout
from stl10bench.core.errors import DataError, UsageError
from stl10bench.models.hub_files import HUB
from stl10bench.results.table import Table, print_table, to_csv

if TYPE_CHECKING:
    from stl10bench.inference.predictor import Prediction

app = typer.Typer()


@app.command()
@with_options(MACHINE, PLUGIN, JSON)
def predict(
    checkpoint: Checkpoint,
    images: Annotated[list[Path], typer.Argument(help="Image files and folders of images.")],
    *,
    top: Annotated[int, typer.Option(help="Number of classes per image.", min=1)] = 3,
    style: Annotated[str, choice("format", ("table", "csv"), "--format")] = "table",
    device: str,
    threads: int | None,
    plugin: str | None,
    as_json: bool,
) -> None:
    """Reads JPEG, PNG, WebP, BMP, GIF, TIFF, PPM, JPEG 2000 and
    AVIF, recognised by content. Turns each image upright
    (EXIF), puts transparent parts on white, crops the central
    square and resizes it to the size of the training data (96
    px unless imported otherwise), as `data import` does. Then
    preprocesses it as in training, without augmentation. The
    model does not see what lies outside the central square.
    Searches folders recursively and skips hidden files. Prints
    the reason for each file that is not an image, classifies
    the others and exits with 3.
    Under 20 s for a hundred images.

    Examples:
    stl10bench predict runs/RUN/best.safetensors cat.jpg
    stl10bench predict model.safetensors photos --format csv
    """
    from stl10bench.core.device import choose_device, set_threads
    from stl10bench.inference.predictor import Broken, Prediction, classify, find_images, load

    check_format(style, as_json)
    load_plugin(plugin)
    kind = choose_device(device)
    set_threads(threads)
    predictor = load(checkpoint).to(kind)
    files = find_images(images)
    with progress("predicting", len(files)) as report:
        results = classify(predictor, files, top=top, report=report)
    predictions = [result for result in results if isinstance(result, Prediction)]
    broken = [result for result in results if isinstance(result, Broken)]
    for image in broken:
        typer.echo(f"{clean(str(image.file))}: {clean(image.reason)}", err=True)
    if as_json:
        content = {
            "checkpoint": str(checkpoint),
            "model": predictor.header.config.model,
            "images": [_as_json(image) for image in predictions],
            "broken": [{"file": str(image.file), "reason": image.reason} for image in broken],
        }
        typer.echo(json.dumps(content))
    elif style == "csv":
        header = _header(predictions, "class_{}", "probability_{}")
        lines = [(image.file, *chain(*_ranked(image))) for image in predictions]
        typer.echo(to_csv(header, lines), nl=False)
    elif predictions:
        _print_table(predictions)
    if broken:
        count = f"cannot read {len(broken)} of {len(results)} files as images"
        typer.echo(count if predictions else "no image could be read", err=True)
        raise typer.Exit(DataError.exit_code)


@app.command()
@with_options(PLUGIN, JSON)
def export(
    checkpoint: Checkpoint,
    *,
    to: Annotated[str, choice("format", ("onnx", "torch", "hub"))],
    output: Annotated[
        Path | None,
        typer.Option(
            *("--output", "-o"),
            help="File to write; with --to hub, a folder.",
            callback=in_a_folder,
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(help="Upload to this repository on the hub.", metavar="OWNER/NAME"),
    ] = None,
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Visibility of a new repository."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --push: only list the files.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing export.")
    ] = False,
    plugin: str | None,
    as_json: bool,
) -> None:
    """onnx and torch (a .pt2 file): the exported model takes uint8
    RGB images (N, 3, H, W) of any number and size. It contains
    resizing, cropping and normalisation; its metadata contain
    class names and settings.

    hub: a folder for stl10bench.load; --push uploads it to the
    Hugging Face Hub, with the token in HF_TOKEN.
    model.safetensors is the backbone alone, for
    timm.create_model('local-dir:FOLDER', pretrained=True);
    head.safetensors has the layers on top. logistic, mlp and
    cnn have no timm backbone: only stl10bench can load them.

    The export is loaded again and compared with the checkpoint.
    If the logits differ, nothing is written. A .pt2 file may
    contain pickles: load it only if you trust its author.
    Under 60 s for the package's own models.

    Examples:
    stl10bench export m.safetensors --to onnx --output m.onnx
    stl10bench export m.safetensors --to hub --output m
    stl10bench export RUN --to hub --push me/model --dry-run
    """
    if push is None and (dry_run or private is not None):
        raise UsageError("--dry-run, --private and --public are of --push: pass --push OWNER/NAME")
    if push is not None and to != "hub":
        raise UsageError(f"--push uploads to the hub: use --to hub, not --to {to}")
    if output is None and push is None:
        raise UsageError("Missing --output: name a file, or with --to hub a folder or --push")
    from stl10bench.inference.export import export, export_and_push

    load_plugin(plugin)
    if push is not None:
        facts = export_and_push(
            checkpoint, push, output=output, overwrite=overwrite, private=private, dry=dry_run
        )
    else:
        assert output is not None
        facts = export(checkpoint, to=to, output=output, overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    if facts["output"] is not None:
        typer.echo(f"wrote {output} ({facts['bytes'] / 1e6:.1f} MB)")
    if push is not None:
        visibility = {None: "", True: ", private if new", False: ", public if new"}[private]
        typer.echo(f"{'would push' if dry_run else 'pushed'} to {HUB}{push}{visibility}:")
        for name, size in facts["files"].items():
            typer.echo(f"  {name}  {size:,} bytes")
    if facts.get("commit"):
        typer.echo(facts["commit"])
    for key, sizes in (("own_size", "the model's size"), ("other_sizes", "other sizes")):
        largest, allowed, images = (facts[key][name] for name in ("found", "allowed", "images"))
        typer.echo(
            f"largest logit difference at {sizes}: {largest:.1e} (allowed {allowed:.1e}, "
            f"{images} images)"
        )


def _ranked(image: "Prediction") -> list[tuple[str, float]]:
    """The classes of an image with their probabilities, the likeliest first."""
    return list(zip(image.classes, image.probabilities, strict=True))


def _as_json(image: "Prediction") -> dict[str, Any]:
    classes = [{"class": name, "probability": p} for name, p in _ranked(image)]
    return {"file": str(image.file), "predictions": classes}


def _header(predictions: "Sequence[Prediction]", *columns: str) -> tuple[str, ...]:
    """The file, then the `columns` of each rank."""
    ranks = range(1, len(predictions[0].classes) + 1) if predictions else ()
    return ("file", *(column.format(rank) for rank in ranks for column in columns))


def _print_table(predictions: "Sequence[Prediction]") -> None:
    """A table; on a narrow terminal the less likely classes are left out."""
    header = _header(predictions, "class {}", "p {}")
    lines = []
    for image in predictions:
        pairs = ((name, f"{probability:.3f}") for name, probability in _ranked(image))
        lines.append((str(image.file), *(cell for pair in pairs for cell in pair)))
    table = Table("", header, tuple(lines), left=header[1::2])
    print_table(table, stdout(), expendable=header[:2:-1], whole="--format csv")
