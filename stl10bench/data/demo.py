"""Ten classes drawn by code -> files in STL-10's layout: data to try everything on, not STL-10."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from stl10bench.core import files
from stl10bench.core.errors import DataError
from stl10bench.data import stl10

TRAIN, TEST = 2000, 1000  # images
_SCALE = 2  # drawn larger, then averaged: smooth edges

Points = NDArray[np.float64]
Rng = np.random.Generator
# One part of a drawing: corner points in -1..1 (x right, y down), a tone, and the width of a line
# (0 = a filled polygon). Tones: 0 body, 1 its shade, 2 its light, 3 near black, 4 near white.
Part = tuple[Points, int, float]


def draw_image(label: int, seed: int, split: int, index: int) -> NDArray[np.uint8]:
    """One image, uint8 (96, 96, 3), of class `label` (0..9); a function of its arguments alone.

    `split` is 0 for train, 1 for test. Neither colour, place nor light depends on the class: only
    the shape tells it.
    """
    rng = np.random.default_rng(np.random.SeedSequence((seed, split, index)))
    size = stl10.SIDE * _SCALE
    image = Image.fromarray(_background(rng, size))
    pen = ImageDraw.Draw(image)
    for _ in range(rng.integers(4, 11)):
        _clutter(pen, rng, size, largest=0.35)

    body = _colour(rng)
    around = np.asarray(image, dtype=np.float64).mean((0, 1))
    while np.abs(body - around).mean() < 25:  # else it could not be seen
        body = _colour(rng)
    tones = [body, body * 0.62, 255 - (255 - body) * 0.55, body * 0.1 + 12, body * 0.1 + 225]
    turn, mirror = np.deg2rad(rng.normal(0, 16)), rng.choice((-1, 1))
    stretch = rng.uniform(0.85, 1.15)
    scale = size * rng.uniform(0.24, 0.43)
    centre = size * (0.5 + rng.uniform(-0.12, 0.12, 2))
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    shape = rotation @ np.diag([mirror * stretch, 1 / stretch]) * scale
    for points, tone, width in _DRAWINGS[label](rng):
        corners = [tuple(point) for point in points @ shape.T + centre]
        colour = tuple(int(value) for value in tones[tone])
        if width:
            pen.line(corners, fill=colour, width=max(1, round(width * scale)), joint="curve")
        else:
            pen.polygon(corners, fill=colour)
    for _ in range(rng.integers(1, 5)):
        _clutter(pen, rng, size, largest=0.2)

    image = image.resize((stl10.SIDE, stl10.SIDE), Image.Resampling.BOX)
    pixels = np.asarray(image, dtype=np.float64)
    light = rng.uniform(0.75, 1.2) * (1 + rng.uniform(-0.3, 0.3) * np.linspace(-1, 1, stl10.SIDE))
    pixels = pixels * light[None, :, None] + rng.normal(0, rng.uniform(4, 20), pixels.shape)
    return _as_bytes(np.rint(pixels))


def _as_bytes(pixels: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _colour(rng: Rng) -> NDArray[np.float64]:
    return rng.uniform(20, 235, 3)


def _background(rng: Rng, size: int) -> NDArray[np.uint8]:
    """A gradient between two colours at any angle, with a wave on it."""
    angle = rng.uniform(0, 2 * np.pi)
    across, down = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size))
    along = across * np.cos(angle) + down * np.sin(angle)
    share = (np.clip(along, -1, 1)[..., None] + 1) / 2
    first = _colour(rng)
    second = np.clip(first + rng.uniform(-70, 70, 3), 0, 255)
    wave = np.sin(rng.uniform(3, 30) * (across * np.sin(angle) + along) + rng.uniform(0, 6))
    return _as_bytes(first * (1 - share) + second * share + rng.uniform(0, 14) * wave[..., None])


def _clutter(pen: ImageDraw.ImageDraw, rng: Rng, size: int, *, largest: float) -> None:
    """A blob, a polygon or a line anywhere."""
    centre, extent = rng.uniform(0, size, 2), size * rng.uniform(0.05, largest)
    colour = tuple(int(value) for value in _colour(rng))
    count = int(rng.integers(2, 8))
    angles = np.sort(rng.uniform(0, 2 * np.pi, count))
    corners = centre + extent * np.stack((np.cos(angles), np.sin(angles)), 1)
    points = [tuple(corner) for corner in corners]
    if count == 2:
        pen.line(points, fill=colour, width=int(rng.integers(2, 8)))
    elif count == 7:
        pen.ellipse([*(centre - extent / 2), *(centre + extent / 2)], fill=colour)
    else:
        pen.polygon(points, fill=colour)


def _fill(tone: int, *points: tuple[float, float]) -> Part:
    return _line(tone, 0.0, *points)


def _line(tone: int, width: float, *points: tuple[float, float]) -> Part:
    return np.array(points, dtype=np.float64), tone, width


def _oval(tone: int, x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> Part:
    angles = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    points = np.stack((rx * np.cos(angles), ry * np.sin(angles)), 1)
    cosine, sine = np.cos(turn), np.sin(turn)
    return points @ np.array([[cosine, sine], [-sine, cosine]]) + (x, y), tone, 0.0


def _ovals(tone: int, y: float, rx: float, ry: float, *xs: float) -> list[Part]:
    return [_oval(tone, x, y, rx, ry) for x in xs]


def _both_sides(tone: int, *points: tuple[float, float]) -> list[Part]:
    return [_fill(tone, *points), _fill(tone, *((-x, y) for x, y in points))]


def _airplane(rng: Rng) -> list[Part]:
    sweep = rng.uniform(0.1, 0.45)
    return [
        _fill(1, (0.15, 0.0), (-0.1 - sweep, -0.95), (-0.3 - sweep, -0.95), (-0.2, 0.0)),
        _fill(1, (-0.7, 0.0), (-0.95, -0.4), (-1.05, -0.4), (-0.95, 0.0)),
        _oval(0, 0.0, 0.0, 1.0, 0.17),
        _fill(2, (0.2, 0.03), (-0.1 - sweep, 0.95), (-0.3 - sweep, 0.95), (-0.2, 0.03)),
        _fill(2, (-0.7, 0.03), (-0.95, 0.42), (-1.05, 0.42), (-0.95, 0.03)),
        *_ovals(3, -0.05, 0.045, 0.04, -0.4, -0.2, 0.0, 0.2, 0.4),
        _oval(3, 0.78, -0.04, 0.1, 0.06),
    ]


def _bird(rng: Rng) -> list[Part]:
    lift = rng.uniform(-0.75, 0.1)
    return [
        _fill(1, (-0.45, 0.0), (-1.0, -0.2), (-1.0, 0.12), (-0.4, 0.25)),
        _line(3, 0.05, (-0.05, 0.35), (-0.05, 0.8), (0.12, 0.8)),
        _line(3, 0.05, (0.12, 0.35), (0.12, 0.8), (0.3, 0.8)),
        _oval(0, 0.0, 0.05, 0.56, 0.36, -0.2),
        _oval(0, 0.5, -0.35, 0.27, 0.27),
        _fill(4, (0.72, -0.45), (1.08, -0.3), (0.72, -0.22)),
        _oval(3, 0.57, -0.42, 0.06, 0.06),
        _fill(2, (0.2, 0.0), (-0.35, lift - 0.15), (-0.6, lift + 0.1), (-0.3, 0.2)),
    ]


def _wheels(y: float, radius: float, *places: float) -> list[Part]:
    rim = 0.45 * radius
    return _ovals(3, y, radius, radius, *places) + _ovals(4, y, rim, rim, *places)


def _car(rng: Rng) -> list[Part]:
    roof, height = rng.uniform(0.3, 0.5), rng.uniform(-0.52, -0.4)
    return [
        _fill(0, (-0.62, 0.0), (-roof, height), (roof - 0.05, height), (0.65, 0.0)),
        _fill(4, (-0.5, 0.0), (-roof + 0.04, height + 0.08), (-0.04, height + 0.08), (-0.04, 0.0)),
        _fill(4, (0.05, 0.0), (0.05, height + 0.08), (roof - 0.1, height + 0.08), (0.52, 0.0)),
        _fill(0, (-1, 0.02), (-0.9, -0.04), (0.85, -0.04), (1, 0.12), (1, 0.36), (-1, 0.36)),
        _fill(1, (-1.0, 0.26), (1.0, 0.26), (1.0, 0.38), (-1.0, 0.38)),
        *_wheels(0.38, 0.23, -0.58, 0.58),
    ]


def _face(tone: int = 3) -> list[Part]:
    return _ovals(tone, -0.08, 0.1, 0.11, -0.27, 0.27)


def _cat(rng: Rng) -> list[Part]:
    ear = rng.uniform(0.85, 1.1)
    ends = ((side, slope) for side in (-1, 1) for slope in (-0.14, 0.02, 0.18))
    whiskers = (_line(4, 0.03, (s * 0.2, 0.32), (s * 1.0, 0.32 + slope)) for s, slope in ends)
    return [
        *_both_sides(0, (-0.72, -0.15), (-0.68, -ear), (-0.1, -0.5)),
        *_both_sides(2, (-0.6, -0.4), (-0.6, -ear + 0.2), (-0.3, -0.5)),
        _oval(0, 0.0, 0.05, 0.76, 0.66),
        *_face(4),
        *_ovals(3, -0.08, 0.04, 0.1, -0.27, 0.27),
        _fill(3, (-0.09, 0.2), (0.09, 0.2), (0.0, 0.31)),
        *whiskers,
    ]


def _legs(rng: Rng, width: float, top: float, bottom: float, *places: float) -> list[Part]:
    steps = rng.uniform(-0.14, 0.14, len(places))
    feet = enumerate(zip(places, steps, strict=True))
    return [_line(i % 2, width, (x, top), (x + step, bottom)) for i, (x, step) in feet]


def _deer(rng: Rng) -> list[Part]:
    spread = rng.uniform(0.8, 1.2)

    def x_of(offset: float, side: float) -> float:
        return 0.6 + offset * side * spread

    return [
        *_legs(rng, 0.08, 0.1, 0.98, -0.5, -0.38, 0.22, 0.34),
        *(_line(4, 0.05, (0.6, -0.62), (x_of(0.22, side), -1.05)) for side in (-1.3, 1.0)),
        *(_line(4, 0.045, (x_of(0.13, s), -0.86), (x_of(0.4, s), -0.9)) for s in (-1.1, 1.0)),
        _oval(0, -0.08, 0.0, 0.58, 0.25),
        _fill(0, (0.2, 0.1), (0.5, -0.5), (0.72, -0.45), (0.48, 0.1)),
        _oval(0, 0.7, -0.52, 0.26, 0.13, 0.3),
        _fill(4, (-0.6, -0.14), (-0.74, -0.05), (-0.58, 0.06)),
        *(_oval(4, x, y, 0.045, 0.04) for x, y in ((-0.35, -0.07), (-0.1, -0.1), (0.1, -0.02))),
        _oval(3, 0.68, -0.57, 0.04, 0.04),
    ]


def _dog(rng: Rng) -> list[Part]:
    droop = rng.uniform(0.25, 0.6)
    return [
        _oval(0, 0.0, 0.0, 0.62, 0.7),
        _oval(1, -0.66, droop - 0.25, 0.23, 0.55, 0.2),
        _oval(1, 0.66, droop - 0.25, 0.23, 0.55, -0.2),
        _oval(2, 0.0, 0.36, 0.4, 0.36),
        *_face(),
        _oval(3, 0.0, 0.2, 0.17, 0.12),
        _line(3, 0.04, (0.0, 0.3), (0.0, 0.5), (0.2, 0.56)),
        _oval(4, 0.04, 0.68, 0.12, 0.16),
    ]


def _horse(rng: Rng) -> list[Part]:
    swish = rng.uniform(-0.2, 0.2)
    return [
        *_legs(rng, 0.13, 0.1, 0.98, -0.55, -0.4, 0.25, 0.4),
        _line(3, 0.13, (-0.62, -0.12), (-0.9, 0.1), (-0.88 + swish, 0.62)),
        _oval(0, -0.08, 0.0, 0.66, 0.33),
        _fill(0, (0.1, 0.0), (0.42, -0.75), (0.72, -0.66), (0.58, 0.1)),
        _oval(0, 0.76, -0.62, 0.34, 0.16, 0.6),
        _fill(0, (0.48, -0.72), (0.5, -1.0), (0.62, -0.74)),
        _line(3, 0.12, (0.44, -0.8), (0.3, -0.5), (0.12, -0.18)),
        _oval(3, 0.68, -0.68, 0.045, 0.045),
    ]


def _monkey(rng: Rng) -> list[Part]:
    ear = rng.uniform(0.22, 0.34)
    return [
        *_ovals(1, -0.05, ear, ear, -0.72, 0.72),
        *_ovals(2, -0.05, ear * 0.55, ear * 0.55, -0.72, 0.72),
        _oval(1, 0.0, -0.05, 0.66, 0.72),
        *_ovals(2, -0.1, 0.27, 0.3, -0.2, 0.2),
        _oval(2, 0.0, 0.34, 0.5, 0.35),
        *_face(),
        *_ovals(3, 0.17, 0.04, 0.04, -0.07, 0.07),
        _line(3, 0.05, (-0.27, 0.4), (0.0, 0.49), (0.27, 0.4)),
    ]


def _ship(rng: Rng) -> list[Part]:
    funnel = rng.uniform(-0.3, 0.1)
    return [
        _fill(4, (-0.6, 0.12), (-0.6, -0.22), (0.5, -0.22), (0.5, 0.12)),
        _fill(2, (-0.35, -0.22), (-0.35, -0.46), (0.3, -0.46), (0.3, -0.22)),
        _fill(3, (funnel, -0.46), (funnel, -0.85), (funnel + 0.2, -0.85), (funnel + 0.2, -0.46)),
        _line(3, 0.05, (0.7, 0.1), (0.7, -0.7)),
        _fill(0, (-1.0, 0.08), (1.08, 0.08), (0.78, 0.55), (-0.78, 0.55)),
        _fill(1, (-0.86, 0.4), (0.88, 0.4), (0.78, 0.58), (-0.78, 0.58)),
        *_ovals(4, 0.23, 0.06, 0.06, -0.55, -0.25, 0.05, 0.35, 0.65),
    ]


def _truck(rng: Rng) -> list[Part]:
    height = rng.uniform(-0.75, -0.5)
    return [
        _fill(2, (-1.0, 0.3), (-1.0, height), (0.35, height), (0.35, 0.3)),
        *(_line(1, 0.03, (x, height + 0.05), (x, 0.25)) for x in (-0.7, -0.35, 0.0)),
        _fill(0, (0.4, 0.36), (0.4, -0.38), (0.74, -0.38), (1.0, 0.0), (1.0, 0.36)),
        _fill(4, (0.56, -0.02), (0.56, -0.28), (0.72, -0.28), (0.9, -0.02)),
        _fill(3, (-1.0, 0.3), (1.0, 0.3), (1.0, 0.42), (-1.0, 0.42)),
        *_wheels(0.46, 0.19, -0.72, -0.28, 0.68),
    ]


# In the order of stl10.CLASS_NAMES.
_DRAWINGS = (_airplane, _bird, _car, _cat, _deer, _dog, _horse, _monkey, _ship, _truck)

GENERATOR = 1  # raised when the same seed begins to draw other images
FOLDS = 10


def make_demo(data_dir: Path, *, train: int = TRAIN, test: int = TEST, seed: int = 0) -> None:
    """Write the demo data as `data_dir`/stl10_binary, whole or not at all.

    `train` and `test` images, whose classes take turns, and ten folds of a fifth of the train
    split each. Where the same data exist already they stay as they are. Raises DataError when the
    folder holds anything else, StorageError when it cannot be written.
    """
    folder = data_dir / stl10.FOLDER
    recipe = {"generator": GENERATOR, "seed": seed, "train": train, "test": test}
    marker = folder / stl10.MARKER
    if folder.exists():
        if not marker.exists() or not recipe.items() <= files.read_json(marker, DataError).items():
            raise DataError(f"{folder} exists already: move it away, or use another --data-dir")
        stl10.open_dataset(data_dir)  # raises if it is no longer what was drawn
        return
    failure = f"cannot write the demo data {folder}"
    with files.storage_errors(failure), files.new_folder(folder) as part:
        for name, content in _draw_files(train, test, seed):
            (part / name).write_bytes(content)
        sums = {name: files.digests(part / name, "sha256")[0] for name in stl10.NEEDED}
        files.write_json(part / stl10.MARKER, {**recipe, "sha256": sums})


def draw_demo(data_dir: Path, *, train: int = TRAIN, test: int = TEST) -> stl10.Dataset:
    """What `make_demo` would write there, in memory alone: for a dry run."""
    contents = dict(_draw_files(train, test, seed=0))
    sums = {name: hashlib.sha256(contents[name]).hexdigest() for name in stl10.NEEDED}
    splits = {}
    for name in ("train", "test"):
        pixels = np.frombuffer(contents[f"{name}_X.bin"], np.uint8)
        labels = np.frombuffer(contents[f"{name}_y.bin"], np.uint8).astype(np.int64) - 1
        splits[name] = stl10.Split(stl10.as_images(pixels, stl10.SIDE), labels)
    return stl10.Dataset(
        name="demo",
        fingerprint=stl10.fingerprint(sums),
        class_names=stl10.CLASS_NAMES,
        folder=data_dir / stl10.FOLDER,
        fold_lines=contents["fold_indices.txt"],
        stamp=False,
        **splits,
    )


def _draw_files(train: int, test: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """The name and the content of each file."""
    for split, (name, count) in enumerate((("train", train), ("test", test))):
        labels = np.arange(count) % len(stl10.CLASS_NAMES)
        images = (draw_image(int(label), seed, split, i) for i, label in enumerate(labels))
        # channel, column, row
        yield f"{name}_X.bin", b"".join(image.transpose(2, 1, 0).tobytes() for image in images)
        yield f"{name}_y.bin", (labels + 1).astype(np.uint8).tobytes()
    yield "class_names.txt", stl10.encode_class_names(stl10.CLASS_NAMES)
    rng = np.random.default_rng(np.random.SeedSequence((seed, 2)))
    folds = [np.sort(rng.choice(train, max(1, train // 5), replace=False)) for _ in range(FOLDS)]
    lines = "".join(" ".join(map(str, fold)) + " \n" for fold in folds)
    yield "fold_indices.txt", lines.encode()
