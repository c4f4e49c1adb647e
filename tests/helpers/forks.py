"""Starts `stl10bench` commands in forked children of a process that has imported torch.

A child runs the real entry point, a tenth of a second after it was asked for. Nothing is left
behind: a command that outlives its patience, or the tests, is killed with all that it started.
"""

import atexit
import contextlib
import ctypes
import io
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from helpers.service import Service, learn, prepare

PATIENCE = 120.0  # seconds
_PR_SET_CHILD_SUBREAPER = 36  # of Linux: orphans become ours, so that we see how they end


class Ended(NamedTuple):
    """How a command ended (-9 when it was killed by signal 9) and what it printed."""

    code: int
    out: str
    err: str


class Child:
    """One command that runs."""

    def __init__(self, forks: "Forks", pid: int, folder: Path) -> None:
        self.pid = pid
        self._forks = forks
        self._folder = folder

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def says(self, text: str) -> None:
        """Wait until `text` stands in what it printed to stderr."""
        until = time.monotonic() + PATIENCE
        while text not in (err := (self._folder / "err").read_text()):
            assert time.monotonic() < until, f"{text!r} is not in {err[-2000:]!r}"
            time.sleep(0.002)

    def wait(self) -> Ended:
        """Wait for its end."""
        code = self._forks.wait(self.pid)
        out, err = ((self._folder / name).read_text() for name in ("out", "err"))
        assert code is not None, f"no end in {PATIENCE} s: {err[-2000:]!r}"
        return Ended(code, out, err)


class Forks(Service):
    """The process that imports and forks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0

    def start(
        self,
        *arguments: str | Path,
        before: str = "",
        env: Mapping[str, str] | None = None,
        under: bool = False,
        processes: int = 1,
    ) -> Child:
        """Start `stl10bench <arguments>`, after Python code `before` in the child.

        With `under` a process stands between, as a launcher does: `os.getppid()` of the child.
        Several `processes` are started and watched by torchrun's agent; the child is the agent.
        """
        self._number += 1
        folder = self._folder / str(self._number)
        folder.mkdir(parents=True)
        (folder / "err").touch()
        told = self.ask(
            {
                "start": [str(argument) for argument in arguments],
                "folder": str(folder),
                "before": before,
                "env": {**os.environ, **(env or {})},
                "under": under,
                "processes": processes,
            }
        )
        return Child(self, told, folder)

    def run(self, *arguments: str | Path, **options: Any) -> Ended:
        """Start a command and wait for its end."""
        return self.start(*arguments, **options).wait()

    def wait(self, pid: int) -> int | None:
        """How a process ended that a child started, or None after too long a time."""
        code: int | None = self.ask({"wait": pid})
        return code


def _child(asked: dict[str, Any]) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(asked["env"])
    folder = Path(asked["folder"])
    os.chdir(folder)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdin = io.StringIO()
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    sys.argv = ["stl10bench", *asked["start"]]
    code: Any = 1
    try:
        if asked["processes"] == 1:
            _command(asked["before"])
        else:
            _launch(asked["processes"], asked["before"])
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()
        atexit._run_exitfuncs()
        (folder / "modules").write_text("\n".join(sys.modules))
    os._exit(code)


def _command(before: str) -> None:
    exec(before, {})
    from stl10bench.cli.main import main

    main()


def _launch(processes: int, before: str) -> None:
    """What `torchrun --standalone` does, but its processes are forked."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="none",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="fork",
    )
    code = "import ctypes; ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\n"  # no signal when it dies
    elastic_launch(config, _command)(code + before)


def _start(asked: dict[str, Any]) -> tuple[int, list[int]]:
    """The child's number, and those of all processes that were started."""
    read, write = os.pipe()
    first = os.fork()
    if first == 0:
        if not asked["under"]:
            _child(asked)
        os.setsid()
        if (second := os.fork()) == 0:
            _child(asked)
        os.write(write, str(second).encode())
        signal.pause()
    if not asked["under"]:
        return first, [first]
    second = int(os.read(read, 20))
    return second, [first, second]


def _wait(pid: int) -> int | None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        with contextlib.suppress(ChildProcessError):  # not ours yet: its launcher lives
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def _serve() -> None:
    from stl10bench.core import cores

    prepare()
    cores.busy = lambda: 0.0  # the other tests keep them busy
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    started: list[int] = []
    folders: dict[int, Path] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            answer = _wait(asked["wait"])
            modules = folders.get(asked["wait"], Path()) / "modules"
            if modules.is_file():
                learn(modules.read_text().split())
        else:
            answer, new = _start(asked)
            started += new
            folders[answer] = Path(asked["folder"])
        print(json.dumps(answer), flush=True)
    for pid in started:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    _serve()
