"""The run folder: who owns it, what state it is in, and what is kept when it is made anew."""

import os
import platform
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stl10bench.config import RunConfig
from stl10bench.core import files
from stl10bench.core.console import is_main
from stl10bench.core.errors import (
    BenchError,
    BusyError,
    CheckpointError,
    DivergedError,
    InterruptedRunError,
    StorageError,
    UsageError,
    unknown,
)

OLD = ".old-"  # in the names of folders that were moved aside
_LOG_LIMIT = 1 << 30  # bytes of a metrics.jsonl
STATES = ("running", "interrupted", "finished", "diverged", "failed")


def ended(folder: Path, config: RunConfig) -> dict[str, Any] | None:
    """The row of a run that is finished, or None for one that is still to do.

    Raises the DivergedError of a run that diverged, as it would again, and CheckpointError for a
    folder that is not this config's. What a killed process left in a finished folder is removed.
    """
    if (row := stored(folder, config)) is not None:
        if is_main() and status(folder)["state"] != "finished":
            with lock(folder):
                _tidy(folder)
        return row
    if status(folder)["state"] == "diverged":
        check_config(folder, config)
        facts = status(folder)
        raise DivergedError(
            f"{facts['reason']} ({folder.name} is on record; --overwrite trains it again)",
            **{key: facts[key] for key in ("step", "lr", "last_finite_loss") if key in facts},
        )
    return None


def stored(folder: Path, config: RunConfig) -> dict[str, Any] | None:
    """The row in a run folder, None without one; raises CheckpointError for another config's."""
    path = folder / "result.json"
    if not path.exists():
        return None
    row = files.read_json(path, CheckpointError)
    check_same(row.get("config"), config, path)
    return row


def status(folder: Path) -> dict[str, Any]:
    """What status.json says: `state` (one of STATES, or "new" without a file), `reason`, ...

    Raises CheckpointError for a file that says no such thing.
    """
    path = folder / "status.json"
    if not path.exists():
        return {"state": "new", "reason": ""}
    facts = files.read_json(path, CheckpointError)
    if facts.get("state") not in STATES or not isinstance(facts.get("reason"), str):
        raise CheckpointError(
            f"{path} tells no state of a run; delete it, or --overwrite starts the run anew"
        )
    return facts


def check_config(folder: Path, config: RunConfig) -> None:
    """Raise CheckpointError when the folder was made for another config, with what differs."""
    path = folder / "config.json"
    if path.exists():
        check_same(files.read_json(path, CheckpointError), config, path)


def check_same(stored: Any, config: RunConfig, path: Path) -> None:
    """Raise CheckpointError, with what differs, when `stored` in `path` is not the config."""
    asked = config.model_dump(mode="json")
    if stored == asked:
        return
    found = stored if isinstance(stored, dict) else {}
    keys = sorted(key for key in {**asked, **found} if asked.get(key) != found.get(key))
    key = keys[0] if keys else "config"
    raise CheckpointError(
        f"{path}: {key} = {found.get(key)!r}, but {config.name} is the name of {key} = "
        f"{asked.get(key)!r}: it was edited, or comes from another version; --overwrite moves the "
        "folder aside"
    )


def find(runs_dir: Path, name: str) -> Path:
    """The run folder of a `name`, of the beginning of one name alone, or of a path.

    Raises UsageError with the nearest name.
    """
    if (Path(name) / "config.json").is_file():
        return Path(name)
    names = [path.parent.name for path in runs_dir.glob("*/config.json")]
    if not names:
        raise UsageError(f"no run {name!r}: there is none in {runs_dir}; give --runs-dir")
    begun = [one for one in names if one.startswith(name) and OLD not in one]
    fitting = [name] if name in names else begun
    if len(fitting) > 1:
        raise UsageError(f"run {name!r} could be any of {', '.join(sorted(fitting))}: give more")
    if not fitting:
        raise unknown("run", name, names, remedy=f"(runs are looked for in {runs_dir})")
    return runs_dir / fitting[0]


def describe(folder: Path) -> dict[str, Any]:
    """What a run folder holds: name, model, state, reason, epochs done and asked, bytes.

    A run whose process is gone without a word is `killed`, one that was moved aside `old`. A file
    that cannot be believed makes the state `damaged`, and its fault the reason.
    """
    facts: dict[str, Any] = {"run": folder.name, "model": None, "epoch": None, "epochs": None}
    try:
        config = files.read_json(folder / "config.json", CheckpointError)
        facts |= {"model": str(config.get("model")), "epochs": config.get("epochs")}
        found = status(folder)
        facts |= {"state": found["state"], "reason": found["reason"]}
        facts["epoch"] = _last_epoch(folder / "metrics.jsonl")
    except CheckpointError as error:
        facts |= {"state": "damaged", "reason": str(error)}
    if OLD in folder.name:
        facts["state"] = "old"
    elif facts["state"] == "running":
        try:
            with lock(folder):
                facts |= {"state": "killed", "reason": "its process ended without a word"}
        except BusyError:
            facts["reason"] = _owner(folder)
    facts["bytes"] = sum(files.sizes(folder).values())
    return facts


