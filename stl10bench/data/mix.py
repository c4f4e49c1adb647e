"""Batches -> batches whose images are each mixed with another one's, and soft targets for them.

mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) as timm's Mixup has them in mode "elem": each
image has its own draws, and with both settings its own choice between the two.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from stl10bench.config import RunConfig
from stl10bench.core.seeding import MIX, numpy_generator


class Draws(NamedTuple):
    """The random numbers for a batch: tensors of shape (B,)."""

    share: Tensor  # float32, 0..1: of the image itself in what it becomes
    cut: Tensor  # bool: CutMix, else mixup
    down: Tensor  # float32, 0..1: the middle of CutMix's box, as a share of the image's side
    across: Tensor

    def rows(self, start: int, stop: int, device: torch.device) -> "Draws":
        """The draws of images `start` to `stop`, on `device`."""
        return Draws(*(draw[start:stop].to(device, non_blocking=True) for draw in self))


def draw(config: RunConfig, batch_size: int, *, epoch: int, batch: int) -> Draws:
    """The draws for a global batch: a function of (config.seed, epoch, batch) and the settings."""
    random = numpy_generator(config.seed, MIX, epoch, batch)
    choice, down, across = torch.from_numpy(random.random((3, batch_size), dtype="float32"))
    cut = torch.full((batch_size,), bool(config.cutmix))
    if config.mixup and config.cutmix:
        cut = choice < 0.5
    mixup, cutmix = (
        torch.from_numpy(random.beta(alpha or 1, alpha or 1, batch_size)).float()
        for alpha in (config.mixup, config.cutmix)
    )
    return Draws(torch.where(cut, cutmix, mixup), cut, down, across)


def mix(images: Tensor, labels: Tensor, draws: Draws, classes: int) -> tuple[Tensor, Tensor]:
    """float images (B, C, S, S), mixed in place, and float32 targets (B, classes).

    The partner of an image is its neighbour, 2k and 2k + 1 (a batch is in random order); the last
    of an odd number keeps to itself. CutMix's share is corrected to the box within the image.
    """
    size = images.shape[-1]
    partners = (torch.arange(len(images), device=images.device) ^ 1).clamp(max=len(images) - 1)
    side = (size * (1 - draws.share).sqrt()).floor()
    places = torch.arange(size, device=images.device)
    inside = []
    for middle in ((draws.down * size).floor(), (draws.across * size).floor()):
        first, end = middle - (side / 2).floor(), middle + ((side + 1) / 2).floor()
        inside.append((places >= first.unsqueeze(1)) & (places < end.unsqueeze(1)))
    box = inside[0].unsqueeze(2) & inside[1].unsqueeze(1)
    share = torch.where(draws.cut, 1 - box.float().mean((1, 2)), draws.share)
    weights = torch.where(draws.cut.view(-1, 1, 1), 1 - box.float(), draws.share.view(-1, 1, 1))
    torch.lerp(images[partners], images, weights.unsqueeze(1), out=images)
    targets = F.one_hot(labels, classes).float()
    return images, torch.lerp(targets[partners], targets, share.unsqueeze(1))


def mixed_batches(
    batches: Callable[..., Iterator[tuple[Tensor, Tensor]]],
    config: RunConfig,
    accelerator: Accelerator,
    classes: int,
    *,
    epoch: int,
    start: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's share of an epoch's batches, mixed: images, and float targets (B, classes).

    Its share must hold pairs: an even number of images, where there are several processes.
    """
    for batch, (images, labels) in enumerate(batches(epoch=epoch, start=start), start):
        draws = draw(config, config.batch_size, epoch=epoch, batch=batch)
        first = len(images) * accelerator.process_index
        draws = draws.rows(first, first + len(images), images.device)
        yield mix(images, labels, draws, classes)
