"""torch's errors for no memory and for lost processes -> ours, which say what to do."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import Accelerator
from torch import distributed

from stl10bench.config import RunConfig
from stl10bench.errors import StorageError
from stl10bench.stopping import deferred_signals

_PATIENCE = 5.0  # seconds in which the processes find out who is left


@contextmanager
def named(accelerator: Accelerator, config: RunConfig, timeout_minutes: float) -> Iterator[None]:
    """Within, such an error is a StorageError: what to change, or which process is lost."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if _is_out_of_memory(error):
            raise StorageError(
                f"out of memory at batch_size = {config.batch_size}, image_size = "
                f"{config.image_size}: lower one of them (they are never changed for you)"
            ) from error
        if accelerator.num_processes == 1 or not isinstance(error, RuntimeError):
            raise
        with deferred_signals():  # a launcher that misses one process ends the others
            lost = _lost(accelerator)
        if not lost:
            raise
        raise StorageError(
            f"{lost} died, or did not answer within {timeout_minutes:g} minutes "
            "(--timeout-minutes); the same command goes on from the last checkpoint"
        ) from error


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is how torch says that there is no more memory, of a GPU or the host's."""
    text = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        sign in text for sign in ("can't allocate memory", "not enough memory", "bad_alloc")
    )


def _lost(accelerator: Accelerator) -> str:
    """Who does not say within some seconds that it has come here too; nothing when all do.

    A collective operation fails in all the processes but in the one that it waited for.
    """
    store = distributed.distributed_c10d._get_default_store()
    try:
        store.set(f"failed/{accelerator.process_index}", "")
    except RuntimeError:  # it lives in the launcher, or in process 0
        return "the launcher, or process 0,"
    lost = []
    until = time.monotonic() + _PATIENCE
    for process in range(accelerator.num_processes):
        left = max(0.1, until - time.monotonic())
        try:
            store.wait([f"failed/{process}"], timedelta(seconds=left))
        except RuntimeError:  # it did not
            lost.append(str(process))
    return f"process(es) {', '.join(lost)} of {accelerator.num_processes}" if lost else ""
