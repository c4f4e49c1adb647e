"""The run folder: who owns it, what state it is in, and what is kept when it is made anew."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stl10bench import files
from stl10bench.config import RunConfig
from stl10bench.errors import BenchError, BusyError, CheckpointError, DivergedError, StorageError


def finished(folder: Path, config: RunConfig) -> dict[str, Any] | None:
    """The row of a finished run, or None; CheckpointError if the folder is not this config's."""
    if not (folder / "result.json").exists():
        return None
    row = files.read_json(folder / "result.json", CheckpointError)
    if row.get("config") != config.model_dump(mode="json"):
        raise CheckpointError(
            f"{folder}/result.json is of another configuration than its folder's name says: it was "
            "edited, or comes from another version; --overwrite moves the folder aside"
        )
    return row


@contextmanager
def owned(folder: Path, config: RunConfig) -> Iterator[None]:
    """Own `folder` while a run writes it; its status.json says running, finished or why not.

    What an earlier run left there is moved to `<folder>.old-<n>` first. Raises BusyError when
    another process owns it, StorageError when it cannot be written.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        guard = FileLock(folder.with_name(f".{folder.name}.lock")).acquire(timeout=0)
    except Timeout:
        raise BusyError(f"{folder} is being written by another process: wait for it") from None
    except OSError as error:
        raise StorageError(f"cannot write the run folder {folder}: {error}") from error
    with guard:
        if (folder / "metrics.jsonl").exists():
            folder.rename(_unused(folder))
            folder.mkdir()
        files.write_json(folder / "config.json", config.model_dump(mode="json"))
        _status(folder, "running", "")
        try:
            yield
        except DivergedError as error:
            _status(folder, "diverged", str(error))
            raise
        except BenchError as error:
            _status(folder, "failed", str(error))
            raise
        except KeyboardInterrupt:
            _status(folder, "interrupted", "by the keyboard")
            raise
        _status(folder, "finished", "")


def _status(folder: Path, state: str, reason: str) -> None:
    files.write_json(folder / "status.json", {"state": state, "reason": reason})


def _unused(folder: Path) -> Path:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    return aside
