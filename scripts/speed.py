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
    uint8 = 1200 * 3 * 64 * 64  # of 1,000 training and 200 test images at input size
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
    figures = {title: figures_of(values) for title, values in found.items()}
    show("logistic regression, five epochs of 3,600 images, tested", "seconds", figures)
    one, together = figures
    return {"seconds": figures, "ratio": ratio(figures, together, one)}


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    import torch

    from stl10bench.device import provenance

    return {**provenance(torch.device("cpu")), "cores": os.cpu_count()}


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
        for height, (title, figures) in enumerate(bars.items()):
            colour = "tab:blue" if title == "our loop" else "silver"
            axes.barh(height, figures["median"], color=colour)
            axes.plot([figures["min"], figures["max"]], [height, height], color="black")
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
        plain = json.dumps(found, indent=2)
        to_json.write_text(plain + "\n", encoding="utf-8")
    if plot_to:
        plot(found, plot_to)


if __name__ == "__main__":
    typer.run(main)