def remove(folder: Path) -> int:
    """Remove a run folder, unless a run is at work in it (BusyError); returns the bytes freed."""
    freed: int = describe(folder)["bytes"]
    with lock(folder):
        try:
            files.remove_folder(folder)
        except OSError as error:
            raise StorageError(f"cannot remove {folder}: {error}") from error
    return freed


def _last_epoch(path: Path) -> int | None:
    """The newest epoch in metrics.jsonl; a last line that is still being written does not count."""
    if not path.exists():
        return None
    epochs = re.findall(rb'"epoch": (\d{1,9})[,}]', files.read(path, _LOG_LIMIT, CheckpointError))
    return int(epochs[-1]) if epochs else 0


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Own `folder`, which is made if need be; the lock dies with its process, however it ends.

    Raises BusyError, with its owner, when another process owns it, and StorageError when the
    folder cannot be written.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        guard = FileLock(folder.with_name(f".{folder.name}.lock"))
        guard.acquire(timeout=0.2)  # longer than `describe` holds it
    except Timeout:
        raise BusyError(
            f"{folder} is being written by {_owner(folder)}: wait for it, or stop it"
        ) from None
    except OSError as error:
        raise StorageError(f"cannot write the run folder {folder}: {error}") from error
    with guard:
        yield


@contextmanager
def owned(folder: Path, config: RunConfig, *, overwrite: bool = False) -> Iterator[None]:
    """Own `folder` while a run writes it; its status.json says running, finished or why not.

    A run that did not finish is left as it is, to go on from; `overwrite` moves what is there to
    `<folder>.old-<n>`. Raises what `lock` raises, and CheckpointError for another config's folder.
    """
    with lock(folder):
        try:
            if overwrite and any(folder.iterdir()):
                folder.rename(_unused(folder))
                folder.mkdir()
            files.remove_parts(folder)
            files.remove_parts(folder / "checkpoints")
        except OSError as error:
            raise StorageError(f"cannot write the run folder {folder}: {error}") from error
        check_config(folder, config)
        files.write_json(folder / "config.json", config.model_dump(mode="json"))
        _write_status(folder, "running", "", pid=os.getpid(), host=platform.node())
        try:
            yield
        except DivergedError as error:
            _record(folder, "diverged", str(error), **error.facts)
            raise
        except InterruptedRunError as error:
            _record(folder, "interrupted", str(error))
            raise
        except BenchError as error:
            _record(folder, "failed", str(error))
            raise
        except (KeyboardInterrupt, SystemExit):
            _record(folder, "interrupted", "before its first step or after its last")
            raise
        except Exception as error:
            _record(folder, "failed", f"{type(error).__name__}: {error}")
            raise
        _tidy(folder)


def _tidy(folder: Path) -> None:
    """A finished run needs no checkpoints; its state says so when they are gone."""
    try:
        if (folder / "checkpoints").exists():
            files.remove_folder(folder / "checkpoints")
        files.remove_parts(folder)
    except OSError as error:
        raise StorageError(f"cannot remove {folder}/checkpoints: {error}") from error
    _write_status(folder, "finished", "")


def _record(folder: Path, state: str, reason: str, **facts: Any) -> None:
    """Write how a run ended; that there is no room for it is a warning: what ended it counts."""
    try:
        _write_status(folder, state, reason, **facts)
    except StorageError as error:
        warnings.warn(f"{error}: status.json does not say that the run {state}", stacklevel=2)


def _write_status(folder: Path, state: str, reason: str, **facts: Any) -> None:
    home = os.path.expanduser("~")  # noqa: PTH111  leaves it where there is none
    reason = reason.replace(home, "~") if len(home) > 1 else reason
    facts = {"state": state, "reason": reason, "since": time.time(), **facts}
    files.write_json(folder / "status.json", facts)


def _owner(folder: Path) -> str:
    """The process that wrote status.json last, as far as it can be told."""
    try:
        facts = status(folder)
        seconds = max(0.0, time.time() - facts["since"])
        return f"process {facts['pid']} on {facts['host']}, for {seconds:,.0f} s"
    except (CheckpointError, KeyError, TypeError, ValueError, OverflowError):
        return "another process"


def _unused(folder: Path) -> Path:
    number = 1
    while (aside := folder.with_name(f"{folder.name}{OLD}{number}")).exists():
        number += 1
    return aside
