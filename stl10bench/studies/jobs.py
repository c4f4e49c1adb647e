"""A job -> its row: trained in a child process, which is stopped by a file and survives its parent.

A process each keeps memory, failures and Accelerate's state from leaking into the next run.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple
from uuid import uuid4

from stl10bench.config import RunConfig
from stl10bench.core import files
from stl10bench.core.errors import BenchError, BusyError, CheckpointError, DivergedError
from stl10bench.core.launcher import LAUNCHED, without_launcher
from stl10bench.results.rows import Failure, Row
from stl10bench.training.job import Job, write_job

STORAGE = "STL10BENCH_STORAGE"  # the URL of a search's memory: it may hold a password
RESUME = "Interrupted. Run the same command again to resume."
_LOOK = 0.2  # seconds between two looks at a child, a lock or a file
_TAG_LENGTH = 64  # characters, W&B's limit
# Of a child: else Ctrl-C in a terminal would reach it twice, and on Windows our signal us, too.
_OWN_GROUP: dict[str, Any] = {"process_group": 0}
if sys.platform == "win32":
    _OWN_GROUP = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
_INTERRUPTED = (130, 143, -signal.SIGINT, -signal.SIGTERM)


@dataclass(frozen=True)
class Task:
    """A job for a worker, and what it needs to train it."""

    job: Job
    home: Path  # the driver's folder in the runs folder: there it says which runs are to stop
    log: Path | None  # where the child's messages go; None: to our stderr
    tags: tuple[str, ...] = ()  # for W&B: the study and the values of its factors

    @property
    def run(self) -> str:
        return self.job.config.name


class Interrupted(NamedTuple):
    """A run that was asked to stop, saved and left."""

    exit_code: int  # 130 or 143
    reason: str = RESUME


Outcome = Row | Failure | Interrupted


def known_outcome(job: Job, *, tidy: bool = True) -> Row | Failure | None:
    """The row of a finished run, or why it diverged; None for a run that is still to do.

    A run that failed is to do: it is tried again. A folder that cannot be read is "damaged".
    """
    if job.overwrite:
        return None
    try:
        return job.folder.ended(job.config, tidy=tidy)
    except BusyError:
        return None  # it is being finished
    except DivergedError:
        return job.folder.failure()
    except CheckpointError as error:
        return failure(job.config, str(error)).model_copy(update={"state": "damaged"})
    except BenchError as error:
        return failure(job.config, str(error))


def failure(config: RunConfig, reason: str) -> Failure:
    """Why a run has no row."""
    return Failure(
        run=config.name,
        model=config.model,
        model_options=config.model_options,
        config=config,
        error=reason,
    )


def ask_to_stop(home: Path, run: str | None, number: int) -> None:
    """Send a signal to the child that trains `run`, or to all, wherever they are."""
    path = home / ("stop" if run is None else f"stop-{run}")
    with path.open("a") as file:
        file.write(f"{number}\n")


def train(task: Task, environment: Mapping[str, str] | None = None) -> Outcome:
    """Train a job in a child process, unless its row is there already.

    Waits for whoever owns the run folder: a child that a dead worker left behind, or another
    driver's. What that one leaves counts, its failure included.
    """
    job = task.job
    if not task.home.is_dir():
        text = f"{task.home} is missing: the driver and all workers must share the runs folder"
        return failure(job.config, text)
    try:
        waited = False
        while True:
            if numbers := _signals(task):
                return Interrupted(128 + numbers[0])
            if job.folder.is_owned():
                waited = True
                time.sleep(_LOOK)
                continue
            outcome = known_outcome(job)
            if outcome is None and waited:
                outcome = job.folder.failure()
            if outcome is not None:
                return outcome
            code, printed = _run_child(task, environment or child_environment(task))
            if code != BusyError.exit_code:
                return _outcome(job, code, printed)
            waited = True
    except BenchError as error:
        return failure(job.config, str(error))


def _outcome(job: Job, code: int, printed: str) -> Outcome:
    """What a child came to, by its run folder, else by its last words."""
    if code == 0:
        return job.folder.row()
    if code == DivergedError.exit_code and (diverged := job.folder.failure()) is not None:
        return diverged
    try:
        reason = str(json.loads(printed)["error"])
    except (ValueError, TypeError, KeyError):
        reason = ""
    if code in _INTERRUPTED:
        return Interrupted(code if code > 0 else 128 - code, reason or RESUME)
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return failure(job.config, reason or f"its process ended without an error message ({how})")


def _signals(task: Task) -> list[int]:
    """The signals that the driver has sent to the run so far."""
    numbers: list[int] = []
    for path in (task.home / "stop", task.home / f"stop-{task.run}"):
        if path.exists():
            numbers += map(int, path.read_text().split())
    return numbers


def _run_child(task: Task, environment: Mapping[str, str]) -> tuple[int, str]:
    """Run the job in a child process; returns its exit code and what it printed.

    It gets each signal once, so that it saves and leaves. Raises StorageError.
    """
    file = task.home / f"{task.run}-{uuid4().hex[:8]}.job"
    write_job(file, task.job)
    try:
        with (
            _log(task.log) as log,
            subprocess.Popen(
                [sys.executable, "-m", "stl10bench", "train", "--job", str(file), "--json"],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                **_OWN_GROUP,
                env={**environment, LAUNCHED: str(os.getpid())},
            ) as process,
        ):
            sent = 0
            while True:
                for number in _signals(task)[sent:]:
                    _send(process, number)
                    sent += 1
                try:
                    printed, _ = process.communicate(timeout=_LOOK)
                    return process.returncode, printed
                except subprocess.TimeoutExpired:
                    pass
    finally:
        file.unlink(missing_ok=True)


def _send(process: "subprocess.Popen[str]", number: int) -> None:
    """Ask a child to save and leave; on Windows by Ctrl-Break, else it would end at once."""
    if sys.platform == "win32":
        number = signal.CTRL_BREAK_EVENT
    process.send_signal(number)


def _log(path: Path | None) -> AbstractContextManager[IO[str] | None]:
    if path is None:
        return nullcontext()
    with files.storage_errors(f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a", encoding="utf-8")


def child_environment(
    task: Task, *, threads: int | None = None, slot: int | None = None, gpus: int = 0
) -> dict[str, str]:
    """Our environment for a run that is trained alone.

    Without any trace of a launcher, else the run would wait for the other processes, and with one
    of this machine's `gpus`, that of our `slot` among its workers.
    """
    variables = without_launcher(os.environ)
    for name in (STORAGE, "WANDB_NAME"):  # the latter of a single run
        variables.pop(name, None)
    if threads is not None:
        variables["OMP_NUM_THREADS"] = str(threads)
    if gpus and slot is not None:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        devices = seen.split(",")
        variables["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    if task.tags:
        variables.setdefault("WANDB_RUN_GROUP", task.tags[0])
        tags = [tag.replace(",", " ")[:_TAG_LENGTH] for tag in task.tags]
        variables.setdefault("WANDB_TAGS", ",".join(tags))
    return variables
