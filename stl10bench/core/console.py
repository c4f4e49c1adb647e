"""Where output goes: results to stdout, messages to stderr; and other people's text, escaped."""

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

VERBOSITY = "STL10BENCH_TALK"  # QUIET or VERBOSE, for this process and its children
QUIET, VERBOSE = "quiet", "verbose"
_PIPE = 10_000  # characters of a line that no terminal shows


def is_main() -> bool:
    """Whether this process is the one that prints: rank 0 of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def stdout() -> Console:
    """For results: as wide as the terminal, or as COLUMNS says; a pipe else has room for all."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPE
    return console


def stderr() -> Console:
    """For messages: silent with --quiet, and in all processes but the first.

    When the pipe or the terminal is closed it falls silent, and the run goes on.
    """
    return Console(file=muted_stderr(), quiet=not is_main() or os.environ.get(VERBOSITY) == QUIET)


@contextmanager
def progress(title: str, total: int, *, after: float = 2.0) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal's stderr, shown once the work has taken `after` seconds.

    Yields a function to call with the number of things done since its last call.
    """
    from rich.progress import MofNCompleteColumn, Progress

    console, started = stderr(), time.monotonic()
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(title, total=total)

    def advance(count: int) -> None:
        bar.advance(task, count)
        if console.is_terminal and time.monotonic() - started > after:
            bar.start()

    try:
        yield advance
    finally:
        if bar.live.is_started:  # else it would print an empty line
            bar.stop()


def open_streams() -> None:
    """Open os.devnull as the stdout or stderr of a process that was started without.

    COLUMNS=0, which shells without a terminal export, is no width: rich would print nothing.
    """
    if os.environ.get("COLUMNS") == "0":
        del os.environ["COLUMNS"]
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  until the process ends


def mute(stream: TextIO) -> None:
    """Send a stream that nobody reads to os.devnull, so that Python closes it without an error."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, stream.fileno())
    os.close(devnull)


def muted_stderr() -> TextIO:
    """Our stderr, which is muted when writing to it fails."""
    return cast(TextIO, _MutedStream(getattr(sys.stderr, "rich_proxied_file", sys.stderr)))


class _MutedStream:
    """A stream that is muted when writing to it fails."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        self._try(self._stream.write, text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, call: Callable[..., Any], *arguments: str) -> None:
        try:
            call(*arguments)
        except OSError:
            mute(self._stream)


def clean(text: str) -> str:
    """`text` on one line, without control characters."""
    return "".join(" " if unicodedata.category(c)[0] == "C" else c for c in text)


def escape_markdown(text: str) -> str:
    """Text in which nothing is Markdown or HTML; brackets around numbers alone stay as they are."""
    entities = {"<": "&lt;", "&": "&amp;"}  # some readers show \< as it is
    return re.sub(
        r"\[[-+\d., %]+\](?![(\[])|[\\|<>*_`\[\]&]",
        lambda match: match[0] if len(match[0]) > 1 else entities.get(match[0], f"\\{match[0]}"),
        clean(text),
    )


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "[": "{[}",  # after the end of a row it would begin an argument
        "]": "{]}",
        **{character: f"\\{character}" for character in "{}&%$#_"},
    }
)


def escape_latex(text: str) -> str:
    """Text for LaTeX's text mode; two hyphens stay two."""
    return clean(text).translate(_LATEX).replace("--", "-{}-")


def markup(template: str, *values: object) -> Markup:
    """HTML of a template in which each {} becomes a value: Markup as it is, all else as text."""
    texts = (value if isinstance(value, Markup) else clean(str(value)) for value in values)
    return Markup(template).format(*texts)


def escape_csv(value: Any) -> Any:
    """A cell that no spreadsheet runs: text that looks like a formula gets a leading apostrophe.

    Numbers stay numbers.
    """
    if not isinstance(value, str):
        return value
    text = clean(value)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text
