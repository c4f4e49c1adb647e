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
    choice,
    load_plugin,
    with_options,
)
from stl10bench.core.console import clean, progress, stdout
from stl10bench.core.errors import DataError
from stl10bench.results.table import Table, print_table, to_csv

if TYPE_CHECKING:
    from stl10bench.inference.predictor import Prediction

app = typer.Typer()


@app.command()
@with_options(MACHINE, PLUGIN, JSON)
def predict(
    checkpoint: Checkpoint,
    images: Annotated[list[Path], typer.Argument(help="Image files, and folders of them.")],
    *,
    top: Annotated[int, typer.Option(help="Classes per image, the likeliest first.", min=1)] = 3,
    style: Annotated[str, choice("format", ("table", "csv"), "--format")] = "table",
    device: str,
    threads: int | None,
    plugin: str | None,
    as_json: bool,
) -> None:
    """JPEG, PNG, WebP, BMP, GIF, TIFF and PPM of any size, told
    by their content. Each is turned upright (EXIF), put on
    white where it is transparent, cropped to its central
    square and resized to the size of the model's data (96 px
    unless imported otherwise), as by `data import`; then the
    run's own rule follows. Nothing is distorted, but what lies
    outside the central square is not seen. Folders are walked
    by name, hidden files skipped. For a file that is no image
    the reason is printed, and the exit code is 3.
    Under 20 s for a hundred images.

    Examples:
    stl10bench predict runs/RUN/best.safetensors cat.jpg
    stl10bench predict model.safetensors photos --format csv
    """
    from stl10bench.core.device import choose_device, set_threads
    from stl10bench.inference.predictor import Broken, Prediction, classify, find_images, load

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
        typer.echo(f"{len(broken)} of {len(results)} could not be read as an image", err=True)
        raise typer.Exit(DataError.exit_code)


@app.command()
@with_options(PLUGIN, JSON)
def export(
    checkpoint: Checkpoint,
    *,
    to: Annotated[str, choice("format", ("onnx", "torch", "hub"))],
    output: Annotated[Path, typer.Option(help="The file, or for hub the folder, to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    plugin: str | None,
    as_json: bool,
) -> None:
    """onnx and torch (a .pt2) take uint8 RGB images (N, 3, H, W)
    of any number and size; resizing, cropping, normalising are
    inside; class names and settings go along as metadata.

    hub is a folder that stl10bench.load reads whole. Its
    model.safetensors is the backbone alone for
    timm.create_model('local-dir:FOLDER', pretrained=True); the
    layers on top are in head.safetensors. logistic, mlp and cnn
    have no timm backbone: one file, for stl10bench only.

    Each is loaded again and compared with the checkpoint; with
    other logits nothing is kept. A .pt2 may hold pickles: load
    those of others only if you trust them.
    Under 60 s for the package's own models.

    Examples:
    stl10bench export m.safetensors --to onnx --output m.onnx
    stl10bench export m.safetensors --to hub --output m
    """
    from stl10bench.inference.export import export

    load_plugin(plugin)
    facts = export(checkpoint, to=to, output=output, overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo(f"wrote {output} ({facts['bytes'] / 1e6:.1f} MB)")
    for key, sizes in (("own_size", "the model's size"), ("other_sizes", "other sizes")):
        largest, allowed, images = (facts[key][name] for name in ("found", "allowed", "images"))
        typer.echo(
            f"largest difference of a logit at {sizes}: {largest:.1e} (allowed {allowed:.1e}, "
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
