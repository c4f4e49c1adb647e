"""Draws data, and what models make of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stl10bench.cli.options import (
    DATA,
    PLUGIN,
    TRAINING,
    Specification,
    load_plugin,
    settings,
    with_options,
)
from stl10bench.config import recipe_settings
from stl10bench.core.console import stderr
from stl10bench.core.errors import UsageError, require, unknown
from stl10bench.data.stl10 import Dataset
from stl10bench.models import registry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from stl10bench.inference.predictor import Predictor

app = typer.Typer(help="Draw the data, and what models make of them.", no_args_is_help=True)

Seed = Annotated[int, typer.Option(help="Seeds what is drawn at random.", min=0)]
Count = Annotated[int, typer.Option(help="How many images to show.", min=1, max=500)]
Checkpoint = Annotated[Path, typer.Argument(help="A run's best.safetensors.")]
Output = Annotated[Path, typer.Option(help="File to write: .png, .svg or .jpg.")]
_SPLITS = ("train", "test")
_AUGMENTING: Specification = {
    name: TRAINING[name]
    for name in (
        *("recipe", "config", "image_size", "input", "brightness", "contrast", "saturation"),
        *("hue", "flip", "rotation", "seed"),
    )
}


@app.command()
@with_options(DATA)
def samples(
    *,
    output: Output = Path("samples.png"),
    per_class: Annotated[int, typer.Option(help="Images of each class.", min=1, max=100)] = 4,
    split: Annotated[str, typer.Option(help="train or test.")] = "train",
    seed: Seed = 0,
    **data: Any,
) -> None:
    """Draw labelled images of each class."""
    _begin(output)
    dataset = _open(split=split, **data)
    from stl10bench.plots import galleries

    _finish(galleries.samples(dataset, split=split, per_class=per_class, seed=seed), output)


@app.command()
@with_options(DATA, PLUGIN, _AUGMENTING)
def augmentations(
    model: Annotated[str, typer.Argument(help="Whose recipe to show.")] = "cnn",
    *,
    output: Output = Path("augmentations.png"),
    draws: Annotated[int, typer.Option(help="Draws of each operation.", min=1, max=50)] = 6,
    image: Annotated[
        int | None, typer.Option(help=r"A training image \[default: by --seed].", min=0)
    ] = None,
    dataset: str,
    data_dir: Path,
    verify: bool,
    **options: Any,
) -> None:
    """Draw what augmentation makes of an image: each operation, and all together."""
    _begin(output)
    given = settings(options)
    registry.check_name(model)
    frozen = None if registry.backbone_name(model) is None else True
    base = recipe_settings(given.pop("recipe"), model, frozen=frozen)
    known = {key: value for key, value in {**base, **given}.items() if key in _AUGMENTING}
    from stl10bench.config import make_config
    from stl10bench.plots import galleries, inspection

    config = make_config({**known, "model": model})
    data = _open(dataset=dataset, data_dir=data_dir, verify=verify)
    count = len(data.train.labels)
    if image is not None and image >= count:
        raise UsageError(f"--image {image}: the training images are 0 to {count - 1}")

    row = int(inspection.sample_rows(data.train, 1, config.seed)[0]) if image is None else image
    original, found = galleries.variants(data.train, row, config, draws)
    title = f"{galleries.data_label(data)}, training image {row}, augmented as for {model}"
    _finish(galleries.augmentations(original, found, title=title), output)


@app.command()
@with_options(DATA, PLUGIN)
def predictions(
    checkpoint: Checkpoint,
    *,
    output: Output = Path("predictions.png"),
    count: Count = 20,
    images: Annotated[int, typer.Option(help="Test images to draw from.", min=1)] = 1000,
    order: Annotated[
        str, typer.Option(help="Which to show: random, surest or unsurest first.")
    ] = "random",
    seed: Seed = 0,
    plugin: str | None,
    **data: Any,
) -> None:
    """Draw test images that a model gets right and wrong, with its confidence."""
    _begin(output)
    predictor = _load(checkpoint, plugin)
    dataset = _open(**data)
    from stl10bench.plots import galleries, inspection

    predicted = inspection.predict(predictor, dataset, images=images, seed=seed)
    _finish(galleries.predictions(dataset, predicted, count=count, order=order), output)


@app.command()
@with_options(PLUGIN)
def filters(
    checkpoint: Checkpoint,
    *,
    output: Output = Path("filters.png"),
    count: Count = 256,
    plugin: str | None,
) -> None:
    """Draw the first layer's filters; for logistic regression its weights, an image a class."""
    _begin(output)
    predictor = _load(checkpoint, plugin)
    from stl10bench.plots import galleries, inspection

    layer, kernels = inspection.first_kernels(predictor)
    names = predictor.class_names if inspection.is_linear(predictor, layer) else ()
    shown = inspection.as_images(kernels[:count])
    _finish(galleries.filters(predictor.header, layer, shown, names[:count]), output)


