"""A config and an image -> what each operation of augmentation, and all together, make of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stl10bench import augment
from stl10bench.batches import load
from stl10bench.config import RunConfig
from stl10bench.data.stl10 import Split

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
    source = load(split, np.array([row]), config, torch.device("cpu")).images
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
