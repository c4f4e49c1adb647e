"""Seconds until a validation accuracy, ours beside timm's train.py and Accelerate: `speed.py race`.

All sides fine-tune the same backbone from the same weights, on the same images, and are validated
on the same ones after each epoch. Each tests its best epoch on the test split, once, when its clock
has stopped. Turns differ in the seed, that of the split included. timm's programs are not part of
its package:

    git clone --depth 1 https://github.com/huggingface/pytorch-image-models
"""

import csv
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from speed_sides import CORES, SCRIPT, machine

MODEL = "mobilenetv2_100"  # timm's name; ours is mobilenetv2
_LOOK = 0.05  # seconds between two looks at what a side has validated
# Ours: the recipe. timm's and Accelerate's: their own augmentation, cut down to what small images
# bear, with our recipe's optimizer, rate, schedule and batch, and the faster memory layout.
OURS = "--no-freeze"
TIMMS = (
    "--opt adamw --lr 1e-3 --weight-decay 0.05 --sched cosine --sched-on-updates --warmup-epochs 1 "
    "--warmup-lr 1e-5 --smoothing 0.1 --scale 0.35 1.0 --color-jitter 0.2 --channels-last"
)


class Race(NamedTuple):
    """What all sides share."""

    folder: Path  # train/, val/ and test/, a folder of PNG files for each class
    data: list[str]  # our options for the same images
    weights: Path
    epochs: int
    image_size: int
    batch_size: int
    seed: int


class Side(NamedTuple):
    """A program that trains, where its validation accuracies appear, and how its best is tested."""

    command: list[str]
    accuracies: Callable[[], list[float]]  # one for each epoch that has been validated
    test: Callable[[str], float]  # what it printed -> the test accuracy, 0..1


def write_folders(dataset: Any, config: Any, folder: Path) -> None:
    """The images of a run as PNG files: train/CLASS/N.png, val and test; N is the split's row."""
    import numpy as np
    from PIL import Image

    from stl10bench.data.splits import training_rows

    train, val = training_rows(config, dataset)
    test = np.arange(len(dataset.test.labels))
    for name, split, rows in (
        ("train", dataset.train, train),
        ("val", dataset.train, val),
        ("test", dataset.test, test),
    ):
        for label, title in enumerate(dataset.class_names):
            target = folder / name / f"{label:03d}-{title}"
            target.mkdir(parents=True)
            for row in rows[split.labels[rows] == label]:
                pixels = np.ascontiguousarray(split.images[row].transpose(1, 2, 0))
                Image.fromarray(pixels).save(target / f"{row}.png", compress_level=1)


def ours(race: Race, flags: str, work: Path) -> Side:
    """`stl10bench train` with a recipe and flags."""
    command = [sys.executable, "-m", "stl10bench", "train", "mobilenetv2", *race.data]
    command += ["--weights", str(race.weights), "--epochs", str(race.epochs)]
    command += ["--image-size", str(race.image_size), "--batch-size", str(race.batch_size)]
    command += ["--seed", str(race.seed), "--runs-dir", str(work), "--tracker", "none", "--json"]
    command += shlex.split(flags)  # the last counts: a recipe may have its own number of epochs

    def accuracies() -> list[float]:
        return [
            json.loads(line)["val/accuracy"]
            for log in work.glob("*/metrics.jsonl")
            for line in log.read_text().splitlines(keepends=True)
            if line.endswith("\n") and "val/accuracy" in line
        ]

    return Side(command, accuracies, lambda printed: float(json.loads(printed)["test_accuracy"]))


def timms(race: Race, flags: str, work: Path, programs: Path) -> Side:
    """timm's train.py; its validate.py tests the epoch that it kept as the best."""
    shared = ["--model", MODEL, "--num-classes", "10", "--img-size", str(race.image_size)]
    shared += ["--crop-pct", "1.0", "--device", "cpu", "--workers", str(CORES)]
    command = [sys.executable, str(programs / "train.py"), *shared, "--data-dir", str(race.folder)]
    command += ["--train-split", "train", "--val-split", "val", "--pretrained"]
    command += ["--pretrained-path", str(race.weights), "--epochs", str(race.epochs)]
    command += ["--batch-size", str(race.batch_size), "--seed", str(race.seed)]
    command += ["--output", str(work), "--experiment", "race", *shlex.split(flags)]
    best = work / "race" / "model_best.pth.tar"

    def accuracies() -> list[float]:
        summary = work / "race" / "summary.csv"
        lines = summary.read_text().splitlines(keepends=True) if summary.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        return [float(row["eval_top1"]) / 100 for row in csv.DictReader(whole)]

    def test(_: str) -> float:
        words = [sys.executable, str(programs / "validate.py"), *shared, "--split", "test"]
        words += ["--data-dir", str(race.folder), "--checkpoint", str(best)]
        ended = subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True)
        return float(json.loads(ended.stdout.partition("--result\n")[2])["top1"]) / 100

    return Side(command, accuracies, test)


