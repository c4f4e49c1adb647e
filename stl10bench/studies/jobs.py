"""Options of a run -> its config, what is known of it, or a child process that trains it."""

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any, NamedTuple

from stl10bench.config import Limits, RunConfig
from stl10bench.core import files
from stl10bench.core.console import LAUNCHED
from stl10bench.core.errors import BenchError, CheckpointError, InterruptedRunError
from stl10bench.data.stl10 import Dataset
from stl10bench.results import run_folder
from stl10bench.training.resolve import check_settings, resolve_config

_LOOK = 0.5  # seconds between two looks at a child
BUSY = 6  # the exit code of a run whose folder another process owns
_HOW = {"weights", "pretrained", "recipe"}  # of `train`'s keywords: those that `api.check` takes
_WHERE = {
    *("dataset", "data_dir", "download", "verify", "runs_dir", "tracker", "device", "threads"),
    *("compile", "deterministic", "overwrite"),
    *Limits.model_fields,
}


class Trial(NamedTuple):
    """One run to be: its model, its own arguments of `train`, and the keywords that they mean."""

    model: str
    arguments: tuple[str, ...]
    keywords: Mapping[str, Any]

    @property
    def title(self) -> str:
        """The trial as a command line would name it."""
        return " ".join([self.model, *self.arguments])


def resolve_trial(trial: Trial, data: Dataset, device: str) -> RunConfig:
    """The config that names the trial's run; raises what `api.check` raises."""
    given = {key: value for key, value in trial.keywords.items() if key not in _WHERE}
    how = {key: given.pop(key) for key in _HOW & given.keys()}
    config, start = check_settings(trial.model, **how, settings=given)
    return resolve_config(config, data.fingerprint, start, device)


class Known(NamedTuple):
    """A trial, its config (None where it cannot be), and its row, if there is nothing to do."""

    trial: Trial
    config: RunConfig | None
    row: dict[str, Any] | None


def look_up(
    trial: Trial, data: Dataset, device: str, runs_dir: Path, *, overwrite: bool = False
) -> Known:
    """What is known of a trial before it is trained.

    Its row is that of a finished run (unless `overwrite`), or has an `error`: settings that cannot
    be, or a run that diverged.
    """
    try:
        config = resolve_trial(trial, data, device)
    except BenchError as error:
        return Known(trial, None, {"model": trial.model, "model_options": {}, "error": str(error)})
    if overwrite:
        return Known(trial, config, None)
    try:
        return Known(trial, config, run_folder.ended(runs_dir / config.name, config))
    except BenchError as error:
        return Known(trial, config, failed_row(config, str(error)))


def failed_row(config: RunConfig, reason: str) -> dict[str, Any]:
    """The row of a run that has none, with its `error`."""
    return {
        "run": config.name,
        "model": config.model,
        "model_options": config.model_options,
        "error": reason,
        "seed": config.seed,
        "config": config.model_dump(mode="json"),
    }


def train_in_child(trial: Trial, common: Sequence[str]) -> tuple[int, str]:
    """Train in a child process with the arguments `common` and the trial's own.

    Returns its exit code, and the name of the run, or the reason why there is none. What it says
    on the way goes to our stderr. Raises InterruptedRunError as `child` does.
    """
    code, answer = run_child(["train", trial.model, *common, *trial.arguments])
    return code, str(answer["run"] if "run" in answer else answer["error"])


def run_child(
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    said: IO[str] | None = None,
    watch: Callable[[], bool] | None = None,
) -> tuple[int, dict[str, Any]]:
    """Run a command of ours with --json in a child process; returns its exit code and its answer.

    A process each keeps memory, failures and Accelerate's state from leaking into the next run.
    The answer of one that died has an `error`. `environment` replaces ours, `said` takes what it
    says on the way in place of our stderr, and `watch` is called twice a second: when it returns
    True the child is asked to save and end. Raises InterruptedRunError when it was interrupted
    otherwise; signals that come to us go to it, once, so that it saves and ends.
    """
    with (
        _noted_signals() as signals,
        subprocess.Popen(
            [sys.executable, "-m", "stl10bench", *arguments, "--json"],
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            process_group=0,  # else Ctrl-C in a terminal would reach it twice
            env={
                **(os.environ if environment is None else environment),
                LAUNCHED: str(os.getpid()),
            },
        ) as process,
    ):
        signals.forward_to(process)
        printed, asked = _wait(process, watch)
    codes = [128 + number for number in signals.came]  # it may have ended before it heard of them
    code = process.returncode
    if not asked and code in (130, 143, -signal.SIGINT, -signal.SIGTERM):
        codes.append(code if code > 0 else 128 - code)
    if codes:
        raise InterruptedRunError("interrupted: the same command goes on from here", codes[0])
    try:
        answer = json.loads(printed)
        if isinstance(answer, dict) and (code == 0 or "error" in answer):
            return code, answer
    except ValueError:
        pass
    how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    return code, {"error": f"ended {how}"}


def _wait(process: "subprocess.Popen[str]", watch: Callable[[], bool] | None) -> tuple[str, bool]:
    """What a child printed, when it has ended, and whether `watch` had it end."""
    asked = False
    while True:
        try:
            return process.communicate(timeout=None if watch is None else _LOOK)[0], asked
        except subprocess.TimeoutExpired:
            if watch is not None and watch() and not asked:
                process.terminate()
                asked = True


def command_line(options: Mapping[str, Any]) -> list[str]:
    """Options -> the arguments that give them again."""
    arguments: list[str] = []
    for key, value in options.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list):
            arguments += [part for one in value for part in (f"--{name}", one)]
        elif value is not None:
            arguments += [f"--{name}", str(value)]
    return arguments


def stored_row(runs_dir: Path, run: str) -> dict[str, Any]:
    """The stored row of a finished run; raises CheckpointError."""
    return files.read_json(runs_dir / run / "result.json", CheckpointError)


class _Signals:
    """The signals that came, each sent once to a child as soon as there is one."""

    def __init__(self) -> None:
        self.came: list[int] = []
        self._unsent: deque[int] = deque()
        self._child: subprocess.Popen[str] | None = None

    def note(self, number: int, _: FrameType | None) -> None:
        self.came.append(number)
        self._unsent.append(number)
        self._send()

    def forward_to(self, child: "subprocess.Popen[str]") -> None:
        self._child = child
        self._send()

    def _send(self) -> None:
        while self._child is not None and self._unsent:
            self._child.send_signal(self._unsent.popleft())


@contextmanager
def _noted_signals() -> Iterator[_Signals]:
    """Within, SIGINT and SIGTERM are noted, for a child."""
    signals = _Signals()
    before = {n: signal.signal(n, signals.note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
