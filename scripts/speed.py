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
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

MODELS = ("cnn", "learned", "frozen", "mlp", "logistic")  # learned, frozen: mobilenetv2
STACK = 8
SIZES = (1, 2, 4, 8)  # times 1,000 images, of which a tenth is held out
BARE_APP = "import typer; app = typer.Typer(); app.command()(lambda: None); app()"


Figures = dict[str, float]  # min, median and max of what several turns measured


def figures_of(values: list[float]) -> Figures:
    """Minimum, median and maximum."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def child(*arguments: str) -> Any:
    """What `speed_sides.py ARGUMENTS` prints."""
    command = [sys.executable, str(Path(__file__).with_name("speed_sides.py")), *arguments]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def measure(sides: dict[str, tuple[str, str]], turns: int) -> dict[str, Figures]:
    """Sides (a title -> what it measures, of which model) -> images per second, taking turns."""
    found: dict[str, list[float]] = {title: [] for title in sides}
    for _ in range(turns):
        for title, side in sides.items():
            found[title].append(child("side", *side))
    return {title: figures_of(values) for title, values in found.items()}


def seconds(commands: dict[str, list[str]], turns: int) -> dict[str, Figures]:
    """Wall seconds of whole commands, taking turns, after one turn that is not counted."""
    found: dict[str, list[float]] = {title: [] for title in commands}
    for turn in range(turns + 1):
        for title, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if turn:
                found[title].append(time.perf_counter() - started)
    return {title: figures_of(values) for title, values in found.items()}


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


def ratio(found: dict[str, Figures], first: str, second: str) -> float:
    """The first's median over the second's."""
    return found[first]["median"] / found[second]["median"]


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
    for name in ("min", "median", "max"):
        grid.add_column(name, justify="right")
    for name, row in figures.items():
        grid.add_row(
            name, *(f"{value:,.2f}" if value < 100 else f"{value:,.0f}" for value in row.values())
        )
    Console(stderr=True).print(grid)


def pipelines(turns: int) -> dict[str, Any]:
    """Our augmented batches against torchvision's, the faster of two ways."""
    others = ("torchvision on PIL", "torchvision on tensors")
    sides = {"ours": ("pipeline", "logistic")} | {name: (name, "logistic") for name in others}
    figures = measure(sides, turns)
    show("augmentation alone", "images/s", figures)
    fastest = max(others, key=lambda name: figures[name]["median"])
    return {"against": fastest, "ratio": ratio(figures, "ours", fastest), "figures": figures}


def models(kind: str, turns: int) -> dict[str, dict[str, Figures]]:
    """The sides of one of KINDS for each model."""
    found = {}
    for model in MODELS:
        sides = {title: (side, model) for title, side in KINDS[kind].items()}
        found[model] = measure(sides, turns)
        show(f"{kind}: {model}", "images/s", found[model])
    return found


def ratios(found: dict[str, dict[str, Figures]], other: int = 1) -> dict[str, float]:
    """For each model, the first side over another."""
    return {
        model: ratio(figures, next(iter(figures)), list(figures)[other])
        for model, figures in found.items()
    }


def helps(turns: int) -> dict[str, Any]:
    """--help against that of a bare typer app."""
    ours, bare = "stl10bench --help", "a bare typer app's --help"
    commands = {
        ours: [sys.executable, "-m", "stl10bench", "--help"],
        bare: [sys.executable, "-c", BARE_APP, "--help"],
    }
    figures = seconds(commands, 2 * turns + 1)
    show("--help", "seconds", figures)
    return {
        "seconds": figures[ours]["median"],
        "ratio": ratio(figures, ours, bare),
        "figures": figures,
    }


def starts(folder: Path, turns: int) -> dict[str, Figures]:
    """A whole short run against the import of torch, seconds."""
    train = [*(sys.executable, "-m", "stl10bench", "train", "logistic"), "--tracker", "none"]
    options = [*("--epochs", "1", "--overwrite"), "--data-dir", str(folder)]
    figures = seconds(
        {
            "900 images once, tested on 200": [*train, *options, "--runs-dir", f"{folder}/runs"],
            "import torch": [sys.executable, "-c", "import torch"],
        },
        turns,
    )
    show("start", "seconds", figures)
    return figures


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
    uint8 = 1200 * 3 * 64 * 64  # of 1,000 training and 200 test images at input size
    return {
        "images": list(folders),
        "points": points,
        "with_100000_unlabelled_images": unlabelled,
        "seconds_per_1000_images": time_,
        "anonymous_bytes_over_uint8_bytes": memory / uint8,
    }