def accelerates(race: Race, work: Path) -> Side:
    """Accelerate's documented loop, below."""
    log = work / "epochs.jsonl"
    command = [
        sys.executable,
        str(SCRIPT),
        "race-accelerate",
        str(log),
        json.dumps(race, default=str),
    ]

    def accuracies() -> list[float]:
        lines = log.read_text().splitlines(keepends=True) if log.exists() else []
        return [float(line) for line in lines if line.endswith("\n")]

    return Side(command, accuracies, lambda printed: float(printed.split()[-1]))


def shared_from(text: str) -> Race:
    """The Race that `accelerates` gave to its process."""
    folder, data, weights, *others = json.loads(text)
    return Race(Path(folder), data, Path(weights), *others)


def train_accelerate(log: Path, race: Race) -> None:
    """Fine-tune as Accelerate's example for computer vision does; prints the test accuracy.

    Source: examples/cv_example.py of Accelerate, with its augmentation, AdamW and OneCycleLR; all
    weights learn, in channels_last, and dropout of batches is as there.
    """
    import timm
    import torch
    from accelerate import Accelerator
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    torch.manual_seed(race.seed)
    accelerator = Accelerator(cpu=True)
    overlay = {"file": str(race.weights)}
    model: Any = timm.create_model(MODEL, True, num_classes=10, pretrained_cfg_overlay=overlay)
    mean, std = model.default_cfg["mean"], model.default_cfg["std"]
    last = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    size = race.image_size
    augmented = [v2.RandomResizedCrop(size, (0.35, 1.0)), v2.RandomHorizontalFlip(), *last]
    plain = v2.Compose([v2.Resize((size, size)), *last])

    def loader(name: str, transform: Any) -> Any:
        images = ImageFolder(str(race.folder / name), transform)
        batches: Any = {"shuffle": name == "train", "num_workers": CORES}
        return DataLoader(images, race.batch_size, persistent_workers=True, **batches)

    train, val = loader("train", v2.Compose(augmented)), loader("val", plain)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1e-3, epochs=race.epochs, steps_per_epoch=len(train)
    )
    model = model.to(memory_format=torch.channels_last)
    model, optimizer, train, val, schedule = accelerator.prepare(
        model, optimizer, train, val, schedule
    )

    def accuracy(batches: Any) -> float:
        model.eval()
        hits = count = 0
        for images, labels in batches:
            with torch.no_grad():
                classes = model(images.contiguous(memory_format=torch.channels_last)).argmax(1)
            classes, labels = accelerator.gather_for_metrics((classes, labels))
            hits, count = hits + int((classes == labels).sum()), count + len(labels)
        return hits / count

    best, weights = -1.0, {}
    for _ in range(race.epochs):
        model.train()
        for images, labels in train:
            logits = model(images.contiguous(memory_format=torch.channels_last))
            loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        reached = accuracy(val)
        with log.open("a") as file:
            file.write(f"{reached}\n")
        if reached > best:
            best = reached
            weights = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(weights)
    print(accuracy(loader("test", plain)))


