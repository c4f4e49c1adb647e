"""Run folders that are being written -> curves in the terminal, until the runs have ended."""

import math
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import plotille
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from stl10bench import runs
from stl10bench.escaping import clean
from stl10bench.history import LOG, History, read

COLOURS = (33, 208, 162, 37, 226, 245, 93, 70)  # of a terminal's 256
_AXIS = 13  # characters that plotille writes at the left of a chart
_FRAME = 3  # lines above and below it
_LEAST_WIDTH, _LEAST_HEIGHT, _TWO_COLUMNS = 30, 3, 110
_PANELS = (("loss", "loss", "{:.3g}"), ("accuracy", "accuracy", "{:.1%}"))


def watch(folders: Sequence[Path], console: Console, *, interval: float = 1.0) -> None:
    """Draw the runs' curves every `interval` seconds until no run is being written any more.

    Raises CheckpointError for a log that is damaged, and KeyboardInterrupt as it comes: the
    terminal is in order then.
    """
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            running = any(map(is_running, folders))  # asked first: what ends now is read once more
            histories = [read(folder, live=True) for folder in folders]
            live.update(screen(histories, console, list(map(news, folders))), refresh=True)
            if not running:
                break
            time.sleep(interval)


def is_running(folder: Path) -> bool:
    """Whether a run is still written, or about to be; not so when its process is gone.

    Told by the process's number: to try the run's lock could keep it from starting again.
    """
    facts = runs.status(folder)
    if facts["state"] not in ("running", "new"):
        return False
    pid, here = facts.get("pid"), facts.get("host") == platform.node()
    if not here or not isinstance(pid, int) or pid <= 0 or os.name != "posix":
        return True  # nothing is known of it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def news(folder: Path) -> str:
    """What is to be said of a run beside its figures: its state, and how old the last line is."""
    state = runs.status(folder)["state"]
    if state == "running" and not is_running(folder):
        return "killed; the same command goes on with it"
    if state not in ("running", "new"):
        return str(state)
    with suppress(OSError):
        age = max(0.0, time.time() - (folder / LOG).stat().st_mtime)
        return f"{state}, {age:,.0f} s since the last epoch"
    return str(state)


def screen(histories: Sequence[History], console: Console, said: Sequence[str]) -> RenderableType:
    """The charts and below them a line for each run, no larger than the console."""
    columns = 2 if console.width >= _TWO_COLUMNS else 1
    width = max(_LEAST_WIDTH, console.width // columns - 1) - _AXIS
    coloured = console.color_system is not None and not console.no_color
    lines = list(_lines(histories, said, console, coloured))
    room = console.height - len(lines) - 1  # for the cursor
    rows = max(1, min(len(_PANELS) // columns, room // (_LEAST_HEIGHT + _FRAME)))
    height = max(_LEAST_HEIGHT, min(16, room // rows - _FRAME))
    charts = [
        _chart(histories, kind, title, form, width, height, coloured)
        for kind, title, form in _PANELS[: rows * columns]
    ]
    grid = Table.grid(padding=(0, 1))
    for start in range(0, len(charts), columns):
        grid.add_row(*charts[start : start + columns])
    return Group(grid, *lines)


def _chart(
    histories: Sequence[History],
    kind: str,
    title: str,
    form: str,
    width: int,
    height: int,
    coloured: bool,
) -> Text:
    """One quantity over the epochs: the hold-out as a line, training as dots at its epochs."""
    figure = plotille.Figure()
    figure.width, figure.height = width, height
    figure.origin, figure.with_x_axis = False, False
    figure.color_mode, figure.with_colors = "byte", coloured
    figure.y_label = title
    figure.y_ticks_fkt = lambda low, _: form.format(low)
    values: list[float] = []
    last = 2
    for number, history in enumerate(histories):
        colour = COLOURS[number % len(COLOURS)]
        letter = None if coloured or len(histories) == 1 else _mark(number, coloured=False)
        for split, draw in (("train", figure.scatter), ("val", figure.plot)):
            pairs = zip(history.epochs, history.series(f"{split}/{kind}"), strict=True)
            points = [(x, y) for x, y in pairs if math.isfinite(y)]
            if points:
                xs, ys = zip(*points, strict=True)
                draw(xs, ys, lc=colour, marker=letter if split == "val" else None)
                values += ys
                last = max(last, *xs)
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = (high - low) * 0.05 or abs(high) * 0.1 or 0.1
    figure.set_x_limits(min_=1, max_=last)
    figure.set_y_limits(min_=low - margin, max_=high + margin)
    text = Text.from_ansi(figure.show())
    gap = " " * (width - len(str(last)) - 1)
    text.append(f"\n{'epoch':>{_AXIS - 3}}   1{gap}{last}")
    return text


def _lines(
    histories: Sequence[History], said: Sequence[str], console: Console, coloured: bool
) -> Iterator[Text]:
    """What each run's last epoch was: a line, or two where the console is narrow."""
    wide = console.width >= _TWO_COLUMNS
    for number, (history, state) in enumerate(zip(histories, said, strict=True)):
        head, scores = [clean(history.name)], []
        if history.epochs:
            total = history.settings.get("epochs")
            head.append(f"epoch {history.epochs[-1]}" + (f"/{total}" if total else ""))
            for split, name in (("train", "train"), ("val", "hold-out")):
                loss, accuracy = (history.series(f"{split}/{kind}")[-1] for kind, *_ in _PANELS)
                if math.isfinite(loss) or math.isfinite(accuracy):
                    scores.append(f"{name} {loss:.3f} {accuracy:.1%}")
        else:
            head.append("no epoch yet")
        mark = _mark(number, coloured=coloured or len(histories) == 1)
        style = f"color({COLOURS[number % len(COLOURS)]})"
        parts = (
            [[*head, *scores, state]] if wide else [[*head, state], *([scores] if scores else [])]
        )
        for start, part in zip((mark, " "), parts, strict=False):
            line = Text.assemble((start, style), " ", "  ".join(part))
            line.truncate(console.width, overflow="ellipsis")
            yield line
    yield Text("line: hold-out, dots: training", style="dim")


def _mark(number: int, *, coloured: bool) -> str:
    """What a run is told by in the charts, where colours cannot."""
    return "━" if coloured else chr(ord("A") + number % 26)
