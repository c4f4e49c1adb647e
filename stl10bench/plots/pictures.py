"""The data, and what models make of them -> pictures, each a matplotlib Figure."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from stl10bench.data.stl10 import Dataset
from stl10bench.errors import unknown
from stl10bench.plots.figures import BLUE, ORANGE, Pixels, Sheet, look
from stl10bench.plots.tiles import (
    COLUMNS,
    GAP,
    LINE,
    SIDE,
    TITLE,
    Section,
    Tile,
    gallery,
    table,
    title_line,
)

if TYPE_CHECKING:  # these import torch, which a sheet of samples does without
    from stl10bench.checkpoint import Header
    from stl10bench.plots.gradcam import Explained
    from stl10bench.plots.inspection import Judged
    from stl10bench.plots.variants import Variants

ORDERS = ("random", "surest", "unsurest")
_KERNEL = 32  # pixels, the least side of a filter
_KERNEL_COLUMNS = 16
_HEAT = 0.7  # opacity of a heat map where it is highest
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@look()
def samples(dataset: Dataset, *, split: str = "train", per_class: int = 4, seed: int = 0) -> Figure:
    """`per_class` images of each class, in columns of a class each, ten classes to a band.

    Which ones is drawn by `seed`; a class that has fewer shows those. Raises UsageError when the
    picture would be too large.
    """
    part = dataset.test if split == "test" else dataset.train
    rng = np.random.default_rng(seed)
    names = dataset.class_names
    step, band_height = SIDE + GAP, LINE + per_class * (SIDE + GAP) + GAP
    bands = -(-len(names) // COLUMNS)
    width = max(TITLE, min(COLUMNS, len(names)) * step + GAP)
    sheet = Sheet(width, LINE + bands * band_height)
    title_line(sheet, f"{source(dataset)}, {split} split, seed {seed}")
    for label, name in enumerate(names):
        left = GAP + label % COLUMNS * step
        top = LINE + label // COLUMNS * band_height
        sheet.text(left + SIDE / 2, top + LINE / 2, name, width=SIDE, size=10)
        rows = rng.permutation(np.flatnonzero(part.labels == label))[:per_class]
        for place, pixels in enumerate(hwc(part.images[rows])):
            sheet.image(left, top + LINE + place * step, pixels)
    return sheet.finish()


def augmentations(
    original: NDArray[np.uint8], found: "Sequence[Variants]", *, title: str
) -> Figure:
    """The image uint8 (3, S, S) at the left of each operation's results, a row each."""
    before = Tile(hwc(original))
    rows = [
        Section(
            row.operation,
            [before, *map(Tile, hwc(row.images), ((value,) for value in row.values))],
        )
        for row in found
    ]
    draws = len(found[0].images)
    return table(title, rows, ["original", *(f"draw {n}" for n in range(1, draws + 1))])


def predictions(dataset: Dataset, judged: "Judged", *, count: int, order: str = "random") -> Figure:
    """At most `count` test images that are right and as many that are wrong, with confidences.

    `order` is random (that of `judged`), surest or unsurest first. Raises UsageError for another.
    """
    if order not in ORDERS:
        raise unknown("order", order, ORDERS)
    actual = dataset.test.labels[judged.rows]
    places = np.arange(len(actual))
    if order != "random":
        places = np.argsort(judged.confidences, kind="stable")
        places = places[::-1] if order == "surest" else places
    names = dataset.class_names
    sections = []
    for heading, wanted in (("right", True), ("wrong", False)):
        chosen = places[(judged.classes == actual)[places] == wanted]
        tiles = []
        for place in chosen[:count]:
            line = f"{names[judged.classes[place]]} {judged.confidences[place]:.2f}"
            lines = (line,) if wanted else (line, f"is {names[actual[place]]}")
            pixels = hwc(dataset.test.images[judged.rows[place]])
            tiles.append(Tile(pixels, lines, BLUE if wanted else ORANGE))
        shown = f"{heading}: {len(chosen):,} of {len(places):,}"
        sections.append(Section(shown if tiles else f"{shown}, none to show", tiles))
    title = f"{source(dataset)}, test split; predicted class and its probability; {order} order"
    return gallery(title, sections)


def filters(
    header: "Header", layer: str, kernels: NDArray[np.uint8], names: Sequence[str]
) -> Figure:
    """Kernels (K, 3, H, W) as tiles; `names`, one for each or none, stand below."""
    lines: list[tuple[str, ...]] = [(name,) for name in names] or [()] * len(kernels)
    tiles = list(map(Tile, hwc(kernels), lines))
    large = bool(names) or kernels.shape[-1] > _KERNEL
    title = f"{header.config.model}, layer {layer}: {len(kernels)} filters, each on its own scale"
    return gallery(
        title,
        [Section("", tiles)],
        columns=COLUMNS if large else _KERNEL_COLUMNS,
        least=SIDE if large else _KERNEL,
    )


def heat_maps(header: "Header", layer: str, shown: "Explained", sources: Sequence[str]) -> Figure:
    """Each image beside itself under its heat map, with the class and its probability.

    `sources` says what each image is; the class is in orange where that is the name of another.
    """
    colours = matplotlib.colormaps["inferno"](shown.heat)[..., :3]
    opacity = _HEAT * shown.heat[..., None]
    images = hwc(shown.images)
    grey = images @ np.array(_LUMA)
    mixed = np.rint((1 - opacity) * grey[..., None] + opacity * 255 * colours).astype(np.uint8)
    tiles = []
    for number, (name, label) in enumerate(zip(sources, shown.classes, strict=True)):
        line = f"{header.class_names[label]} {shown.confidences[number]:.2f}"
        wrong = name in header.class_names and name != header.class_names[label]
        tiles += [
            Tile(images[number], (name,)),
            Tile(mixed[number], (line,), ORANGE if wrong else BLUE),
        ]
    height, width = shown.map_size
    title = (
        f"Grad-CAM of {header.config.model} at layer {layer} ({height}x{width}): evidence for the "
        "class, each map from none (grey) to its own maximum (yellow)"
    )
    return gallery(title, [Section("", tiles)])


def source(dataset: Dataset) -> str:
    """What the images are; only those with the official sums are STL-10's."""
    if dataset.name == "STL-10":
        return "STL-10"
    if dataset.name == "demo":
        return "demo (drawn images, not STL-10)"
    return f"STL-10 layout {dataset.fingerprint[:12]} (not the STL-10 images)"


def hwc(images: NDArray[np.uint8]) -> Pixels:
    """uint8 (..., 3, H, W) -> (..., H, W, 3)."""
    return np.moveaxis(images, -3, -1)
