"""Metrics -> metrics.jsonl, which is the truth, and a tracker, which is a mirror."""

import hashlib
import json
import logging
import os
import queue
import threading
import warnings
from collections.abc import Callable, Mapping
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit
from uuid import uuid4

from accelerate import Accelerator

from stl10bench.config import RunConfig
from stl10bench.core import files
from stl10bench.core.errors import CheckpointError, StorageError, require, unknown
from stl10bench.core.network import reachable
from stl10bench.results.run_folder import RunFolder
from stl10bench.training.resume import LogMark

PROJECT = "stl10bench"
TRACKERS = ("wandb", "tensorboard", "none")
PATIENCE = 10.0  # seconds that a run waits for its tracker, in all
_MORE = 64 << 20  # bytes: more than a run writes between two checkpoints


def check_tracker(name: str) -> None:
    """Raise UsageError for a tracker that is unknown or not installed."""
    if name not in TRACKERS:
        raise unknown("tracker", name, TRACKERS)
    if name == "tensorboard":
        require(name, extra=name, purpose="--tracker tensorboard")


class Log:
    """The open log of one run; only the main process writes.

    Every row goes to `metrics.jsonl` first (a failure there is a StorageError) and then to the
    tracker, in a thread of its own. A tracker can fail or hang without harm: the run does not wait
    for it, but for at most 10 s at its end, and it is dropped with one warning.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: RunConfig,
        accelerator: Accelerator,
        tracker: str,
        mark: LogMark | None = None,
    ) -> None:
        self._accelerator = accelerator
        self._path = folder.log_file
        self._tracker = tracker
        self._calls: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        if not accelerator.is_main_process:
            return
        self._file = _open(self._path, mark)
        if tracker != "none":
            accelerator.project_configuration.set_directories(str(folder.path))
            self._calls.put(lambda: _start(accelerator, folder, config, tracker))
            self._thread.start()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not self._accelerator.is_main_process:
            return
        try:
            self._file.close()
        except OSError as cause:
            if error is None:  # else it says the same
                raise files.cannot_write(self._path, 0, cause) from cause
        if self._thread.ident is not None:
            self._calls.put(self._accelerator.end_training)
            self._calls.put(None)
            self._thread.join(PATIENCE)
            if self._thread.is_alive():
                warnings.warn(
                    f"tracker {self._tracker} did not finish within {PATIENCE:g} s, so the run "
                    "does not wait for it; metrics.jsonl is complete",
                    stacklevel=2,
                )

    def mark(self) -> LogMark:
        """How much was written so far, safely on the disk; for the main process."""
        with files.storage_errors(f"cannot write {self._path}"):
            os.fsync(self._file.fileno())
            content = self._path.read_bytes()
        return LogMark(size=len(content), sha256=hashlib.sha256(content).hexdigest())

    def write(self, values: Mapping[str, float | None], *, step: int) -> None:
        """One row: metric paths (`train/loss`) -> numbers, None where there is none."""
        if not self._accelerator.is_main_process:
            return
        line = json.dumps({"step": step, **values}) + "\n"
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise files.cannot_write(self._path, len(line), error) from error
        numbers = {key: value for key, value in values.items() if value is not None}
        self._calls.put(lambda: self._accelerator.log(numbers, step=step))

    def summary(self, values: Mapping[str, Any]) -> None:
        """The row's figures and words, where the tracker has a place for them."""
        simple = {k: v for k, v in values.items() if isinstance(v, int | float | str)}
        if self._tracker == "wandb":
            self._calls.put(
                lambda: self._accelerator.get_tracker("wandb", unwrap=True).summary.update(simple)
            )

    def _serve(self) -> None:
        """Make the tracker's calls, in order, until one fails or the run has ended."""
        while (call := self._calls.get()) is not None:
            try:
                call()
            except BaseException as error:  # a tracker may fail, or exit; a run may not
                warnings.warn(
                    f"tracker {self._tracker} failed and is now off: {error!r}; metrics.jsonl has "
                    "all metrics",
                    stacklevel=2,
                )
                return


def _open(path: Path, mark: LogMark | None) -> TextIO:
    """metrics.jsonl, empty, or cut where a checkpoint was written; raises Storage, CheckpointError.

    What stands after the mark, be it half a line, the run is about to write again.
    """
    with files.storage_errors(f"cannot write {path}"):
        if mark is None:
            return path.open("w", encoding="utf-8")
        content = files.read(path, mark.size + _MORE, CheckpointError)[: mark.size]
        if hashlib.sha256(content).hexdigest() != mark.sha256:
            raise CheckpointError(
                f"{path} is damaged: it does not match the run's checkpoint; pass --overwrite to "
                "train from the start"
            )
        os.truncate(path, mark.size)
        return path.open("a", encoding="utf-8")


def _start(accelerator: Accelerator, folder: RunFolder, config: RunConfig, tracker: str) -> None:
    settings = {tracker: _wandb(folder, config)} if tracker == "wandb" else {}
    accelerator.trackers.clear()  # accelerate keeps those of an earlier log, and starts them anew
    accelerator.init_trackers(PROJECT, _flat(config), settings)


def _wandb(folder: RunFolder, config: RunConfig) -> dict[str, Any]:
    """Settings of a run that never asks, never prints and never waits long.

    Online with a key and a server that answers, else offline; WANDB_MODE decides where it is set.
    """
    import wandb

    logging.getLogger("wandb").setLevel(logging.WARNING)  # below it, it logs paths
    mode = os.environ.get("WANDB_MODE")
    if mode is None:
        server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
        mode = "offline"
        if has_key(server):
            if reachable(server):
                mode = "online"
            else:
                warnings.warn(
                    f"no connection to {server}: logging to W&B offline; upload later with "
                    f"wandb sync {folder.path / 'wandb'}/offline-run-*",
                    stacklevel=4,
                )
    identity = folder.tracker_id_file
    if not identity.exists():
        files.write(identity, uuid4().hex[:8].encode())
    return {
        "id": files.read(identity, 64, StorageError).decode("ascii", "replace"),
        "resume": "allow",
        "dir": str(folder.path),
        "name": folder.name,
        "group": os.environ.get("WANDB_RUN_GROUP", config.model),
        "mode": mode,
        "settings": wandb.Settings(
            silent=True,
            console="off",
            init_timeout=6,
            x_disable_meta=True,  # the command line, host and paths
            disable_git=True,
        ),
    }


def has_key(server: str) -> bool:
    """Whether wandb has a key for `server`: in the environment, or from `wandb login`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc().authenticators(urlsplit(server).hostname or "") is not None
    except FileNotFoundError:
        return False
    except NetrcParseError as error:  # whose text may quote the key
        where = f"{error.filename}, near line {error.lineno},"
        warnings.warn(f"cannot read the W&B key from .netrc: {where} is damaged", stacklevel=5)
        return False
    except OSError as error:
        warnings.warn(f"cannot read the W&B key from .netrc: {error}", stacklevel=5)
        return False


def _flat(config: RunConfig) -> dict[str, Any]:
    """The config as scalars: trackers know no lists and no None."""
    values = config.model_dump(mode="json")
    options = values.pop("model_options")
    return {
        key: ",".join(map(str, value)) if isinstance(value, list) else value
        for key, value in {**values, **{f"model.{k}": v for k, v in options.items()}}.items()
    }
