"""What many runs cost beside their children: start, overhead of a job, two workers against one.

    python scripts/engine_overhead.py [--runs 8]

Measure on a machine that does nothing else, with Linux. Each run is a logistic regression on the
demo data in `data/`, in a child of one thread. The overhead of a job is the time of all workers,
from the first job's submission to the last one's answer, less that of the children from their start
to their end, which the kernel tells, and less the waiting of a worker for whom no job is left.
"""

import argparse
import contextlib
import os
import select
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from stl10bench.studies import engine, parse, plan
from stl10bench.studies.cluster import Workers
from stl10bench.studies.engine import Batch
from stl10bench.studies.plan import Common, Planned, Start
from stl10bench.studies.progress import Progress
from stl10bench.studies.study import points

QUIET = Console(quiet=True)


class Stopwatch(Progress):
    """When the first job was submitted and when the last one had ended."""

    def __enter__(self) -> "Progress":
        self.begun = time.monotonic()
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        self.done = time.monotonic()
        super().__exit__(*error)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=8)
    runs = parser.parse_args().runs
    totals = []
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            common = prepare(Path(folder), threads=1)
            planned = plan_runs(common, runs)
            watch = Stopwatch("overhead", planned, QUIET)
            batch = Batch("overhead", common, Workers(workers), Path(folder) / "log")
            begun = time.monotonic()
            with children() as lives:
                engine.train(planned, batch, watch)
            totals.append(time.monotonic() - begun)
        assert len(lives) == runs, f"{len(lives)} children were seen, not {runs}"
        seconds = sum(ended - started for started, ended in lives)
        last_ends = sorted(ended for _, ended in lives)[-workers:]
        idle = sum(last_ends[-1] - ended for ended in last_ends)
        overhead = (workers * (watch.done - watch.begun) - seconds - idle) / runs
        print(
            f"{workers} worker{'s'[: workers - 1]}: start {watch.begun - begun:.2f} s, {runs} runs "
            f"{watch.done - watch.begun:.1f} s, their children {seconds:.1f} s in all: "
            f"{overhead:.3f} s a job beyond its child; end {totals[-1] + begun - watch.done:.2f} s"
        )
    print(
        f"two workers are {totals[0] / totals[1]:.2f} times as fast as one, start and end included"
    )


def prepare(runs_dir: Path, **options: Any) -> Common:
    """Demo data, no tracker."""
    fixed = {"dataset": "demo", "data_dir": Path("data"), "runs_dir": runs_dir, "device": "cpu"}
    fixed |= {"download": False, "verify": True, "tracker": "none"}
    return plan.prepare(Start(), fixed | options, QUIET)


def plan_runs(common: Common, count: int) -> Sequence[Planned]:
    """As many logistic regressions, which differ in their learning rate."""
    rates = ",".join(f"{(n + 1) / 1e4}" for n in range(count))
    study = parse.define(None, parse.Changes("logistic", vary=[f"lr={rates}"], seeds=1))
    return plan.plan_runs(points(study), study.recipe, common)


@contextmanager
def children() -> Iterator[list[tuple[float, float]]]:
    """From when to when each process lived that trained a job below us meanwhile, in seconds."""
    lives: list[tuple[float, float]] = []
    threads: dict[int, threading.Thread] = {}
    over = threading.Event()

    def wait(descriptor: int, begun: float) -> None:
        select.select([descriptor], [], [])  # readable when the process has ended
        lives.append((begun, time.clock_gettime(time.CLOCK_BOOTTIME)))
        os.close(descriptor)

    def look() -> None:
        while not over.wait(0.5):  # a child imports torch first: none lives for less
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                    if child.pid not in threads and "--job" in child.cmdline():
                        of_child = (os.pidfd_open(child.pid), start_of(child.pid))
                        threads[child.pid] = threading.Thread(target=wait, args=of_child)
                        threads[child.pid].start()

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield lives
    finally:
        over.set()
        looking.join()
        for thread in threads.values():
            thread.join()


def start_of(pid: int) -> float:
    """When a process was started, in seconds of the clock that counts from the machine's start."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(after_name[19]) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
