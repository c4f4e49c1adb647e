"""A split -> its images at the input size -> batches of a model's input."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from stl10bench.config import RunConfig
from stl10bench.core.errors import DataError
from stl10bench.core.seeding import ORDER, generator
from stl10bench.data import augment
from stl10bench.data.stl10 import Split, pieces


class Images(NamedTuple):
    """Images of one split at the size from which batches are cut, and their labels."""

    images: Tensor  # uint8 (N, 3, S, S), on the device if they fit there
    labels: Tensor  # int64 (N,), on the device


class Normalise(NamedTuple):
    """float images (B, 3, H, W) in 0..1 -> the model's input, in its memory layout."""

    mean: Tensor  # float32 (1, 3, 1, 1)
    std: Tensor
    layout: torch.memory_format

    def __call__(self, images: Tensor) -> Tensor:
        return images.sub_(self.mean).div_(self.std).contiguous(memory_format=self.layout)


def load_images(
    split: Split, rows: NDArray[np.int64], config: RunConfig, device: torch.device
) -> Images:
    """The images `rows` (N,) of a split, resized once (bilinear, antialiased) and kept uint8.

    For `input: crop` they have the size of the data. They lie on the device if they take at most
    half of its free memory, else in the host's.
    """
    # In memory as a whole, with no DataLoader: work for each image in Python is 7 to 30 times
    # slower than for a batch at once (measured), and STL-10 takes 27 KB an image.
    size = config.data_size if config.input == "crop" else config.image_size
    images = torch.empty(len(rows), 3, size, size, dtype=torch.uint8)
    for piece in pieces(len(rows), split.images.shape[-1]):  # mapped: a part of it in memory
        chunk = torch.from_numpy(np.ascontiguousarray(split.images[rows[piece]]))
        if chunk.shape[-1] != size:
            chunk = F.interpolate(chunk, size=(size, size), mode="bilinear", antialias=True)
        images[piece] = chunk
    fits = device.type != "cuda" or images.numel() <= torch.cuda.mem_get_info(device)[0] // 2
    images = images.to(device) if fits else images.pin_memory()
    return Images(images, torch.from_numpy(split.labels[rows]).to(device))


def make_normalise(
    mean: tuple[float, ...],
    std: tuple[float, ...],
    layout: torch.memory_format,
    device: torch.device,
) -> Normalise:
    """Normalisation by a mean and a standard deviation per channel, in 0..1, on `device`."""
    channels = torch.tensor([mean, std], dtype=torch.float32, device=device).view(2, 1, -1, 1, 1)
    return Normalise(channels[0], channels[1], layout)


def augmented_batches(
    train: Images,
    normalise: Normalise,
    config: RunConfig,
    accelerator: Accelerator,
    *,
    epoch: int,
    start: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's share of an epoch's batches, from batch `start` on.

    Yields normalised float input (B / processes, 3, image_size, image_size) and int64 labels.
    """
    device, size = accelerator.device, train.images.shape[-1]
    order = _order(len(train.labels), config, epoch).to(train.images.device)
    for batch, first, rows in _shares(order, config, accelerator, start):
        # Drawn for the global batch, so that the number of processes changes no draw.
        draws = augment.draw(config, config.batch_size, size, epoch=epoch, batch=batch)
        images = train.images.index_select(0, rows).to(device, non_blocking=True)
        draws = draws.rows(first, first + len(rows), device)
        yield normalise(augment.apply(images, draws, config)), train.labels[rows.to(device)]


def cached_batches(
    views: Sequence[Tensor],
    labels: Tensor,
    config: RunConfig,
    accelerator: Accelerator,
    *,
    epoch: int,
    start: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Like `augmented_batches`, of K cached views, features (N, ...) each, instead of images.

    Epoch e takes view (e - 1) mod K. Yields float32 features (B / processes, ...) and int64 labels.
    """
    view = views[(epoch - 1) % len(views)]
    order = _order(len(labels), config, epoch).to(labels.device)
    for _, _, rows in _shares(order, config, accelerator, start):
        yield view[rows], labels[rows]


def _order(count: int, config: RunConfig, epoch: int) -> Tensor:
    """A permutation of `count`, int64, that depends on (seed, epoch) alone."""
    return torch.randperm(count, generator=generator(config.seed, ORDER, epoch))


def _shares(
    order: Tensor, config: RunConfig, accelerator: Accelerator, start: int
) -> Iterator[tuple[int, int, Tensor]]:
    """The number of each global batch, this process's first place in it, and its int64 rows.

    Batch k has the places k*B to (k+1)*B of the order. A partial last batch is left out.
    """
    share = config.batch_size // accelerator.num_processes
    first = share * accelerator.process_index
    for batch in range(start, len(order) // config.batch_size):
        yield batch, first, order[batch * config.batch_size + first :][:share]


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, in 0..1, of uint8 images (N, 3, H, W).

    Exact, from a histogram of the 256 values. Raises DataError for a channel with a single value,
    whose deviation is 0.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(3):
        share = torch.zeros(256, dtype=torch.float64)
        for piece in pieces(len(images), images.shape[-1]):
            share += torch.bincount(images[piece, channel].flatten().cpu(), minlength=256)
        share /= share.sum()
        mean = (share @ values).item()
        means.append(mean)
        stds.append(math.sqrt((share @ (values - mean) ** 2).item()))
        if share.max() == 1:
            raise DataError(
                f"channel {channel} is {mean:.3f} in every pixel of the training images: "
                "use images with some contrast"
            )
    return tuple(means), tuple(stds)
