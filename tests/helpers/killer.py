"""Trains in forked children that are killed: by time, or before and after an operation on files.

Python's os functions are wrapped in the child only; the product has no hook for it.
"""

import json
import signal
import time
from pathlib import Path
from typing import Any

from helpers.forks import Forks

OPERATIONS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir", "truncate")
VARYING = {
    *("time", "since", "seconds", "images_per_second", "train_seconds", "seconds_to"),
    *("peak_memory_mb", "latency_ms", "latency_p95_ms", "inference_images_per_second"),
}
# Python code for the child: it trains, and leaves the names of its operations.
TRAINS = """
import json, os, signal, sys, warnings
import stl10bench

log = []

def wrapped(name, original):
    def call(*args, **kwargs):
        log.append(name)
        mine = len(log) == {operation}
        if mine and not {after}:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return original(*args, **kwargs)
        finally:
            if mine:
                os.kill(os.getpid(), signal.SIGKILL)
    return call

for name in {names}:
    setattr(os, name, wrapped(name, getattr(os, name)))
warnings.simplefilter("ignore")
stl10bench.train(**{settings})
print(json.dumps(log))
sys.exit()
"""


class Killer:
    """Trains in children of the process that forks."""

    def __init__(self, forks: Forks) -> None:
        self._forks = forks

    def train(
        self,
        settings: dict[str, Any],
        *,
        operation: int | None = None,
        after: bool = False,
        seconds: float | None = None,
    ) -> dict[str, Any]:
        """Train in a child that is killed before (or `after`) its n-th `operation`, or in time.

        Returns `code` (-9 when it was killed), `operations` (their names, when it was not),
        `seconds` and `error`.
        """
        plain = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}
        plain["threads"] = 1
        started = time.monotonic()
        child = self._forks.start(
            before=TRAINS.format(operation=operation, after=after, names=OPERATIONS, settings=plain)
        )
        if seconds is not None:
            time.sleep(seconds)
            child.signal(signal.SIGKILL)
        ended = child.wait()
        answer = {"code": ended.code, "seconds": time.monotonic() - started, "error": ended.err}
        return answer | ({"operations": json.loads(ended.out)} if ended.code == 0 else {})


def contents(folder: Path) -> dict[str, Any]:
    """All that a finished run leaves, without what differs from run to run."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [_steady(row) for row in rows]
        elif path.suffix == ".json":
            found[name] = _steady(json.loads(path.read_text()))
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def _steady(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in VARYING}
