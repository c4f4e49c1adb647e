"""Trains in forked children that are killed: by time, or before and after an operation on files.

`Killer()` starts this file as a program of its own, which imports torch once. Python's os functions
are wrapped in the child only; the product has no hook for it.
"""

import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.service import Service, learn, prepare

OPERATIONS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir", "truncate")
VARYING = {
    *("time", "since", "seconds", "images_per_second", "train_seconds", "seconds_to"),
    *("peak_memory_mb", "latency_ms", "latency_p95_ms", "inference_images_per_second"),
}


class Killer(Service):
    """The forking process; `train` asks it for one child and waits for its end."""

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
        asked = {"settings": settings, "operation": operation, "after": after, "seconds": seconds}
        answer: dict[str, Any] = self.ask(asked)
        return answer


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


def _wrap(log: list[str], operation: int | None, after: bool) -> None:
    def wrapped(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            log.append(name)
            mine = len(log) == operation
            if mine and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return original(*args, **kwargs)
            finally:
                if mine:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    for name in OPERATIONS:
        setattr(os, name, wrapped(name, getattr(os, name)))


def _child(asked: dict[str, Any], answer: int) -> None:
    import stl10bench

    log: list[str] = []
    error = None
    _wrap(log, asked["operation"], asked["after"])
    warnings.simplefilter("ignore")
    try:
        stl10bench.train(**asked["settings"])
    except Exception as raised:
        error = repr(raised)
    told = {"operations": log, "error": error, "modules": list(sys.modules)}
    with os.fdopen(answer, "w") as pipe:
        json.dump(told, pipe)
    os._exit(0 if error is None else 1)


def _serve() -> None:
    prepare()
    for line in sys.stdin:
        asked = json.loads(line)
        asked["settings"] = {**asked["settings"], "threads": 1}
        read, write = os.pipe()
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            _child(asked, write)
        os.close(write)
        if asked["seconds"] is not None:
            time.sleep(asked["seconds"])
            os.kill(pid, signal.SIGKILL)
        with os.fdopen(read) as pipe:
            told = pipe.read()
        _, status = os.waitpid(pid, 0)
        answer = {
            "code": os.waitstatus_to_exitcode(status),
            "seconds": time.monotonic() - started,
        }
        if answer["code"] >= 0:  # else it may be half an answer
            answer |= json.loads(told)
        learn(answer.pop("modules", []))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
