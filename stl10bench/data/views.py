"""Unlabelled images -> batches of augmented views, the same whatever the number of processes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from stl10bench.config import RunConfig
from stl10bench.core.seeding import UNLABELLED_ORDER, VIEWS, generator
from stl10bench.data import augment
from stl10bench.data.loader import Normalise, load_images
from stl10bench.data.splits import Rows
from stl10bench.data.unlabelled import Unlabelled

# What tells images apart is kept: a crop of most of the image, mirrored where the run mirrors.
_WEAK = {
    **{"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "rotation": (0.0, 0.0)},
    **{"random_resized_crop": (0.75, 1.0), "grayscale": 0.0, "blur": 0.0, "cutout": 0.0},
}
_STRONG = {
    **{"brightness": 0.6, "contrast": 0.6, "saturation": 0.6, "hue": 0.1, "grayscale": 0.1},
    **{"rotation": (-30.0, 30.0), "random_resized_crop": (0.4, 1.0), "blur": 0.0, "cutout": 0.5},
}


def weak_and_strong(config: RunConfig) -> tuple[RunConfig, RunConfig]:
    """The settings of FixMatch's two views of an image."""
    return config.model_copy(update=_WEAK), config.model_copy(update=_STRONG)


def image_reader(
    unlabelled: Unlabelled, config: RunConfig, device: torch.device
) -> Callable[[Rows], Tensor]:
    """Places among the unlabelled images, int64 (B,) -> uint8 (B, 3, S, S), on the device.

    They are read from the mapped files batch by batch and never all in memory, but on a GPU with
    room for them, which would wait.
    """
    side = config.data_size if config.input == "crop" else config.image_size
    if device.type == "cuda" and len(unlabelled) * 3 * side**2 <= _free_bytes(device) // 4:
        parts = [
            load_images(split, rows, config, device).images for split, rows in unlabelled.parts
        ]
        images = torch.cat(parts)
        return lambda places: images[torch.from_numpy(places).to(device)]

    def read(places: Rows) -> Tensor:
        batch = torch.empty(len(places), 3, side, side, dtype=torch.uint8, device=device)
        first = 0
        for split, rows in unlabelled.parts:
            here = np.flatnonzero((places >= first) & (places < first + len(rows)))
            if len(here):
                part = load_images(split, rows[places[here] - first], config, device).images
                batch[torch.from_numpy(here).to(device)] = part.to(device)
            first += len(rows)
        return batch

    return read


def _free_bytes(device: torch.device) -> int:
    return int(torch.cuda.mem_get_info(device)[0])


def places_of(number: int, size: int, count: int, seed: int) -> Rows:
    """The images, int64 (size,), of batch `number`, from 0: they follow each other without end.

    All `count` of them in the order of a permutation of (seed, 0), then of (seed, 1), and so on.
    """
    places = np.arange(number * size, (number + 1) * size)
    orders = {
        lap: torch.randperm(count, generator=generator(seed, UNLABELLED_ORDER, lap)).numpy()
        for lap in range(places[0] // count, places[-1] // count + 1)
    }
    return np.array([orders[place // count][place % count] for place in places.tolist()])


@dataclass(frozen=True)
class Views:
    """Batches of augmented views of unlabelled images."""

    read: Callable[[Rows], Tensor]  # see `image_reader`
    count: int  # of the images
    kinds: tuple[RunConfig, ...]  # of each image a view with the augmentation of each
    size: int  # images of a batch, over all processes
    normalise: Normalise
    accelerator: Accelerator

    def batch(self, number: int) -> list[Tensor]:
        """This process's share of batch `number`, from 0: normalised float input of each kind.

        A function of the seed and `number` alone, drawn for the global batch.
        """
        config, device = self.kinds[0], self.accelerator.device
        share = self.size // self.accelerator.num_processes
        first = share * self.accelerator.process_index
        places = places_of(number, self.size, self.count, config.seed)
        images = self.read(places[first : first + share])
        views = []
        for kind, settings in enumerate(self.kinds):
            draws = augment.draw(
                settings,
                self.size,
                images.shape[-1],
                epoch=kind,
                batch=number,
                purpose=VIEWS,
            ).rows(first, first + share, device)
            views.append(self.normalise(augment.apply(images, draws, settings)))
        return views


def pairs_of_views(
    views: Views, steps_per_epoch: int, *, epoch: int, start: int = 0
) -> Iterator[tuple[Tensor, ...]]:
    """Batches of an epoch without labels: a view (B, 3, S, S) of each kind of the same images."""
    for batch in range(start, steps_per_epoch):
        yield tuple(views.batch((epoch - 1) * steps_per_epoch + batch))


def with_views(
    batches: Callable[..., Iterator[tuple[Tensor, ...]]],
    views: Views,
    steps_per_epoch: int,
    *,
    epoch: int,
    start: int = 0,
) -> Iterator[tuple[Tensor, ...]]:
    """Labelled batches of an epoch, with views of unlabelled images: of each of B images some.

    The views are (B, R, 3, S, S) for R unlabelled images to a labelled one.
    """
    number = (epoch - 1) * steps_per_epoch + start
    for images, labels in batches(epoch=epoch, start=start):
        both = (view.view(len(images), -1, *images.shape[1:]) for view in views.batch(number))
        yield images, labels, *both
        number += 1
