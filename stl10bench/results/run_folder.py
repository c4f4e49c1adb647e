"""The run folder: its files, its state, and who owns it."""

import math
import os
import platform
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from stl10bench.config import SELF_SUPERVISED, STEPPED, RunConfig, make_config
from stl10bench.core import files
from stl10bench.core.console import is_main
from stl10bench.core.errors import (
    BenchError,
    BusyError,
    CheckpointError,
    DataError,
    DivergedError,
    InterruptedRunError,
    StorageError,
    UsageError,
    listed,
    suggest,
)
from stl10bench.metrics import calibration
from stl10bench.results import predictions
from stl10bench.results.labels import row_labels
from stl10bench.results.predictions import Predictions
from stl10bench.results.pretraining import (
    BACKBONE,
    RESULT,
    Pretraining,
    no_classifier,
    read_pretraining,
)
from stl10bench.results.rows import Failure, Row, read_row
from stl10bench.results.study_runs import study_runs

OLD = ".old-"  # in the names of folders that were moved aside
STATES = ("running", "interrupted", "finished", "diverged", "failed")
_LOG_LIMIT = 1 << 30  # bytes of a metrics.jsonl


@dataclass(frozen=True)
class _File:
    """A file or folder in a run folder, by its name there."""

    name: str

    def __get__(self, folder: "RunFolder", _: type) -> Path:
        return folder.path / self.name


