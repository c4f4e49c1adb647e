"""One side of a comparison of `speed.py`, measured in a process of its own: prints it as JSON."""

import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

PIXELS = 64
BATCHES = {"logistic": 60, "mlp": 30, "cnn": 3, "frozen": 25, "learned": 8}  # an epoch here
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Noise(NamedTuple):
    """A model's settings in the recipe `tuned`, and images of noise at the size it is fed."""

    config: Any
    images: Any  # uint8 (N, 3, 64, 64)
    labels: Any


class Ready(NamedTuple):
    """What `training.run` has in its hands when an epoch starts."""

    config: Any
    accelerator: Any
    learner: Any
    model: Any
    optimizer: Any
    schedule: Any
    train: Any
    normalise: Any


def noise(model: str) -> Noise:
    """Settings and images for one of MODELS."""
    import torch

    from stl10bench.config import make_config, recipe_settings
    from stl10bench.models.pretrained import Weights
    from stl10bench.training.resolve import resolve_config

    frozen = {"frozen": True, "learned": False}.get(model)
    name = model if frozen is None else "mobilenetv2"
    settings = dict(recipe_settings("tuned", name, frozen=frozen))
    options = settings.pop("model_options", {}) | ({} if frozen is None else {"freeze": frozen})
    config = make_config({**settings, "model": name, "model_options": options})
    config = resolve_config(config, "", Weights(), "cpu")
    count = BATCHES[model] * config.batch_size
    generator = torch.Generator().manual_seed(0)
    size = (count, 3, PIXELS, PIXELS)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    return Noise(config, images, torch.arange(count) % 10)


def ready(model: str) -> Ready:
    """One of MODELS, set up by the package's own functions as `training.run` does."""
    from stl10bench.core.device import (
        keep_freed_memory,
        make_accelerator,
        memory_format,
        set_threads,
    )
    from stl10bench.data.loader import Images, make_normalise
    from stl10bench.models.factory import build_model
    from stl10bench.training.evaluate import fuse_frozen
    from stl10bench.training.optim import make_optimizer, make_schedule

    config, images, labels = noise(model)
    set_threads(None)
    keep_freed_memory()
    accelerator = make_accelerator("cpu", config.precision, "none", None)
    module = build_model(config.model, 10, PIXELS, config.model_options)
    layout = memory_format(module)
    module = module.to(memory_format=layout)
    train = Images(images, labels)
    normalise = make_normalise((0.5,) * 3, (0.25,) * 3, layout, accelerator.device)
    fuse_frozen(module, train, normalise, config)
    optimizer = make_optimizer(config, module)
    learner, optimizer = accelerator.prepare(module, optimizer)
    schedule = make_schedule(config, optimizer.optimizer, BATCHES[model])
    return Ready(config, accelerator, learner, module, optimizer, schedule, train, normalise)


def rate(work: Callable[[], int]) -> float:
    """Images per second of `work`, which returns how many it did: the median of three times."""
    rates = []
    for _ in range(4):
        started = time.perf_counter()
        count = work()
        rates.append(count / (time.perf_counter() - started))
    return statistics.median(rates[1:])


# One side of a comparison -> images per second.


def loop(model: str) -> float:
    """Our training loop: order, draws, augmentation, step, schedule, sums."""
    from stl10bench.data.loader import augmented_batches
    from stl10bench.training.epoch import train_epoch
    from stl10bench.training.resume import Position

    r = ready(model)

    def epoch() -> int:
        train_epoch(
            r.learner,
            r.optimizer,
            r.schedule,
            augmented_batches(r.train, r.normalise, r.config, r.accelerator, epoch=1),
            r.config,
            r.accelerator,
            Position(),
            first_step=0,
            pauses=lambda: False,
            advance=lambda: None,
        )
        return len(r.train.labels)

    return rate(epoch)


def step(model: str) -> float:
    """Forward, backward and update alone, on one resident batch: what the loop cannot beat."""
    from torch.nn import functional as F

    r = ready(model)
    batch = r.config.batch_size
    images = r.normalise(r.train.images[:batch].float().div_(255))
    labels = r.train.labels[:batch]
    r.learner.train()

    def epoch() -> int:
        for _ in range(BATCHES[model]):
            logits = r.learner(images)
            loss = F.cross_entropy(logits, labels, label_smoothing=r.config.label_smoothing)
            r.accelerator.backward(loss)
            r.optimizer.step()
            r.optimizer.zero_grad()
        return len(r.train.labels)

    return rate(epoch)


def evaluation(model: str) -> float:
    """Our evaluation of images that are in memory."""
    from stl10bench.training.evaluate import compute_logits

    r = ready(model)

    def whole() -> int:
        compute_logits(r.model, r.train.images, r.normalise, PIXELS, r.accelerator)
        return len(r.train.labels)

    return rate(whole)