def run(side: Side, target: float) -> dict[str, Any]:
    """Train a side; its seconds to the target, its best epoch and that one's test accuracy."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    with tempfile.TemporaryFile("w+") as printed:
        started, ends = time.perf_counter(), list[float]()
        process = subprocess.Popen(side.command, stdout=printed, env=environment)
        while process.poll() is None:
            now = time.perf_counter() - started
            ends += [now] * (len(side.accuracies()) - len(ends))
            time.sleep(_LOOK)
        ends += [time.perf_counter() - started] * (len(side.accuracies()) - len(ends))
        if process.returncode:
            sys.exit(f"error: {shlex.join(side.command)} ended with {process.returncode}")
        printed.seek(0)
        return figures(ends, side.accuracies(), target) | {
            "test_accuracy": side.test(printed.read()),
            "command": shlex.join(side.command),
        }


def figures(ends: list[float], accuracies: list[float], target: float) -> dict[str, Any]:
    """Seconds to the first epoch with the target, from the command on and without its setup.

    `ends` are the seconds after which each epoch was validated. The first epoch is taken to last as
    long as the median of the others; what came before it is setup.
    """
    epoch = statistics.median(later - end for end, later in pairwise(ends))
    setup = max(0.0, ends[0] - epoch)
    best = max(range(len(accuracies)), key=accuracies.__getitem__)
    reached = next((n for n, value in enumerate(accuracies) if value >= target), None)
    return {
        "seconds_to": None if reached is None else ends[reached],
        "seconds_to_without_setup": None if reached is None else ends[reached] - setup,
        "epoch": None if reached is None else reached + 1,
        "setup_seconds": setup,
        "epoch_seconds": epoch,
        "seconds": ends[-1],
        "best_epoch": best + 1,
        "val_accuracy": accuracies[best],
        "accuracies": accuracies,
        "ends": ends,
    }


def spread(values: list[float | None], digits: int) -> str:
    """Median, minimum and maximum; `None`, a target never reached, counts as infinite."""
    ordered = sorted(float("inf") if value is None else value for value in values)
    words = [
        "never" if value == float("inf") else f"{value:.{digits}f}"
        for value in (statistics.median(ordered), ordered[0], ordered[-1])
    ]
    return words[0] if len(values) == 1 else "{} [{}, {}]".format(*words)


def show(results: dict[str, list[dict[str, Any]]], target: float) -> None:
    """Print a line for each side, median over the turns, and the commands of the first turn."""
    grid = Table(title=f"validation accuracy {target}", title_justify="left", box=box.SIMPLE_HEAD)
    columns = {
        "seconds to it": ("seconds_to", 1),
        "an epoch": ("epoch_seconds", 1),
        "in all": ("seconds", 1),
        "best": ("val_accuracy", 3),
        "test": ("test_accuracy", 3),
    }
    for column in ("", *columns):
        grid.add_column(column, justify="right" if column else "left", no_wrap=not column)
    for name, turns in results.items():
        cells = [spread([turn[key] for turn in turns], d) for key, d in columns.values()]
        grid.add_row(name, *cells)
    console = Console()
    console.print(grid)
    for name, turns in results.items():
        console.print(f"{name}: {turns[0]['command']}", soft_wrap=True, highlight=False)


def race(
    data_dir: Annotated[Path, typer.Option(help="Folder that contains stl10_binary/.")],
    weights: Annotated[Path, typer.Option(help="timm's weights of mobilenetv2_100, safetensors.")],
    timm: Annotated[
        Path | None, typer.Option(help="Folder of timm's train.py and validate.py; else left out.")
    ] = None,
    target: Annotated[float, typer.Option(help="Validation accuracy, 0..1.")] = 0.8,
    epochs: Annotated[int, typer.Option(help="Epochs of each side.", min=2)] = 12,
    image_size: Annotated[int, typer.Option(help="Pixels.")] = 64,
    batch_size: Annotated[int, typer.Option(help="Images of a step.")] = 128,
    seed: Annotated[int, typer.Option(help="Of the split and of each side; the first turn's.")] = 0,
    turns: Annotated[int, typer.Option(help="Races, each with a seed of its own.", min=1)] = 1,
    dataset: Annotated[str, typer.Option(help="stl10 or demo.")] = "stl10",
    our_flags: Annotated[str, typer.Option(help="Options of `stl10bench train`.")] = OURS,
    timm_flags: Annotated[str, typer.Option(help="Options of train.py.")] = TIMMS,
    to_json: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
) -> None:
    """Seconds until a validation accuracy: ours, timm's train.py, Accelerate's loop; CPU."""
    from stl10bench.core.errors import BenchError
    from stl10bench.data.load import open_data
    from stl10bench.training.resolve import check_settings

    told = Console(stderr=True)
    try:
        data = open_data(dataset, data_dir, download=False, verify=False, console=told)
    except BenchError as error:
        sys.exit(f"error: {error}")
    words = ["--dataset", dataset, "--data-dir", str(data_dir), "--no-verify", "--device", "cpu"]
    results: dict[str, list[dict[str, Any]]] = {}
    for turn in range(seed, seed + turns):
        config, _ = check_settings("mobilenetv2", settings={"seed": turn, "freeze": False})
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_folders(data, config, folder / "images")
            shared = Race(folder / "images", words, weights, epochs, image_size, batch_size, turn)
            sides = {"stl10bench": ours(shared, our_flags, folder / "ours")}
            if timm is not None:
                sides["timm train.py"] = timms(shared, timm_flags, folder / "timm", timm)
            (folder / "accelerate").mkdir()
            sides["Accelerate's loop"] = accelerates(shared, folder / "accelerate")
            for name, side in sides.items():
                print(f"seed {turn}, {name}: {epochs} epochs", file=sys.stderr, flush=True)
                results.setdefault(name, []).append(run(side, target))
        if to_json:  # after each turn: a stop loses the last one only
            content = {"machine": machine(), "target": target, "sides": results}
            to_json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    show(results, target)