@app.command()
@with_options(DATA, PLUGIN)
def gradcam(
    checkpoint: Checkpoint,
    images: Annotated[
        list[Path] | None, typer.Argument(help="Image files; none: test images by --seed.")
    ] = None,
    *,
    output: Output = Path("gradcam.png"),
    class_name: Annotated[
        str | None, typer.Option("--class", help=r"The class \[default: the likeliest].")
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help=r"The layer \[default: the last with feature maps].")
    ] = None,
    count: Annotated[int, typer.Option(help="Test images to show.", min=1, max=500)] = 10,
    seed: Seed = 0,
    plugin: str | None,
    **data: Any,
) -> None:
    """Draw where a network sees its evidence for a class (Grad-CAM)."""
    _begin(output)
    predictor = _load(checkpoint, plugin)
    names = predictor.class_names
    if class_name is not None and class_name not in names:
        raise unknown("class", class_name, names)
    label = None if class_name is None else names.index(class_name)
    from stl10bench.plots import galleries, gradcam, inspection

    place = gradcam.choose_layer(predictor, layer)
    if images:
        pixels, sources = inspection.read_images(images), [path.name for path in images]
    else:
        dataset = _open(**data)
        inspection.check_classes(predictor, dataset)
        rows = inspection.sample_rows(dataset.test, count, seed)
        pixels = dataset.test.images[rows]
        sources = [names[actual] for actual in dataset.test.labels[rows]]
    shown = gradcam.explain(predictor, place, pixels, label)
    _finish(galleries.heat_maps(predictor.header, place, shown, sources), output)


@app.command()
@with_options(DATA, PLUGIN)
def embedding(
    checkpoint: Checkpoint,
    *,
    output: Output = Path("embedding.png"),
    images: Annotated[int, typer.Option(help="Test images, drawn by --seed.", min=8)] = 1000,
    seed: Seed = 0,
    plugin: str | None,
    **data: Any,
) -> None:
    """Draw the test images as a model's last layer sees them, by PCA and t-SNE."""
    require("sklearn", extra="plots", purpose="the embedding")
    _begin(output)
    predictor = _load(checkpoint, plugin)
    dataset = _open(**data)
    from stl10bench.plots import galleries, inspection
    from stl10bench.plots.embedding import project, scatter

    rows = inspection.sample_rows(dataset.test, images, seed)
    inspection.check_classes(predictor, dataset)
    features = inspection.penultimate(predictor, dataset.test.images, rows)
    figure = scatter(
        f"{predictor.header.config.model}: {features.shape[1]:,} penultimate features of "
        f"{len(rows):,} test images, {galleries.data_label(dataset)}",
        project(features),
        dataset.test.labels[rows],
        dataset.class_names,
    )
    _finish(figure, output)


def _begin(output: Path) -> None:
    """What can be wrong without reading anything."""
    require("matplotlib", extra="plots", purpose="a picture")
    from stl10bench.plots import style

    style.check_output(output)


def _open(*, split: str = "train", **data: Any) -> Dataset:
    if split not in _SPLITS:
        raise unknown("split", split, _SPLITS)
    from stl10bench.data.load import open_data

    return open_data(**data, download=False, console=stderr())


def _load(checkpoint: Path, plugin: str | None) -> "Predictor":
    load_plugin(plugin)
    from stl10bench.inference.predictor import load

    return load(checkpoint)


def _finish(figure: "Figure", output: Path) -> None:
    from stl10bench.plots import style

    style.save(figure, output)
    typer.echo(output)
