"""A checkpoint and image files -> their likeliest classes."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from stl10bench.config import SELF_SUPERVISED
from stl10bench.core.device import memory_format
from stl10bench.core.errors import CheckpointError, UsageError
from stl10bench.data import augment, image_file
from stl10bench.inference.hub import load_folder
from stl10bench.models import checkpoint
from stl10bench.models.check import check_logits
from stl10bench.models.factory import build_run_model
from stl10bench.models.hub_files import HUB, download_export
from stl10bench.results.pretraining import no_classifier
from stl10bench.results.run_folder import RunFolder, default_runs_dir, find_run, run_folders

BATCH = 64  # images that go through the model at once
_THREADS = min(8, os.cpu_count() or 1)  # that decode; with two cores, two are 1.9 times one's speed


class Prediction(NamedTuple):
    """The likeliest classes of one image, the likeliest first."""

    file: Path
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]  # 0..1, the softmax over all classes


class _Image(NamedTuple):
    file: Path
    pixels: NDArray[np.uint8]  # (S, S, 3)


class Broken(NamedTuple):
    """What holds no image that can be read, and why on one line."""

    file: Path
    reason: str


def find_images(paths: Iterable[Path]) -> list[Path | Broken]:
    """The files among and below `paths`: as given, and in folders by name.

    Hidden files and folders are passed over. Links to files count; a link to a folder within a
    folder is not followed (it may lead round in a circle) but reported.
    """
    files: list[Path | Broken] = []
    for path in paths:
        if path.is_dir():
            files += list(_walk(path)) or [Broken(path, "the folder is empty")]
        else:
            files.append(path)
    return files


def classify(
    predictor: "Predictor",
    files: Iterable[Path | Broken],
    *,
    top: int = 1,
    report: Callable[[int], None] = lambda _: None,
) -> list[Prediction | Broken]:
    """The `top` likeliest classes of each image in `files`, in their order.

    Images are read as `image_file.read` says, at the size of the model's own data: as `stl10bench
    data import` does. `report` is called
    with the number of images done since its last call. Raises CheckpointError for a model that
    gives no finite logits.
    """
    predictor.model.to(memory_format=memory_format(predictor.model))
    results: list[Prediction | Broken] = []
    with image_file.silenced():
        images = _decoded(files, predictor.header.config.data_size)
        while batch := list(islice(images, BATCH)):
            results += _classified(predictor, batch, top)
            report(len(batch))
    return results


def _walk(folder: Path) -> Iterator[Path | Broken]:
    unreadable: list[OSError] = []
    for root, folders, names in os.walk(folder, onerror=unreadable.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if Path(root, name).is_symlink():
                yield Broken(Path(root, name), "a link to a folder is not followed: pass it")
        yield from (Path(root, name) for name in sorted(names) if not name.startswith("."))
    yield from (Broken(Path(error.filename), image_file.reason(error)) for error in unreadable)


def _decoded(files: Iterable[Path | Broken], size: int) -> Iterator[_Image | Broken]:
    """The images in the order of `files`; threads decode up to two batches ahead.

    Large ones are decoded here, one by one: that bounds the memory, for the C library keeps for
    each thread what the thread has freed.
    """
    pool = ThreadPoolExecutor(_THREADS)
    ahead: deque[tuple[Path | Broken, Future[_Image | Broken | None]]] = deque()

    def first() -> _Image | Broken:
        file, future = ahead.popleft()
        image = future.result() or _decode(file, size, image_file.PIXEL_LIMIT)
        assert image is not None
        return image

    try:
        for file in files:
            ahead.append((file, pool.submit(_decode, file, size, image_file.LARGE)))
            if len(ahead) > 2 * BATCH:
                yield first()
        while ahead:
            yield first()
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(file: Path | Broken, size: int, limit: int) -> _Image | Broken | None:
    """An image, or why it is none; None for one with more than `limit` pixels to decode."""
    if isinstance(file, Broken):
        return file
    try:
        return _Image(file, image_file.read(file, size=size, limit=limit))
    except image_file.TooLargeError:
        return None
    except Exception as error:  # Pillow's decoders raise of all kinds; each is reported
        return Broken(file, image_file.reason(error))


@torch.inference_mode()
def _classified(
    predictor: "Predictor", batch: Sequence[_Image | Broken], top: int
) -> list[Prediction | Broken]:
    pixels = [image.pixels for image in batch if not isinstance(image, Broken)]
    if not pixels:
        return [image for image in batch if isinstance(image, Broken)]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    logits = predictor(images.to(predictor.mean.device)).float().cpu()
    if not torch.isfinite(logits).all():
        raise CheckpointError("the model's logits are not finite: its weights are unusable")
    names = predictor.class_names
    highest = torch.topk(logits.softmax(1), min(top, len(names)))
    rows = zip(highest.indices.tolist(), highest.values.tolist(), strict=True)
    results: list[Prediction | Broken] = []
    for image in batch:
        if isinstance(image, Broken):
            results.append(image)
        else:
            indices, probabilities = next(rows)
            classes = tuple(names[index] for index in indices)
            results.append(Prediction(image.file, classes, tuple(probabilities)))
    return results


class Predictor(nn.Module):
    """A trained model with its preprocessing; `header` tells its classes, config and metrics."""

    def __init__(self, model: nn.Module, header: checkpoint.Header) -> None:
        super().__init__()
        self.model = model
        self.header = header
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(header.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(header.std).view(1, 3, 1, 1))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class of each logit."""
        return self.header.class_names

    @property
    def side(self) -> int:
        """The height and width, pixels, to which images are resized first."""
        config = self.header.config
        return config.data_size if config.input == "crop" else config.image_size

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C) of uint8 RGB images (N, 3, H, W), 0..255.

        They are brought to the size of the run by its own rule: resized, or resized to the size of
        its data and then cropped in the centre.
        """
        size = (self.side, self.side)  # an image of that size is left as it is
        # As a run's images are: on the CPU, in uint8, for which torch has no other kernel.
        there = images if images.device.type == "cpu" else images.cpu()
        there = F.interpolate(there, size=size, mode="bilinear", antialias=True)
        images = there if images.device.type == "cpu" else there.to(images.device)
        images = augment.centre(images, self.header.config.image_size)
        logits: Tensor = self.model((images - self.mean) / self.std)
        return logits

    def predict(self, *paths: str | Path, top: int = 1) -> list[Prediction | Broken]:
        """The `top` likeliest classes of each image file in `paths`, folders walked.

        Files are prepared as `stl10bench data import` does (upright, on white, the central square);
        one that is no image is in its place as `Broken`, with the reason.
        """
        return classify(self, find_images(map(Path, paths)), top=top)


def find_checkpoint(path: Path) -> Path:
    """A run folder's tested checkpoint; any other `path` that is there, as it is.

    hf-hub:OWNER/NAME is the folder that its files are downloaded to.

    What is not there may be a run's name, or a unique beginning of it, in `default_runs_dir`.
    Raises CheckpointError for a `path` that is not there and a run that is not so far, UsageError
    for a name that no run or more than one has.
    """
    if path.as_posix().startswith(HUB):
        return download_export(path.as_posix().removeprefix(HUB))
    if not path.exists():
        runs_dir = default_runs_dir()
        if path.name != str(path) or path.suffix or not run_folders(runs_dir):  # no run's name
            raise CheckpointError(
                f"no checkpoint {path}: pass a run's name in {runs_dir}, its folder, or a "
                "checkpoint file"
            )
        path = find_run(runs_dir, str(path)).path
    folder = RunFolder(path)
    if not folder.status_file.is_file():
        return path
    return folder.checkpoint()


def load(path: str | Path) -> Predictor:
    """The model in a checkpoint, in evaluation mode on the CPU, ready for uint8 images.

    `path` is a file, a run folder (its tested checkpoint), a folder that was exported for the
    hub, or hf-hub:OWNER/NAME. Raises CheckpointError for anything but a whole, unchanged checkpoint
    of this program.
    """
    path = find_checkpoint(Path(path))
    tensors, header = load_folder(path) if path.is_dir() else checkpoint.load(path)
    config = header.config
    if config.method == SELF_SUPERVISED:
        raise CheckpointError(no_classifier(path, str(path)))
    bank = len(tensors.get("head.labels", ()))  # images that a head holds
    build = partial(build_run_model, config, len(header.class_names), bank=bank)
    try:
        # No memory taken yet. What cannot be built there fails below as well, or works.
        with torch.device("meta"), suppress(RuntimeError, UsageError):
            checkpoint.check_fit(build(), tensors, path)
        model = build()
        checkpoint.fill(model, tensors, path)
        check_logits(config.model, model, len(header.class_names), config.image_size)
    except CheckpointError:
        raise
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        reason = str(error).partition("\n")[0][:300]
        raise CheckpointError(f"cannot use the model in {path}: {reason}") from None
    if config.freeze_stages:  # for the count of parameters that were trained
        from stl10bench.models.timm_backbone import freeze_stages  # timm takes seconds

        freeze_stages(model, config.freeze_stages)
    return Predictor(model, header).eval()
