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
from stl10bench.plots.gradcam import Explanation
from stl10bench.plots.inspection import Predictions
from stl10bench.plots.style import (
    AS_IT_IS,
    BLUE,
    DPI,
    ORANGE,
    Pixels,
    Sheet,
    TextStyle,
    Wording,
    figure_style,
    wrapped,
)

GAP = 6  # pixels between tiles
LINE = 24  # pixels, the height of a line of text
SIDE = 192  # pixels, the least side of a tile; smaller images are enlarged by whole numbers
COLUMNS = 10  # of a gallery, and the classes of a band of samples
MIN_WIDTH = 840  # pixels, for the title
_SMALL = 8  # points
_HEADING = TextStyle(10, "left")


class Tile(NamedTuple):
    """One image and the lines of text below it, each of which may need several."""

    pixels: Pixels  # uint8 (H, W, 3)
    lines: tuple[str, ...] = ()
    colour: str = "black"

    def text(self, width: float) -> list[str]:
        """What stands below an image of `width` pixels."""
        return [part for line in self.lines for part in wrapped(line, width / DPI, _SMALL)]

    def paint(self, sheet: Sheet, left: int, top: int, scale: int) -> None:
        """Paint the image enlarged by `scale`, and write its lines below."""
        sheet.image(left, top, self.pixels, scale=scale)
        height, width = (scale * side for side in self.pixels.shape[:2])
        for number, line in enumerate(self.text(width)):
            middle = top + height + (number + 0.5) * LINE
            style = TextStyle(_SMALL, colour=self.colour)
            sheet.text(left + width / 2, middle, line, width=width, style=style)


class Section(NamedTuple):
    """Tiles that belong together, and what they are."""

    heading: str
    tiles: Sequence[Tile]


class Words(NamedTuple):
    """What stands above and below a gallery."""

    title: str
    caption: str = ""
    wording: Wording = AS_IT_IS


@figure_style()
def gallery(
    words: Words, sections: Sequence[Section], *, columns: int = COLUMNS, min_side: int = SIDE
) -> Figure:
    """Sections of tiles, each under its heading ("": none), wrapped after `columns`.

    All tiles are of one size, enlarged to a longer side of at least `min_side` pixels. Raises
    UsageError without a tile.
    """
    first = next((tile for section in sections for tile in section.tiles), None)
    if first is None:
        raise UsageError("no images to show")
    height, width = first.pixels.shape[:2]
    scale = math.ceil(min_side / max(height, width))
    columns = min(columns, max(len(section.tiles) for section in sections))
    headings = [(LINE + GAP) * bool(section.heading) for section in sections]
    texts = [
        max((len(tile.text(width * scale)) for tile in section.tiles), default=0)
        for section in sections
    ]
    steps = [height * scale + GAP + LINE * count for count in texts]  # from one row to the next
    rows = [math.ceil(len(section.tiles) / columns) for section in sections]
    bodies = [count * step for count, step in zip(rows, steps, strict=True)]
    top, across = GAP, width * scale + GAP
    sheet_width = max(MIN_WIDTH, columns * across + GAP)
    sheet = Sheet(sheet_width, top + sum(headings) + sum(bodies))
    room = sheet.width - 2 * GAP
    for section, heading, step, body in zip(sections, headings, steps, bodies, strict=True):
        if section.heading:
            sheet.text(GAP, top + LINE / 2, section.heading, width=room, style=_HEADING)
        for number, tile in enumerate(section.tiles):
            row, column = divmod(number, columns)
            tile.paint(sheet, GAP + column * across, top + heading + row * step, scale)
        top += heading + body
    return sheet.finish(*words)


