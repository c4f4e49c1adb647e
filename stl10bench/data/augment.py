"""uint8 batch -> augmented float batch, on its device, with one draw per image.

The operations are torchvision's ColorJitter (in the fixed order brightness, contrast, saturation,
hue), RandomGrayscale, RandomCrop or RandomResizedCrop, RandomHorizontalFlip and RandomRotation
(bilinear, black outside), GaussianBlur, and Cutout, in that order.
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from stl10bench.config import RunConfig
from stl10bench.core.seeding import AUGMENT, EFFECTS, generator

TRIES = 10  # boxes of which RandomResizedCrop takes the first that fits
RATIO = 3 / 4, 4 / 3  # of their width to their height
GREY = (0.2989, 0.587, 0.114)  # ITU-R BT.601 luma, with torchvision's rounding
BLUR = 0.001, 0.02  # range of a blur's deviation, as fractions of the image's side
_MIDDLE = 0.5  # of 0..1: the grey of Cutout's squares


class Draws(NamedTuple):
    """The random numbers for a batch: float32 tensors of shape (B,), drawn in this order."""

    brightness: Tensor  # factors, 1 = unchanged
    contrast: Tensor
    saturation: Tensor
    hue: Tensor  # turns of the colour circle, 0 = unchanged
    flip: Tensor  # 1 = mirrored, 0 = not
    angle: Tensor  # degrees, counter-clockwise
    left: Tensor  # the crop's first column in the source, pixels
    top: Tensor  # and its first row
    width: Tensor  # of the crop in the source, pixels; not that of the model's input if resized
    height: Tensor
    grey: Tensor  # 1 = without colours, 0 = not
    blur: Tensor  # standard deviation, pixels of the model's input; 0 = not blurred
    side: Tensor  # of Cutout's square, pixels of the model's input; 0 = none
    across: Tensor  # its middle
    down: Tensor

    def rows(self, start: int, stop: int, device: torch.device) -> "Draws":
        """The draws of images `start` to `stop`, on `device`."""
        # In one copy: on a GPU each costs a launch.
        return Draws(*torch.stack(self)[:, start:stop].to(device, non_blocking=True))


def draw(
    config: RunConfig,
    batch_size: int,
    source_size: int,
    *,
    epoch: int,
    batch: int,
    purpose: int = AUGMENT,
) -> Draws:
    """The draws for a global batch of images `source_size` pixels wide and high.

    With the same settings a function of (config.seed, purpose, epoch, batch) alone.
    """
    # All eight rows at once, used or not: no setting shifts the draws of another.
    random = generator(config.seed, purpose, epoch, batch)
    uniform = torch.rand(8, batch_size, generator=random)

    def between(row: int, low: float, high: float) -> Tensor:
        return low + (high - low) * uniform[row]

    width = height = torch.full((batch_size,), float(config.image_size))
    if config.random_resized_crop is not None:
        tries = torch.rand(2, TRIES, batch_size, generator=random)
        width, height = _boxes(tries, source_size, config.random_resized_crop)
    # A stream of their own: they came later.
    effects = torch.zeros(6, batch_size)
    if config.grayscale or config.blur or config.cutout:
        random = generator(config.seed, EFFECTS, purpose, epoch, batch)
        effects = torch.rand(6, batch_size, generator=random)
    low, high = BLUR
    deviation = (low + (high - low) * effects[2]) * config.image_size
    return Draws(
        brightness=between(0, max(0.0, 1 - config.brightness), 1 + config.brightness),
        contrast=between(1, max(0.0, 1 - config.contrast), 1 + config.contrast),
        saturation=between(2, max(0.0, 1 - config.saturation), 1 + config.saturation),
        hue=between(3, -config.hue, config.hue),
        flip=(uniform[4] < config.flip).float(),
        angle=between(5, *config.rotation),
        left=(uniform[6] * (source_size - width + 1)).floor(),
        top=(uniform[7] * (source_size - height + 1)).floor(),
        width=width,
        height=height,
        grey=(effects[0] < config.grayscale).float(),
        blur=torch.where(effects[1] < config.blur, deviation, 0.0),
        side=(effects[3] * config.cutout * config.image_size).round(),
        across=(effects[4] * config.image_size).floor(),
        down=(effects[5] * config.image_size).floor(),
    )


def _boxes(uniform: Tensor, size: int, area: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Width and height (B,), pixels, of boxes in squares of `size`, from (2, TRIES, B) in 0..1.

    As torchvision's RandomResizedCrop, which takes the whole square where none of the tries fits:
    the share of the area is uniform, the ratio of the sides in its logarithm.
    """
    low, high = area
    pixels = size**2 * (low + (high - low) * uniform[0])
    first, last = map(math.log, RATIO)
    ratio = (first + (last - first) * uniform[1]).exp()
    sides = torch.stack([(pixels * ratio).sqrt().round(), (pixels / ratio).sqrt().round()])
    fits = ((sides > 0) & (sides <= size)).all(0)
    chosen = sides.gather(1, fits.int().argmax(0).expand(2, 1, -1)).squeeze(1)
    width, height = torch.where(fits.any(0), chosen, float(size))
    return width, height


