"""How fast stl10bench is beside what else the same machine could do: `make speed`.

Each measurement is a child process, so that memory, threads and Accelerate's state never meet. The
sides of a comparison take turns, and a ratio is that of their medians. Nothing is trained to the
end: a side runs a few batches of noise, after some that are not counted.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich import box
from rich.console import Console
from rich.table import Table

PIXELS = 64
MODELS = ("cnn", "learned", "frozen", "mlp", "logistic")  # learned, frozen: mobilenetv2
BATCHES = {"logistic": 60, "mlp": 30, "cnn": 4, "frozen": 25, "learned": 8}  # an epoch here
STACK = 8
SIZES = (1, 2, 4, 8)  # times 1,000 images, of which a tenth is held out
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
BARE_APP = "import typer; app = typer.Typer(); app.command()(lambda: None); app()"


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

    from stl10bench import api, recipes
    from stl10bench.config import make_config
    from stl10bench.models.weights import Weights

    frozen = {"frozen": True, "learned": False}.get(model)
    name = model if frozen is None else "mobilenetv2"
    settings = dict(recipes.settings("tuned", name, frozen=frozen))
    options = settings.pop("model_options", {}) | ({} if frozen is None else {"freeze": frozen})
    config = make_config({**settings, "model": name, "model_options": options})
    config = api.resolve(config, "", Weights(), "cpu")
    count = BATCHES[model] * config.batch_size
    generator = torch.Generator().manual_seed(0)
    size = (count, 3, PIXELS, PIXELS)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    return Noise(config, images, torch.arange(count) % 10)


def ready(model: str) -> Ready:
    """One of MODELS, set up by the package's own functions as `training.run` does."""
    from stl10bench import batches, device
    from stl10bench.evaluation import fold_frozen
    from stl10bench.models import registry
    from stl10bench.schedule import make_optimizer, make_schedule

    config, images, labels = noise(model)
    device.set_threads(None)
    device.keep_freed_memory()
    accelerator = device.make_accelerator("cpu", config.precision, "none", None)
    module = registry.build(config.model, 10, PIXELS, config.model_options)
    layout = device.memory_format(module)
    module = module.to(memory_format=layout)
    train = batches.Images(images, labels)
    normalise = batches.make_normalise((0.5,) * 3, (0.25,) * 3, layout, accelerator.device)
    fold_frozen(module, train, normalise, config)
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


# What a child measures: one side of a comparison -> images per second.


