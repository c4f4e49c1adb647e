"""An exported model against the model it was made of: the same logits, within a tolerance?"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from stl10bench.errors import CheckpointError
from stl10bench.predict import Predictor

OTHER_SIZES = ((96, 96), (80, 120), (33, 97), (240, 320), (1, 1))  # height and width, pixels


class Tolerance(NamedTuple):
    """How far a logit may be off, as a share of the largest one (at least of 1)."""

    own_size: float
    other_sizes: float


class Difference(NamedTuple):
    """How far a logit was off at most, over `images`, and how far it might have been."""

    found: float
    allowed: float
    images: int


@torch.no_grad()
def compare(
    predictor: Predictor, exported: Callable[[Tensor], Tensor], tolerance: Tolerance
) -> tuple[Difference, Difference]:
    """How far the logits of `exported` are from `predictor`'s for uint8 images (N, 3, H, W).

    Once at the size to which the predictor resizes, and once at others. The images are noise,
    smooth, black, white, grey and a chessboard, alone and in batches. Raises CheckpointError when
    they differ by more than `tolerance` allows, or by what is no number.
    """
    side = predictor.side
    own = _difference(predictor, exported, [(side, side)], tolerance.own_size)
    others = _difference(predictor, exported, OTHER_SIZES, tolerance.other_sizes)
    for where, difference in ((f"at {side}x{side} px", own), ("at other sizes", others)):
        if not difference.found <= difference.allowed:  # what is no number is no success
            raise CheckpointError(
                f"the exported model gives other logits {where}: they differ by "
                f"{difference.found:.1e}, {difference.allowed:.1e} is allowed; nothing was written"
            )
    return own, others


def _difference(
    predictor: Predictor,
    exported: Callable[[Tensor], Tensor],
    sizes: Iterable[tuple[int, int]],
    tolerance: float,
) -> Difference:
    batches = [batch for size in sizes for batch in _images(size)]
    expected = torch.cat([predictor(batch) for batch in batches])
    found = torch.cat([exported(batch) for batch in batches])
    assert found.shape == expected.shape
    allowed = tolerance * expected.abs().max().clamp(min=1)
    return Difference(float((found - expected).abs().max()), float(allowed), len(expected))


def _images(size: tuple[int, int]) -> list[Tensor]:
    """Three batches: of eight images, of one, of four."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (4, 3, *size), generator=generator, dtype=torch.uint8)
    coarse = torch.rand(5, 3, 3, 3, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
    smooth = (255 * smooth).to(torch.uint8)
    rows, columns = torch.arange(size[0]).unsqueeze(1), torch.arange(size[1])
    board = (255 * ((rows + columns) % 2)).to(torch.uint8).expand(1, 3, *size)
    plain = torch.stack([torch.full((3, *size), v, dtype=torch.uint8) for v in (0, 255, 127)])
    return [torch.cat([noise, smooth[:4]]), smooth[4:], torch.cat([plain, board])]