@dataclass(frozen=True)
class RunFolder:
    """`runs/<model>-<hash8>/`: the only place that knows the names of its files."""

    path: Path

    config_file = _File("config.json")
    status_file = _File("status.json")
    log_file = _File("metrics.jsonl")  # a line of JSON for each epoch, and one for the test
    checkpoints = _File("checkpoints")  # of a run that is not finished, to resume from
    best_file = _File("best.safetensors")  # the epoch with the highest validation accuracy
    last_file = _File("last.safetensors")  # the last epoch
    predictions_file = _File("predictions.safetensors")
    result_file = _File("result.json")
    backbone_file = _File(BACKBONE)  # of pretraining, instead of a row
    pretraining_file = _File(RESULT)
    tracker_id_file = _File("wandb-id")  # so that a resumed run continues at Weights & Biases too

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def is_finished(self) -> bool:
        return self.result_file.is_file()

    def config(self) -> RunConfig:
        """The run's settings, completed with the defaults where an older version had fewer.

        Raises CheckpointError.
        """
        values = files.read_json(self.config_file, CheckpointError)
        try:
            return make_config(values)
        except UsageError as error:
            raise CheckpointError(f"{self.config_file}: {error}; remove that folder") from None

    def tested_file(self, config: RunConfig) -> Path:
        """The checkpoint that is tested: the best epoch's, or the last where none is chosen."""
        return self.best_file if config.val_fraction else self.last_file

    def checkpoint(self) -> Path:
        """The tested checkpoint of a finished run; raises CheckpointError for any other."""
        config = self.config()
        if config.method == SELF_SUPERVISED:
            raise CheckpointError(no_classifier(self.path, self.name))
        tested = self.tested_file(config)
        if not self.is_finished or not tested.is_file():
            raise CheckpointError(
                f"the run {self.path} has no tested checkpoint: its state is "
                f"{self.describe()['state']}; train it to its end, or name a file in it"
            )
        return tested

    def weights(self) -> Path:
        """What --weights takes of the run: its backbone, of pretraining, or its tested checkpoint.

        Raises CheckpointError for a run that is not finished.
        """
        if self.config().method != SELF_SUPERVISED:
            return self.checkpoint()
        if not self.pretraining_file.is_file():
            raise CheckpointError(
                f"the run {self.path} has no backbone yet: its state is "
                f"{self.describe()['state']}; pretrain to the end first"
            )
        return self.backbone_file

    def pretrained(self, config: RunConfig) -> Pretraining | None:
        """What pretraining has left, or None where it is still to do; raises as `ended` does."""
        if not self.pretraining_file.is_file():
            self.ended(config)  # raises where it diverged
            return None
        pretraining = read_pretraining(self.pretraining_file)
        self._check_same(pretraining.config, config, self.pretraining_file)
        return pretraining

    def row(self) -> Row:
        """The row of a finished run; raises CheckpointError for a file that holds none."""
        if self.pretraining_file.is_file():
            raise CheckpointError(no_classifier(self.path, self.name))
        return read_row(self.result_file)

    def dataset(self) -> str:
        """What --dataset is for the data of a finished run: demo, or stl10; else stl10.

        Raises CheckpointError for a file that holds no row.
        """
        return "demo" if self.is_finished and self.row().dataset == "demo" else "stl10"

    def predictions(self, row: Row) -> Predictions:
        """What a finished run predicted; raises CheckpointError where that is not its row's."""
        path = self.predictions_file
        if not path.is_file():
            raise CheckpointError(
                f"{path} is missing: train the run again with --overwrite, or leave it out"
            )
        predicted = predictions.read(path)
        loss = calibration.nll(predicted.logits.astype(np.float64), predicted.labels)
        images = len(predicted.labels)
        accuracy = int((predicted.logits.argmax(1) == predicted.labels).sum()) / images
        if (images, accuracy) != (row.test_images, row.test_accuracy) or (
            math.isfinite(loss)
            and (row.test_loss is None or not math.isclose(loss, row.test_loss, rel_tol=1e-6))
        ):
            raise CheckpointError(
                f"{path} does not belong to this run: it has {images} images, accuracy "
                f"{accuracy:.4f} and loss {loss:.4f}; result.json says {row.test_images}, "
                f"{row.test_accuracy:.4f} and {row.test_loss}; train it again with --overwrite, or "
                "leave it out"
            )
        return predicted

    def with_hits(self, row: Row) -> Row:
        """The row with what a ranking needs: the confusion matrix, and which images were correct.

        Raises CheckpointError for predictions that are missing or not the row's.
        """
        if row.test_hits is not None and row.confusion is not None:
            return row
        predicted = self.predictions(row)
        hits = {"confusion": predicted.confusion(), "test_hits": predicted.hits()}
        return row.model_copy(update=hits)

    def failure(self) -> Failure | None:
        """How a run diverged or failed; None for any other. Raises CheckpointError."""
        status = self.status()
        if self.is_finished or status["state"] not in ("diverged", "failed"):
            return None
        config = self.config()
        if config.method == SELF_SUPERVISED:  # which would have no row either
            return None
        return Failure(
            run=self.name,
            model=config.model,
            model_options=config.model_options,
            config=config,
            state=status["state"],
            error=status["reason"],
        )

    def ended(self, config: RunConfig, *, tidy: bool = True) -> Row | None:
        """The row of a run that is finished, or None for one that is still to do.

        Raises the DivergedError of a run that diverged, as it would again, and CheckpointError for
        a folder that is not this config's. What a killed process left in a finished folder goes,
        unless `tidy` is False.
        """
        if self.is_finished:
            row = self.row()
            self._check_same(row.config, config, self.result_file)
            if tidy and is_main() and self.status()["state"] != "finished":
                with self.lock():
                    self._tidy()
            return row
        status = self.status()
        if status["state"] == "diverged":
            self.check_config(config)
            raise DivergedError(
                f"{status['reason']} ({self.name} is on record: pass --overwrite to retrain)",
                **{key: status[key] for key in ("step", "lr", "last_finite_loss") if key in status},
            )
        return None

    def status(self) -> dict[str, Any]:
        """What status.json says: `state` (one of STATES, or "new" without a file), `reason`, ...

        Raises CheckpointError for a file that says no such thing.
        """
        if not self.status_file.exists():
            return {"state": "new", "reason": ""}
        status = files.read_json(self.status_file, CheckpointError)
        if status.get("state") not in STATES or not isinstance(status.get("reason"), str):
            raise CheckpointError(
                f"{self.status_file} is not a run's status: delete it, or pass --overwrite to "
                "start the run anew"
            )
        return status

    def check_config(self, config: RunConfig) -> None:
        """Raise CheckpointError when the folder was made for another config, with what differs."""
        if self.config_file.exists():
            self._check_same(self.config(), config, self.config_file)

    def describe(self) -> dict[str, Any]:
        """What the folder holds: name, model, state, reason, since when, epochs, accuracy, bytes.

        A run whose process is gone without a word is `killed`, one that was moved aside `old`. A
        file that cannot be believed makes the state `damaged`, and its fault the reason.
        """
        facts: dict[str, Any] = {"run": self.name, "model": None, "epoch": None, "epochs": None}
        facts |= {"state": "damaged", "since": None, "test_accuracy": None}
        try:
            config = files.read_json(self.config_file, CheckpointError)
            facts["model"] = str(config.get("model"))
            if config.get("method", STEPPED[0]) in STEPPED:  # others have no epochs
                facts |= {"epochs": config.get("epochs"), "epoch": self._last_epoch()}
            facts["test_accuracy"] = self.row().test_accuracy if self.is_finished else None
            status = self.status()
            facts |= {"state": status["state"], "reason": status["reason"]}
            facts["since"] = status.get("since")
        except CheckpointError as error:
            facts |= {"state": "damaged", "reason": str(error)}
        if OLD in self.name:
            facts["state"] = "old"
        elif facts["state"] == "running" and self.is_owned():
            facts["reason"] = self._owner()
        elif facts["state"] == "running":
            facts |= {"state": "killed", "reason": "its process was killed"}
        facts["bytes"] = sum(files.sizes(self.path).values())
        return facts

    def remove(self) -> int:
        """Remove the folder, unless a run is at work in it (BusyError); returns the bytes freed."""
        freed: int = self.describe()["bytes"]
        with self.lock(), files.storage_errors(f"cannot remove {self.path}"):
            files.remove_folder(self.path)
            self._remove_lock()
        return freed

    def is_owned(self) -> bool:
        """Whether a process is at work in the folder; makes no file. Raises StorageError."""
        if not (self.path.exists() and self._lock_file.exists()):
            return False
        try:
            with self.lock():
                return False
        except BusyError:
            return True

    @property
    def _lock_file(self) -> Path:
        """Beside the folder, so that --overwrite can move the folder away."""
        return self.path.with_name(f".{self.name}.lock")

    def _remove_lock(self) -> None:
        """Remove the lock file, which is ours; who waits for it sees that and makes another."""
        with suppress(PermissionError):  # Windows removes no file that is open
            self._lock_file.unlink()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Own the folder, which is made if need be; the lock dies with its process.

        Raises BusyError, with its owner, when another process owns it, and StorageError when the
        folder cannot be written.
        """
        with files.storage_errors(f"cannot write the run folder {self.path}"):
            self.path.mkdir(parents=True, exist_ok=True)

        def busy() -> str:
            return f"{self.path} is being written by {self._owner()}: wait for it, or stop it"

        with files.locked(self._lock_file, busy, timeout=0.2):  # longer than `is_owned` holds it
            yield

    @contextmanager
    def owned(self, config: RunConfig, *, overwrite: bool = False) -> Iterator[None]:
        """Own the folder while a run writes it; status.json says running, finished or why not.

        A run that did not finish is left as it is, to be resumed; `overwrite` moves what is there
        to `<folder>.old-<n>`. A run that is refused (a setting, data or weights that cannot be)
        leaves everything as it was: a new one no folder. Raises what `lock` raises, and
        CheckpointError for another config's folder.
        """
        with self.lock():
            aside = None
            with files.storage_errors(f"cannot write the run folder {self.path}"):
                if overwrite and any(self.path.iterdir()):
                    names = (f"{self.name}{OLD}{number}" for number in count(1))
                    paths = map(self.path.with_name, names)
                    aside = self.path.rename(next(path for path in paths if not path.exists()))
                    self.path.mkdir()
                files.remove_parts(self.path)
                files.remove_parts(self.checkpoints)
                before = self.status_file.read_bytes() if self.status_file.exists() else None
            self.check_config(config)
            files.write_json(self.config_file, config.model_dump(mode="json"))
            self._write_status("running", "", pid=os.getpid(), host=platform.node())
            try:
                yield
            except (KeyboardInterrupt, SystemExit):
                self._record("interrupted", "before its first step or after its last")
                raise
            except Exception as error:
                refused = isinstance(error, UsageError | DataError | CheckpointError)
                if refused and self._withdraw(before, aside):
                    raise
                states = {DivergedError: "diverged", InterruptedRunError: "interrupted"}
                kind = "" if isinstance(error, BenchError) else f"{type(error).__name__}: "
                facts = error.facts if isinstance(error, DivergedError) else {}
                self._record(states.get(type(error), "failed"), f"{kind}{error}", **facts)
                raise
            self._tidy()

    def _withdraw(self, status: bytes | None, aside: Path | None) -> bool:
        """Leave the folder as it was before a run was refused; False for one that has begun.

        `status` is what status.json said, `aside` is where `overwrite` has moved the folder.
        """
        begun = not {self.config_file, self.status_file}.issuperset(self.path.iterdir())
        if begun and status is None:
            return False
        with files.storage_errors(f"cannot write the run folder {self.path}"):
            if begun:
                files.write(self.status_file, status or b"")
                return True
            files.remove_folder(self.path)
            if aside is not None:
                aside.rename(self.path)
            else:
                self._remove_lock()
        return True

    def _check_same(self, stored: RunConfig, config: RunConfig, path: Path) -> None:
        """Raise CheckpointError, with what differs, when `stored` in `path` is not the config."""
        before, now = stored.model_dump(mode="json"), config.model_dump(mode="json")
        for key in sorted(now):
            if before[key] != now[key]:
                raise CheckpointError(
                    f"{path}: {key} = {before[key]!r}, but {config.name} is the name of {key} = "
                    f"{now[key]!r}: it was edited, or comes from another version; --overwrite "
                    "moves the folder aside"
                )

    def _tidy(self) -> None:
        """A finished run needs no checkpoints; its state says so when they are gone."""
        with files.storage_errors(f"cannot remove {self.checkpoints}"):
            if self.checkpoints.exists():
                files.remove_folder(self.checkpoints)
            files.remove_parts(self.path)
        self._write_status("finished", "")

    def _record(self, state: str, reason: str, **facts: Any) -> None:
        """Write how a run ended; no room for that is a warning: what ended it counts."""
        try:
            self._write_status(state, reason, **facts)
        except StorageError as error:
            warnings.warn(f"{error}: status.json does not say that the run {state}", stacklevel=2)

    def _write_status(self, state: str, reason: str, **facts: Any) -> None:
        home = os.path.expanduser("~")  # noqa: PTH111  leaves it where there is none
        reason = reason.replace(home, "~") if len(home) > 1 else reason
        status = {"state": state, "reason": reason, "since": time.time(), **facts}
        files.write_json(self.status_file, status)

    def _owner(self) -> str:
        """The process that wrote status.json last, as far as it can be told."""
        try:
            status = self.status()
            seconds = max(0.0, time.time() - status["since"])
            return f"process {status['pid']} on {status['host']}, for {seconds:,.0f} s"
        except (CheckpointError, KeyError, TypeError, ValueError, OverflowError):
            return "another process"

    def _last_epoch(self) -> int | None:
        """The newest epoch in metrics.jsonl; a last line that is being written does not count."""
        if not self.log_file.exists():
            return None
        content = files.read(self.log_file, _LOG_LIMIT, CheckpointError)
        epochs = re.findall(rb'"epoch": (\d{1,9})[,}]', content)
        return int(epochs[-1]) if epochs else 0


def run_folders(runs_dir: Path) -> list[RunFolder]:
    """All run folders below `runs_dir`, by name; those that were moved aside among them."""
    return [RunFolder(path.parent) for path in sorted(runs_dir.glob("*/config.json"))]


def current_folders(runs_dir: Path) -> list[RunFolder]:
    """All folders below `runs_dir` that have a row or a state, by name, but those moved aside."""
    names = ("result.json", "status.json")
    paths = {path.parent for name in names for path in runs_dir.glob(f"*/{name}")}
    return [RunFolder(path) for path in sorted(paths) if OLD not in path.name]


def copy_error(folder: RunFolder, first: Path) -> CheckpointError:
    """The error for a folder whose row is of the same run as that in `first`."""
    return CheckpointError(
        f"{folder.path} is left out: it holds the same run as {first}; remove one of them"
    )


def default_runs_dir() -> Path:
    """Where runs are looked for unless it is said: $STL10BENCH_RUNS, or `runs`."""
    return Path(os.environ.get("STL10BENCH_RUNS", "runs"))


def find_run(runs_dir: Path, name: str, *, guess: bool = True) -> RunFolder:
    """The run that a `name` means: its folder, a file in that, its name or a unique beginning.

    Runs of studies, but their base, give way to the others where a name begins both, unless `guess`
    is False. Raises UsageError, with what tells the runs apart, or the nearest name.
    """
    matching = _matching(runs_dir, name)
    if len(matching) > 1 and guess:
        others = study_runs(runs_dir).beside_bases
        matching = [folder for folder in matching if folder.name not in others] or matching
    if len(matching) > 1:
        raise UsageError(
            f"run {name!r} is ambiguous: {listed(_told_apart(matching))}; type more of the name "
            "('stl10bench runs list' says more)"
        )
    return matching[0]


def _told_apart(folders: Sequence[RunFolder]) -> list[str]:
    """The name of each run, and what tells it from the others: settings, accuracy or state."""
    labels, runs = run_labels(folders), []
    models = {label.partition(", ")[0].partition(" #")[0] for label in labels}
    for folder, label in zip(folders, labels, strict=True):
        facts = folder.describe()
        accuracy = facts["test_accuracy"]
        state = facts["state"] if accuracy is None else f"accuracy {accuracy:.3f}"
        told = label.partition(", ")[2] if len(models) == 1 else label
        runs.append(f"{folder.name} ({', '.join(filter(None, (told, state)))})")
    return runs


def run_labels(folders: Sequence[RunFolder]) -> list[str]:
    """The model of each run, finished or not, and its settings that tell it from the others."""
    runs = []
    for folder in folders:
        config, options = None, {}
        with suppress(CheckpointError):  # its state says so
            config = folder.config()
            options = config.model_options
        model = "" if config is None else config.model
        # With a row or without: a failure has what a label is made of.
        runs.append(Failure(model=model, model_options=options, config=config, error=""))
    return row_labels(runs)


def runs_of(runs_dir: Path, name: str) -> list[RunFolder]:
    """The runs that a `name` means: all of a model that no study varied, or `find_run`'s one."""
    matching = _matching(runs_dir, name)
    of_model = [folder for folder in matching if folder.name.rpartition("-")[0] == name]
    varied = study_runs(runs_dir).varied if len(of_model) > 1 else frozenset()
    unvaried = [folder for folder in of_model if folder.name not in varied]
    return unvaried or of_model or [find_run(runs_dir, name)]


def _matching(runs_dir: Path, name: str) -> list[RunFolder]:
    """The run that a `name` says in full, or all whose names begin with it; at least one."""
    for path in (Path(name), Path(name).parent):
        if Path(name).exists() and RunFolder(path).config_file.is_file():
            return [RunFolder(path)]
    names = [folder.name for folder in run_folders(runs_dir)]
    if not names:
        raise UsageError(f"no run {name!r}: {runs_dir} holds no runs; pass --runs-dir")
    begun = [other for other in names if other.startswith(name) and OLD not in other]
    matching = [name] if name in names else begun
    if not matching:
        models = {other.rpartition("-")[0] for other in names}
        near = suggest(name, [*models, *names], otherwise=f"known: {', '.join(names[:20])}")
        raise UsageError(f"unknown run {name!r}: {near} (runs are looked for in {runs_dir})")
    return [RunFolder(runs_dir / other) for other in matching]
