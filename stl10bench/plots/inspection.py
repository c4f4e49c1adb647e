"""A trained model and images -> its judgement of them, its first kernels, its last features."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stl10bench.core.errors import DataError, UsageError
from stl10bench.data import image_file
from stl10bench.data.stl10 import Dataset, Split
from stl10bench.inference.predictor import Predictor

BATCH = 250  # images at once through a model


class Judged(NamedTuple):
    """What a model takes test images for."""

    rows: NDArray[np.int64]  # (N,), of the test split
    classes: NDArray[np.int64]  # (N,), the likeliest
    confidences: NDArray[np.float64]  # (N,), their softmax probabilities


def judge(predictor: Predictor, dataset: Dataset, *, images: int, seed: int) -> Judged:
    """What a model takes at most `images` test images for, drawn by `seed`, in random order.

    Raises DataError when the data have other classes.
    """
    check_classes(predictor, dataset)
    rows = some_rows(dataset.test, images, seed)
    probabilities = logits(predictor, dataset.test.images, rows).double().softmax(1)
    confidences, classes = probabilities.max(1)
    return Judged(rows, classes.numpy(), confidences.numpy())


def check_classes(predictor: Predictor, dataset: Dataset) -> None:
    """Raise DataError when a model was trained on other classes than the data have."""
    if predictor.class_names != dataset.class_names:
        raise DataError(
            f"the checkpoint knows the classes {', '.join(predictor.class_names)}; the data in "
            f"{dataset.folder} have {', '.join(dataset.class_names)}"
        )


def some_rows(split: Split, count: int, seed: int) -> NDArray[np.int64]:
    """At most `count` rows of a split, drawn by `seed`."""
    return np.random.default_rng(seed).permutation(len(split.labels))[:count]


@torch.no_grad()
def logits(predictor: Predictor, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> Tensor:
    """float32 (N, C), of the `rows` of uint8 images (M, 3, H, W)."""
    parts = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    return torch.cat([predictor(torch.from_numpy(images[part])) for part in parts])


def read_images(paths: Sequence[Path]) -> NDArray[np.uint8]:
    """uint8 (N, 3, 96, 96): image files, as `stl10bench data import` reads them.

    Raises DataError, with the file, for what is no image.
    """
    found = []
    with image_file.silenced():
        for path in paths:
            try:
                found.append(image_file.read(path).transpose(2, 0, 1))
            except Exception as error:  # Pillow's decoders raise of all kinds
                raise DataError(f"{path}: {image_file.reason(error)}") from None
    return np.stack(found)


def penultimate(
    predictor: Predictor, images: NDArray[np.uint8], rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """float32 (N, F): what the last linear layer of a model takes in, for each image.

    For logistic regression that is the normalised image itself. Raises UsageError for a model whose
    logits are no linear layer's.
    """
    found: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        last[:] = [(inputs[0].flatten(1), output)]

    last: list[tuple[Tensor, Tensor]] = []
    with _hooked(predictor.model, nn.Linear, note):
        for start in range(0, len(rows), BATCH):
            last.clear()
            scores = logits(predictor, images, rows[start : start + BATCH])
            if not last or last[0][1].shape != scores.shape or not last[0][1].equal(scores):
                raise UsageError(
                    f"model {predictor.header.config.model!r} has no penultimate features: its "
                    "logits are not the output of a linear layer"
                )
            found.append(last[0][0])
    return torch.cat(found).numpy()


def first_kernels(predictor: Predictor) -> tuple[str, NDArray[np.float32]]:
    """The name of the first layer with weights, and these, float32 (K, 3, H, W).

    A convolution's kernels, or a linear layer's weights as images. Raises UsageError for a model
    that begins otherwise.
    """
    config = predictor.header.config
    called: list[nn.Module] = []
    kinds = (nn.Conv2d, nn.Linear)
    with _hooked(predictor.model, kinds, lambda module, *_: called.append(module)):
        predictor(torch.zeros(1, 3, 96, 96, dtype=torch.uint8))
    names: Mapping[nn.Module, str] = {m: name for name, m in predictor.model.named_modules()}
    first = called[0] if called else None
    size = config.image_size
    if isinstance(first, nn.Conv2d) and first.weight.shape[1] == 3:
        return names[first], first.weight.detach().float().numpy()
    if isinstance(first, nn.Linear) and first.in_features == 3 * size**2:
        return names[first], first.weight.detach().float().view(-1, 3, size, size).numpy()
    raise UsageError(
        f"model {config.model!r} has no filters to show: its first layer is neither a convolution "
        "of three channels nor a linear layer of all pixels"
    )


def is_linear(predictor: Predictor, layer: str) -> bool:
    """Whether a layer's outputs are the logits of a linear model, one for each class."""
    only = [m for m in predictor.model.modules() if not list(m.children()) and len(m.state_dict())]
    return only == [predictor.model.get_submodule(layer)]


def as_images(kernels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """float (K, 3, H, W) -> uint8: each on a scale of its own, 0 as mid grey, its extreme as 0/255.

    So colours say which direction a kernel answers to; the kernels' strengths are not comparable.
    """
    extreme = np.abs(kernels).max(axis=(1, 2, 3), keepdims=True)
    scaled = kernels / np.where(extreme == 0, 1, extreme)
    return np.rint(127.5 + 127.5 * scaled).astype(np.uint8)


@contextmanager
def _hooked(
    model: nn.Module, kinds: type | tuple[type, ...], hook: Callable[..., None]
) -> Iterator[None]:
    """Call `hook` after each call of a module of these kinds."""
    handles = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, kinds)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