# What each operation is when it is off, in the order in which they are applied.
OFF: dict[str, Any] = dict.fromkeys(("brightness", "contrast", "saturation", "hue", "flip"), 0.0)
OFF |= {"rotation": (0.0, 0.0), "random_resized_crop": None}


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
    image = load_images(split, np.array([row]), config, torch.device("cpu")).images
    size, side = config.image_size, image.shape[-1]
    images = image.expand(count, -1, -1, -1)
    draws = augment.draw(config, count, side, epoch=1, batch=0)
    centre = torch.full((count,), float((side - size) // 2))
    whole = torch.full((count,), float(size))
    neutral = draws._replace(
        **{"flip": torch.zeros(count), "angle": torch.zeros(count)},
        **{"left": centre, "top": centre, "width": whole, "height": whole},
    )
    # Colours that are off in the config are not applied whatever is drawn; places always are.
    placed = {
        "flip": {"flip": draws.flip},
        "rotation": {"angle": draws.angle},
        "crop": {"left": draws.left, "top": draws.top},
        "random_resized_crop": {
            key: getattr(draws, key) for key in ("left", "top", "width", "height")
        },
    }
    values = _values(draws)
    operations = [name for name, off in OFF.items() if getattr(config, name) != off]
    results = []
    if side != size and config.random_resized_crop is None:
        operations.append("crop")
    for name in operations:
        others_off = {key: off for key, off in OFF.items() if key != name}
        alone = config.model_copy(update=others_off)
        shown = augment.apply(images, neutral._replace(**placed.get(name, {})), alone)
        results.append(Variants(name, _uint8(shown), values[name]))
    together = _uint8(augment.apply(images, draws, config))
    results.append(Variants("all together", together, ("",) * count))
    return _uint8(augment.centre(image, size))[0], results


def _uint8(images: Tensor) -> NDArray[np.uint8]:
    """float images in 0..1 -> uint8."""
    return images.mul(255).round().to(torch.uint8).numpy()


def _values(draws: augment.Draws) -> dict[str, tuple[str, ...]]:
    """What was drawn, as text, by the operation that uses it."""

    def texts(form: Callable[..., str], *values: Tensor) -> tuple[str, ...]:
        return tuple(map(form, *(value.tolist() for value in values)))

    return {
        "brightness": texts("x {:.2f}".format, draws.brightness),
        "contrast": texts("x {:.2f}".format, draws.contrast),
        "saturation": texts("x {:.2f}".format, draws.saturation),
        "hue": texts(lambda turns: f"{round(turns * 360):+d}°", draws.hue),
        "flip": texts(lambda flip: "mirrored" if flip else "unchanged", draws.flip),
        "rotation": texts("{:+.1f}°".format, draws.angle),
        "crop": texts("from {:.0f}, {:.0f}".format, draws.left, draws.top),
        "random_resized_crop": texts("{:.0f} x {:.0f} px".format, draws.width, draws.height),
    }


ORDERS = ("random", "surest", "unsurest")
_KERNEL = 96  # pixels, the least side of one of many filters
_KERNEL_COLUMNS = 16
_HEAT = 0.7  # opacity of a heat map where it is highest


@figure_style()
def samples(
    dataset: Dataset,
    *,
    split: str = "train",
    per_class: int = 4,
    seed: int = 0,
    wording: Wording = AS_IT_IS,
) -> Figure:
    """`per_class` images of each class, in columns of a class each, ten classes to a band.

    Which ones is drawn by `seed`; a class that has fewer shows those. Raises UsageError when the
    figure would be too large.
    """
    part = dataset.test if split == "test" else dataset.train
    rng = np.random.default_rng(seed)
    names = dataset.class_names
    scale = math.ceil(SIDE / dataset.image_size)
    side = scale * dataset.image_size
    heads = [wrapped(name, side / DPI, 10) for name in names]
    head = LINE * max(map(len, heads))
    step, band_height = side + GAP, head + per_class * (side + GAP) + GAP
    bands = math.ceil(len(names) / COLUMNS)
    width = max(MIN_WIDTH, min(COLUMNS, len(names)) * step + GAP)
    sheet = Sheet(width, bands * band_height)
    for label, lines in enumerate(heads):
        band, column = divmod(label, COLUMNS)
        left, top = GAP + column * step, band * band_height
        for number, line in enumerate(lines, -len(lines)):
            middle = top + head + (number + 0.5) * LINE
            sheet.text(left + side / 2, middle, line, width=side, style=TextStyle(10))
        rows = rng.permutation(np.flatnonzero(part.labels == label))[:per_class]
        for place, pixels in enumerate(hwc(part.images[rows])):
            sheet.image(left, top + head + place * step, pixels, scale=scale)
    title = f"{data_label(dataset)}: samples of the {split} split, drawn by seed {seed}"
    return sheet.finish(title, wording=wording)


def augmentations(
    original: NDArray[np.uint8], operations: Sequence[Variants], words: Words
) -> Figure:
    """The image uint8 (3, S, S) at the left of each operation's results, a row each."""
    sections = []
    for operation, images, values in operations:
        tiles = map(Tile, hwc(images), ((value,) for value in values))
        sections.append(Section(operation, [Tile(hwc(original), ("original",)), *tiles]))
    return gallery(words, sections, columns=len(sections[0].tiles))


def predictions(
    header: Header,
    dataset: Dataset,
    predicted: Predictions,
    *,
    count: int,
    order: str = "random",
    wording: Wording = AS_IT_IS,
) -> Figure:
    """At most `count` test images that are right and as many that are wrong, with confidences.

    `order` is random (that of `predicted`), surest or unsurest first. Raises UsageError for
    another.
    """
    if order not in ORDERS:
        raise unknown("order", order, ORDERS)
    names, actual = dataset.class_names, dataset.test.labels[predicted.rows]
    rising = np.argsort(predicted.confidences, kind="stable")
    orders = {"random": np.arange(len(actual)), "surest": rising[::-1], "unsurest": rising}
    ranked = orders[order]
    sections = []
    for heading, is_right in (("right", True), ("wrong", False)):
        chosen = ranked[(predicted.classes == actual)[ranked] == is_right]
        tiles = []
        for index in chosen[:count]:
            # A line of its own: beside a long name the probability would be cut.
            lines = [names[predicted.classes[index]], f"{predicted.confidences[index]:.2f}"]
            lines += [] if is_right else [f"true: {names[actual[index]]}"]
            pixels = hwc(dataset.test.images[predicted.rows[index]])
            tiles.append(Tile(pixels, tuple(lines), BLUE if is_right else ORANGE))
        shown = f"{len(tiles):,} of {len(chosen):,} {heading}"
        sections.append(Section(shown, tiles))
    images = len(actual)
    drawn = "" if images == len(dataset.test.labels) else " drawn"
    caption = (
        f"Predictions for {images:,}{drawn} of the {len(dataset.test.labels):,} test images. Below "
        f"each: the predicted class and its probability. In {order} order."
    )
    title = f"{header.config.name}: right and wrong predictions, {data_label(dataset)}"
    return gallery(Words(title, caption, wording), sections)


def filters(
    header: Header,
    layer: str,
    kernels: NDArray[np.uint8],
    names: Sequence[str],
    wording: Wording = AS_IT_IS,
) -> Figure:
    """Kernels (K, 3, H, W) as tiles; `names`, one for each or none, stand below."""
    lines: list[tuple[str, ...]] = [(name,) for name in names] or [()] * len(kernels)
    tiles = list(map(Tile, hwc(kernels), lines))
    is_large = bool(names) or kernels.shape[-1] > _KERNEL or len(kernels) <= 4 * COLUMNS
    columns, min_side = (COLUMNS, SIDE) if is_large else (_KERNEL_COLUMNS, _KERNEL)
    title = f"{header.config.model}: {len(kernels)} filters of the first layer"
    caption = f"Layer {layer}. Each filter is scaled on its own; grey is 0."
    words = Words(title, caption, wording)
    return gallery(words, [Section("", tiles)], columns=columns, min_side=min_side)


def heat_maps(
    header: Header,
    explanation: Explanation,
    sources: Sequence[str],
    note: str,
    wording: Wording = AS_IT_IS,
) -> Figure:
    """Each image beside itself under its heat map, with the class and its probability.

    `sources` says what each image is; the class is in orange where that is the name of another.
    `note` says of which layer the maps are.
    """
    colours = matplotlib.colormaps["inferno"](explanation.heat)[..., :3]
    opacity = _HEAT * explanation.heat[..., None]
    images = hwc(explanation.images)
    grey = images @ np.array(augment.GREY)  # in colour, the image would look like heat
    mixed = np.rint((1 - opacity) * grey[..., None] + opacity * 255 * colours).astype(np.uint8)
    tiles = []
    for number, source in enumerate(sources):
        name = header.class_names[explanation.classes[number]]
        lines = (name, f"{explanation.confidences[number]:.2f}")
        colour = ORANGE if source in header.class_names and source != name else BLUE
        tiles += [Tile(images[number], (source,)), Tile(mixed[number], lines, colour)]
    caption = (
        "Evidence for the class below each map, with its probability, from none (grey) to the "
        f"map's maximum (yellow). {note}"
    )
    title = f"{header.config.model}: Grad-CAM"
    return gallery(Words(title, caption, wording), [Section("", tiles)])


def data_label(dataset: Dataset) -> str:
    """What the images are; only those with the official MD5 sums are called STL-10 alone."""
    if dataset.name == "STL-10":
        return "STL-10"
    if dataset.name == "demo":
        return "demo (drawn images, not STL-10)"
    return f"STL-10 layout {dataset.fingerprint[:12]} (not the STL-10 images)"


def hwc(images: NDArray[np.uint8]) -> Pixels:
    """uint8 (..., 3, H, W) -> (..., H, W, 3)."""
    return np.moveaxis(images, -3, -1)
