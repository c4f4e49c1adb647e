"""Jobs -> rows: one after another in this process's children, or by the workers of a Dask cluster.

One driver holds the plan. It gives each job to the engine once; the scheduler notices a worker that
dies and gives its job to another, where the run resumes from its checkpoint.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

import dask
import psutil
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster, Nanny, Security, Worker, WorkerPlugin, get_worker
from distributed.scheduler import KilledWorker
from filelock import FileLock, Timeout
from rich.console import Console

from stl10bench.core import files
from stl10bench.core.errors import InterruptedRunError, StorageError, UsageError
from stl10bench.results.rows import Failure, Row
from stl10bench.studies import jobs
from stl10bench.studies.jobs import RESUME, Interrupted, Task
from stl10bench.studies.plan import Common, Planned
from stl10bench.studies.progress import Progress
from stl10bench.training.interrupt import deferred_signals

LOOPBACK = "127.0.0.1"
_LOOK = 0.2  # seconds between two looks at what has ended
_JOINING = 300  # seconds in which the processes of a launcher find each other
_BYTES = 2 << 30  # of memory for a worker and its child
_DEATHS = 3  # workers that may die of a job before it is given up
_SETTINGS = {
    "distributed.scheduler.allowed-failures": _DEATHS,
    "distributed.scheduler.worker-saturation": 1.0,  # no job waits at a busy worker
}
_ADDRESS = "scheduler"  # where rank 0 of a launcher says where it is


class Workers(NamedTuple):
    """Who trains: so many workers on this machine, or those of a Dask scheduler."""

    workers: int | None = None
    scheduler: str | None = None  # tcp://HOST:PORT or tls://HOST:PORT
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    def security(self) -> Security:
        """TLS by the three files; without them Dask's own configuration. Raises UsageError."""
        given = {"--tls-ca": self.tls_ca, "--tls-cert": self.tls_cert, "--tls-key": self.tls_key}
        if not any(given.values()):
            return Security()
        for option, path in given.items():
            if path is None:
                raise UsageError(f"{option} is missing: TLS needs all three")
            if not path.is_file():
                raise UsageError(f"{option} {path}: no such file")
        names = {"cert": str(self.tls_cert), "key": str(self.tls_key)}
        own = {
            f"tls_{role}_{kind}": file
            for role in ("client", "scheduler", "worker")
            for kind, file in names.items()
        }
        return Security(require_encryption=True, tls_ca_file=str(self.tls_ca), **own)


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
        self, size: int, home: Path, signalled: Callable[[], int], start: Callable[[Task], Any]
    ) -> None:
        self.size = size
        self.home = home
        self._signalled = signalled
        self._start = start
        self._futures: dict[Future[Row | Failure | Interrupted], Task] = {}

    @property
    def running(self) -> list[str]:
        """The runs that have been submitted and have not ended."""
        return [task.run for task in self._futures.values()]

    def submit(self, task: Task) -> None:
        """Have a job trained as soon as there is a worker for it."""
        (self.home / f"stop-{task.run}").unlink(missing_ok=True)
        self._futures[self._start(task)] = task

    def stop(self, run: str) -> None:
        """Ask a run to save and leave."""
        jobs.ask_to_stop(self.home, run, signal.SIGTERM)

    def ended(self) -> Iterator[tuple[str, Row | Failure | Interrupted]]:
        """The runs that have ended since the last look, which may take a fifth of a second.

        Raises InterruptedRunError when we were asked to stop: then all runs have saved and left.
        """
        done, _ = wait(self._futures, timeout=_LOOK, return_when=FIRST_COMPLETED)
        if number := self._signalled():
            self.leave(number)
            raise InterruptedRunError(RESUME, 128 + number)
        for future in done:
            task = self._futures.pop(future)
            yield task.run, _result(future, task)

    def leave(self, number: int) -> None:
        """Send a signal to all runs and wait until they have saved and left."""
        if self._futures:
            jobs.ask_to_stop(self.home, None, number)
            wait(self._futures)


def _result(
    future: "Future[Row | Failure | Interrupted]", task: Task
) -> Row | Failure | Interrupted:
    try:
        return future.result()
    except KilledWorker:
        text = f"its worker died {_DEATHS + 1} times: is there enough memory? Try fewer --workers"
        return jobs.failure(task.job.config, text)
    except CancelledError:
        raise StorageError(f"the scheduler is gone. {RESUME}") from None


