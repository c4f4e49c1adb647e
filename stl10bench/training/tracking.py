"""Metrics -> metrics.jsonl, which is the truth, and trackers, which are mirrors."""

import hashlib
import json
import os
import queue
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any, TextIO

from accelerate import Accelerator, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from rich.console import Console
from torch import Tensor

from stl10bench.config import RunConfig
from stl10bench.core import files
from stl10bench.core.console import is_main
from stl10bench.core.errors import CheckpointError, UsageError, require
from stl10bench.data.stl10 import Dataset
from stl10bench.results import history
from stl10bench.results.rows import Row, expected_protocol
from stl10bench.results.run_folder import RunFolder
from stl10bench.training import wandb_run
from stl10bench.training.job import Job
from stl10bench.training.resume import LogMark
from stl10bench.training.wandb_run import Result

PATIENCE = 10.0  # seconds that a run waits for its trackers, in all
CURVE_POINTS = 500  # of the loss by step, at most
_MORE = 64 << 20  # bytes: more than a run writes between two checkpoints
_PACKAGES = {"comet_ml": "comet-ml"}  # names in Accelerate -> to install


class Mirror:
    """One tracker of a run, in a thread of its own.

    It can fail or hang without harm: then it is dropped with one warning. `where` says, in a few
    words, where it logs to.
    """

    def __init__(self, name: str, start: Callable[[], GeneralTracker], where: str = "") -> None:
        self.name, self.where = name, where
        self.patience = PATIENCE
        self._start = start
        self._calls: queue.SimpleQueue[Callable[[GeneralTracker], Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, call: Callable[[GeneralTracker], Any]) -> None:
        """Make a call of the tracker, after those before it."""
        self._calls.put(call)

    def end(self) -> None:
        """Ask the tracker to finish."""
        self._calls.put(lambda tracker: tracker.finish())
        self._calls.put(None)

    def wait(self, seconds: float) -> None:
        """Until the tracker has finished, or `seconds` are over."""
        self._thread.join(max(seconds, 0.0))
        if self._thread.is_alive():
            warnings.warn(
                f"tracker {self.name} did not finish within {self.patience:g} s, so the run "
                "does not wait for it; metrics.jsonl is complete",
                stacklevel=2,
            )

    def _serve(self) -> None:
        """Make the tracker's calls, in order, until one fails or the run has ended."""
        try:
            tracker = self._start()
            while (call := self._calls.get()) is not None:
                call(tracker)
        except BaseException as error:  # a tracker may fail, or exit; a run may not
            warnings.warn(
                f"tracker {self.name} failed and is now off: {error!r}; metrics.jsonl has "
                "all metrics",
                stacklevel=2,
            )


class Log:
    """The open log of one run; only the main process writes.

    Every row goes to `metrics.jsonl` first (a failure there is a StorageError) and then to the
    mirrors. The run does not wait for these, but for at most 10 s at its end (minutes where its
    result has pictures or a checkpoint to upload). Where all of it goes is said on the `console`.
    """

    def __init__(
        self,
        folder: RunFolder,
        accelerator: Accelerator,
        mirrors: Sequence[Mirror] = (),
        mark: LogMark | None = None,
        console: Console | None = None,
    ) -> None:
        self._path = folder.log_file
        self._is_main = accelerator.is_main_process
        self._mirrors = mirrors if self._is_main else ()
        if not self._is_main:
            return
        self._file = _open(self._path, mark)
        for mirror in self._mirrors:
            mirror.start()
        if console is not None:  # only now: a run that is refused has no folder
            places = ", ".join([str(self._path), *(mirror.where for mirror in self._mirrors)])
            console.print(f"logs to {places}", markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not self._is_main:
            return
        try:
            self._file.close()
        except OSError as cause:
            if error is None:  # else it says the same
                raise files.cannot_write(self._path, 0, cause) from cause
        close(self._mirrors)

    def mark(self) -> LogMark:
        """How much was written so far, safely on the disk; for the main process."""
        with files.storage_errors(f"cannot write {self._path}"):
            os.fsync(self._file.fileno())
            content = self._path.read_bytes()
        return LogMark(size=len(content), sha256=hashlib.sha256(content).hexdigest())

    def write(self, values: Mapping[str, float | None], *, step: int) -> None:
        """One row: metric paths (`train/loss`) -> numbers, None where there is none."""
        if not self._is_main:
            return
        line = json.dumps({"step": step, **values}) + "\n"
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise files.cannot_write(self._path, len(line), error) from error
        _mirror(self._mirrors, values, step)

    def write_step(self, loss: Tensor, lr: float, *, step: int) -> None:
        """The loss of the main process's share of a batch, and its rate: for the mirrors alone."""
        if self._mirrors:
            _mirror(self._mirrors, {"step/loss": loss.item(), "step/lr": lr}, step)

    def write_result(self, result: Result) -> None:
        """The row's figures, and pictures of the test, for W&B."""
        _mirror_result(self._mirrors, result)


def replay(job: Job, dataset: Dataset, row: Row, console: Console) -> None:
    """Give W&B, if it is a tracker of the job, a finished run from its folder, as if trained now.

    All processes of a launcher call it; the main one does it. Raises CheckpointError for a log or
    predictions that are not the row's.
    """
    if "wandb" not in job.trackers:
        return
    PartialState()  # of which Accelerate's trackers ask who is the main process; all make it
    if not is_main():
        return
    logged, predicted = history.read(job.folder, live=True), job.folder.predictions(row)
    mirrors = make_mirrors(job.model_copy(update={"tracker": "wandb"}), dataset, console)
    for mirror in mirrors:
        mirror.start()
    steps = logged.series("step")
    for index, step in enumerate(steps):
        values = {path: series[index] for path, series in logged.values.items() if path != "step"}
        _mirror(mirrors, {k: None if isnan(v) else v for k, v in values.items()}, int(step))
    _mirror_result(mirrors, Result(job, dataset, row, predicted.logits, predicted.labels))
    close(mirrors)


def close(mirrors: Sequence[Mirror]) -> None:
    """End them all, and wait for them together."""
    for mirror in mirrors:
        mirror.end()
    started = time.monotonic()
    for mirror in mirrors:
        mirror.wait(started + mirror.patience - time.monotonic())


def _mirror(mirrors: Sequence[Mirror], values: Mapping[str, float | None], step: int) -> None:
    # Each has a clock of its own.
    numbers = {k: value for k, value in values.items() if value is not None and k != "time"}
    for mirror in mirrors:
        mirror.put(lambda tracker: tracker.log(numbers, step=step))


def _mirror_result(mirrors: Sequence[Mirror], result: Result) -> None:
    for mirror in mirrors:
        if mirror.name == "wandb":
            if result.job.wandb_images or result.job.wandb_artifact:  # uploads: only now
                mirror.patience = wandb_run.UPLOAD_PATIENCE
            mirror.put(lambda tracker: wandb_run.log_result(tracker.tracker, result))


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


def check_trackers(job: Job) -> None:
    """Raise UsageError for a tracker that is not installed, and for uploads to W&B without it."""
    for option in ("wandb_images", "wandb_artifact"):
        if getattr(job, option) and "wandb" not in job.trackers:
            name = f"--{option.replace('_', '-')}"
            raise UsageError(f"{name} uploads to W&B: add wandb to --tracker, or leave out {name}")
    for name in job.trackers:
        if name == "tensorboard":
            require(name, extra=name, purpose="--tracker tensorboard")
        elif name not in map(str, get_available_trackers()):
            package = _PACKAGES.get(name, name)
            raise UsageError(f"--tracker {name} needs {package}: pip install {package}")


def make_mirrors(job: Job, dataset: Dataset, console: Console) -> list[Mirror]:
    """The job's trackers, not started; the link to its page at W&B goes to `console`, if any."""
    config = {
        **_flat(job.config),
        "dataset": dataset.name,
        "recipe": job.recipe or "none",
        "protocol": expected_protocol(job.config),
    }
    return [_make_mirror(name, job, config, console) for name in job.trackers]


def _make_mirror(name: str, job: Job, config: dict[str, Any], console: Console) -> Mirror:
    if name == "wandb":
        mode = wandb_run.choose_mode()

        def start_wandb() -> GeneralTracker:
            settings = wandb_run.init_settings(job, mode)
            tracker = _started(name, settings.pop("project"), config, settings)
            wandb_run.define_metrics(tracker.tracker)
            if mode.name == "online":
                link = f"W&B: {tracker.tracker.url}"
                console.print(link, markup=False, highlight=False, soft_wrap=True)
            return tracker

        return Mirror(name, start_wandb, wandb_run.describe(mode, job))

    project, settings = _places(name, job)
    return Mirror(name, lambda: _started(name, project, config, settings), name)


def _places(name: str, job: Job) -> tuple[str, dict[str, Any]]:
    """What Accelerate's tracker takes: its first argument, and names or folders of ours."""
    folder, project = job.folder, wandb_run.PROJECT
    settings: dict[str, dict[str, Any]] = {
        "tensorboard": {"logging_dir": str(folder.path)},
        "trackio": {"name": folder.name, "resume": "allow"},
        "aim": {"logging_dir": str(folder.path.parent), "experiment": project},
        "mlflow": {"run_name": folder.name},
        "clearml": {"task_name": folder.name},
        "dvclive": {"dir": str(folder.path / "dvclive")},
        "swanlab": {"experiment_name": folder.name, "logdir": str(folder.path / "swanlog")},
    }
    return (folder.name if name == "aim" else project), settings.get(name, {})


def _started(name: str, project: str, config: dict[str, Any], settings: Any) -> GeneralTracker:
    tracker = LOGGER_TYPE_TO_CLASS[name](project, **settings)
    tracker.start()
    tracker.store_init_configuration(config)
    return tracker


def _flat(config: RunConfig) -> dict[str, Any]:
    """The config as scalars: trackers know no lists and no None."""
    values = config.model_dump(mode="json")
    for kind in ("model", "method"):
        values |= {f"{kind}.{key}": value for key, value in values.pop(f"{kind}_options").items()}
    return {
        key: ",".join(map(str, value)) if isinstance(value, list) else value
        for key, value in values.items()
        if value is not None
    }
