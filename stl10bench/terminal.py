"""Where output goes: results to stdout, what is said on the way to stderr."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console


def is_main() -> bool:
    """Whether this process is the one that prints: the first of those of a launcher."""
    return os.environ.get("RANK", "0") == "0"


def stdout() -> Console:
    """For what a command answers."""
    return Console()


def stderr() -> Console:
    """For what a command says on the way; quiet in all processes but the first."""
    return Console(stderr=True, quiet=not is_main())


@contextmanager
def progress(title: str, total: int, *, after: float = 2.0) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal's stderr for what takes longer than `after` seconds.

    Yields what is to be called with the number of things done since its last call.
    """
    from rich.progress import MofNCompleteColumn, Progress

    console, begun = stderr(), time.monotonic()
    bar = Progress(
        *Progress.get_default_columns(), MofNCompleteColumn(), console=console, transient=True
    )
    task = bar.add_task(title, total=total)

    def advance(count: int) -> None:
        bar.advance(task, count)
        if console.is_terminal and not bar.live.is_started and time.monotonic() - begun > after:
            bar.start()

    try:
        yield advance
    finally:
        if bar.live.is_started:  # else it would end in an empty line
            bar.stop()
