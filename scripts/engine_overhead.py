"""What many runs cost beside their children: start, overhead of a job, two workers against one.

    python scripts/engine_overhead.py [--runs 8]

Measure on a machine that does nothing else. The overhead is the way of a job to a worker and of its
answer back: the worker refuses these jobs, so no child is started and no file is written. For the
speed of two workers the jobs are logistic regressions on the demo data in `data/`.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from stl10bench.studies import engine, parse, plan
from stl10bench.studies.engine import Batch, Workers
from stl10bench.studies.plan import Common, Planned, Start
from stl10bench.studies.progress import Progress
from stl10bench.studies.study import points


def main() -> None:
    """Print the three figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=8)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        common = prepare(Path(folder))
        batch = Batch("overhead", common, Workers(2), Path(folder) / "log")
        begun = time.monotonic()
        with engine.opened(batch, 2, Console(quiet=True)) as pool:
            print(f"start of two workers: {time.monotonic() - begun:.2f} s")
            (planned,) = plan_runs(common, 1)
            begun = time.monotonic()
            for _ in range(runs):
                pool.submit(batch.task(planned, Path("/nowhere")))  # refused at once
                while pool.running:
                    list(pool.ended())
            print(f"a job's way to a worker and back: {(time.monotonic() - begun) / runs:.3f} s")
        seconds = []
        for workers in (1, 2):
            shared = prepare(Path(folder) / str(workers), threads=1)
            planned_runs = plan_runs(shared, runs)
            begun = time.monotonic()
            batch = Batch("speed", shared, Workers(workers), Path(folder) / "log")
            engine.train(planned_runs, batch, Progress("speed", planned_runs, Console(quiet=True)))
            seconds.append(time.monotonic() - begun)
        print(
            f"{runs} runs of one thread: {seconds[0]:.1f} s with one worker, {seconds[1]:.1f} s "
            f"with two: {seconds[0] / seconds[1]:.2f} times as fast"
        )


def prepare(runs_dir: Path, **options: Any) -> Common:
    """Demo data, no tracker."""
    fixed = {"dataset": "demo", "data_dir": Path("data"), "runs_dir": runs_dir, "device": "cpu"}
    fixed |= {"download": False, "verify": True, "tracker": "none"}
    return plan.prepare(Start(), fixed | options, Console(quiet=True))


def plan_runs(common: Common, count: int) -> Sequence[Planned]:
    """As many logistic regressions, which differ in their learning rate."""
    rates = ",".join(f"{(n + 1) / 1e4}" for n in range(count))
    study = parse.define(None, parse.Changes("logistic", vary=[f"lr={rates}"], seeds=1))
    return plan.plan_study(study, points(study), common)


if __name__ == "__main__":
    main()
