"""Jobs -> rows: one after another in this process's children, or by the workers of a Dask cluster.

One driver holds the plan. It gives each job to the engine once; the scheduler notices a worker that
dies and gives its job to another, where the run resumes from its checkpoint.
"""

import contextlib
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from uuid import uuid4

import psutil
from distributed import get_worker
from distributed.scheduler import KilledWorker
from filelock import FileLock, Timeout
from rich.console import Console

from stl10bench.core import cores, files
from stl10bench.core.errors import InterruptedRunError, StorageError, UsageError
from stl10bench.results.rows import Failure, Row
from stl10bench.studies import cluster, jobs
from stl10bench.studies.cluster import Rank, Workers
from stl10bench.studies.jobs import RESUME, Interrupted, Outcome, Task
from stl10bench.studies.plan import Common, Planned
from stl10bench.studies.progress import Progress
from stl10bench.training.interrupt import defer_signals, restored_signals

_LOOK = 0.2  # seconds between two looks at what has ended
_BYTES = 2 << 30  # of memory for a worker and its child


@dataclass(frozen=True)
class Batch:
    """Jobs that belong together: a study's, or a benchmark's."""

    name: str
    common: Common
    workers: Workers
    logs: Path | None  # folder of the children's messages; None: our stderr, with one worker

    def task(self, planned: Planned, home: Path) -> Task:
        assert planned.job is not None  # else there is nothing to train
        log = None if self.logs is None else self.logs / f"{planned.run}.txt"
        return Task(planned.job, home, log, (self.name, *planned.labels) if planned.labels else ())


class Pool:
    """Trains jobs, `size` at once; while it is open, signals that come to us go to all of them."""

    def __init__(
        self,
        executor: Executor,
        train: Callable[[Task], Outcome],
        size: int,
        home: Path,
        signalled: Callable[[], int],
    ) -> None:
        self.size = size
        self.home = home
        self._executor = executor
        self._train = train
        self._signalled = signalled
        self._futures: dict[Future[Outcome], Task] = {}

    @property
    def running(self) -> list[str]:
        """The runs that have been submitted and have not ended."""
        return [task.run for task in self._futures.values()]

    def submit(self, task: Task) -> None:
        """Have a job trained as soon as there is a worker for it."""
        (self.home / f"stop-{task.run}").unlink(missing_ok=True)
        self._futures[self._executor.submit(self._train, task)] = task

    def stop(self, run: str) -> None:
        """Ask a run to save and leave."""
        jobs.ask_to_stop(self.home, run, signal.SIGTERM)

    def ended(self) -> Iterator[tuple[str, Outcome]]:
        """The runs that have ended since the last look, which may take a fifth of a second.

        In the order in which they were submitted.

        Raises InterruptedRunError when we were asked to stop: then all runs have saved and left.
        """
        done, _ = wait(self._futures, timeout=_LOOK, return_when=FIRST_COMPLETED)
        if number := self._signalled():
            self.leave(number)
            raise InterruptedRunError(RESUME, 128 + number)
        for future in [each for each in self._futures if each in done]:  # as they were submitted
            task = self._futures.pop(future)
            yield task.run, _result(future, task)

    def leave(self, number: int) -> None:
        """Send a signal to all runs and wait until they have saved and left."""
        if self._futures:
            jobs.ask_to_stop(self.home, None, number)
            wait(self._futures)


def _result(future: "Future[Outcome]", task: Task) -> Outcome:
    try:
        return future.result()
    except KilledWorker:
        times = cluster.DEATHS + 1
        text = f"its worker died {times} times, perhaps out of memory: use fewer --workers"
        return jobs.failure(task.job.config, text)
    except CancelledError:
        raise StorageError(f"lost the connection to the scheduler. {RESUME}") from None


def train(planned: Sequence[Planned], batch: Batch, progress: Progress) -> dict[str, Row | Failure]:
    """Train what is missing; returns the row of each run, or why it has none.

    Raises InterruptedRunError, also for a run that somebody else, or its own limit, interrupted.
    """
    for place in planned:
        if place.job is not None and (finished := jobs.known_outcome(place.job)) is not None:
            progress.outcomes[place.job.config.name] = finished
    missing = [place for place in planned if place.run and place.run not in progress.outcomes]
    if not missing:
        return progress.outcomes
    with opened(batch, len(missing), progress.console) as pool, progress:
        for place in missing:
            pool.submit(batch.task(place, pool.home))
        while pool.running:
            for run, outcome in pool.ended():
                if isinstance(outcome, Interrupted):
                    raise InterruptedRunError(outcome.reason, outcome.exit_code)
                progress.ended(run, outcome)
            progress.tick()
    return progress.outcomes


