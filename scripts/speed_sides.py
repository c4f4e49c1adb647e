"""What scripts/speed.py times: our loop, what it could be at best, and what others do.

Each side is a function of a Case and runs in a process of its own: a few batches of noise at
64 px, the first epoch not counted.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

MODELS: dict[str, tuple[str, int, dict[str, Any]]] = {
    # -> the package's name, batches per epoch (a few seconds), settings beside the recipe `tuned`
    "cnn": ("cnn", 3, {"batch_size": 64}),
    "fine-tuned": ("mobilenetv2", 3, {"batch_size": 128, "freeze": False}),
    # Batch norms fused; with cached views, as in the recipe, no step would run the backbone.
    "frozen": ("mobilenetv2", 8, {"batch_size": 128, "freeze": True, "cache_views": 0}),
    "mlp": ("mlp", 30, {"batch_size": 128}),
    "logistic": ("logistic", 60, {"batch_size": 128}),
}
PIXELS = 64  # the default image_size
EPOCHS = 4  # the first is not counted
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
SCRIPT = Path(__file__).with_name("speed.py")


class Case(NamedTuple):
    """A model of MODELS, the batches of an epoch, and how it is computed."""

    model: str
    batches: int
    device: str = "cpu"
    precision: str = "auto"
    compile: bool = False
    workers: int = CORES  # that load images for the peers


def write_noise(folder: Path, images: int, test_images: int) -> Path:
    """Write uint8 noise of 96 px in STL-10's layout; returns `folder`."""
    import numpy as np

    rng = np.random.default_rng(0)
    target = folder / "stl10_binary"
    target.mkdir(parents=True)
    for split, count in (("train", images), ("test", test_images)):
        rng.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8).tofile(target / f"{split}_X.bin")
        (np.arange(count) % 10 + 1).astype(np.uint8).tofile(target / f"{split}_y.bin")
    (target / "class_names.txt").write_text("".join(f"noise {i}\n" for i in range(10)))
    return folder


def rate(epoch: Callable[[], int]) -> float:
    """Images per second of `epoch`, which returns how many it processed."""
    import torch

    rates = []
    for _ in range(EPOCHS):
        started = time.perf_counter()
        images = epoch()
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # else only the launches of its kernels would be timed
        rates.append(images / (time.perf_counter() - started))
    return statistics.median(rates[1:])


def loop(case: Case) -> float:
    """Our training loop with all that belongs to it, as `stl10bench.train` logs its epochs."""
    import stl10bench

    name, _, settings = MODELS[case.model]
    settings = settings | {"epochs": EPOCHS, "val_fraction": 0.0, "tracker": "none"}
    settings |= {"device": case.device, "precision": case.precision, "compile": case.compile}
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_noise(Path(temporary, "data"), case.batches * settings["batch_size"], 20)
        if name == "mobilenetv2":  # a frozen backbone is not trained without weights
            import timm
            from safetensors.torch import save_model

            settings["weights"] = f"{temporary}/random.safetensors"
            save_model(timm.create_model("mobilenetv2_100"), settings["weights"])
        stl10bench.train(name, data_dir=folder, runs_dir=f"{temporary}/runs", **settings)
        (log,) = Path(temporary).glob("runs/*/metrics.jsonl")
        epochs = [json.loads(line) for line in log.read_text().splitlines()][:EPOCHS]
    return float(statistics.median(epoch["images_per_second"] for epoch in epochs[1:]))


def noise_of(case: Case) -> SimpleNamespace:
    """The resolved config of a case; uint8 images (N, 3, 64, 64) and their labels, on the CPU."""
    import torch

    from stl10bench.training.resolve import check_settings, choose_precision

    name, _, settings = MODELS[case.model]
    config, _ = check_settings(name, settings=settings | {"precision": case.precision})
    config = config.model_copy(update={"precision": choose_precision(config, case.device)})
    size = (case.batches * config.batch_size, 3, PIXELS, PIXELS)
    images = torch.randint(0, 256, size, dtype=torch.uint8)
    return SimpleNamespace(config=config, images=images, labels=torch.arange(len(images)) % 10)


def setup(case: Case) -> SimpleNamespace:
    """`noise_of`, and what a run holds when its first epoch starts, as `trainer.train` makes it."""
    import torch

    from stl10bench.core import device
    from stl10bench.data.loader import Images, make_normalise
    from stl10bench.models.factory import build_model
    from stl10bench.training.evaluate import fuse_frozen
    from stl10bench.training.optim import make_optimizer

    run = noise_of(case)
    device.set_threads(None)
    device.keep_freed_memory()
    run.accelerator = device.make_accelerator(case.device, run.config.precision)
    where = run.accelerator.device
    module = build_model(run.config.model, 10, PIXELS, run.config.model_options)
    layout = device.memory_format(module)
    run.model = module.to(where).to(memory_format=layout)
    run.images, run.labels = run.images.to(where), run.labels.to(where)
    run.train = Images(run.images, run.labels)
    run.normalise = make_normalise((0.5,) * 3, (0.25,) * 3, layout, where)
    fuse_frozen(run.model, run.train, run.normalise, run.config)
    optimizer = make_optimizer(run.config, run.model)
    run.learner, run.optimizer = run.accelerator.prepare(run.model, optimizer)
    if case.compile:
        run.learner = torch.compile(run.learner)
    return run


def train_on(loader: Any, run: SimpleNamespace) -> int:
    """Forward, backward and update for each batch of (images, labels); returns the images."""
    from torch.nn import functional as F

    run.learner.train()
    count = 0
    for images, labels in loader:
        logits = run.learner(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=run.config.label_smoothing)
        run.accelerator.backward(loss)
        run.optimizer.step()
        run.optimizer.zero_grad()
        count += len(labels)
    return count


