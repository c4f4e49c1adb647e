"""Signals, limits, a dead launcher, errors of torch -> when a run pauses or ends, and how."""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import torch
from accelerate import Accelerator
from torch import distributed

from stl10bench.config import Limits, RunConfig
from stl10bench.core.device import is_out_of_memory
from stl10bench.core.errors import InterruptedRunError, StorageError
from stl10bench.core.launcher import has_died, launcher_pid

# On Windows one process can send another only Ctrl-Break: it stands for SIGTERM.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, *filter(None, [getattr(signal, "SIGBREAK", None)]))
_ECHO = 0.5  # seconds
_GO_ON, _SAVE = 0, 1
_TIME_IS_UP, _ORPHAN = 2, 3  # what is higher wins; a signal n is _SIGNAL + n
_SIGNAL = 128


@contextmanager
def restored_signals() -> Iterator[None]:
    """Within, `defer_signals` may be called; at the end signals do again what they did before.

    That end is behind the last write: as soon as one process has ended, torchrun sends SIGTERM to
    all others, also to one that still records why.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def defer_signals() -> Callable[[], int]:
    """From now on SIGINT and SIGTERM are noted, and a second one ends the process at once.

    Not one that follows on its heels: a terminal and a launcher may both send the first. Returns a
    function that returns the number of the signal that came, or 0. Outside the main thread, where
    Python allows no handlers, signals do what they did before.
    """
    noted: list[int] = []
    until = math.inf

    def note(number: int, _: FrameType | None) -> None:
        nonlocal until
        number = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
        if time.monotonic() > until:
            os._exit(_SIGNAL + number)
        noted.append(number)
        until = min(until, time.monotonic() + _ECHO)

    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            signal.signal(number, note)
    return lambda: noted[0] if noted else 0


class Watch:
    """Whether the run is to pause: each process looks, and all of them agree.

    With several processes the answer is one look old: it travels while the next step computes.
    """

    def __init__(
        self, accelerator: Accelerator, signalled: Callable[[], int], limits: Limits
    ) -> None:
        self._signalled = signalled
        # On the CPU even of GPUs: nobody waits for a device to hear of a signal.
        self._group: distributed.ProcessGroup | None = None
        if accelerator.num_processes > 1:
            self._group = distributed.new_group(  # type: ignore[assignment]
                backend="gloo", timeout=timedelta(minutes=limits.timeout_minutes)
            )
        self._interval = 60 * limits.checkpoint_minutes
        self._end = time.monotonic() + 60 * (limits.max_minutes or math.inf)
        self._has_stepped = False
        self._saved_at = time.monotonic()
        self._launcher = launcher_pid()
        self._travelling: tuple[distributed.Work, torch.Tensor] | None = None
        self._reason = _GO_ON

    def saved(self) -> None:
        """A checkpoint was written: the next is due an interval from now.

        To be told by all processes.
        """
        self._saved_at = time.monotonic()
        if self._travelling is not None:  # it may still ask for what has just been done
            work, reason = self._travelling
            work.wait()
            self._reason = max(self._reason, int(reason) if int(reason) > _SAVE else _GO_ON)
            self._travelling = None

    def pauses(self) -> bool:
        """Whether a checkpoint is due or the run is to stop; to be asked by all after each step."""
        self._has_stepped = True
        return self._agree()

    def _agree(self) -> bool:
        reason = self._look()
        if self._group is not None:
            answer, self._travelling = self._travelling, self._send(reason)
            reason = _GO_ON
            if answer is not None:
                answer[0].wait()
                reason = int(answer[1])
        self._reason = max(reason, self._reason if self._reason > _SAVE else _GO_ON)
        return self._reason > _GO_ON

    def raise_if_stopped(self) -> None:
        """Raise InterruptedRunError when the last answer was that the run is to stop."""
        if self._reason > _SAVE:
            number = max(self._reason - _SIGNAL, 0)
            why = {_TIME_IS_UP: "--max-minutes reached", _ORPHAN: "its launcher died"}
            text = signal.Signals(number).name if number else why[self._reason]
            raise InterruptedRunError(
                f"Interrupted ({text}). Run the same command again to resume.",
                128 + (number or signal.SIGTERM),
            )

    def check(self) -> None:
        """Raise InterruptedRunError when the run is to stop; to be called by all processes."""
        self._agree()
        self.raise_if_stopped()

    def _look(self) -> int:
        if number := self._signalled():
            return _SIGNAL + number
        if self._launcher is not None and has_died(self._launcher):
            return _ORPHAN
        now = time.monotonic()
        # Not before the session has taken a step, which the next one need not take again: an
        # evaluation that is longer than the limit would begin anew in each session, for ever.
        if now >= self._end and self._has_stepped:
            return _TIME_IS_UP
        return _SAVE if now - self._saved_at >= self._interval else _GO_ON

    def _send(self, reason: int) -> tuple[distributed.Work, torch.Tensor]:
        mine = torch.tensor(reason)
        work = distributed.all_reduce(mine, distributed.ReduceOp.MAX, self._group, async_op=True)
        assert work is not None  # asynchronous
        return work, mine


_PATIENCE = 5.0  # seconds in which the processes find out who is left


@contextmanager
def translate_errors(
    accelerator: Accelerator, config: RunConfig, timeout_minutes: float
) -> Iterator[None]:
    """Within, such an error is a StorageError: what to change, or which process is lost.

    To be used within `restored_signals`.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise StorageError(
                f"out of memory at batch_size = {config.batch_size}, image_size = "
                f"{config.image_size}: lower --batch-size or --image-size, or raise --grad-accum"
            ) from error
        if accelerator.num_processes == 1 or not isinstance(error, RuntimeError):
            raise
        defer_signals()  # a launcher that misses one process ends the others
        lost = _lost(accelerator)
        if not lost:
            raise
        raise StorageError(
            f"{lost} died, or did not answer within {timeout_minutes:g} minutes "
            "(--timeout-minutes). Run the same command again to resume."
        ) from error


def _lost(accelerator: Accelerator) -> str:
    """Who does not say within some seconds that it has come here too; nothing when all do.

    A collective operation fails in all the processes but in the one that it waited for.
    """
    store = distributed.distributed_c10d._get_default_store()
    try:
        store.set(f"failed/{accelerator.process_index}", "")
    except RuntimeError:  # it lives in the launcher, or in process 0
        return "the launcher or process 0"
    lost = []
    until = time.monotonic() + _PATIENCE
    for process in range(accelerator.num_processes):
        left = max(0.1, until - time.monotonic())
        try:
            store.wait([f"failed/{process}"], timedelta(seconds=left))
        except RuntimeError:  # it did not
            lost.append(str(process))
    noun = "process" if len(lost) == 1 else "processes"
    return f"{noun} {', '.join(lost)} of {accelerator.num_processes}" if lost else ""