@contextmanager
def opened(batch: Batch, most: int, console: Console) -> Iterator[Pool]:
    """Workers for at most `most` jobs at once; at the end they are gone, and so is what they left.

    Raises UsageError for workers that cannot be, StorageError for a runs folder that is not shared.
    """
    with (
        restored_signals(),
        _home(batch.common.runs_dir) as home,
        _connect(batch, most, home, defer_signals(), console) as pool,
    ):
        try:
            yield pool
        finally:
            pool.leave(signal.SIGTERM)


@contextmanager
def _connect(
    batch: Batch, most: int, home: Path, signalled: Callable[[], int], console: Console
) -> Iterator[Pool]:
    """The pool on the workers that are asked for: of a launcher, a scheduler, or this machine."""
    workers, world = batch.workers, Rank.here().world
    gpus, threads = _gpus(batch.common.device), batch.common.options.get("threads")
    ours = workers.scheduler is None and world == 1
    if workers.workers is not None and not ours:
        raise UsageError(
            f"--workers {workers.workers}: the launcher or the scheduler sets the number of "
            "workers; leave out --workers"
        )
    # Once for all runs, so that their seconds can be compared; other machines choose themselves.
    free = cores.free() if ours and threads is None else cores.count()
    size = min(workers.workers or default_size(gpus, threads, free), most) if ours else world
    if ours and size == 1:  # no cluster: a thread of ours starts one child after the other
        with ThreadPoolExecutor(1) as executor:
            train = partial(_train_here, threads=free)
            yield Pool(executor, train, 1, home, signalled)
        return
    with cluster.connect(workers, size, console) as client:
        slots, total = cluster.slots(client, home)
        size = size if workers.scheduler is None else total
        each = threads or max(1, free // slots)
        more = " (change with --workers N)" if ours else ""
        counts = f"{size} worker{'s'[: size - 1]}, {each} thread{'s'[: each - 1]} each"
        console.print(f"{counts}{more}", highlight=False, soft_wrap=True)
        train = partial(_train_on_worker, slots=slots, gpus=gpus, threads=each if ours else None)
        yield Pool(client.get_executor(pure=False), train, size, home, signalled)


def _train_here(task: Task, threads: int) -> Outcome:
    """Train a job in a child of this process, with `threads` unless it has its own."""
    job = task.job.model_copy(update={"threads": task.job.threads or threads})
    return jobs.train(replace(task, job=job))


def _train_on_worker(task: Task, slots: int, gpus: int, threads: int | None) -> Outcome:
    """Train a job on a Dask worker, with its share of the machine."""
    name = str(get_worker().name).partition("@")[0]
    threads = task.job.threads or threads or max(1, cores.count() // slots)
    job = task.job.model_copy(update={"threads": threads})
    environment = jobs.child_environment(
        task,
        threads=threads,
        slot=int(name) if name.isdigit() else None,
        gpus=gpus if slots > 1 else 0,
    )
    return jobs.train(replace(task, job=job), environment)


def default_size(gpus: int, threads: int | None, free: int) -> int:
    """A worker for each GPU; else as many as the `free` cores and the memory allow."""
    if gpus:
        return gpus
    by_memory = psutil.virtual_memory().available // _BYTES
    return int(max(1, min(free // (threads or 1), by_memory)))


def _gpus(device: str) -> int:
    if device != "cuda":
        return 0
    from torch import cuda

    return int(cuda.device_count())


@contextmanager
def _home(runs_dir: Path) -> Iterator[Path]:
    """A folder of this driver in the runs folder, which its workers see, too; gone at the end.

    What drivers that were killed left goes first. Raises StorageError.
    """
    studies = runs_dir / "studies"
    home = studies / f".driver-{uuid4().hex[:8]}"
    with files.storage_errors(f"cannot write the runs folder {runs_dir}"):
        for left in studies.glob(".driver-*"):
            with contextlib.suppress(Timeout), FileLock(left / "lock", timeout=0):
                shutil.rmtree(left, ignore_errors=True)
        home.mkdir(parents=True)
        lock = FileLock(home / "lock", timeout=0).acquire()
    with lock:
        yield home
        shutil.rmtree(home, ignore_errors=True)
