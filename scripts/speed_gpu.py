"""What a GPU changes, each thing tried once: `scripts/gpu_check.sh`."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from speed_sides import MODELS, child, machine

SIDES = ("loop", "step", "peer", "peer-tuned", "evaluate", "forward")
_BATCHES = 64  # an epoch: several for each of the peers' workers
_SESSIONS = 20  # that a run may be interrupted in

OUTPUT = Path("gpu_check.json")

Figures = dict[str, Any]
Results = Iterator[tuple[str, Figures]]  # what was measured, its figures


class Check(NamedTuple):
    """What is checked, where, and on what."""

    device: str
    precisions: tuple[str, ...]
    reduced: bool
    data: list[str]  # options of every run
    weights: Path
    models: tuple[str, ...]  # of MODELS, for rows and speeds
    turns: int  # of speeds
    cards: int
    folder: Path  # for runs

    def train(
        self, model: str, runs: str, *options: str, launcher: tuple[str, ...] = ()
    ) -> Figures:
        """The row of one of MODELS, or its `error`; and the exit code."""
        name, _, settings = MODELS[model]
        words = [sys.executable, *launcher, "-m", "stl10bench", "train", name, *self.data]
        words += ["--device", self.device, "--tracker", "none", "--json"]
        words += ["--runs-dir", str(self.folder / runs)]
        if "freeze" in settings:
            words += ["--weights", str(self.weights)]
            words.append("--freeze" if settings["freeze"] else "--no-freeze")
        if self.reduced:
            words += ["--recipe", "quick", "--epochs", "2", "--image-size", "32"]
        ended = subprocess.run([*words, *options], capture_output=True, text=True, check=False)
        printed = ended.stdout.strip()
        if ended.returncode == 0 or printed.startswith("{"):  # else it ended without an answer
            return {"exit_code": ended.returncode, **json.loads(printed)}
        return {"exit_code": ended.returncode, "error": ended.stderr[-500:]}


def rows(check: Check) -> Results:
    """The rows in each precision."""
    models = [model for model in check.models if not (check.reduced and model == "cnn")]
    for model in models:
        for precision in check.precisions:
            yield f"{model} {precision}", check.train(model, "rows", "--precision", precision)


def compiled(check: Check) -> Results:
    """Rows with --compile, and as many images/s as their last epoch had, without its compiling."""
    for model in ("mlp",) if check.reduced else ("fine-tuned", "cnn"):
        row = check.train(model, "compiled", "--precision", check.precisions[0], "--compile")
        if "run" in row:
            log = check.folder / "compiled" / row["run"] / "metrics.jsonl"
            lines = map(json.loads, log.read_text().splitlines())
            speeds = [line["images_per_second"] for line in lines if "images_per_second" in line]
            row["last_images_per_second"] = speeds[-1]
        yield model, row


def resumed(check: Check) -> Results:
    """The same run again, and interrupted in the middle: how far its weights are from the first's.

    The largest difference of a weight; 0: the same bits.
    """
    model = "mlp" if check.reduced else "fine-tuned"
    for kind, options in (("as it is", ()), ("--deterministic", ("--deterministic",))):
        precision = ("--precision", check.precisions[0])
        first = check.train(model, f"first {kind}", *precision, *options)
        if "run" not in first:
            yield kind, first
            continue
        again = check.train(model, f"again {kind}", *precision, *options)
        minutes = str(first["train_seconds"] / 2 / 60)
        for _ in range(_SESSIONS):
            row = check.train(
                model, f"resumed {kind}", *precision, *options, "--max-minutes", minutes
            )
            if row.get("exit_code") not in (130, 143):
                break
        ended = {"again": again, "resumed": row}
        yield (
            kind,
            {
                how: difference(check.folder, first, f"first {kind}", f"{how} {kind}")
                if "run" in its
                else its
                for how, its in ended.items()
            },
        )


def difference(folder: Path, row: Figures, one: str, other: str) -> float:
    """The largest difference of a weight after the last epoch."""
    from safetensors.torch import load_file

    files = (folder / name / row["run"] / "last.safetensors" for name in (one, other))
    first, second = map(load_file, files)
    return max((first[key].double() - second[key].double()).abs().max().item() for key in first)


def speeds(check: Check) -> Results:
    """Images/s of our loop, the bare step, the peers and evaluation; medians of some turns."""
    for model in ("mlp", "frozen") if check.reduced else check.models:
        batches = 2 if check.reduced else _BATCHES
        options = ("--device", check.device, "--precision", check.precisions[0])
        values: dict[str, list[float]] = {}
        for _ in range(check.turns):
            for side in SIDES:
                value = child("side", side, model, str(batches), *options)
                values.setdefault(side, []).append(value)
        yield model, {side: statistics.median(some) for side, some in values.items()}


def together(check: Check) -> Results:
    """The same run by one process and by two, where there are two GPUs or no GPU is asked for."""
    if check.device != "cpu" and check.cards < 2:
        return
    model = "mlp" if check.reduced else "fine-tuned"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    precision = ("--precision", check.precisions[0])
    yield "1 process", check.train(model, "one", *precision)
    yield "2 processes", check.train(model, "two", *precision, launcher=launcher)


PARTS: dict[str, Callable[[Check], Results]] = {
    "rows": rows,
    "compiled": compiled,
    "resumed": resumed,
    "processes": together,
    "speeds": speeds,
}


def show(title: str, result: dict[str, Any]) -> None:
    """Print what was found."""
    console = Console()
    columns = ("test_accuracy", "images_per_second", "train_seconds", "peak_memory_mb")
    runs = [(name, row) for name, row in result.get("rows", {}).items()]
    runs += [(f"{name} --compile", row) for name, row in result.get("compiled", {}).items()]
    runs += list(result.get("processes", {}).items())
    grid = table_of(title, columns)
    for name, row in runs:
        if "error" in row:
            grid.add_row(name, row["error"])
            continue
        accuracy, *others = (row[column] for column in columns)
        grid.add_row(name, f"{accuracy:.4f}", *(f"{value:,.1f}" for value in others))
    console.print(grid)
    grid = table_of("images/s", (*SIDES, "loop / step", "loop / peer-tuned"))
    for model, values in result.get("speeds", {}).items():
        cells = [f"{values[side]:,.0f}" for side in SIDES]
        ratios = [values["loop"] / values[side] for side in ("step", "peer-tuned")]
        grid.add_row(model, *cells, *(f"{ratio:.2f}" for ratio in ratios))
    console.print(grid)
    for kind, found in result.get("resumed", {}).items():
        console.print(f"same run {kind}: {found}", highlight=False)


def table_of(title: str, columns: tuple[str, ...]) -> Table:
    """A table without rows, whose first column has no header."""
    grid = Table("", title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        grid.add_column(column, justify="right")
    return grid


def gpu(
    chosen: Annotated[
        list[str] | None, typer.Argument(help=f"Some of {', '.join(PARTS)}.", metavar="[PART]...")
    ] = None,
    device: Annotated[str, typer.Option(help="cuda, or cpu to rehearse.")] = "cuda",
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder that contains stl10_binary/; else demo data.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="timm's weights of mobilenetv2_100; else random ones.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help=f"Some of {', '.join(MODELS)}.", metavar="MODEL")
    ] = None,
    turns: Annotated[int, typer.Option(help="Times that each side is measured.", min=1)] = 3,
    reduced: Annotated[
        bool, typer.Option("--reduced", help="Fewer and smaller runs: minutes on a CPU.")
    ] = False,
    to_json: Annotated[Path, typer.Option("--json", help="File to write.")] = OUTPUT,
) -> None:
    """Try on a CUDA machine all that a GPU changes; writes JSON, prints a table."""
    import torch

    chosen = chosen or list(PARTS)
    models = tuple(only or MODELS)
    for kind, names, known in (("part", chosen, PARTS), ("model", models, MODELS)):
        if unknown := set(names) - set(known):
            sys.exit(f"error: unknown {kind} {min(unknown)!r}: choose from {', '.join(known)}")
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: torch finds no CUDA device: rehearse with --device cpu --reduced")
    cards = torch.cuda.device_count() if device == "cuda" else 0
    card = torch.cuda.get_device_name() if cards else device
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = ["--dataset", "demo", "--data-dir", str(folder / "data")]
        if data_dir is not None:
            data = ["--data-dir", str(data_dir), "--no-verify"]
        precisions = ("bf16", "fp16") if device == "cuda" else ("bf16", "no")
        file = weights or random_weights(folder)
        runs = folder / "runs"
        check = Check(device, precisions, reduced, data, file, models, turns, cards, runs)
        result: dict[str, Any] = {
            "machine": machine()
            | {"card": card, "cards": cards, "cuda": torch.version.cuda, "reduced": reduced},
            "data": "demo" if data_dir is None else "STL-10 layout",
            "weights": "random" if weights is None else weights.name,
        }
        for part in chosen:
            result[part] = {}
            for name, figures in PARTS[part](check):
                print(f"{part}: {name}", file=sys.stderr, flush=True)
                result[part][name] = figures  # written at once: a check that is stopped keeps it
                to_json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    result["load_average_after"] = os.getloadavg()
    to_json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    show(f"{card}, {result['data']} data, {result['weights']} weights", result)


def random_weights(folder: Path) -> Path:
    """A file of random weights of MobileNetV2: they test everything but the accuracy."""
    import timm
    from safetensors.torch import save_model

    path = folder / "random.safetensors"
    save_model(timm.create_model("mobilenetv2_100"), str(path))
    return path
