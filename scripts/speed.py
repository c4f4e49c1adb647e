"""How fast stl10bench is beside what the same machine could do: `make speed`.

    python scripts/speed.py parts      # beside the obvious alternatives: ten minutes a turn
    python scripts/speed.py load       # while other processes compute: five minutes
    python scripts/speed.py race       # seconds until a validation accuracy, beside timm's train.py
    python scripts/gpu_check.sh        # all of this package that a GPU changes

Sides take turns, and `ours / this` divides medians: more than 1 is good in images/s, less than 1 in
seconds. A difference within minimum and maximum is noise. The parts are

- augmentation: our augmented batches; torchvision v2 in a DataLoader's workers, PIL or tensors
- limit: our loop; the bare step, forward, backward and update of a batch in memory, its limit
- peers: our loop; Accelerate's documented loop over torchvision's transforms as a user starts it
  (fp32, NCHW), and in our precision and memory layout (peer-tuned)
- evaluation: our evaluation; the bare forward pass of a batch in memory
- commands: `--help` and a bare Typer app's; an epoch of 900 images, tested, and `import torch`
- memory: growth of the peak with the number of images

The machine must be idle: one busy core halves a side. Compare numbers of one session only. Before
and after a change: let two checkouts take turns,

    PYTHONPATH=CHECKOUT python scripts/speed.py side loop cnn 3     (a model, batches per epoch)

`loop`, `memory` and `commands` use the public API alone and measure any version; the other sides
need the functions that they import.
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
from typing import Annotated, Any

import speed_gpu
import speed_load
import speed_race
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from speed_sides import MODELS, PIXELS, SIDES, Case, child, machine, memory, write_noise

GROWTH = (4000, 8000, 16000)  # training images, validation included; fewer fill no buffer
BARE_APP = "import typer; app = typer.Typer(); app.command()(lambda: None); app()"

Figures = dict[str, float]  # min, median, max over the turns; ratio of medians, ours over this


PARTS = {  # -> the sides compared, ours first
    "augmentation": ("augment", "torchvision-pil", "torchvision-tensors"),
    "limit": ("loop", "step"),
    "peers": ("loop", "peer", "peer-tuned"),
    "evaluation": ("evaluate", "forward"),
    "commands": (),
    "memory": (),
}


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
        model: {
            side: partial(child, "side", side, model, str(MODELS[model][1])) for side in PARTS[part]
        }
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
    points = [child("memory-of", str(path)) for path in folders]
    with (folders[0] / "stl10_binary" / "unlabeled_X.bin").open("wb") as file:
        file.truncate(100_000 * 3 * 96 * 96)  # sparse: it takes no disk
    seconds, size = (  # per image
        statistics.linear_regression(GROWTH, [point[key] for point in points]).slope
        for key in ("seconds", "anonymous_bytes")
    )
    return {
        "images": GROWTH,
        "points": points,
        "with_100000_unlabelled_images": child("memory-of", str(folders[0])),
        "seconds_per_1000_images": 1000 * seconds,
        # with a fifth as many test images, at the input size
        "anonymous_bytes_over_uint8_bytes": size / (1.2 * 3 * PIXELS * PIXELS),
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
        axes.locator_params(axis="x", nbins=3)
        axes.set_yticks(range(len(bars)), [*reversed(bars)])
    picture.savefig(path, dpi=120)


app = typer.Typer(no_args_is_help=True, pretty_exceptions_show_locals=False)
app.command()(speed_load.load)
app.command()(speed_race.race)
app.command()(speed_gpu.gpu)


@app.command()
def parts(
    chosen: Annotated[
        list[str] | None, typer.Argument(help=f"Some of {', '.join(PARTS)}.", metavar="[PART]...")
    ] = None,
    turns: Annotated[int, typer.Option(help="Times that each side is measured.", min=1)] = 3,
    to_json: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
    plot_to: Annotated[Path | None, typer.Option("--plot", help="Plot limit and peers.")] = None,
) -> None:
    """Measure this machine, by default all parts: about ten minutes a turn on two idle cores."""
    chosen = chosen or list(PARTS)
    if unknown := set(chosen) - set(PARTS):
        sys.exit(f"error: unknown part {min(unknown)!r}: choose from {', '.join(PARTS)}")
    if plot_to and not {"limit", "peers"} <= set(chosen):
        sys.exit("error: --plot needs the parts limit and peers")
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
    result["load_average_after"] = os.getloadavg()
    if to_json:
        to_json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if plot_to:
        plot(figures, plot_to)


@app.command()
def side(
    name: Annotated[str, typer.Argument(help=f"{', '.join(SIDES)}.")],
    model: Annotated[str, typer.Argument(help=f"{', '.join(MODELS)}.")],
    batches: Annotated[int, typer.Argument(help="Batches of an epoch.", min=1)],
    device: str = "cpu",
    precision: str = "auto",
    compile: bool = False,  # noqa: A002  the option's name
) -> None:
    """Measure one side in this process and print its images/s."""
    print(json.dumps(SIDES[name](Case(model, batches, device, precision, compile))))


@app.command(hidden=True)
def memory_of(data_dir: str) -> None:
    """Print seconds and peak memory of a training on images."""
    print(json.dumps(memory(data_dir)))


@app.command(hidden=True)
def steps(model: str, threads: Annotated[int | None, typer.Argument()] = None) -> None:
    """Print images/s of the bare step for each number of seconds on stdin."""
    speed_load.serve(model, threads)


@app.command(hidden=True)
def race_accelerate(log: Path, shared: str) -> None:
    """Run Accelerate's documented loop for `race`."""
    speed_race.train_accelerate(log, speed_race.shared_from(shared))


if __name__ == "__main__":
    app()
