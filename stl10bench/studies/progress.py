"""A study at work -> a table in the terminal, or a line for each run that ends."""

import statistics
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from stl10bench.core.console import clean
from stl10bench.core.errors import CheckpointError
from stl10bench.results import history, run_folder
from stl10bench.studies.ledger import Ledger
from stl10bench.studies.plan import Planned

_EVERY = 1.0  # seconds between two looks
_MOST = 12  # runs in hand that are shown


class Board:
    """What a study has done so far, for a person who waits; quiet where the console is."""

    def __init__(
        self, title: str, planned: Sequence[Planned], book: Ledger, console: Console
    ) -> None:
        self._title = title
        self._book = book
        self._console = console
        self._planned = {one.config.name: one for one in planned if one.config is not None}
        self._said = set(book.settled)
        self._at_first = len(book.settled)
        self._started = time.monotonic()
        self._looked = 0.0
        live = console.is_terminal and not console.quiet
        self._live = Live(console=console, auto_refresh=False, transient=True) if live else None

    def __enter__(self) -> "Board":
        if self._live is not None:
            self._live.start()
        self._show()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._show()
        if self._live is not None:
            self._live.stop()

    def tick(self) -> None:
        """Look at the runs that others have in hand, too, at most once a second."""
        if time.monotonic() - self._looked >= _EVERY:
            self._book.refresh()
            self._show()
            self._looked = time.monotonic()

    def _show(self) -> None:
        for name in [name for name in self._book.settled if name not in self._said]:
            self._said.add(name)
            self._console.print(self._line(name), markup=False, highlight=False, soft_wrap=True)
        if self._live is not None:
            self._live.update(Group(self._head(), self._in_hand()), refresh=True)

    def _line(self, name: str) -> str:
        row, count = self._book.settled[name], f"{len(self._said)}/{len(self._planned)}"
        title = clean(self._planned[name].title)
        if "error" in row:
            reason = clean(str(row["error"])).removeprefix("diverged: ")
            return f"[{count}] {title}: {row['state']}: {reason}"
        return (
            f"[{count}] {title}: hold-out {row['val_accuracy']:.3f}, {row['train_seconds']:.0f} s"
        )

    def _head(self) -> str:
        done, all_of_them = len(self._book.settled), len(self._planned)
        parts = [f"{done} of {all_of_them} runs done"]
        if best := best_of(self._planned, self._book.settled):
            parts.append(f"best so far {clean(best[0])} at {best[1]:.3f}")
        if (new := done - self._at_first) and done < all_of_them:
            seconds = (time.monotonic() - self._started) / new * (all_of_them - done)
            parts.append(f"about {_duration(seconds)} left")
        return escape(f"{self._title}: {', '.join(parts)}")

    def _in_hand(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for title in ("in hand", "epoch", "hold-out"):
            table.add_column(title, justify="left" if title == "in hand" else "right")
        for name in self._book.open:
            folder = self._book.runs_dir / name
            try:
                if run_folder.status(folder)["state"] != "running":
                    continue
                logged = history.read(folder, live=True)
            except CheckpointError:
                continue
            accuracy = f"{logged.series('val/accuracy')[-1]:.3f}" if logged.epochs else "-"
            title = escape(clean(self._planned[name].title))
            table.add_row(
                title, f"{len(logged.epochs)}/{self._book.configs[name].epochs}", accuracy
            )
            if table.row_count == _MOST:
                break
        return table


def best_of(
    planned: Mapping[str, Planned], settled: Mapping[str, Mapping[str, Any]]
) -> tuple[str, float] | None:
    """The setting with the highest mean hold-out accuracy of the seeds so far, and that."""
    seeds: dict[tuple[str, ...], list[float]] = {}
    for name, row in settled.items():
        if "error" not in row:
            seeds.setdefault(planned[name].point.labels, []).append(row["val_accuracy"])
    means = [(", ".join(labels), statistics.fmean(values)) for labels, values in seeds.items()]
    return max(means, key=lambda one: one[1], default=None)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
