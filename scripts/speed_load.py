"""What other processes on the machine cost a run: `speed.py load`."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from speed_sides import CORES, SCRIPT, Case, machine, setup, train_on

MODEL = "fine-tuned"
# -> its share of the machine: we want all cores, and so does each run and each busy process of its
SHARES = {
    "nothing": 1.0,
    "1 busy process": CORES / (CORES + 1),
    "2 busy processes": CORES / (CORES + 2),
    "an earlier run": 0.5,  # that began alone
    "a later run": 0.5,  # ours began alone
}
# Ours chooses its threads when it starts, and they wait as the package says. Torch's take all cores
# and spin as long as libgomp lets them (its default).
OURS, TORCHS = "ours", "torch's defaults"


class Steps:
    """A process that takes steps of MODEL; it chooses its threads when it starts."""

    def __init__(self, side: str) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        command = [sys.executable, str(SCRIPT), "steps", MODEL]
        if side == TORCHS:
            environment["GOMP_SPINCOUNT"] = "300000"
            command.append(str(CORES))
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.threads = int(self._read())

    def begin(self, seconds: int) -> None:
        """Take steps for some seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()

    def rate(self) -> float:
        """Their images/s, once they are over."""
        return float(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def kill(self) -> None:
        self._process.kill()

    def communicate(self) -> None:
        self._process.communicate()


def serve(model: str, threads: int | None) -> None:
    """Print our threads, then images/s of the bare step for each number of seconds on stdin."""
    import torch

    from stl10bench.core.waiting import considerate_threads

    run = setup(Case(model, 1))
    torch.set_num_threads(threads or torch.get_num_threads())
    images = run.normalise(run.images.float().div_(255))
    train_on([(images, run.labels)] * 2, run)  # the first are slow
    print(torch.get_num_threads(), flush=True)
    with considerate_threads():
        for line in sys.stdin:
            count, started = 0, time.perf_counter()
            while (passed := time.perf_counter() - started) < float(line):
                count += train_on([(images, run.labels)], run)
            print(count / passed, flush=True)


def measure(side: str, neighbour: str, seconds: int) -> tuple[int, float]:
    """Threads and images/s of a side beside a neighbour."""
    ours = Steps(side) if neighbour == "a later run" else None
    others: list[Any] = []
    if neighbour.endswith("run"):
        others.append(Steps(side))
        others[0].begin(3600)  # until it is killed
    elif neighbour != "nothing":
        busy = [sys.executable, "-c", "while True: pass"]
        others += [subprocess.Popen(busy) for _ in range(int(neighbour[0]))]
    ours = ours or Steps(side)
    ours.begin(seconds)
    rate = ours.rate()
    for process in (ours, *others):
        process.kill()
        process.communicate()
    return ours.threads, rate


def load(
    turns: Annotated[int, typer.Option(help="Times that each side is measured.", min=1)] = 3,
    seconds: Annotated[int, typer.Option(help="Seconds of steps each time.", min=1)] = 4,
    to_json: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
) -> None:
    """Steps of a fine-tuned MobileNetV2 beside other processes: five minutes on two idle cores."""
    result: dict[str, Any] = {"machine": machine(), "turns": turns, "model": MODEL, "sides": {}}
    rates: dict[tuple[str, str], list[float]] = {}
    threads: dict[tuple[str, str], list[int]] = {}
    cases = [(side, neighbour) for neighbour in SHARES for side in (OURS, TORCHS)]
    for _ in range(turns):
        for case in cases:
            chosen, rate = measure(*case, seconds)
            rates.setdefault(case, []).append(rate)
            threads.setdefault(case, []).append(chosen)
    alone = max(statistics.median(rates[side, "nothing"]) for side in (OURS, TORCHS))
    grid = Table(title=f"{MODEL}, images/s beside", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("", "side", "threads", "min", "median", "max", "of its fair share"):
        grid.add_column(column, justify="left" if column in ("", "side") else "right")
    for side, neighbour in cases:
        some = rates[side, neighbour]
        median = statistics.median(some)
        share = median / (alone * SHARES[neighbour])
        figures = {"min": min(some), "median": median, "max": max(some), "share": share}
        counts = "/".join(map(str, sorted(set(threads[side, neighbour]))))
        result["sides"].setdefault(side, {})[neighbour] = figures | {"threads": counts}
        cells = [f"{value:,.0f}" for value in (min(some), median, max(some))]
        grid.add_row(neighbour, side, counts, *cells, f"{share:.2f}")
    Console().print(grid)
    if to_json:
        to_json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
