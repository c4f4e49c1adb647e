"""Run folders that several processes fill -> what is known of each run, and who may train it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from stl10bench.config import RunConfig
from stl10bench.core.errors import (
    BenchError,
    BusyError,
    CheckpointError,
    DivergedError,
    StorageError,
)
from stl10bench.results import run_folder
from stl10bench.results.rows import Row, read_row
from stl10bench.studies.jobs import failed_row


class Ledger:
    """The runs of a study: `settled` has the row of each that needs nothing more.

    That is a finished one, one that diverged, and one that failed after this ledger was opened: a
    failure from before is tried again, once.
    """

    def __init__(self, runs_dir: Path, configs: Mapping[str, RunConfig]) -> None:
        self.runs_dir = runs_dir
        self.configs = dict(configs)
        self.settled: dict[str, dict[str, Any]] = {}
        self._failed_before: dict[str, Any] = {}
        for name in self.configs:
            self._failed_before[name] = self._failure(name)
        self.refresh()

    @property
    def open(self) -> list[str]:
        """The runs that are still to do, or in hand."""
        return [name for name in self.configs if name not in self.settled]

    def refresh(self) -> list[str]:
        """Look at the open runs again; returns those that were settled meanwhile."""
        return [name for name in self.open if self.look(name)]

    def look(self, name: str) -> bool:
        """Whether a run is settled; looked up in its folder, if it was not known yet."""
        if name in self.settled:
            return True
        config = self.configs[name]
        try:
            if run_folder.ended(self.runs_dir / name, config):
                self.settled[name] = read_study_row(self.runs_dir / name)
            elif (failure := self._failure(name)) and failure != self._failed_before[name]:
                self.fail(name, failure["reason"])
        except BusyError:
            return False  # it is being finished
        except DivergedError as error:
            self.fail(name, str(error).partition(" (")[0], state="diverged")
        except BenchError as error:
            self.fail(name, str(error))
        return name in self.settled

    def fail(self, name: str, reason: str, *, state: str = "failed") -> None:
        """Settle a run that has no row."""
        self.settled[name] = {**failed_row(self.configs[name], reason), "state": state}

    def _failure(self, name: str) -> dict[str, Any] | None:
        """The status of a run that failed, which tells one failure from the next."""
        try:
            facts = run_folder.status(self.runs_dir / name)
        except CheckpointError:
            return None
        return facts if facts["state"] == "failed" else None


def read_study_row(folder: Path) -> Row:
    """The row of a finished run; raises CheckpointError, also for one without a hold-out."""
    row = read_row(folder / "result.json")
    accuracy = row.get("val_accuracy")
    if not isinstance(accuracy, int | float) or not 0 <= accuracy <= 1:
        raise CheckpointError(f"{folder}: the row has no val_accuracy, a study compares by it")
    return row


@contextmanager
def claimed(runs_dir: Path, names: Sequence[str]) -> Iterator[list[str]]:
    """Within, those of the runs that no other worker has in hand are ours.

    A claim dies with its process. A run whose folder is being written, by an orphan of a killed
    worker or by someone's `train`, is left alone. Raises StorageError.
    """
    from filelock import FileLock, Timeout

    with ExitStack() as claims:
        ours = []
        for name in names:
            try:
                runs_dir.mkdir(parents=True, exist_ok=True)
                claims.enter_context(FileLock(runs_dir / f".{name}.claim").acquire(blocking=False))
                if (runs_dir / name).exists():
                    with run_folder.lock(runs_dir / name):
                        pass
                ours.append(name)
            except (Timeout, BusyError):
                continue
            except OSError as error:
                raise StorageError(f"cannot write the runs folder {runs_dir}: {error}") from error
        yield ours
