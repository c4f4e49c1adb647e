"""What can go wrong for a user -> one line and an exit code."""

from collections.abc import Iterable
from difflib import get_close_matches


class BenchError(ValueError):
    """A mistake or a fault that the user can act on; its text is one line: value, rule, remedy."""

    exit_code = 1


class UsageError(BenchError):
    """An option, a name or a setting that cannot be used (exit code 2)."""

    exit_code = 2


class DataError(BenchError):
    """Data files that are missing, damaged or not what they claim to be (exit code 3)."""

    exit_code = 3


class CheckpointError(BenchError):
    """A checkpoint or weights file that cannot be trusted or does not fit (exit code 4)."""

    exit_code = 4


class DivergedError(BenchError):
    """A loss that is no longer finite (exit code 5)."""

    exit_code = 5


class BusyError(BenchError):
    """A run folder that another process owns (exit code 6)."""

    exit_code = 6


class StorageError(BenchError):
    """A disk, folder or network that does not do what is asked of it (exit code 7)."""

    exit_code = 7


def unknown(kind: str, name: str, known: Iterable[str], *, remedy: str = "") -> UsageError:
    """The error for a `name` that is none of `known`: says the nearest, else all of them."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names[:20])}"
    return UsageError(f"unknown {kind} {name!r}: {hint}{' ' + remedy if remedy else ''}")
