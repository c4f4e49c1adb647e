"""A split -> the features of a frozen backbone, kept on disk: a second head costs seconds."""

import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from accelerate.utils import broadcast
from torch import Tensor

from stl10bench.core import files
from stl10bench.core.errors import CheckpointError, StorageError, UsageError
from stl10bench.data import augment
from stl10bench.data.loader import load_images
from stl10bench.data.splits import Rows, training_rows
from stl10bench.data.stl10 import Split
from stl10bench.models import checkpoint
from stl10bench.models.classifier import Classifier
from stl10bench.models.methods import SEMI_SUPERVISED, method_options
from stl10bench.training.evaluate import EVALUATION_BATCH
from stl10bench.training.setup import Run

FORMAT = 1
CACHE_LIMIT = 4 << 30  # bytes of all kept features
_KEY = "stl10bench-features"


class Features(NamedTuple):
    """The features of a whole split, in its order."""

    values: Tensor  # float32 (N, F), on the CPU
    seconds: float  # of the forward passes that made them, now or when they were kept


def split_features(
    run: Run, name: str, *, mirrored: bool = False, check: Callable[[], None] = lambda: None
) -> Features:
    """The features of all images of the split `name`, mirrored or as they are.

    The splits are train, test and unlabelled: those images of unlabeled_X.bin that the run uses.

    They are read from the cache where it holds them: the key is the content of backbone, data and
    all that is done to an image, and the first batch is computed anew and must have the same bits.
    Else they are computed, each process an equal share, and kept. `check` is called before each
    batch and may raise.
    """
    accelerator = run.accelerator
    path = cache_folder() / f"{_cache_key(run, name, mirrored)}.safetensors"
    kept = None
    if run.is_main:
        kept = _read(path)
        if kept is not None and not _same_start(run, name, mirrored, kept):
            kept = None
    size = kept.values.shape if kept is not None else (0, 0)
    shape = broadcast(torch.tensor([*size], device=accelerator.device)).tolist()
    if shape[0]:
        if accelerator.num_processes == 1:
            assert kept is not None
            return kept
        values = kept.values if kept is not None else torch.zeros(*shape)
        values = broadcast(values.to(accelerator.device)).cpu()
        seconds = torch.tensor([kept.seconds if kept else 0.0], device=accelerator.device)
        return Features(values, broadcast(seconds).item())
    features = _compute(run, name, mirrored, check)
    if run.is_main:
        _keep(path, features)
    return features


class Labelled(NamedTuple):
    """Features float32 (N, F) and labels int64 (N,), on the CPU."""

    features: Tensor
    labels: Tensor


class Known(NamedTuple):
    """The features of all images that a method may learn from or choose on."""

    labelled: Labelled
    mirrored: Tensor | None  # the labelled images mirrored, where the method asks for them
    validation: Labelled
    unlabelled: Tensor  # float32 (U, F); none unless the method learns from them
    images: int  # how many these are
    seconds: float  # of the forward passes that made their features, now or when they were kept


def read_features(run: Run, check: Callable[[], None]) -> Known:
    """What `split_features` gives for a run's method, `check` as there."""
    config, labels = run.config, run.dataset.train.labels
    train_rows, val_rows = training_rows(config, run.dataset)
    features = split_features(run, "train", check=check)
    values, seconds = features.values, features.seconds
    used, unlabelled = np.concatenate([train_rows, val_rows]), values[:0]
    learned_from = run.unlabelled if config.method in SEMI_SUPERVISED else None
    if learned_from is not None:
        unlabelled = values[learned_from.train_rows]
        used = np.concatenate([used, learned_from.train_rows])
    mirrored = None
    if getattr(method_options(config), "views", 1) == 2:
        again = split_features(run, "train", mirrored=True, check=check)
        seconds, mirrored = seconds + again.seconds, again.values[train_rows]
    seconds, images = seconds * len(used) / len(values), len(used)
    if learned_from is not None and len(learned_from.file_rows):
        of_file = split_features(run, "unlabelled", check=check)
        unlabelled = torch.cat([unlabelled, of_file.values])
        seconds, images = seconds + of_file.seconds, images + len(of_file.values)

    def labelled(rows: Rows) -> Labelled:
        return Labelled(values[rows], torch.from_numpy(labels[rows]))

    return Known(labelled(train_rows), mirrored, labelled(val_rows), unlabelled, images, seconds)


def cache_folder() -> Path:
    """STL10BENCH_CACHE, or stl10bench/ in the user's cache folder.

    Raises UsageError for a user who has no home.
    """
    if folder := os.environ.get("STL10BENCH_CACHE"):
        return Path(folder) / "features"
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:
        raise UsageError("no home folder to keep features in: set STL10BENCH_CACHE") from None
    return caches / "stl10bench/features"


