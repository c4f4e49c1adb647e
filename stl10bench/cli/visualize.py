"""Draws data, and what models make of them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stl10bench.cli.options import (
    DATA,
    DATA_OF_RUN,
    JSON,
    LOOK,
    PLUGIN,
    TRAINING,
    Checkpoint,
    Picture,
    choice,
    load_plugin,
    pop_look,
    with_options,
)
from stl10bench.cli.settings import settings
from stl10bench.config import make_config, recipe_settings
from stl10bench.core.console import stderr
from stl10bench.core.errors import UsageError, require, unknown
from stl10bench.data.load import open_data
from stl10bench.models import registry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from stl10bench.data.stl10 import Dataset
    from stl10bench.inference.predictor import Predictor
    from stl10bench.plots.style import Look

app = typer.Typer(no_args_is_help=True)

Seed = Annotated[int, typer.Option(help="Seed of the random choices.", min=0)]
Count = Annotated[int, typer.Option(help="Number of images to show.", min=1, max=500)]
_ORDERS = ("random", "surest", "unsurest")
Order = Annotated[
    str, choice("order", _ORDERS, help_text="Which images first: random, surest or unsurest.")
]
_AUGMENTATION = {
    name: TRAINING[name]
    for name in (
        *("recipe", "config", "image_size", "input", "brightness", "contrast", "saturation"),
        *("hue", "flip", "rotation", "random_resized_crop", "seed"),
    )
}


@app.command()
@with_options(DATA, LOOK, JSON)
def samples(
    *,
    output: Picture = Path("samples.png"),
    per_class: Annotated[int, typer.Option(help="Images of each class.", min=1, max=100)] = 4,
    split: Annotated[str, choice("split", ("train", "test"))] = "train",
    seed: Seed = 0,
    as_json: bool,
    **data: Any,
) -> None:
    """Draw labelled images of each class.

    Under 20 s.

    Examples:
    stl10bench visualize samples --dataset demo --seed 3
    """
    look = _check(output, data)
    from stl10bench.plots import galleries

    dataset = open_data(**data, download=False, console=stderr())
    figure = galleries.samples(
        dataset, split=split, per_class=per_class, seed=seed, wording=look.wording
    )
    _save(figure, output, look, as_json)


@app.command()
@with_options(PLUGIN, _AUGMENTATION, DATA, LOOK, JSON)
def augmentations(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Model whose recipe to show.")] = "cnn",
    *,
    output: Picture = Path("augmentations.png"),
    draws: Annotated[int, typer.Option(help="Draws of each operation.", min=1, max=50)] = 6,
    image: Annotated[
        int | None, typer.Option(help=r"Training image \[default: drawn by --seed].", min=0)
    ] = None,
    dataset: str,
    data_dir: Path,
    verify: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Draw augmented images: each operation, and all together.

    Examples:
    stl10bench visualize augmentations
    stl10bench visualize augmentations logistic --image 12
    """
    look = _check(output, options)
    from stl10bench.plots import galleries, inspection

    registry.check_name(model)
    keywords = settings(context, options, [model])
    frozen = None if registry.backbone_name(model) is None else True
    recipe = keywords.pop("recipe")
    changed = [key.replace("_", " ") for key in _AUGMENTATION if key in keywords and key != "seed"]
    keywords = {**recipe_settings(recipe, model, frozen=frozen), **keywords}
    shown = {key: value for key, value in keywords.items() if key in _AUGMENTATION}
    config = make_config({**shown, "model": model})
    data = open_data(dataset, data_dir, verify=verify, download=False, console=stderr())
    count = len(data.train.labels)
    if image is not None and image >= count:
        raise UsageError(f"--image {image}: the training images are 0 to {count - 1}")
    row = int(inspection.sample_rows(data.train, 1, config.seed)[0]) if image is None else image
    original, variants = galleries.variants(data.train, row, config, draws)
    title = (
        f"{galleries.data_label(data)}: training image {row}, augmented with recipe {recipe} for "
        f"{model}"
    ) + (f" (changed: {', '.join(changed)})" if changed else "")
    caption = "Each operation alone, with what was drawn for it; then all together."
    words = galleries.Words(title, caption, look.wording)
    _save(galleries.augmentations(original, variants, words), output, look, as_json)


@app.command()
@with_options(DATA_OF_RUN, PLUGIN, LOOK, JSON)
def predictions(
    checkpoint: Checkpoint,
    *,
    output: Picture = Path("predictions.png"),
    count: Count = 20,
    images: Annotated[int, typer.Option(help="Test images to draw from.", min=1)] = 1000,
    order: Order = "random",
    seed: Seed = 0,
    plugin: str | None,
    as_json: bool,
    **data: Any,
) -> None:
    """Draw test images that a model gets right and wrong, with its confidence.

    Examples:
    stl10bench visualize predictions best.safetensors
    """
    look = _check(output, data)
    from stl10bench.plots import galleries, inspection

    predictor = _load(checkpoint, plugin)
    dataset = _open(checkpoint, **data)
    stored = inspection.stored_logits(checkpoint, dataset)
    predicted = inspection.predict(predictor, dataset, images=images, seed=seed, stored=stored)
    figure = galleries.predictions(
        predictor.header, dataset, predicted, count=count, order=order, wording=look.wording
    )
    _save(figure, output, look, as_json)