def apply(images: Tensor, draws: Draws, config: RunConfig) -> Tensor:
    """uint8 (B, 3, S, S) -> float32 (B, 3, image_size, image_size) in 0..1, augmented by `draws`.

    The colours change first, on the whole source image, then one bilinear resampling crops,
    resizes, mirrors and rotates. Colours clip to 0..1 after each operation, as torchvision's do;
    with the same draws every operation, hue included, equals torchvision's on float images up to
    rounding (but a blur at the border, see there).
    """
    images = jitter(images.to(torch.float32).div_(255), draws, config)
    if config.grayscale:
        grey = (draws.grey > 0).view(-1, 1, 1, 1)
        images = torch.where(grey, _luma(images).unsqueeze(1), images)
    images = resample(images, draws, config)
    if config.blur:
        images = blur(images, draws.blur)
    if config.cutout:
        images = cut_out(images, draws)
    return images


def jitter(images: Tensor, draws: Draws, config: RunConfig) -> Tensor:
    """float (B, 3, H, W) in 0..1, changed in place: brightness, contrast, saturation, hue."""

    def per_image(factor: Tensor) -> Tensor:
        return factor.view(-1, 1, 1, 1)

    if config.brightness:
        images.mul_(per_image(draws.brightness)).clamp_(0, 1)
    if config.contrast:
        mean = images.mean((2, 3)) @ _grey(images.device)  # of each image's grey version
        images.mul_(per_image(draws.contrast)).add_(per_image(mean * (1 - draws.contrast)))
        images.clamp_(0, 1)
    if config.saturation:
        grey = _luma(images)
        grey.mul_((1 - draws.saturation).view(-1, 1, 1))
        images.mul_(per_image(draws.saturation)).add_(grey.unsqueeze(1)).clamp_(0, 1)
    if config.hue:
        images = shift_hue(images, draws.hue)
    return images


@functools.cache
def _grey(device: torch.device) -> Tensor:
    """GREY, float32 (3,); made once, for a GPU waits for all its work before such a copy."""
    return torch.tensor(GREY, device=device)


def _luma(images: Tensor) -> Tensor:
    """float (B, 3, H, W) -> (B, H, W)."""
    red, green, blue = images.unbind(1)
    return red.mul(GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])


def shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """float RGB (B, 3, H, W) in 0..1 with the hue turned by `turns` (B,) of the colour circle.

    Exact in HSV (Smith 1978, "Color gamut transform pairs"): value and saturation stay. Instead of
    HSV's six cases, a channel is max - chroma * clip(x - 1, 0, 1), where x is the distance, in
    sixths of a turn, of the hue from the channel's own: red 0, green 2, blue -2.
    """
    red, green, blue = images.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    chroma = torch.minimum(torch.minimum(red, green), blue).neg_().add_(high)
    # The hue times chroma, by the highest channel; to select, lerp by 0 or 1 is faster than where.
    sixths = (red - green).sub_(chroma, alpha=2)
    sixths.lerp_((blue - red).add_(chroma, alpha=2), (high == green).to(images.dtype))
    sixths.lerp_(green - blue, (high == red).to(images.dtype))
    hue = torch.addcdiv(6 * turns.view(-1, 1, 1), sixths, chroma + 1e-12)
    hue.sub_(hue.div(6).round_().mul_(6))  # into -3..3
    top = high.add_(chroma)
    shifted = torch.empty_like(images)
    for channel, distance in enumerate(
        (
            hue.abs(),
            (hue + 1).abs_().sub_(3).abs_(),  # |hue - 2| around the circle
            (hue - 1).abs_().sub_(3).abs_(),
        )
    ):
        torch.addcmul(top, chroma, distance.clamp_(1, 2), value=-1, out=shifted[:, channel])
    return shifted


