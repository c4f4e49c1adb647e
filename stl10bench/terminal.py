"""Where output goes: results to stdout, what is said on the way to stderr; who started us."""

import os

from rich.console import Console

LAUNCHED = "STL10BENCH_LAUNCHED"  # set for a child: when its parent dies it saves and ends


def is_main() -> bool:
    """Whether this process is the one that prints: the first of those of a launcher."""
    return os.environ.get("RANK", "0") == "0"


def stdout() -> Console:
    """For what a command answers."""
    return Console()


def stderr() -> Console:
    """For what a command says on the way; quiet in all processes but the first."""
    return Console(stderr=True, quiet=not is_main())
