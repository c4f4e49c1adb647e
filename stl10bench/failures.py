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
        if not (lost := _lost(accelerator)):
            raise
        raise StorageError(
            f"process(es) {', '.join(map(str, lost))} of {accelerator.num_processes} died, or did "
            f"not answer within {timeout_minutes:g} minutes (--timeout-minutes); the same command "
            "goes on from the last checkpoint"
        ) from error


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is how torch says that there is no more memory, of a GPU or the host's."""
    text = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "can't allocate memory" in text or "not enough memory" in text
    )


def _lost(accelerator: Accelerator) -> list[int]:
    """The processes that do not say within some seconds that they have come here too.

    A collective operation fails in all the processes but in the one that it waited for.
    """
    store = distributed.distributed_c10d._get_default_store()
    store.set(f"failed/{accelerator.process_index}", "")
    lost = []
    until = time.monotonic() + _PATIENCE
    for process in range(accelerator.num_processes):
        left = max(0.1, until - time.monotonic())
        try:
            store.wait([f"failed/{process}"], timedelta(seconds=left))
        except RuntimeError:  # it did not
            lost.append(process)
    return lost
