"""Where output goes: results to stdout, messages to stderr, other people's text escaped."""

import html
import os
import re
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

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
    """The console for a command's results."""
    return Console()


def stderr() -> Console:
    """The console for messages; quiet with --quiet and in all processes but the first.

    A closed pipe or terminal ends the messages, never the run.
    """
    return Console(file=muted_stderr(), quiet=not is_main() or os.environ.get(VERBOSITY) == QUIET)


@contextmanager
def progress(title: str, total: int, *, after: float = 2.0) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, if that is a terminal, once the work takes over `after` seconds.

    Yields a function to be called with the number of steps (of `total`) done since its last call.
    """
    from rich.progress import MofNCompleteColumn, Progress

    console, started = stderr(), time.monotonic()
    bar = Progress(
        *Progress.get_default_columns(), MofNCompleteColumn(), console=console, transient=True
    )
    task = bar.add_task(title, total=total)

    def advance(count: int) -> None:
        bar.advance(task, count)
        if console.is_terminal and not bar.live.is_started and time.monotonic() - started > after:
            bar.start()

    try:
        yield advance
    finally:
        if bar.live.is_started:  # stopping a bar that never started prints an empty line
            bar.stop()


def muted_stderr() -> TextIO:
    """stderr, or what it was before rich's progress bar replaced it; muted when it fails."""
    stream = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
    return cast(TextIO, _MutedStream(stream))


def open_streams() -> None:
    """Give a process that was started without stdout or stderr one that discards its output."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  open until we end


def mute(stream: TextIO) -> None:
    """Discard what goes to a stream that nobody reads, so that Python can close it at the end."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, stream.fileno())
    os.close(sink)


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
    **{character: f"\\{character}" for character in "{}&%$#_"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
    **{"[": "{[}", "]": "{]}"},  # after the end of a row a bracket would begin an argument
}


def clean(text: str) -> str:
    """`text` on one line: control characters and line breaks become spaces."""
    return "".join(" " if unicodedata.category(c)[0] == "C" else c for c in text)


def escape_markdown(text: str) -> str:
    """Text in which nothing is Markdown or HTML; brackets around numbers alone stay as they are."""
    return re.sub(
        r"\[[-+\d., %]+\](?![(\[])|[\\|<>*_`\[\]&]",
        lambda match: match[0] if len(match[0]) > 1 else f"\\{match[0]}",
        clean(text),
    )


def escape_latex(text: str) -> str:
    """Text for LaTeX's text mode; two hyphens stay two."""
    return "".join(_LATEX.get(c, c) for c in clean(text)).replace("--", "-{}-")


def escape_html(text: str) -> str:
    """Text for an HTML element or a quoted attribute."""
    return html.escape(clean(text))


def escape_csv(value: Any) -> Any:
    """A cell that no spreadsheet runs: text that looks like a formula gets a leading apostrophe.

    Numbers stay numbers.
    """
    if not isinstance(value, str):
        return value
    text = clean(value)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text