def stacks(folder: Path, turns: int) -> dict[str, Figures]:
    """Seconds of eight settings of logistic regression at once, and of one."""
    found: dict[str, list[float]] = {f"{STACK} settings stacked": [], "one setting": []}
    for _ in range(turns):
        for title, members in zip(found, (STACK, 1), strict=True):
            found[title].append(child("stack", str(folder), str(members)))
    figures = {title: figures_of(values) for title, values in found.items()}
    show("logistic regression, five epochs of 3,600 images, tested", "seconds", figures)
    return figures


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    import torch

    from stl10bench.training.row import provenance

    return {**provenance(torch.device("cpu")), "cores": os.cpu_count()}


def summary(found: dict[str, Any]) -> Table:
    """All ratios on one screen."""
    grid = Table(title="ratios of medians", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("", *MODELS):
        grid.add_column(name, justify="right" if name else "left")
    for title, kind in (
        ("our loop / the bare step", "limit"),
        ("our loop / the peer's as it starts", "peer"),
        ("our loop / the peer's in our precision and layout", "peer_in_ours"),
        ("our evaluation / the bare forward", "evaluate"),
    ):
        grid.add_row(title, *(f"{found[kind][model]:.2f}" for model in MODELS))
    pipeline, growth = found["pipeline"], found["growth"]
    grid.caption = (
        f"our augmentation / {pipeline['against']}: {pipeline['ratio']:.2f}; "
        f"{STACK} settings stacked / one: {found['stack']:.2f}; "
        f"--help / a bare typer app's: {found['help']['ratio']:.2f}; "
        f"memory / uint8 images: {growth['anonymous_bytes_over_uint8_bytes']:.2f}"
    )
    return grid


def plot(figures: dict[str, Any], path: Path) -> None:
    """Images per second of each side, with minimum and maximum, as a picture."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(11, 2.6), layout="constrained")
    for axes, model in zip(picture.subplots(1, len(MODELS), sharey=True), MODELS, strict=True):
        bars = {**figures["limit"][model], **figures["peer"][model]}
        for height, (title, row) in enumerate(reversed(bars.items())):
            colour = "tab:blue" if title == "our loop" else "silver"
            axes.barh(height, row["median"], color=colour)
            axes.plot([row["min"], row["max"]], [height, height], color="black")
        axes.set_title(model)
        axes.set_xlabel("images/s")
        axes.set_yticks(range(len(bars)), [*reversed(bars)])
    picture.savefig(path, dpi=120)


def main(
    turns: Annotated[int, typer.Option(help="Times that each side is measured.", min=1)] = 3,
    to_json: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
    plot_to: Annotated[Path | None, typer.Option("--plot", help="Draw them (PNG, SVG).")] = None,
) -> None:
    """Measure this machine: about ten minutes a turn on two cores."""
    if plot_to and find_spec("matplotlib") is None:
        raise SystemExit("error: --plot needs: pip install 'stl10bench[plots]'")
    with tempfile.TemporaryDirectory() as name:
        folders = {size * 1000: write_noise(Path(name), size * 1000) for size in SIZES}
        pipeline = pipelines(turns)
        kinds = {kind: models(kind, turns) for kind in KINDS}
        stack = stacks(folders[4000], turns)
        found: dict[str, Any] = {
            "machine": machine(),
            "turns": turns,
            "pipeline": pipeline,
            **{kind: ratios(sides) for kind, sides in kinds.items()},
            "peer_in_ours": ratios(kinds["peer"], 2),
            "stack": ratio(stack, *stack),
            "help": helps(turns),
            "start": starts(folders[1000], turns),
            "growth": grow(folders),
            "figures": {**kinds, "stack": stack},
        }
    Console().print(summary(found))
    if to_json:
        to_json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if plot_to:
        plot(found["figures"], plot_to)


if __name__ == "__main__":
    typer.run(main)