def _compute(run: Run, name: str, mirrored: bool, check: Callable[[], None]) -> Features:
    accelerator, started = run.accelerator, time.monotonic()
    split, all_rows = _images(run, name)
    count = len(all_rows)
    share = math.ceil(count / accelerator.num_processes)
    first = share * accelerator.process_index
    parts = []
    rows = all_rows[np.arange(first, first + share).clip(max=count - 1)]
    for part in _batches(run, split, mirrored, rows):
        check()
        parts.append(part)
    gathered: Tensor = accelerator.gather(torch.cat(parts))
    if not gathered.isfinite().all():
        raise UsageError(
            f"model {run.config.model!r} gives features that are not finite: check its weights, or "
            "try --precision no"
        )
    return Features(gathered[:count].cpu(), time.monotonic() - started)


def _images(run: Run, name: str) -> tuple[Split, Rows]:
    """A split, and the rows of it that are meant."""
    if name == "unlabelled":
        assert run.unlabelled is not None
        return run.unlabelled.file, run.unlabelled.file_rows
    split: Split = getattr(run.dataset, name)
    return split, np.arange(len(split.labels))


@torch.no_grad()
def _batches(run: Run, split: Split, mirrored: bool, rows: Rows) -> Iterator[Tensor]:
    """float32 features of the images `rows` of a split; the images are loaded batch by batch."""
    model, config = run.model, run.config
    assert isinstance(model, Classifier)  # checked when it was built
    model.eval()
    for start in range(0, len(rows), EVALUATION_BATCH):
        part = rows[start : start + EVALUATION_BATCH]
        images = load_images(split, part, config, run.accelerator.device).images
        batch = augment.centre(images.to(run.accelerator.device), config.image_size)
        batch = run.normalise(batch.flip(3) if mirrored else batch)
        with run.accelerator.autocast():
            yield model.features(batch).flatten(1).float()


def _same_start(run: Run, name: str, mirrored: bool, kept: Features) -> bool:
    """Whether the first batch, computed now, has the bits that were kept.

    What no key can name (a library's version, the number of threads) shows here.
    """
    split, rows = _images(run, name)
    first = next(_batches(run, split, mirrored, rows[:EVALUATION_BATCH])).cpu()
    return len(kept.values) == len(rows) and torch.equal(first, kept.values[: len(first)])


def _cache_key(run: Run, name: str, mirrored: bool) -> str:
    """A name for what decides the features: backbone, data, preprocessing and precision."""
    config, digest = run.config, hashlib.sha256()
    backbone = run.model.get_submodule("backbone")
    facts = [
        *(FORMAT, config.model, config.model_options, config.data, name, mirrored, config.input),
        *(config.image_size, config.precision, run.accelerator.device.type),
        *(run.normalise.mean.flatten().tolist(), run.normalise.std.flatten().tolist()),
    ]
    if name == "unlabelled":
        facts += [config.unlabeled_data, hashlib.sha256(_images(run, name)[1].data).hexdigest()]
    digest.update(json.dumps(facts).encode())
    for key, tensor in backbone.state_dict().items():
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _read(path: Path) -> Features | None:
    """The features in a file of ours; None, with a warning, for a damaged one."""
    if not path.exists():
        return None
    try:
        tensors, metadata = checkpoint.read_tensors(path)
        facts = json.loads(metadata[_KEY])
        values = tensors["features"]
        if facts["sha256"] != _sum(values) or values.dtype != torch.float32 or values.ndim != 2:
            raise CheckpointError(f"{path} is damaged: its contents do not match its checksum")
        with suppress(OSError):  # a cache that cannot be written is read as well
            os.utime(path)  # used now: the cache drops what was not used for longest
        return Features(values, float(facts["seconds"]))
    except (CheckpointError, OSError, KeyError, TypeError, ValueError) as error:
        warnings.warn(f"computing the features again: {error}", stacklevel=2)
        return None


def _keep(path: Path, features: Features) -> None:
    """Write features to the cache, and drop the longest unused beyond CACHE_LIMIT.

    They are an extra: no room for them is a warning, not an end.
    """
    facts = {"sha256": _sum(features.values), "seconds": features.seconds}
    try:
        content = safetensors.torch.save({"features": features.values}, {_KEY: json.dumps(facts)})
        files.write(path, content)
        stored = []
        for file in path.parent.glob("*.safetensors"):
            with suppress(FileNotFoundError):  # another run has just dropped it
                stored.append((file.stat().st_mtime, file.stat().st_size, file))
        room = CACHE_LIMIT
        for _, size, file in sorted(stored, reverse=True):
            room -= size
            if room < 0 and file != path:
                file.unlink(missing_ok=True)
    except (StorageError, OSError) as error:
        warnings.warn(f"cannot cache the features: {error}", stacklevel=2)


def _sum(values: Tensor) -> str:
    return hashlib.sha256(values.contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()