@app.command()
@with_options(PLUGIN, LOOK, JSON)
def filters(
    checkpoint: Checkpoint,
    *,
    output: Picture = Path("filters.png"),
    count: Count = 256,
    plugin: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Draw the filters of the first layer.

    For logistic regression: its weights, one image per class.

    Examples:
    stl10bench visualize filters best.safetensors
    """
    look = _check(output, options)
    from stl10bench.plots import galleries, inspection

    predictor = _load(checkpoint, plugin)
    layer, kernels = inspection.first_kernels(predictor)
    names = predictor.class_names if inspection.is_linear(predictor, layer) else ()
    pixels = inspection.as_images(kernels[:count])
    figure = galleries.filters(predictor.header, layer, pixels, names[:count], look.wording)
    _save(figure, output, look, as_json)


@app.command()
@with_options(DATA_OF_RUN, PLUGIN, LOOK, JSON)
def gradcam(
    checkpoint: Checkpoint,
    images: Annotated[
        list[Path] | None,
        typer.Argument(help=r"Image files \[default: test images drawn by --seed]."),
    ] = None,
    *,
    output: Picture = Path("gradcam.png"),
    class_name: Annotated[
        str | None, typer.Option("--class", help=r"Class to explain \[default: the likeliest].")
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help=r"Layer to explain \[default: the last with 4x4 maps].")
    ] = None,
    count: Count = 10,
    seed: Seed = 0,
    plugin: str | None,
    as_json: bool,
    **data: Any,
) -> None:
    """Draw where a network sees evidence for a class (Grad-CAM).

    Examples:
    stl10bench visualize gradcam best.safetensors
    stl10bench visualize gradcam m.safetensors --class cat
    """
    look = _check(output, data)
    from stl10bench.plots import galleries, gradcam, inspection

    predictor = _load(checkpoint, plugin)
    names = predictor.class_names
    if class_name is not None and class_name not in names:
        raise unknown("class", class_name, names)
    label = None if class_name is None else names.index(class_name)
    layer, note = gradcam.choose_layer(predictor, layer)
    if images:
        pixels = inspection.read_images(images, predictor.header.config.data_size)
        titles = [path.name for path in images]
    else:
        dataset = _open(checkpoint, **data)
        inspection.check_classes(predictor, dataset)
        rows = inspection.sample_rows(dataset.test, count, seed)
        pixels = dataset.test.images[rows]
        titles = [names[actual] for actual in dataset.test.labels[rows]]
    heat = gradcam.explain(predictor, layer, pixels, label)
    figure = galleries.heat_maps(predictor.header, heat, titles, note, look.wording)
    _save(figure, output, look, as_json)


@app.command()
@with_options(DATA_OF_RUN, PLUGIN, LOOK, JSON)
def embedding(
    checkpoint: Checkpoint,
    *,
    output: Picture = Path("embedding.png"),
    images: Annotated[int, typer.Option(help="Test images, drawn by --seed.", min=8)] = 1000,
    seed: Seed = 0,
    plugin: str | None,
    as_json: bool,
    **data: Any,
) -> None:
    """Draw the test images as a model's last layer sees them, by PCA and t-SNE.

    Examples:
    stl10bench visualize embedding m.safetensors --images 2000
    """
    require("sklearn", extra="plots", purpose="the embedding")
    look = _check(output, data)
    from stl10bench.plots import galleries, inspection
    from stl10bench.plots.embedding import project, scatter

    predictor = _load(checkpoint, plugin)
    dataset = _open(checkpoint, **data)
    inspection.check_classes(predictor, dataset)
    rows = inspection.sample_rows(dataset.test, images, seed)
    features = inspection.penultimate(predictor, dataset.test.images, rows)
    title = (
        f"{predictor.header.config.model}: {features.shape[1]:,} features of {len(rows):,} test "
        f"images before the last layer, {galleries.data_label(dataset)}"
    )
    labels = dataset.test.labels[rows]
    figure = scatter(title, project(features), labels, dataset.class_names, look.wording)
    _save(figure, output, look, as_json)


def _check(output: Path, options: dict[str, Any]) -> "Look":
    """Take the look of a figure out of `options`.

    Raises UsageError for a file that could not be drawn, before anything is read.
    """
    from stl10bench.plots import style

    style.check_output(output)
    return pop_look(options)


def _load(checkpoint: Path, plugin: str | None) -> "Predictor":
    from stl10bench.inference.predictor import load

    load_plugin(plugin)
    return load(checkpoint)


def _open(checkpoint: Path, *, dataset: str | None, data_dir: Path, verify: bool) -> "Dataset":
    """The data of a checkpoint's run, unless `dataset` names others."""
    from stl10bench.inference.predictor import find_checkpoint
    from stl10bench.results.run_folder import RunFolder

    dataset = dataset or RunFolder(find_checkpoint(checkpoint).parent).dataset()
    return open_data(dataset, data_dir, verify=verify, download=False, console=stderr())


def _save(figure: "Figure", output: Path, look: "Look", as_json: bool) -> None:
    from stl10bench.plots import style

    style.save(figure, output, look.dpi)
    typer.echo(json.dumps({"picture": str(output)}) if as_json else output)
