"""Images, augmentations, predictions and filters -> figures of tiles."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from stl10bench.config import RunConfig
from stl10bench.core.errors import UsageError, unknown
from stl10bench.data import augment
from stl10bench.data.loader import load_images
from stl10bench.data.stl10 import Dataset, Split
from stl10bench.models.checkpoint import Header
from stl10bench.plots.gradcam import Explained
from stl10bench.plots.inspection import Judged
from stl10bench.plots.style import BLUE, GREY, ORANGE, Pixels, Sheet, figure_style

GAP = 4  # pixels between tiles
LINE = 16  # pixels, the height of a line of text
SIDE = 96  # pixels, the least side of a tile; smaller images are enlarged by whole numbers
COLUMNS = 10  # of a gallery, and the classes of a band of samples
_LEFT = 120  # pixels for the headings of rows
TITLE = 560  # pixels that a title has at least


class Tile(NamedTuple):
    """One image and the lines of text below it."""

    pixels: Pixels  # uint8 (H, W, 3)
    lines: tuple[str, ...] = ()
    colour: str = "black"


class Section(NamedTuple):
    """Tiles that belong together, and what they are."""

    heading: str
    tiles: Sequence[Tile]


class Measures(NamedTuple):
    """Of tiles of one size, in pixels of the picture."""

    scale: int
    width: int
    height: int

    @classmethod
    def of(cls, sections: Sequence[Section], least: int) -> "Measures":
        """Raises UsageError when there is no tile."""
        tiles = [tile for section in sections for tile in section.tiles]
        if not tiles:
            raise UsageError("there is nothing to show")
        height, width = tiles[0].pixels.shape[:2]
        scale = math.ceil(least / max(height, width))
        return cls(scale, width * scale, height * scale)

    @property
    def across(self) -> int:
        """From the left of a tile to that of the next."""
        return self.width + GAP

    def down(self, section: Section) -> int:
        """From the top of a tile to that of the one below, its lines of text between."""
        return (
            self.height + GAP + LINE * max((len(tile.lines) for tile in section.tiles), default=0)
        )


@figure_style()
def tile_table(title: str, rows: Sequence[Section], columns: Sequence[str]) -> Figure:
    """Rows of tiles with their headings at the left, and a heading over each column."""
    size = Measures.of(rows, SIDE)
    width = max(TITLE, _LEFT + len(columns) * size.across)
    top = 2 * LINE + GAP
    sheet = Sheet(width, top + sum(map(size.down, rows)))
    title_line(sheet, title)
    for place, name in enumerate(columns):
        middle = _LEFT + place * size.across + size.width / 2
        sheet.text(middle, 1.5 * LINE, name, width=size.width)
    for row in rows:
        middle = top + size.height / 2
        sheet.text(_LEFT - 2 * GAP, middle, row.heading, width=_LEFT - 3 * GAP, align="right")
        for place, tile in enumerate(row.tiles):
            _paint(sheet, _LEFT + place * size.across, top, tile, size.scale)
        top += size.down(row)
    return sheet.finish()


@figure_style()
def gallery(
    title: str, sections: Sequence[Section], *, columns: int = COLUMNS, least: int = SIDE
) -> Figure:
    """Sections of tiles, each under its heading ("": none), wrapped after `columns`.

    `least` is the least side of a tile in the picture.
    """
    size = Measures.of(sections, least)
    used = min(columns, max(len(section.tiles) for section in sections))
    width = max(TITLE, used * size.across + GAP)
    heads = [(LINE + GAP) * bool(section.heading) for section in sections]
    bodies = [math.ceil(len(section.tiles) / used) * size.down(section) for section in sections]
    sheet = Sheet(width, LINE + GAP + sum(heads) + sum(bodies))
    title_line(sheet, title)
    top = LINE + GAP
    for section, head, body in zip(sections, heads, bodies, strict=True):
        if head:
            text, room = section.heading, width - 2 * GAP
            sheet.text(GAP, top + LINE / 2, text, width=room, size=10, align="left")
        for number, tile in enumerate(section.tiles):
            left = GAP + number % used * size.across
            below = top + head + number // used * size.down(section)
            _paint(sheet, left, below, tile, size.scale)
        top += head + body
    return sheet.finish()


def title_line(sheet: Sheet, text: str) -> None:
    """What the picture is, small, at its top."""
    width = sheet.pixels.shape[1] - 2 * GAP
    sheet.text(GAP, LINE / 2, text, width=width, size=8, align="left", colour=GREY)


def _paint(sheet: Sheet, left: int, top: int, tile: Tile, scale: int) -> None:
    sheet.image(left, top, tile.pixels, scale=scale)
    height, width = (scale * side for side in tile.pixels.shape[:2])
    for number, line in enumerate(tile.lines):
        middle = top + height + (number + 0.5) * LINE
        sheet.text(left + width / 2, middle, line, width=width, size=8, colour=tile.colour)


_OFF: dict[str, Any] = {
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue": 0.0,
    "flip": 0.0,
    "rotation": (0.0, 0.0),
}


class Variants(NamedTuple):
    """One operation's results on one image."""

    operation: str
    images: NDArray[np.uint8]  # (draws, 3, S, S)
    values: tuple[str, ...]  # what was drawn, for each