def loop(model: str) -> float:
    """Our training loop: order, draws, augmentation, step, schedule, sums."""
    from stl10bench import training
    from stl10bench.batches import augmented

    r = ready(model)

    def epoch() -> int:
        training.train_epoch(
            r.learner,
            r.optimizer,
            r.schedule,
            augmented(r.train, r.normalise, r.config, r.accelerator, epoch=1),
            r.config,
            r.accelerator,
            first_step=0,
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
    from stl10bench.evaluation import evaluate

    r = ready(model)

    def whole() -> int:
        evaluate(r.model, r.train.images, r.normalise, PIXELS, r.accelerator)
        return len(r.train.labels)

    return rate(whole)


def forward(model: str) -> float:
    """The forward pass alone, on one resident batch of evaluation's size."""
    import torch

    from stl10bench.evaluation import EVALUATION_BATCH

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
    from stl10bench.batches import augmented

    r = ready(model)

    def epoch() -> int:
        batches = augmented(r.train, r.normalise, r.config, r.accelerator, epoch=1)
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

    from stl10bench.device import memory_format
    from stl10bench.models import registry

    data = noise(model)
    config = data.config
    accelerator = Accelerator(cpu=True, mixed_precision=config.precision if ours else "no")
    network = registry.build(config.model, 10, PIXELS, config.model_options)
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


# What the parent does: sides in turn, whole commands, tables.


class Figures(NamedTuple):
    """Minimum, median and maximum of what several turns measured."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Figures":
        return cls(min(values), statistics.median(values), max(values))


def child(*arguments: str) -> Any:
    """What `python scripts/speed.py ARGUMENTS` prints, as JSON."""
    command = [sys.executable, __file__, *arguments]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def measure(sides: dict[str, tuple[str, str]], turns: int) -> dict[str, Figures]:
    """Sides (a title -> what it measures, of which model) -> images per second, taking turns."""
    found: dict[str, list[float]] = {title: [] for title in sides}
    for _ in range(turns):
        for title, side in sides.items():
            found[title].append(child("side", *side))
    return {title: Figures.of(values) for title, values in found.items()}


def seconds(commands: dict[str, list[str]], turns: int) -> dict[str, Figures]:
    """Wall seconds of whole commands, taking turns, after one turn that is not counted."""
    found: dict[str, list[float]] = {title: [] for title in commands}
    for turn in range(turns + 1):
        for title, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if turn:
                found[title].append(time.perf_counter() - started)
    return {title: Figures.of(values) for title, values in found.items()}


def write_noise(folder: Path, images: int) -> Path:
    """`images` training images of noise in STL-10's layout, a fifth as many to test on."""
    import numpy as np

    rng = np.random.default_rng(0)
    target = folder / f"{images}" / "stl10_binary"
    target.mkdir(parents=True)
    for split, count in (("train", images), ("test", images // 5)):
        pixels = rng.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
        pixels.tofile(target / f"{split}_X.bin")
        (np.arange(count) % 10 + 1).astype(np.uint8).tofile(target / f"{split}_y.bin")
    (target / "class_names.txt").write_text("".join(f"noise {i}\n" for i in range(10)))
    return target.parent


def growth(data_dir: str) -> dict[str, float]:
    """Seconds of `train logistic` for two epochs, and its peak of anonymous memory, bytes."""
    import threading

    import stl10bench

    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            status = Path("/proc/self/status").read_text()
            line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
            peak = max(peak, int(line.split()[1]) * 1024)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with tempfile.TemporaryDirectory() as runs_dir:
        started = time.perf_counter()
        options = {"data_dir": data_dir, "runs_dir": runs_dir, "tracker": "none", "epochs": 2}
        stl10bench.train("logistic", **options)
        elapsed = time.perf_counter() - started
    done.set()
    watcher.join()
    return {"seconds": elapsed, "anonymous_bytes": peak}


def stacked(data_dir: str, members: str) -> float:
    """Seconds of training so many settings of logistic regression at once for five epochs."""
    from stl10bench import api

    rates = [{"lr": 1e-4 * 2**power} for power in range(int(members))]
    options = {"data_dir": data_dir, "tracker": "none", "epochs": 5}
    with tempfile.TemporaryDirectory() as runs_dir:
        api.train_stack("logistic", [{}], runs_dir=f"{runs_dir}/warm", **options | {"epochs": 1})
        started = time.perf_counter()
        api.train_stack("logistic", rates, runs_dir=runs_dir, **options)
        return time.perf_counter() - started


CHILDREN: dict[str, Callable[..., Any]] = {
    "side": lambda side, model: SIDES[side](model),
    "growth": growth,
    "stack": stacked,
}


def ratio(found: dict[str, Figures], first: str, second: str) -> float:
    """The first's median over the second's."""
    return found[first].median / found[second].median


KINDS = {  # a comparison -> its sides; the first over the second is the ratio
    "limit": {"our loop": "loop", "bare step": "step"},
    "peer": {
        "our loop": "loop",
        "peer": "peer",
        "peer in our precision and layout": "peer in our precision and layout",
    },
    "evaluate": {"our evaluation": "evaluate", "bare forward": "forward"},
}


def show(title: str, unit: str, figures: dict[str, Figures]) -> None:
    """Print minimum, median and maximum of each side."""
    grid = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    grid.add_column(unit)
    for name in Figures._fields:
        grid.add_column(name, justify="right")
    for name, row in figures.items():
        grid.add_row(name, *(f"{value:,.2f}" if value < 100 else f"{value:,.0f}" for value in row))
    Console(stderr=True).print(grid)


def pipelines(turns: int) -> dict[str, Any]:
    """Our augmented batches against torchvision's, the faster of two ways."""
    others = ("torchvision on PIL", "torchvision on tensors")
    sides = {"ours": ("pipeline", "logistic")} | {name: (name, "logistic") for name in others}
    figures = measure(sides, turns)
    show("augmentation alone", "images/s", figures)
    fastest = max(others, key=lambda name: figures[name].median)
    return {
        "images_per_second": figures,
        "fastest_other": fastest,
        "ratio": ratio(figures, "ours", fastest),
    }


def models(kind: str, turns: int) -> dict[str, Any]:
    """One of KINDS for each model."""
    found = {}
    for model in MODELS:
        figures = measure({title: (side, model) for title, side in KINDS[kind].items()}, turns)
        show(f"{kind}: {model}", "images/s", figures)
        first, second, *third = figures
        found[model] = {"images_per_second": figures, "ratio": ratio(figures, first, second)}
        if third:
            found[model]["ratio_in_our_precision_and_layout"] = ratio(figures, first, third[0])
    return found


def starts(folder: Path, turns: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """--help against a bare typer app, and a whole short run against `import torch`."""
    help_, bare, torch = "stl10bench --help", "a bare typer app's --help", "import torch"
    command = [sys.executable, "-m", "stl10bench"]
    figures = seconds(
        {
            help_: [*command, "--help"],
            bare: [sys.executable, "-c", BARE_APP, "--help"],
        },
        2 * turns + 1,
    )
    show("--help", "seconds", figures)
    helps = {"seconds": figures, "ratio": ratio(figures, help_, bare)}
    short = ["train", "logistic", "--tracker", "none", "--epochs", "1", "--overwrite"]
    figures = seconds(
        {
            "900 images once, tested on 200": [
                *(*command, *short, "--data-dir", str(folder), "--runs-dir", f"{folder}/runs")
            ],
            torch: [sys.executable, "-c", "import torch"],
        },
        turns,
    )
    show("start", "seconds", figures)
    return helps, {"seconds": figures}


def grow(folders: dict[int, Path]) -> dict[str, Any]:
    """Seconds and peak anonymous memory of `train logistic` over the number of images."""
    sizes = [images / 1000 for images in folders]
    points = [child("growth", str(folder)) for folder in folders.values()]
    smallest = next(iter(folders.values()))
    with (smallest / "stl10_binary" / "unlabeled_X.bin").open("wb") as file:
        file.truncate(100_000 * 3 * 96 * 96)  # sparse: it takes no disk
    unlabelled = child("growth", str(smallest))
    memory, time_ = (
        statistics.linear_regression(sizes, [point[key] for point in points]).slope
        for key in ("anonymous_bytes", "seconds")
    )
    uint8 = 1200 * 3 * PIXELS * PIXELS  # of 1,000 training and 200 test images at input size
    return {
        "images": list(folders),
        "points": points,
        "with_100000_unlabelled_images": unlabelled,
        "seconds_per_1000_images": time_,
        "anonymous_bytes_over_uint8_bytes": memory / uint8,
    }


def stacks(folder: Path, turns: int) -> dict[str, Any]:
    """Eight settings of logistic regression at once against one."""
    found: dict[str, list[float]] = {"one setting": [], f"{STACK} settings stacked": []}
    for _ in range(turns):
        for title, members in zip(found, (1, STACK), strict=True):
            found[title].append(child("stack", str(folder), str(members)))
    figures = {title: Figures.of(values) for title, values in found.items()}
    show("logistic regression, five epochs of 3,600 images, tested", "seconds", figures)
    one, together = figures
    return {"seconds": figures, "ratio": ratio(figures, together, one)}


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    import torch

    from stl10bench.device import provenance

    return {**provenance(torch.device("cpu")), "cores": CORES}


def summary(found: dict[str, Any]) -> Table:
    """All ratios on one screen."""
    grid = Table(title="ratios of medians", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("", *MODELS):
        grid.add_column(name, justify="right" if name else "left")

    def line(title: str, kind: str, key: str = "ratio") -> None:
        grid.add_row(title, *(f"{found[kind][model][key]:.2f}" for model in MODELS))

    line("limit: our loop / bare step", "limit")
    line("peer: our loop / theirs as it starts", "peer")
    line("  ... / theirs in our precision, layout", "peer", "ratio_in_our_precision_and_layout")
    line("evaluate: ours / bare forward", "evaluate")
    pipeline = found["pipeline"]
    grid.caption = (
        f"augmentation / {pipeline['fastest_other']}: {pipeline['ratio']:.2f}; "
        f"{STACK} stacked / one: {found['stack']['ratio']:.2f}; "
        f"--help / a bare typer app: {found['help']['ratio']:.2f}; "
        "memory / uint8 data: "
        f"{found['growth']['anonymous_bytes_over_uint8_bytes']:.2f}"
    )
    return grid


def plot(found: dict[str, Any], path: Path) -> None:
    """Images per second of each side, with minimum and maximum, as a picture."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit("error: --plot needs: pip install 'stl10bench[plots]'") from None
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for axes, model in zip(figure.subplots(1, len(MODELS)), MODELS, strict=True):
        bars = {**found["limit"][model]["images_per_second"]}
        bars |= found["peer"][model]["images_per_second"]
        for height, (title, (low, median, high)) in enumerate(bars.items()):
            axes.barh(height, median, color="tab:blue" if title == "our loop" else "silver")
            axes.plot([low, high], [height, height], color="black")
        axes.set_title(model)
        axes.set_xlabel("images/s")
        axes.set_yticks(
            range(len(bars)), list(bars) if axes.get_subplotspec().is_first_col() else []
        )
    figure.savefig(path)


def main(
    turns: Annotated[int, typer.Option(help="Times that each side is measured.", min=1)] = 3,
    to_json: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
    plot_to: Annotated[Path | None, typer.Option("--plot", help="Draw them (PNG, SVG).")] = None,
) -> None:
    """Measure this machine; a quarter of an hour on two cores."""
    with tempfile.TemporaryDirectory() as name:
        folders = {size * 1000: write_noise(Path(name), size * 1000) for size in SIZES}
        found: dict[str, Any] = {"machine": machine(), "turns": turns, "pipeline": pipelines(turns)}
        found |= {kind: models(kind, turns) for kind in KINDS}
        found["stack"] = stacks(folders[4000], turns)
        found["help"], found["start"] = starts(folders[1000], turns)
        found["growth"] = grow(folders)
    Console().print(summary(found))
    if to_json:
        plain = json.dumps(found, indent=2, default=str)
        to_json.write_text(plain + "\n", encoding="utf-8")
    if plot_to:
        plot(found, plot_to)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in CHILDREN:
        print(json.dumps(CHILDREN[sys.argv[1]](*sys.argv[2:])))
    else:
        typer.run(main)
