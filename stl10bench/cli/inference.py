"""predict and export: a finished model at work."""

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from stl10bench.cli.options import JSON, MACHINE, PLUGIN, completing, load_plugin, with_options
from stl10bench.core.console import clean, escape_csv, progress, stdout
from stl10bench.core.errors import DataError, unknown

if TYPE_CHECKING:
    from stl10bench.inference.predictor import Broken, Prediction


app = typer.Typer()
STYLES = ("table", "csv")
_CHECKPOINT = typer.Argument(help="A run's best.safetensors, or a folder from export --to hub.")


@app.command()
@with_options(MACHINE, PLUGIN, JSON)
def predict(
    checkpoint: Annotated[Path, _CHECKPOINT],
    images: Annotated[list[Path], typer.Argument(help="Image files, and folders of them.")],
    *,
    top: Annotated[int, typer.Option(help="Classes per image, the likeliest first.", min=1)] = 3,
    style: Annotated[
        str, typer.Option("--format", help="table, csv.", autocompletion=completing(STYLES))
    ] = "table",
    device: str,
    threads: int | None,
    plugin: str | None,
    as_json: bool,
) -> None:
    """Name the likeliest classes of images; needs only the checkpoint.

    JPEG, PNG, WebP, BMP, GIF, TIFF and PPM of any size, told
    by their content. Each is turned upright (EXIF), put on
    white where it is transparent, cropped to its central
    square and resized to 96 px, as by `data import`; then the
    run's own rule follows. Nothing is distorted, but what is
    outside of the central square is not seen. Folders are
    walked by name, hidden files passed over. What is no image
    is named with the reason, and the exit code is 3.
    """
    if style not in STYLES:
        raise unknown("format", style, STYLES)
    load_plugin(plugin)
    from stl10bench.core.device import choose_device, set_threads
    from stl10bench.inference.predictor import Broken, Prediction, classify, find_images, load

    kind = choose_device(device)
    set_threads(threads)
    predictor = load(checkpoint).to(kind)
    found = find_images(images)
    with progress("predicting", len(found)) as report:
        results = classify(predictor, found, top=top, report=report)
    predictions = [result for result in results if isinstance(result, Prediction)]
    broken = [result for result in results if isinstance(result, Broken)]
    for one in broken:
        typer.echo(f"{clean(str(one.file))}: {clean(one.reason)}", err=True)
    if as_json:
        config = predictor.header.config
        content = {"checkpoint": str(checkpoint), "model": config.model}
        typer.echo(json.dumps(content | _as_json(predictions, broken)))
    elif style == "csv":
        _print_csv(predictions)
    elif predictions:
        _print_table(predictions)
    if broken:
        typer.echo(f"{len(broken)} of {len(results)} could not be read as an image", err=True)
        raise typer.Exit(DataError.exit_code)


@app.command()
@with_options(PLUGIN, JSON)
def export(
    checkpoint: Annotated[Path, _CHECKPOINT],
    *,
    to: Annotated[
        str,
        typer.Option(help="onnx, torch, hub.", autocompletion=completing(("onnx", "torch", "hub"))),
    ],
    output: Annotated[Path, typer.Option(help="The file, or for hub the folder, to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    plugin: str | None,
    as_json: bool,
) -> None:
    """Write a model as ONNX, for torch.export or as a Hugging Face folder.

    onnx and torch (a .pt2) take uint8 RGB images (N, 3, H, W)
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
    """
    from stl10bench.inference.export import export

    load_plugin(plugin)
    found = export(checkpoint, to=to, output=output, overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps(found))
        return
    own, others = (
        f"{found[key]['found']:.1e} (allowed {found[key]['allowed']:.1e}, "
        f"{found[key]['images']} images)"
        for key in ("own_size", "other_sizes")
    )
    typer.echo(f"wrote {output} ({found['bytes'] / 1e6:.1f} MB)")
    typer.echo(f"largest difference of a logit: {own}; at other sizes {others}")


def _as_json(predictions: "Sequence[Prediction]", broken: "Sequence[Broken]") -> dict[str, Any]:
    return {
        "images": [
            {
                "file": str(one.file),
                "predictions": [
                    {"class": name, "probability": probability}
                    for name, probability in zip(one.classes, one.probabilities, strict=True)
                ],
            }
            for one in predictions
        ],
        "broken": [{"file": str(one.file), "reason": one.reason} for one in broken],
    }


def _print_csv(predictions: "Sequence[Prediction]") -> None:
    ranks = range(1, len(predictions[0].classes) + 1) if predictions else ()
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["file", *(f"{part}_{n}" for n in ranks for part in ("class", "probability"))])
    for one in predictions:
        row: list[str | float] = [escape_csv(str(one.file))]
        for name, probability in zip(one.classes, one.probabilities, strict=True):
            row += [escape_csv(name), probability]
        writer.writerow(row)


def _print_table(predictions: "Sequence[Prediction]") -> None:
    """A table; on a narrow terminal the less likely classes are left out."""
    console, ranks = stdout(), len(predictions[0].classes)
    if not console.is_terminal:
        console.width = 1000  # a pipe has no width
    wide = console.options.update(max_width=1000)
    shown = ranks
    while shown > 1:
        if console.measure(_table(predictions, shown), options=wide).maximum <= console.width:
            break
        shown -= 1
    console.print(_table(predictions, shown))
    if shown < ranks:
        hidden = f"no room for {ranks - shown} more classes (--format csv has them)"
        console.print(hidden, style="dim", highlight=False)


def _table(predictions: "Sequence[Prediction]", ranks: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("file", overflow="fold")
    for rank in range(1, ranks + 1):
        table.add_column(f"class {rank}", overflow="fold")
        table.add_column("p", justify="right", no_wrap=True)
    for one in predictions:
        cells = [clean(str(one.file))]
        for name, probability in list(zip(one.classes, one.probabilities, strict=True))[:ranks]:
            cells += [clean(name), f"{probability:.3f}"]
        table.add_row(*map(escape, cells))
    return table
