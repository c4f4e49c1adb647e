"""OpenMP's threads, while they wait: they spin if the cores are ours, and sleep if others need one.

GCC's libgomp, torch's OpenMP on Linux, lets a thread that waits for its team spin for some
milliseconds before it sleeps. Alone that is the fastest; where others have the core that the team
waits for, it is ruinous (`python scripts/speed.py load` measures both). OMP_WAIT_POLICY and
GOMP_SPINCOUNT are read once, when torch is loaded; but libgomp sleeps almost at once, too, while a
process has more OpenMP threads than cores. So a second, idle team is the switch: the training's own
threads, and with them its bits, stay as they are.
"""

import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stl10bench.core import cores
from stl10bench.core.launcher import count_of

_LOOK = 1.0  # seconds between two looks at what others do
_BUSY = 0.3  # cores
_LOOKS = 3  # without others, until our threads spin again
_GRAIN = 32768  # elements from which on torch takes another thread: at::internal::GRAIN_SIZE
NAME = "idle OpenMP team"


@contextmanager
def considerate_threads() -> Iterator[None]:
    """Within, our OpenMP threads wait asleep while other processes keep a core busy.

    Nothing changes with another OpenMP, or where the user has decided; nor beside processes of the
    same launcher, which are no others.
    """
    decided = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
    alone = count_of("LOCAL_WORLD_SIZE") == 1
    if decided or not alone or platform.system() != "Linux":
        yield
        return
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(ended,), daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()


def _watch(ended: threading.Event) -> None:
    """Keep a second team while others compute, until `ended`."""
    release: threading.Event | None = None
    quiet = 0
    last = time.monotonic(), cores.used_seconds(), time.process_time()
    while not ended.wait(_LOOK):
        now = time.monotonic(), cores.used_seconds(), time.process_time()
        seconds, used, own = (new - old for new, old in zip(now, last, strict=True))
        last = now
        if used - own > _BUSY * seconds:
            quiet = 0
            if release is None:
                release = threading.Event()
                threading.Thread(target=_hold_team, args=(release,), name=NAME, daemon=True).start()
        else:
            quiet += 1
            if release is not None and quiet >= _LOOKS:
                release.set()
                release = None
    if release is not None:
        release.set()


def _hold_team(release: threading.Event) -> None:
    """Make a team of OpenMP threads, which ends with this thread."""
    torch.ones(_GRAIN * torch.get_num_threads()).add_(1)  # of a single thread no team comes
    release.wait()