def variants(
    split: Split, row: int, config: RunConfig, count: int
) -> tuple[NDArray[np.uint8], list[Variants]]:
    """The image `row` as evaluation sees it, uint8 (3, S, S), and `count` draws per operation.

    By the very functions that training uses, with the draws of the first batch: those of the single
    operations are those of all together, which come last. What `config` leaves out is left out.
    """
    source = load_images(split, np.array([row]), config, torch.device("cpu")).images
    size, side = config.image_size, source.shape[-1]
    draws = augment.draw(config, count, side, epoch=1, batch=0)
    middle = torch.full((count,), float((side - size) // 2))
    images = source.expand(count, -1, -1, -1)
    found = []
    shows = _values(draws)
    for name, off in _OFF.items():
        if getattr(config, name) != off:
            alone = config.model_copy(update={**_OFF, name: getattr(config, name)})
            only = draws._replace(left=middle, top=middle)
            only = only if name == "flip" else only._replace(flip=torch.zeros(count))
            only = only if name == "rotation" else only._replace(angle=torch.zeros(count))
            found.append(Variants(name, _uint8(augment.apply(images, only, alone)), shows[name]))
    if side != size:
        alone = config.model_copy(update=_OFF)
        only = draws._replace(flip=torch.zeros(count), angle=torch.zeros(count))
        found.append(Variants("crop", _uint8(augment.apply(images, only, alone)), shows["crop"]))
    together = _uint8(augment.apply(images, draws, config))
    found.append(Variants("all together", together, ("",) * count))
    return _uint8(augment.centre(source, size))[0], found


def _uint8(images: Tensor) -> NDArray[np.uint8]:
    """float images in 0..1 -> uint8."""
    return images.mul(255).round().to(torch.uint8).numpy()


def _values(draws: augment.Draws) -> dict[str, tuple[str, ...]]:
    """What was drawn, as text, by the operation that uses it."""

    def each(form: Callable[[float], str], values: Tensor) -> tuple[str, ...]:
        return tuple(form(value) for value in values.tolist())

    offsets = zip(draws.left.tolist(), draws.top.tolist(), strict=True)
    return {
        "brightness": each("x {:.2f}".format, draws.brightness),
        "contrast": each("x {:.2f}".format, draws.contrast),
        "saturation": each("x {:.2f}".format, draws.saturation),
        "hue": each(lambda turns: f"{round(turns * 360):+d}°", draws.hue),
        "flip": each(lambda drawn: "mirrored" if drawn else "as it is", draws.flip),
        "rotation": each("{:+.1f}°".format, draws.angle),
        "crop": tuple(f"from {left:.0f}, {top:.0f}" for left, top in offsets),
    }


ORDERS = ("random", "surest", "unsurest")
_KERNEL = 32  # pixels, the least side of a filter
_KERNEL_COLUMNS = 16
_HEAT = 0.7  # opacity of a heat map where it is highest
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@figure_style()
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


def augmentations(original: NDArray[np.uint8], found: Sequence[Variants], *, title: str) -> Figure:
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
    return tile_table(title, rows, ["original", *(f"draw {n}" for n in range(1, draws + 1))])


def predictions(dataset: Dataset, judged: Judged, *, count: int, order: str = "random") -> Figure:
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


def filters(header: Header, layer: str, kernels: NDArray[np.uint8], names: Sequence[str]) -> Figure:
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


def heat_maps(header: Header, layer: str, shown: Explained, sources: Sequence[str]) -> Figure:
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
