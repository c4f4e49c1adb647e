"""A list of models -> a child process each -> their rows; light."""

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from stl10bench.errors import InterruptedRunError, UsageError
from stl10bench.models import registry
from stl10bench.terminal import LAUNCHED

REPORT = ("logistic", "mlp", "cnn", "mobilenetv2")  # the report's five rows: the last counts twice


@dataclass(frozen=True)
class Entry:
    """One row to be: a model, and whether its backbone is frozen (None where it has none)."""

    model: str
    freeze: bool | None


def plan(models: Sequence[str], *, everything: bool, freeze: bool | None) -> list[Entry]:
    """The rows of a benchmark; a backbone gives two, frozen and learned, unless one is asked for.

    Raises UsageError for unknown names, and when nothing is asked for.
    """
    names = list(dict.fromkeys([*(REPORT if everything else ()), *models]))
    if not names:
        raise UsageError("benchmark what? Name models, or --all for the report's five rows")
    entries = []
    for name in names:
        registry.check_name(name)
        if registry.backbone(name) is None:
            entries.append(Entry(name, None))
        else:
            both = (True, False) if freeze is None else (freeze,)
            entries += [Entry(name, one) for one in both]
    return entries


def fit(entries: Sequence[Entry], options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`train`'s options for each entry: weights and model options only where the model has them.

    Raises UsageError for a model option that none of the models has.
    """
    own = [f"{key}={options[key]}" for key in ("hidden", "dropout") if options[key] is not None]
    own += options["model_option"] or []
    fitted, used = [], set()
    for entry in entries:
        known = registry.options(entry.model) if own else {}
        kept = [pair for pair in own if pair.partition("=")[0] in known]
        used.update(kept)
        weights = options["weights"] if registry.backbone(entry.model) else None
        own_options = {"hidden": None, "dropout": None, "model_option": kept}
        fitted.append({**options, **own_options, "weights": weights})
    if unused := [pair for pair in own if pair not in used]:
        raise UsageError(f"model option {unused[0]}: none of the models has it")
    return fitted


def run(entry: Entry, arguments: Sequence[str]) -> dict[str, Any]:
    """Train one entry in its own process; returns its row, or one with an `error`.

    A process each keeps memory, failures and Accelerate's state from leaking into the next run.
    What it says on the way goes to our stderr. Raises InterruptedRunError when it was interrupted;
    signals that come to us go to it, once, so that it saves and ends.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("benchmark starts its own processes: run it without a launcher")
    freeze = {None: [], True: ["--freeze"], False: ["--no-freeze"]}[entry.freeze]
    command = [sys.executable, "-m", "stl10bench", "train", entry.model, *arguments, *freeze]
    with (
        _noted_signals() as signals,
        subprocess.Popen(
            [*command, "--json"],
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # else Ctrl-C in a terminal would reach it twice
            env={**os.environ, LAUNCHED: str(os.getpid())},
        ) as child,
    ):
        signals.forward_to(child)
        printed, _ = child.communicate()
    codes = [128 + number for number in signals.came]  # it may have ended before it heard of them
    if child.returncode in (130, 143, -signal.SIGINT, -signal.SIGTERM):
        codes.append(child.returncode if child.returncode > 0 else 128 - child.returncode)
    if codes:
        raise InterruptedRunError("interrupted: the same command goes on from here", codes[0])
    if child.returncode == 0:
        row: dict[str, Any] = json.loads(printed)
        return row
    try:
        reason = json.loads(printed)["error"]
    except (ValueError, KeyError, TypeError):
        code = child.returncode
        reason = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    options = {} if entry.freeze is None else {"freeze": entry.freeze}
    return {"model": entry.model, "model_options": options, "error": reason}


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
