"""A trained model and images -> its predictions, its first filters, its last features."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stl10bench.core.errors import DataError, UsageError, listed
from stl10bench.data import image_file
from stl10bench.data.stl10 import Dataset, Split
from stl10bench.inference.predictor import Predictor, find_checkpoint
from stl10bench.results.run_folder import RunFolder

BATCH = 250  # images at once through a model


class Predictions(NamedTuple):
    """The classes that a model predicts for test images."""

    rows: NDArray[np.int64]  # (N,), of the test split
    classes: NDArray[np.int64]  # (N,), the likeliest
    confidences: NDArray[np.float64]  # (N,), their softmax probabilities, 0..1


def predict(
    predictor: Predictor,
    dataset: Dataset,
    *,
    images: int,
    seed: int,
    stored: NDArray[np.float32] | None = None,
) -> Predictions:
    """The predictions for at most `images` test images, drawn by `seed`, in random order.

    From the `stored` logits (N, C) of the test split, or else computed in fp32. Raises DataError
    when the data have other classes.
    """
    check_classes(predictor, dataset)
    rows = sample_rows(dataset.test, images, seed)
    if stored is None:
        of_rows = logits(predictor, dataset.test.images, rows)
    else:
        of_rows = torch.from_numpy(stored[rows])
    probabilities = of_rows.double().softmax(1)
    confidences, classes = probabilities.max(1)
    return Predictions(rows, classes.numpy(), confidences.numpy())


def stored_logits(checkpoint: Path, dataset: Dataset) -> NDArray[np.float32] | None:
    """float32 (N, C): what a finished run's row counts, in the run's own precision.

    None for another checkpoint, and for other data than the run's. Raises CheckpointError where
    they are not its row's.
    """
    path = find_checkpoint(checkpoint)
    folder = RunFolder(path.parent)
    if not folder.is_finished or not folder.predictions_file.is_file():
        return None
    row = folder.row()
    if path != folder.tested_file(row.config) or row.config.data != dataset.fingerprint:
        return None
    return folder.predictions(row).logits


def check_classes(predictor: Predictor, dataset: Dataset) -> None:
    """Raise DataError when a model was trained on other classes than the data have."""
    if predictor.class_names != dataset.class_names:
        raise DataError(
            f"the checkpoint was trained on the classes {listed(predictor.class_names)}; the "
            f"data in {dataset.folder} have {listed(dataset.class_names)}: pass its own data"
        )


def sample_rows(split: Split, count: int, seed: int) -> NDArray[np.int64]:
    """int64 (N,): at most `count` different rows of a split, drawn by `seed`."""
    return np.random.default_rng(seed).permutation(len(split.labels))[:count]


@torch.no_grad()
def logits(predictor: Predictor, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> Tensor:
    """float32 (N, C): the logits of the `rows`, int64 (N,), of uint8 images (M, 3, H, W)."""
    parts = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    return torch.cat([predictor(torch.from_numpy(images[part])) for part in parts])


def read_images(paths: Sequence[Path], size: int) -> NDArray[np.uint8]:
    """uint8 (N, 3, size, size): image files, as `stl10bench data import` reads them.

    Raises DataError, with the file, for what is no image.
    """
    images = []
    with image_file.silenced():
        for path in paths:
            try:
                images.append(image_file.read(path, size=size).transpose(2, 0, 1))
            except Exception as error:  # Pillow's decoders raise errors of all kinds
                raise DataError(f"{path}: {image_file.reason(error)}") from None
    return np.stack(images)


def penultimate(
    predictor: Predictor, images: NDArray[np.uint8], rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """float32 (N, F): the input of a model's last linear layer, for each of the `rows`.

    For logistic regression that is the normalised image itself. Raises UsageError for a model whose
    logits are not the output of a linear layer.
    """
    last: list[tuple[Tensor, Tensor]] = []  # the input and output of the linear layer called last

    def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        last[:] = [(inputs[0].flatten(1), output)]

    features = []
    linear = [module for module in predictor.model.modules() if isinstance(module, nn.Linear)]
    with hooked(linear, note):
        for start in range(0, len(rows), BATCH):
            last.clear()
            scores = logits(predictor, images, rows[start : start + BATCH])
            if not last or not torch.equal(last[0][1], scores):
                raise UsageError(
                    f"model {predictor.header.config.model!r} has no penultimate features: its "
                    "logits are not the output of a linear layer"
                )
            features.append(last[0][0])
    return torch.cat(features).numpy()


def first_kernels(predictor: Predictor) -> tuple[str, NDArray[np.float32]]:
    """The name of the first layer with weights, and these, float32 (K, 3, H, W).

    A convolution's kernels, or a linear layer's weights as images. Raises UsageError for a model
    that begins otherwise.
    """
    config = predictor.header.config
    modules = predictor.model.named_modules()
    layers = {m: name for name, m in modules if isinstance(m, nn.Conv2d | nn.Linear)}
    called: list[nn.Conv2d | nn.Linear] = []
    with hooked(layers, lambda module, *_: called.append(module)):
        predictor(torch.zeros(1, 3, 96, 96, dtype=torch.uint8))
    if called:
        first, size = called[0], config.image_size
        kernels = first.weight.detach().float()
        if isinstance(first, nn.Linear) and first.in_features == 3 * size**2:
            kernels = kernels.view(-1, 3, size, size)
        if kernels.ndim == 4 and kernels.shape[1] == 3:
            return layers[first], kernels.numpy()
    raise UsageError(
        f"model {config.model!r} has no filters to show: its first layer is neither a convolution "
        "of three channels nor a linear layer of all pixels"
    )


def is_linear(predictor: Predictor, layer: str) -> bool:
    """Whether a layer's outputs are the logits of a linear model, one for each class."""
    leaves = [module for module in predictor.model.modules() if not list(module.children())]
    weighted = [module for module in leaves if len(module.state_dict())]
    return weighted == [predictor.model.get_submodule(layer)]


def as_images(kernels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """float (K, 3, H, W) -> uint8: each on a scale of its own, 0 as mid grey, its extreme as 0/255.

    A colour is the direction that a kernel answers to; kernels' strengths cannot be compared.
    """
    extreme = np.abs(kernels).max(axis=(1, 2, 3), keepdims=True)
    scaled = kernels / np.where(extreme == 0, 1, extreme)
    return np.rint(127.5 + 127.5 * scaled).astype(np.uint8)


@contextmanager
def hooked(modules: Iterable[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    """Call `hook(module, inputs, output)` after each call of these modules; see PyTorch's hooks."""
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
