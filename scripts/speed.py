"""How fast stl10bench is beside what the same machine could do: `make speed`.

Each side of a comparison runs in a process of its own: a few batches of noise at 64 px, the first
epoch not counted. Sides take turns, and `ours / this` divides medians: more than 1 is good in
images/s, less than 1 in seconds. A difference within minimum and maximum is noise.

- augmentation: our augmented batches; torchvision v2 in a DataLoader's workers, PIL or tensors
- limit: our loop; the bare step, forward, backward and update of a batch in memory, its limit
- peers: our loop; Accelerate's documented loop over torchvision's transforms as a user starts it
  (fp32, NCHW), and in our precision and memory layout (peer-tuned)
- evaluation: our evaluation; the bare forward pass of a batch in memory
- commands: `--help` and a bare Typer app's; an epoch of 900 images, tested, and `import torch`
- memory: growth of the peak with the number of images

The machine must be idle: one busy core halves a side, another torch process costs 10 to 20 times.
Compare numbers of one session only. Before and after a change: let two checkouts take turns,

    PYTHONPATH=CHECKOUT python scripts/speed.py --side loop cnn 3     (a model, batches per epoch)

`loop`, `memory` and `commands` use the public API alone and measure any version; the other sides
need the functions that they import.
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
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

MODELS: dict[str, tuple[str, int, dict[str, Any]]] = {
    # -> the package's name, batches per epoch (a few seconds), settings beside the recipe `tuned`
    "cnn": ("cnn", 3, {"batch_size": 64}),
    "fine-tuned": ("mobilenetv2", 8, {"batch_size": 128, "freeze": False}),
    "frozen": ("mobilenetv2", 25, {"batch_size": 128, "freeze": True}),  # batch norms fused
    "mlp": ("mlp", 30, {"batch_size": 128}),
    "logistic": ("logistic", 60, {"batch_size": 128}),
}
PIXELS = 64  # the default image_size
EPOCHS = 4  # the first is not counted
GROWTH = (1000, 2000, 4000, 8000)  # training images, validation included
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
BARE_APP = "import typer; app = typer.Typer(); app.command()(lambda: None); app()"

Figures = dict[str, float]  # min, median, max over the turns; ratio of medians, ours over this


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
    rates = []
    for _ in range(EPOCHS):
        started = time.perf_counter()
        images = epoch()
        rates.append(images / (time.perf_counter() - started))
    return statistics.median(rates[1:])


def loop(model: str, batches: int) -> float:
    """Our training loop with all that belongs to it, as `stl10bench.train` logs its epochs."""
    import stl10bench

    name, _, settings = MODELS[model]
    settings = settings | {"epochs": EPOCHS, "val_fraction": 0.0, "tracker": "none"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_noise(Path(temporary, "data"), batches * settings["batch_size"], 20)
        if name == "mobilenetv2":  # a frozen backbone is not trained without weights
            import timm
            from safetensors.torch import save_model

            settings["weights"] = f"{temporary}/random.safetensors"
            save_model(timm.create_model("mobilenetv2_100"), settings["weights"])
        stl10bench.train(name, data_dir=folder, runs_dir=f"{temporary}/runs", **settings)
        (log,) = Path(temporary).glob("runs/*/metrics.jsonl")
        epochs = [json.loads(line) for line in log.read_text().splitlines()][:EPOCHS]
    return float(statistics.median(epoch["images_per_second"] for epoch in epochs[1:]))


def noise_of(model: str, batches: int) -> SimpleNamespace:
    """The resolved config of one of MODELS; uint8 images (N, 3, 64, 64) and their labels."""
    import torch

    from stl10bench.training.resolve import check_settings, choose_precision

    name, _, settings = MODELS[model]
    config, _ = check_settings(name, settings=settings)
    config = config.model_copy(update={"precision": choose_precision(config, "cpu")})
    size = (batches * config.batch_size, 3, PIXELS, PIXELS)
    images = torch.randint(0, 256, size, dtype=torch.uint8)
    return SimpleNamespace(config=config, images=images, labels=torch.arange(len(images)) % 10)


def setup(model: str, batches: int) -> SimpleNamespace:
    """`noise_of`, and what a run holds when its first epoch starts, as `trainer.train` makes it."""
    from stl10bench.core import device
    from stl10bench.data.loader import Images, make_normalise
    from stl10bench.models.factory import build_model
    from stl10bench.training.evaluate import fuse_frozen
    from stl10bench.training.optim import make_optimizer

    run = noise_of(model, batches)
    device.set_threads(None)
    device.keep_freed_memory()
    run.accelerator = device.make_accelerator("cpu", run.config.precision)
    module = build_model(run.config.model, 10, PIXELS, run.config.model_options)
    layout = device.memory_format(module)
    run.model = module.to(memory_format=layout)
    run.train = Images(run.images, run.labels)
    run.normalise = make_normalise((0.5,) * 3, (0.25,) * 3, layout, run.accelerator.device)
    fuse_frozen(run.model, run.train, run.normalise, run.config)
    optimizer = make_optimizer(run.config, run.model)
    run.learner, run.optimizer = run.accelerator.prepare(run.model, optimizer)
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


def step(model: str, batches: int) -> float:
    """The bare step: one batch in memory, again and again."""
    run = setup(model, batches)
    size = run.config.batch_size
    images = run.normalise(run.images[:size].float().div_(255))
    return rate(lambda: train_on([(images, run.labels[:size])] * batches, run))


def evaluate(model: str, batches: int) -> float:
    """Our evaluation of images in memory."""
    from stl10bench.training.evaluate import compute_logits

    run = setup(model, batches)
    arguments = (run.model, run.images, run.normalise, PIXELS, run.accelerator)
    return rate(lambda: len(compute_logits(*arguments)))


def forward(model: str, batches: int) -> float:
    """The bare forward pass of one batch in memory, of evaluation's size."""
    import torch

    from stl10bench.training.evaluate import EVALUATION_BATCH

    run = setup(model, batches)
    images = run.normalise(run.images[:EVALUATION_BATCH].float().div_(255))
    times = max(1, len(run.images) // len(images))
    run.model.eval()

    @torch.no_grad()
    def epoch() -> int:
        with run.accelerator.autocast():
            return sum(len(run.model(images)) for _ in range(times))

    return rate(epoch)


def augment(model: str, batches: int) -> float:
    """Our augmented, normalised batches; nothing is trained."""
    from stl10bench.data.loader import augmented_batches

    run = setup(model, batches)
    source = partial(augmented_batches, run.train, run.normalise, run.config, run.accelerator)
    return rate(lambda: sum(len(labels) for _, labels in source(epoch=1)))


def torchvision(model: str, batches: int, *, pil: bool) -> float:
    """The same operations by torchvision v2; nothing is trained."""
    loader = loader_of(noise_of(model, batches), pil=pil)
    return rate(lambda: sum(len(labels) for _, labels in loader))


def loader_of(noise: SimpleNamespace, *, pil: bool) -> Any:
    """A DataLoader that augments image by image, PIL images or tensors, with a worker per core.

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
    return torch.utils.data.DataLoader(Photos(), config.batch_size, num_workers=CORES, **options)


def peer(model: str, batches: int, *, tuned: bool) -> float:
    """Accelerate's documented loop; its schedule's step is left out, in its favour."""
    import torch
    from accelerate import Accelerator

    from stl10bench.core.device import memory_format
    from stl10bench.models.factory import build_model

    run = noise_of(model, batches)
    config = run.config
    run.accelerator = Accelerator(cpu=True, mixed_precision=config.precision if tuned else "no")
    module = build_model(config.model, 10, PIXELS, config.model_options)
    layout = memory_format(module) if tuned else torch.contiguous_format
    module = module.to(memory_format=layout)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, config.lr, weight_decay=config.weight_decay)
    photos = loader_of(run, pil=True)
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


SIDES: dict[str, Callable[[str, int], float]] = {
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
PARTS = {  # -> the sides compared, ours first
    "augmentation": ("augment", "torchvision-pil", "torchvision-tensors"),
    "limit": ("loop", "step"),
    "peers": ("loop", "peer", "peer-tuned"),
    "evaluation": ("evaluate", "forward"),
    "commands": (),
    "memory": (),
}


def child(*arguments: str) -> Any:
    """What `speed.py --side ARGUMENTS` prints; torch chooses its threads, not the shell."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command = [sys.executable, __file__, "--side", *arguments]
    ended = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
    return json.loads(ended.stdout)


def seconds_of(*arguments: str) -> float:
    """Wall seconds of `python ARGUMENTS`, the second time: its files are in the system's cache."""
    for _ in range(2):
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


def cases_of(part: str, folder: Path) -> dict[str, dict[str, Callable[[], float]]]:
    """One of PARTS -> case -> side -> a function that measures it once."""
    if part == "commands":
        data, package = write_noise(folder / "short", 1000, 200), ("-m", "stl10bench")
        options = ("--epochs=1", "--overwrite", "--tracker=none", f"--data-dir={data}")
        train = (*package, "train", "logistic", *options, f"--runs-dir={folder}/runs")
        return {
            "--help": {
                "stl10bench": partial(seconds_of, *package, "--help"),
                "bare Typer app": partial(seconds_of, "-c", BARE_APP, "--help"),
            },
            "start": {
                "train logistic": partial(seconds_of, *train),
                "import torch": partial(seconds_of, "-c", "import torch"),
            },
        }
    models = ("logistic",) if part == "augmentation" else MODELS
    return {
        model: {side: partial(child, side, model, str(MODELS[model][1])) for side in PARTS[part]}
        for model in models
    }


def measure(sides: dict[str, Callable[[], float]], turns: int) -> dict[str, Figures]:
    """Figures of each side, ours first; the sides take turns."""
    values: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, side in sides.items():
            values[name].append(side())
    ours = statistics.median(next(iter(values.values())))
    figures = {}
    for name, some in values.items():
        median = statistics.median(some)
        figures[name] = {"min": min(some), "median": median, "max": max(some)}
        figures[name]["ratio"] = ours / median
    return figures


def grow(folder: Path) -> dict[str, Any]:
    """Seconds and peak anonymous memory of `train logistic` over the number of images."""
    folders = [write_noise(folder / str(count), count, count // 5) for count in GROWTH]
    points = [child("memory", str(path)) for path in folders]
    with (folders[0] / "stl10_binary" / "unlabeled_X.bin").open("wb") as file:
        file.truncate(100_000 * 3 * 96 * 96)  # sparse: it takes no disk
    seconds, size = (  # per image
        statistics.linear_regression(GROWTH, [point[key] for point in points]).slope
        for key in ("seconds", "anonymous_bytes")
    )
    return {
        "images": GROWTH,
        "points": points,
        "with_100000_unlabelled_images": child("memory", str(folders[0])),
        "seconds_per_1000_images": 1000 * seconds,
        # with a fifth as many test images, at the input size
        "anonymous_bytes_over_uint8_bytes": size / (1.2 * 3 * PIXELS * PIXELS),
    }


def machine() -> dict[str, Any]:
    """The code that is measured, and on what."""
    package = find_spec("stl10bench")
    assert package is not None
    git = ("git", "-C", str(Path(str(package.origin)).parent), "describe", "--always", "--dirty")
    info = Path("/proc/cpuinfo")
    return {
        "cpu": re.findall(r"model name\s*: (.*)", info.read_text() if info.exists() else "")[:1],
        "cores": CORES,
        "libraries": {name: version(name) for name in ("torch", "torchvision", "accelerate")},
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
    }


def show(part: str, figures: dict[str, dict[str, Figures]]) -> None:
    """Print minimum, median and maximum of each side, and ours over it."""
    unit = "seconds" if part == "commands" else "images/s"
    grid = Table(title=f"{part}, {unit}", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("", "side", "min", "median", "max", "ours / this"):
        grid.add_column(column, justify="left" if column in ("", "side") else "right")
    for case, sides in figures.items():
        for name, row in sides.items():
            values = [f"{value:,.2f}" if value < 100 else f"{value:,.0f}" for value in row.values()]
            grid.add_row(case, name, *values)
    Console().print(grid)


def plot(figures: dict[str, Any], path: Path) -> None:
    """Draw images/s of each side of `limit` and `peers`, with minimum and maximum."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(11, 2.6), layout="constrained")
    for axes, model in zip(picture.subplots(1, len(MODELS), sharey=True), MODELS, strict=True):
        bars = {**figures["limit"][model], **figures["peers"][model]}
        for height, (name, row) in enumerate(reversed(bars.items())):
            axes.barh(height, row["median"], color="tab:blue" if name == "loop" else "silver")
            axes.plot([row["min"], row["max"]], [height, height], color="black")
        axes.set_title(model)
        axes.set_xlabel("images/s")
        axes.set_yticks(range(len(bars)), [*reversed(bars)])
    picture.savefig(path, dpi=120)


def main(
    parts: Annotated[list[str] | None, typer.Argument(help=f"Some of {', '.join(PARTS)}.")] = None,
    turns: Annotated[int, typer.Option(help="Times that each side is measured.", min=1)] = 3,
    to_json: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
    plot_to: Annotated[Path | None, typer.Option("--plot", help="Plot limit and peers.")] = None,
) -> None:
    """Measure this machine, by default all parts: about ten minutes a turn on two idle cores."""
    chosen = parts or list(PARTS)
    if unknown := set(chosen) - set(PARTS):
        sys.exit(f"error: unknown part {min(unknown)!r}: choose from {', '.join(PARTS)}")
    if plot_to and not (find_spec("matplotlib") and {"limit", "peers"} <= set(chosen)):
        sys.exit("error: --plot needs the parts limit and peers, and stl10bench[plots] installed")
    loads = {"before": os.getloadavg()}
    if loads["before"][0] > 0.5:
        print(f"load average {loads['before'][0]:.1f}: expect noise", file=sys.stderr)
    figures: dict[str, Any] = {}
    result: dict[str, Any] = {"machine": machine(), "turns": turns, "figures": figures}
    with tempfile.TemporaryDirectory() as temporary:
        for part in chosen:
            if part == "memory":
                result["memory"] = growth = grow(Path(temporary))
                times = growth["anonymous_bytes_over_uint8_bytes"]
                print(f"memory: its peak grows by {times:.2f} times the images at 64 px")
                continue
            cases = cases_of(part, Path(temporary))
            figures[part] = {case: measure(sides, turns) for case, sides in cases.items()}
            show(part, figures[part])
    result["load_average"] = loads | {"after": os.getloadavg()}
    if to_json:
        to_json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if plot_to:
        plot(figures, plot_to)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        _, _, side, argument, *batches = sys.argv
        value = SIDES[side](argument, int(batches[0])) if batches else memory(argument)
        print(json.dumps(value))
    else:
        typer.run(main)
