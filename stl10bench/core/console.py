"""Where output goes: results to stdout, messages to stderr, other people's text escaped."""

import os
import re
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

from markupsafe import Markup
from rich.console import Console

VERBOSITY = "STL10BENCH_TALK"  # QUIET or VERBOSE, for this process and those that it starts
QUIET, VERBOSE = "quiet", "verbose"
LAUNCHED = "STL10BENCH_LAUNCHED"  # our launcher's process: when it dies we save and end
_LAUNCHERS = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")  # each sets its own for us


def is_main() -> bool:
    """Whether this process is the one that prints: the first of those of a launcher."""
    return os.environ.get("RANK", "0") == "0"


def launcher_pid() -> int | None:
    """The process that launched us and is to outlive us, or None: then we outlive any."""
    if LAUNCHED in os.environ:
        return int(os.environ[LAUNCHED])
    return os.getppid() if any(name in os.environ for name in _LAUNCHERS) else None


def note_launcher() -> None:
    """Remember our launcher while it lives: who asks for it may ask when it has died."""
    if (parent := launcher_pid()) is not None:
        os.environ[LAUNCHED] = str(parent)


def stdout() -> Console:
    """For what a command answers."""
    return Console()


def stderr() -> Console:
    """For what a command says on the way; quiet with --quiet and in all processes but the first.

    A run outlives its listeners: a closed pipe or a terminal that is gone ends the talk, no more.
    """
    return Console(file=muted_stderr(), quiet=not is_main() or os.environ.get(VERBOSITY) == QUIET)


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


def muted_stderr() -> TextIO:
    """Our stderr, muted when it fails."""
    stream = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
    return cast(TextIO, _MutedStream(stream))


def open_streams() -> None:
    """Give a process that was started without stdout or stderr one that ends nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  for as long as we live


def mute(stream: TextIO) -> None:
    """Let a stream that nobody reads end nowhere, so that Python can close it without an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class _MutedStream:
    """A stream that is muted when it fails."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        self._unless_gone(self._stream.write, text)

    def flush(self) -> None:
        self._unless_gone(self._stream.flush)

    def _unless_gone(self, call: Callable[..., Any], *arguments: str) -> None:
        try:
            call(*arguments)
        except OSError:
            mute(self._stream)


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after the end of a row it would begin an argument
    "]": "{]}",
    "-": "-",
    **{character: f"\\{character}" for character in "&%$#_"},
}


def clean(text: str) -> str:
    """One line, without control characters."""
    return "".join(" " if unicodedata.category(c)[0] == "C" else c for c in text)


def escape_markdown(text: str) -> str:
    """Text in which nothing is Markdown or HTML; brackets around numbers alone stay as they are."""
    return re.sub(
        r"\[[-+\d., %]+\](?![(\[])|[\\|<>*_`\[\]&]",
        lambda found: found[0] if len(found[0]) > 1 else f"\\{found[0]}",
        clean(text),
    )


def escape_latex(text: str) -> str:
    """Text for LaTeX's text mode; two hyphens stay two."""
    return "".join(_LATEX.get(c, c) for c in clean(text)).replace("--", "-{}-")


def markup(template: str, *values: object) -> Markup:
    """HTML of a template in which each {} becomes a value: Markup as it is, all else as text."""
    texts = (value if isinstance(value, Markup) else clean(str(value)) for value in values)
    return Markup(template).format(*texts)


def escape_csv(value: Any) -> Any:
    """A cell that a spreadsheet will not run: text that looks like a formula is quoted with '.

    Numbers stay numbers.
    """
    if not isinstance(value, str):
        return value
    text = clean(value)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text
