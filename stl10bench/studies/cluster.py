"""Dask's workers: of this machine, of a launcher's processes, or of a scheduler that runs already.

Nothing listens beyond loopback unless a launcher has other machines.
"""

import asyncio
import logging
import os
import signal
import socket
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import dask
from distributed import Client, LocalCluster, Nanny, Security, Worker, WorkerPlugin
from distributed.utils import get_ip
from rich.console import Console

from stl10bench.core.errors import StorageError, UsageError

LOOPBACK = "127.0.0.1"
DEATHS = 3  # workers that may die of a job before it is given up
_LOOK = 0.2  # seconds between two looks at the launcher's store
_JOINING = 300  # seconds in which the processes of a launcher find each other
_SETTINGS = {
    "distributed.scheduler.allowed-failures": DEATHS,
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
                raise UsageError(f"Missing {option}: TLS needs --tls-ca, --tls-cert and --tls-key")
            if not path.is_file():
                raise UsageError(f"{option} {path}: no such file")
        names = {"cert": str(self.tls_cert), "key": str(self.tls_key)}
        own = {
            f"tls_{role}_{kind}": file
            for role in ("client", "scheduler", "worker")
            for kind, file in names.items()
        }
        return Security(require_encryption=True, tls_ca_file=str(self.tls_ca), **own)


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
def connect(workers: Workers, size: int, console: Console) -> Iterator[Client]:
    """A client of the workers that are asked for; on this machine `size` of them are started.

    Raises UsageError for a scheduler that cannot be reached, StorageError for missing processes.
    """
    elsewhere = workers.scheduler is not None
    chosen = _scheduler(workers, console) if elsewhere else _cluster(workers, size, console)
    with dask.config.set(_SETTINGS), chosen as client:
        yield client


@contextmanager
def _cluster(workers: Workers, size: int, console: Console) -> Iterator[Client]:
    """A scheduler here, on loopback unless a launcher has other machines, and its workers.

    Under a launcher the other processes join as workers; ours is one, too.
    """
    rank = Rank.here()
    host = LOOPBACK if rank.world == rank.local_world else _own_address()
    security = workers.security()
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
                    f"some of the launcher's {size} processes did not join within {_JOINING} s: "
                    f"check that they can reach {cluster.scheduler_address}"
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
    # Dask itself fails late here, and after 20 s again.
    if url.scheme == "tls" and security.get_connection_args("client")["ssl_context"] is None:
        raise UsageError(
            f"--scheduler {address}: TLS needs --tls-ca, --tls-cert and --tls-key, or Dask's own "
            "configuration"
        )
    if url.scheme == "tcp":
        _warn_if_open(url.hostname, Security(require_encryption=False), console)
    try:
        client = Client(address, security=security, set_as_default=False, timeout=10)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise UsageError(
            f"--scheduler {address}: cannot connect ({type(error).__name__}); start a scheduler "
            "with 'dask scheduler' and workers with 'dask worker ADDRESS --nthreads 1'"
        ) from None
    with client:
        yield client


def _warn_if_open(host: str, security: Security, console: Console) -> None:
    """Dask's messages are pickles: whoever can send some can run code."""
    if security.require_encryption or host in (LOOPBACK, "localhost", "::1"):
        return
    console.print(
        f"warning: {host} is not loopback and TLS is off: anyone who can reach the port can run "
        "code as you; use --tls-ca, --tls-cert and --tls-key, or a private network",
        highlight=False,
        soft_wrap=True,
    )


def _own_address() -> str:
    """Our address as the other machines of a launcher know it."""
    address = socket.gethostbyname(os.environ["MASTER_ADDR"])
    return str(get_ip()) if address.startswith("127.") else address


def slots(client: Client, home: Path) -> tuple[int, int]:
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
