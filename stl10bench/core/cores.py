"""The CPU cores that we may use, those that other processes keep busy -> the threads of a run."""

import math
import os
import time
import warnings
from contextlib import suppress
from pathlib import Path

import psutil

from stl10bench.core.launcher import count_of, launcher_pid

# A container's quota, by cgroup v2: "200000 100000" (microseconds of each period) or "max ...". No
# affinity tells it, and the kernel stops all threads of a process that has used it up.
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_SAMPLES, _SECONDS = 5, 0.2


def count() -> int:
    """The cores that this process may use: by its affinity, and by its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit, _, period = _QUOTA.read_text().partition(" ") if _QUOTA.is_file() else ("max", "", "")
    quota = math.inf if limit == "max" else math.ceil(int(limit) / int(period))
    return int(max(1, min(cores or 1, quota)))


def busy() -> float:
    """How many of our cores others keep busy: the least of a second's samples, 0.2 s each.

    Others are all processes but ours, our launcher's and those that these started. A short load is
    none: the first sample that finds most of a core free is the last.
    """
    least = math.inf
    for _ in range(_SAMPLES):
        started, used, own = time.monotonic(), used_seconds(), _own()
        time.sleep(_SECONDS)
        others = (used_seconds() - used) - (_own() - own)
        least = min(least, max(0.0, others / (time.monotonic() - started)))
        if least < 0.5:
            break
    return least


def used_seconds() -> float:
    """Seconds that our cores have computed for anybody since the machine started."""
    times = psutil.cpu_times(percpu=True)
    if hasattr(os, "sched_getaffinity"):
        times = [times[core] for core in os.sched_getaffinity(0) if core < len(times)]
    idle = ("idle", "iowait", "guest", "guest_nice")  # a guest's are in user and nice as well
    busy = (sum(core) - sum(getattr(core, name, 0.0) for name in idle) for core in times)
    return float(sum(busy))


def _own() -> float:
    """CPU seconds of this process, its launcher and all that they started."""
    seconds = 0.0
    with suppress(psutil.NoSuchProcess):  # the launcher is gone
        first = psutil.Process(launcher_pid())
        for process in (first, *first.children(recursive=True)):
            with suppress(psutil.Error):  # gone, or another user's
                seconds += sum(process.cpu_times()[:4])  # its own, and its dead children's
    return seconds


def free() -> int:
    """The cores for this process and those launched beside it: what others leave, at least one.

    Warns unless that is all of them.
    """
    cores = count()
    processes = count_of("LOCAL_WORLD_SIZE")
    if cores // processes <= 1:  # a thread for each process, whatever the others do
        return cores
    taken = busy()
    left = max(1, cores - round(taken))
    if left < cores:
        warnings.warn(
            f"the machine is busy: other processes use {taken:.1f} of {cores} cores; computing "
            f"with {left} (--threads N changes that)",
            stacklevel=2,
        )
    return left