def resample(images: Tensor, draws: Draws, config: RunConfig) -> Tensor:
    """float (B, 3, S, S) -> (B, 3, image_size, image_size): crop, mirror, rotate in one pass.

    Bilinear, not antialiased; the rotation is about the crop's centre and what lies outside the
    source is 0. A crop that is resized is cut out first, as torchvision does: outside it is 0.
    """
    source_size, image_size = images.shape[-1], config.image_size
    resizes = config.random_resized_crop is not None
    if source_size == image_size and config.rotation == (0.0, 0.0) and not resizes:
        return torch.where(draws.flip.bool().view(-1, 1, 1, 1), images.flip(3), images)
    radians = draws.angle.deg2rad()
    sine, cosine = radians.sin(), radians.cos()
    mirror = 1 - 2 * draws.flip
    half = source_size / 2
    # Output coordinates in -1..1 -> source coordinates in -1..1. The inverse of "mirror, then
    # rotate" is "rotate back, then mirror".
    steps = (torch.arange(image_size, device=images.device) * 2 + 1) / image_size - 1
    grid = images.new_empty(2, len(images), image_size, image_size)
    for plane, across, down, start, side in (
        (grid[0], cosine * mirror, -sine * mirror, draws.left, draws.width),
        (grid[1], sine, cosine, draws.top, draws.height),
    ):
        # By a tensor: a GPU multiplies by a number's inverse, which rounds otherwise.
        share = side / torch.full_like(side, source_size)
        offset = (start + side / 2 - half) / half
        rows = torch.outer(down * share, steps) + offset.unsqueeze(1)
        torch.add(torch.outer(across * share, steps).unsqueeze(1), rows.unsqueeze(2), out=plane)
        if resizes:
            _keep_within(plane, offset, share, 1 / source_size)
    return F.grid_sample(images, grid.permute(1, 2, 3, 0), align_corners=False)


def _keep_within(plane: Tensor, middle: Tensor, extent: Tensor, pixel: float) -> None:
    """Coordinates (B, H, W) beyond `extent` of `middle` (B,) leave the image, in place.

    As if the image ended there: up to half a pixel (`pixel`) from its border its last one counts.
    """
    low, high = ((middle + sign * extent).view(-1, 1, 1) for sign in (-1, 1))
    outside = (plane < low) | (plane > high)
    torch.clamp(plane, low + pixel, high - pixel, out=plane)
    plane.masked_fill_(outside, 4.0)  # beyond -1..1 by more than a pixel, whatever its size


def blur(images: Tensor, deviations: Tensor) -> Tensor:
    """float (B, 3, S, S), each blurred by a Gaussian of its deviation in pixels (B,); 0: not.

    As SimCLR's, but of three deviations to either side rather than a tenth of the image in all. At
    the border the weights within the image are scaled to 1, where torchvision mirrors the image. A
    product with a matrix (S, S) from either side: for a batch the fastest way to kernels that
    differ.
    """
    places = torch.arange(images.shape[-1], device=images.device, dtype=images.dtype)
    distance = (places - places.unsqueeze(1)).abs()
    widths = deviations.clamp(min=1e-3).view(-1, 1, 1)  # so narrow, all others' weights are 0
    weights = (-0.5 * (distance / widths).square()).exp() * (distance <= 3 * widths)
    weights = (weights / weights.sum(2, keepdim=True)).unsqueeze(1)
    return weights @ images @ weights.mT


def cut_out(images: Tensor, draws: Draws) -> Tensor:
    """float (B, 3, S, S), in each a grey square around the drawn place, as much as is within.

    DeVries and Taylor (2017), "Improved regularization of convolutional neural networks with
    Cutout"; the side is drawn as well, as in RandAugment.
    """
    places = torch.arange(images.shape[-1], device=images.device)

    def within(middle: Tensor) -> Tensor:
        start = (middle - (draws.side / 2).floor()).unsqueeze(1)
        return (places >= start) & (places < start + draws.side.unsqueeze(1))

    square = within(draws.down).unsqueeze(2) & within(draws.across).unsqueeze(1)
    return images.masked_fill(square.unsqueeze(1), _MIDDLE)


def centre(images: Tensor, image_size: int) -> Tensor:
    """uint8 (B, 3, S, S) -> float32 (B, 3, image_size, image_size) in 0..1: evaluation's input."""
    start = (images.shape[-1] - image_size) // 2
    window = slice(start, start + image_size)
    return images[:, :, window, window].to(torch.float32).div_(255)