def step(case: Case) -> float:
    """The bare step: one batch in memory, again and again."""
    run = setup(case)
    size = run.config.batch_size
    images = run.normalise(run.images[:size].float().div_(255))
    return rate(lambda: train_on([(images, run.labels[:size])] * case.batches, run))


def evaluate(case: Case) -> float:
    """Our evaluation of images in memory."""
    from stl10bench.training.evaluate import compute_logits

    run = setup(case)
    arguments = (run.model, run.images, run.normalise, PIXELS, run.accelerator)
    return rate(lambda: len(compute_logits(*arguments)))


def forward(case: Case) -> float:
    """The bare forward pass of one batch in memory, of evaluation's size."""
    import torch

    from stl10bench.training.evaluate import EVALUATION_BATCH

    run = setup(case)
    images = run.normalise(run.images[:EVALUATION_BATCH].float().div_(255))
    times = max(1, len(run.images) // len(images))
    run.model.eval()

    @torch.no_grad()
    def epoch() -> int:
        with run.accelerator.autocast():
            return sum(len(run.model(images)) for _ in range(times))

    return rate(epoch)


def augment(case: Case) -> float:
    """Our augmented, normalised batches; nothing is trained."""
    from stl10bench.data.loader import augmented_batches

    run = setup(case)
    source = partial(augmented_batches, run.train, run.normalise, run.config, run.accelerator)
    return rate(lambda: sum(len(labels) for _, labels in source(epoch=1)))


def torchvision(case: Case, *, pil: bool) -> float:
    """The same operations by torchvision v2; nothing is trained."""
    loader = loader_of(noise_of(case), case.workers, pil=pil)
    return rate(lambda: sum(len(labels) for _, labels in loader))


def loader_of(noise: SimpleNamespace, workers: int, *, pil: bool) -> Any:
    """A DataLoader that augments image by image, PIL images or tensors, in `workers` processes.

    A user's would resize from 96 px as well; this one need not, in its favour.
    """
    import torch
    from PIL import Image
    from torchvision.transforms import InterpolationMode, v2

    config = noise.config
    operations = (
        v2.ColorJitter(config.brightness, config.contrast, config.saturation, config.hue),
        v2.RandomHorizontalFlip(config.flip),
        v2.RandomRotation(config.rotation, interpolation=InterpolationMode.BILINEAR),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.5,) * 3, (0.25,) * 3),
    )
    transform = v2.Compose(operations)
    pixels = noise.images.permute(0, 2, 3, 1).contiguous().numpy()

    class Photos(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(noise.labels)

        def __getitem__(self, index: int) -> Any:
            image = Image.fromarray(pixels[index]) if pil else noise.images[index]
            return transform(image), noise.labels[index]

    options: Any = {"shuffle": True, "drop_last": True, "persistent_workers": True}
    return torch.utils.data.DataLoader(Photos(), config.batch_size, num_workers=workers, **options)


def peer(case: Case, *, tuned: bool) -> float:
    """Accelerate's documented loop; its schedule's step is left out, in its favour."""
    import torch
    from accelerate import Accelerator

    from stl10bench.core.device import memory_format
    from stl10bench.models.factory import build_model

    run = noise_of(case)
    config, precision = run.config, run.config.precision if tuned else "no"
    run.accelerator = Accelerator(cpu=case.device == "cpu", mixed_precision=precision)
    module = build_model(config.model, 10, PIXELS, config.model_options)
    layout = memory_format(module) if tuned else torch.contiguous_format
    module = module.to(memory_format=layout)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, config.lr, weight_decay=config.weight_decay)
    photos = loader_of(run, case.workers, pil=True)
    run.learner, run.optimizer, loader = run.accelerator.prepare(module, optimizer, photos)
    return rate(lambda: train_on(((x.contiguous(memory_format=layout), y) for x, y in loader), run))


def memory(data_dir: str) -> dict[str, float]:
    """Seconds of `train logistic` for two epochs and its peak of anonymous memory, bytes; Linux.

    Mapped pages of the data files, which the system can drop, are not anonymous.
    """
    import stl10bench

    peaks, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            status = Path("/proc/self/status").read_text()
            peaks.append(int(status.split("RssAnon:")[1].split()[0]) * 1024)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    with tempfile.TemporaryDirectory() as runs_dir:
        started = time.perf_counter()
        stl10bench.train("logistic", data_dir=data_dir, runs_dir=runs_dir, tracker="none", epochs=2)
        seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    return {"seconds": seconds, "anonymous_bytes": max(peaks)}


SIDES: dict[str, Callable[[Case], float]] = {
    "augment": augment,
    "torchvision-pil": partial(torchvision, pil=True),
    "torchvision-tensors": partial(torchvision, pil=False),
    "loop": loop,
    "step": step,
    "peer": partial(peer, tuned=False),
    "peer-tuned": partial(peer, tuned=True),
    "evaluate": evaluate,
    "forward": forward,
}


def child(*arguments: str) -> Any:
    """What `speed.py ARGUMENTS` prints; torch chooses its threads, not the shell."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command = [sys.executable, str(SCRIPT), *arguments]
    ended = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
    return json.loads(ended.stdout)


def machine() -> dict[str, Any]:
    """The code that is measured, and on what."""
    package = find_spec("stl10bench")
    assert package is not None
    git = ("git", "-C", str(Path(str(package.origin)).parent), "describe", "--always", "--dirty")
    info = Path("/proc/cpuinfo")
    return {
        "cpu": re.findall(r"model name\s*: (.*)", info.read_text() if info.exists() else "")[:1],
        "cores": CORES,
        "load_average": os.getloadavg(),
        "libraries": {
            name: version(name) for name in ("torch", "torchvision", "timm", "accelerate")
        },
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
    }