def forward(model: str) -> float:
    """The forward pass alone, on one resident batch of evaluation's size."""
    import torch

    from stl10bench.training.evaluate import EVALUATION_BATCH

    r = ready(model)
    images = r.normalise(r.train.images[:EVALUATION_BATCH].float().div_(255))
    times = max(1, len(r.train.labels) // len(images))
    r.model.eval()

    @torch.no_grad()
    def whole() -> int:
        with r.accelerator.autocast():
            for _ in range(times):
                r.model(images)
        return times * len(images)

    return rate(whole)


def pipeline(model: str) -> float:
    """Our augmented, normalised batches, nothing trained."""
    from stl10bench.data.loader import augmented_batches

    r = ready(model)

    def epoch() -> int:
        batches = augmented_batches(r.train, r.normalise, r.config, r.accelerator, epoch=1)
        return sum(len(labels) for _, labels in batches)

    return rate(epoch)


def torchvision_pipeline(model: str, *, kind: str) -> float:
    """The same operations by torchvision v2, image by image, in a DataLoader's workers."""
    loader = photo_loader(noise(model), kind)
    return rate(lambda: sum(len(labels) for _, labels in loader))


def photo_loader(data: Noise, kind: str) -> Any:
    """A DataLoader over PIL images or tensors of the size that is trained, a worker for each core.

    A user's would resize 96 px images as well: this one is spared it.
    """
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader
    from torchvision.transforms import InterpolationMode, v2

    config = data.config
    transform = v2.Compose(
        [
            v2.ColorJitter(config.brightness, config.contrast, config.saturation, config.hue),
            v2.RandomHorizontalFlip(config.flip),
            v2.RandomRotation(config.rotation, interpolation=InterpolationMode.BILINEAR),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.5,) * 3, (0.25,) * 3),
        ]
    )
    pixels = data.images.permute(0, 2, 3, 1).contiguous().numpy()

    class Photos(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(data.labels)

        def __getitem__(self, index: int) -> Any:
            image = Image.fromarray(pixels[index]) if kind == "pil" else data.images[index]
            return transform(image), data.labels[index]

    return DataLoader(
        Photos(),
        batch_size=config.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=CORES,
        persistent_workers=True,
    )


def peer(model: str, *, ours: bool) -> float:
    """Accelerate's documented loop over torchvision's transforms in a DataLoader.

    In fp32 and NCHW, as it starts; with `ours`, in our precision and memory layout.
    """
    import torch
    from accelerate import Accelerator
    from torch.nn import functional as F

    from stl10bench.core.device import memory_format
    from stl10bench.models.factory import build_model

    data = noise(model)
    config = data.config
    accelerator = Accelerator(cpu=True, mixed_precision=config.precision if ours else "no")
    network = build_model(config.model, 10, PIXELS, config.model_options)
    layout = memory_format(network) if ours else torch.contiguous_format
    network = network.to(memory_format=layout)
    optimizer: Any = torch.optim.AdamW(
        (p for p in network.parameters() if p.requires_grad),
        config.lr,
        weight_decay=config.weight_decay,
    )
    schedule: Any = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    loader = photo_loader(data, "pil")
    network, optimizer, loader, schedule = accelerator.prepare(network, optimizer, loader, schedule)

    def epoch() -> int:
        network.train()
        count = 0
        for images, labels in loader:
            logits = network(images.contiguous(memory_format=layout))
            loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            count += len(labels)
        return count

    return rate(epoch)


SIDES: dict[str, Callable[[str], float]] = {
    "loop": loop,
    "step": step,
    "evaluate": evaluation,
    "forward": forward,
    "pipeline": pipeline,
    "torchvision on PIL": partial(torchvision_pipeline, kind="pil"),
    "torchvision on tensors": partial(torchvision_pipeline, kind="tensor"),
    "peer": partial(peer, ours=False),
    "peer in our precision and layout": partial(peer, ours=True),
}


def growth(data_dir: str) -> dict[str, float]:
    """Seconds of `train logistic` for two epochs, and its peak of anonymous memory, bytes."""
    import stl10bench

    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            status = Path("/proc/self/status").read_text()
            line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
            peak = max(peak, int(line.split()[1]) * 1024)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    with tempfile.TemporaryDirectory() as runs_dir:
        started = time.perf_counter()
        stl10bench.train("logistic", data_dir=data_dir, runs_dir=runs_dir, tracker="none", epochs=2)
        elapsed = time.perf_counter() - started
    done.set()
    watcher.join()
    return {"seconds": elapsed, "anonymous_bytes": peak}


def stacked(data_dir: str, members: str) -> float:
    """Seconds of training so many settings of logistic regression at once for five epochs."""
    from stl10bench.training.run import train_stack

    rates = [{"lr": 1e-4 * 2**power} for power in range(int(members))]
    options: dict[str, Any] = {"data_dir": data_dir, "tracker": "none", "epochs": 5}
    with tempfile.TemporaryDirectory() as runs_dir:
        train_stack("logistic", [{}], runs_dir=f"{runs_dir}/warm", **options | {"epochs": 1})
        started = time.perf_counter()
        train_stack("logistic", rates, runs_dir=runs_dir, **options)
        return time.perf_counter() - started


MEASURES: dict[str, Callable[..., Any]] = {
    "side": lambda side, model: SIDES[side](model),
    "growth": growth,
    "stack": stacked,
}


if __name__ == "__main__":
    print(json.dumps(MEASURES[sys.argv[1]](*sys.argv[2:])))