def train(planned: Sequence[Planned], batch: Batch, progress: Progress) -> dict[str, Row | Failure]:
    """Train what is missing; returns the row of each run, or why it has none.

    Raises InterruptedRunError, also for a run that somebody else, or its own limit, interrupted.
    """
    for place in planned:
        if place.job is not None and (finished := jobs.known_outcome(place.job)) is not None:
            progress.skip(place, finished)
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
    with ExitStack() as stack:
        signalled = stack.enter_context(deferred_signals())
        home = stack.enter_context(_home(batch.common.runs_dir))
        pool = stack.enter_context(_connect(batch, most, home, signalled, console))
        try:
            yield pool
        finally:
            pool.leave(signal.SIGTERM)


@contextmanager
def _connect(
    batch: Batch, most: int, home: Path, signalled: Callable[[], int], console: Console
) -> Iterator[Pool]:
    """The pool on the workers that are asked for: of a launcher, a scheduler, or this machine."""
    workers, rank = batch.workers, Rank.here()
    gpus, threads = _gpus(batch.common.device), batch.common.options.get("threads")
    elsewhere = workers.scheduler is not None
    if workers.workers is not None and (elsewhere or rank.world > 1):
        raise UsageError(
            f"--workers {workers.workers}: the launcher or the scheduler has the workers; "
            "leave it out"
        )
    size = rank.world
    if not elsewhere and rank.world == 1:
        size = min(workers.workers or default_size(gpus, threads), most)
        if size == 1:  # no cluster: a thread of ours starts one child after the other
            with ThreadPoolExecutor(1) as executor:

                def start(task: Task) -> Any:
                    return executor.submit(jobs.train, task, jobs.child_environment(task))

                yield Pool(1, home, signalled, start)
            return
    with dask.config.set(_SETTINGS), ExitStack() as stack:
        cluster = (
            _scheduler(workers, console) if elsewhere else _cluster(rank, size, batch, console)
        )
        client = stack.enter_context(cluster)
        slots, total = _slots(client, home)
        executor_of_dask = client.get_executor(pure=False)

        def submit(task: Task) -> Any:
            key = f"{task.run}-{home.name[1:]}-{uuid4().hex[:4]}"
            return executor_of_dask.submit(_train_on_worker, task, slots, gpus, key=key)

        size = total if elsewhere else size
        each = threads or max(1, CPU_COUNT // slots)
        more = "; --workers N changes that" if not elsewhere and rank.world == 1 else ""
        console.print(f"{size} workers, {each} thread{'s'[: each - 1]} each{more}", highlight=False)
        yield Pool(size, home, signalled, submit)


def default_size(gpus: int, threads: int | None) -> int:
    """A worker for each GPU; else as many as cores and memory allow."""
    if gpus:
        return gpus
    by_memory = psutil.virtual_memory().available // _BYTES
    return int(max(1, min(CPU_COUNT // (threads or 1), by_memory)))


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


# Clusters


class Rank(NamedTuple):
    """Our place among the processes of torchrun or `accelerate launch`; alone without one."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> "Rank":
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        return cls(*(int(environment.get(name, name.endswith("SIZE"))) for name in names))

    @property
    def name(self) -> str:
        """Of its worker: the slot on its machine, and what tells it from those of others."""
        return f"{self.local_rank}@{self.rank}"


@contextmanager
def _cluster(rank: Rank, size: int, batch: Batch, console: Console) -> Iterator[Client]:
    """A scheduler here, on loopback unless a launcher has other machines, and its workers.

    Under a launcher the other processes join as workers; ours is one, too.
    """
    host = LOOPBACK if rank.world == rank.local_world else _own_address()
    security = batch.workers.security()
    _warn_if_open(host, security, console)
    with (
        LocalCluster(
            n_workers=1 if rank.world > 1 else size,
            threads_per_worker=1,
            host=host,
            protocol="tls://" if security.require_encryption else "tcp://",
            security=security,
            memory_limit=None,
            silence_logs=logging.CRITICAL,
            scheduler_kwargs={"dashboard": False, "dashboard_address": f"{host}:0"},
        ) as cluster,
        Client(cluster, security=security, set_as_default=False) as client,
    ):
        client.register_plugin(_IgnoreCtrlC())
        if rank.world > 1:
            _store(rank).set(_ADDRESS, cluster.scheduler_address)
            try:
                client.wait_for_workers(size, timeout=_JOINING)
            except TimeoutError:
                raise StorageError(
                    f"not all of the launcher's {size} processes joined within {_JOINING} s: can "
                    f"they reach {cluster.scheduler_address}?"
                ) from None
        yield client


@contextmanager
def _scheduler(workers: Workers, console: Console) -> Iterator[Client]:
    """A scheduler that runs already. Raises UsageError."""
    address = str(workers.scheduler)
    security = workers.security()
    url = urlsplit(address)
    if url.scheme not in ("tcp", "tls") or url.hostname is None:
        raise UsageError(f"--scheduler {address}: must be tcp://HOST:PORT or tls://HOST:PORT")
    if url.scheme == "tcp":
        _warn_if_open(url.hostname, Security(require_encryption=False), console)
    try:
        client = Client(address, security=security, set_as_default=False, timeout=10)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise UsageError(
            f"--scheduler {address}: no connection ({type(error).__name__}); start it with "
            "'dask scheduler', and workers with 'dask worker ADDRESS --nthreads 1'"
        ) from None
    with client:
        yield client


def _warn_if_open(host: str, security: Security, console: Console) -> None:
    """Dask's messages are pickles: whoever can send some can run code."""
    if security.require_encryption or host in (LOOPBACK, "localhost", "::1"):
        return
    console.print(
        f"warning: {host} is not loopback and there is no TLS: whoever reaches the port can run "
        "code as you; use --tls-ca, --tls-cert and --tls-key, or a network of your own",
        highlight=False,
        soft_wrap=True,
    )


def _own_address() -> str:
    """Our address as the other machines of a launcher know it."""
    address = socket.gethostbyname(os.environ["MASTER_ADDR"])
    if not address.startswith("127."):
        return address
    from distributed.utils import get_ip

    return str(get_ip())


def _slots(client: Client, home: Path) -> tuple[int, int]:
    """The jobs that are trained at once: the most of a machine, and those of all of them.

    Raises StorageError for a worker that does not see the runs folder.
    """
    seen = client.run(Path.is_dir, home)
    if blind := [worker for worker, sees in seen.items() if not sees]:
        raise StorageError(
            f"worker {blind[0]} does not see {home.parent.parent}: the runs folder must be on a "
            "disk that the driver and all workers share, under the same path"
        )
    threads: Counter[str] = Counter()
    for worker in client.scheduler_info(n_workers=-1)["workers"].values():
        threads[worker["host"]] += worker["nthreads"]
    if not threads:  # a cluster that grows with its jobs
        return 1, 1
    return max(threads.values()), sum(threads.values())


class _IgnoreCtrlC(WorkerPlugin):
    """A terminal's Ctrl-C reaches the workers, too: what is to stop is said by the driver."""

    name = "ignore-ctrl-c"

    def setup(self, worker: Worker) -> None:  # noqa: ARG002
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _train_on_worker(task: Task, slots: int, gpus: int) -> Row | Failure | Interrupted:
    """Train a job on a Dask worker, with its share of the machine."""
    name = str(get_worker().name).partition("@")[0]
    threads = task.job.threads or max(1, CPU_COUNT // slots)
    job = task.job.model_copy(update={"threads": threads})
    environment = jobs.child_environment(
        task,
        threads=threads,
        slot=int(name) if name.isdigit() else None,
        gpus=gpus if slots > 1 else 0,
    )
    return jobs.train(replace(task, job=job), environment)


@cache
def _store(rank: Rank) -> Any:
    """The launcher's own store, else one of rank 0, where that says where its scheduler is."""
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    launchers = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=rank.rank == 0 and not launchers,
        wait_for_workers=False,
        timeout=timedelta(hours=1),  # rank 0 may have to download the data first
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"stl10bench-{attempt}", store)


def dismiss() -> None:
    """Tell the launcher's other processes that there is nothing to do, unless they have worked."""
    rank = Rank.here()
    if rank.world > 1 and not _store(rank).check([_ADDRESS]):
        _store(rank).set(_ADDRESS, "")
        time.sleep(5 * _LOOK)  # until they have read it: the store may be ours


def serve(workers: Workers) -> None:
    """Be a worker of rank 0's scheduler until it closes, or until there is nothing to do.

    Signals are the driver's: it tells the runs to save and leave, then closes the scheduler.
    """
    rank = Rank.here()
    while not _store(rank).check([_ADDRESS]):
        time.sleep(_LOOK)
    if address := _store(rank).get(_ADDRESS).decode():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        asyncio.run(_serve(address, rank, workers.security()))


async def _serve(address: str, rank: Rank, security: Security) -> None:
    with warnings.catch_warnings(action="ignore"):
        async with Nanny(
            address,
            nthreads=1,
            name=rank.name,
            memory_limit=0,
            security=security,
            death_timeout=10,
            dashboard=False,
            silence_logs=logging.CRITICAL,
        ) as nanny:
            await nanny.finished()
