"""Runs to be, or at work -> how long they will take, how far they are, how each ended."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from stl10bench.core.console import clean
from stl10bench.core.errors import CheckpointError
from stl10bench.results import history
from stl10bench.results.rows import Failure, Row
from stl10bench.studies import jobs
from stl10bench.studies.plan import Common, Planned

_EVERY = 1.0  # seconds between two looks
_MOST = 12  # running runs that are shown


class Progress:
    """What has been done of some runs so far, for a person who waits; quiet where the console is.

    `outcomes` has the row of each run that ended, or why it has none.
    """

    def __init__(
        self, title: str, planned: Sequence[Planned], console: Console, *, live: bool = True
    ) -> None:
        self.console = console
        self.outcomes: dict[str, Row | Failure] = {}
        self._title = title
        self._planned = {place.run: place for place in planned if place.run is not None}
        self._done_before = 0
        self._started = time.monotonic()
        self._looked = 0.0
        live = live and console.is_terminal and not console.quiet
        self._live = Live(console=console, auto_refresh=False, transient=True) if live else None

    def __enter__(self) -> "Progress":
        self._done_before = len(self.outcomes)
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def ended(self, run: str, outcome: Row | Failure) -> None:
        """Say how a run ended."""
        self.outcomes[run] = outcome
        count = f"[{len(self.outcomes)}/{len(self._planned)}]"
        self.say(f"{count} {self._planned[run].title}: {outcome_line(outcome)}")
        self._looked = 0.0

    def say(self, line: str) -> None:
        """Print a line, above the table if there is one."""
        self.console.print(clean(line), markup=False, highlight=False, soft_wrap=True)

    def tick(self) -> None:
        """Look at the runs that are at work, at most once a second."""
        if self._live is not None and time.monotonic() - self._looked >= _EVERY:
            self._live.update(Group(self._head(), self._running()), refresh=True)
            self._looked = time.monotonic()

    def _head(self) -> str:
        done, total = len(self.outcomes), len(self._planned)
        parts = [f"{done} of {total} runs done"]
        if best := self._best():
            parts.append(f"best so far {clean(best[0])} at {best[1]:.3f}")
        if (new := done - self._done_before) and done < total:
            seconds = (time.monotonic() - self._started) / new * (total - done)
            parts.append(f"estimated time left: {duration(seconds)}")
        return escape(f"{self._title}: {', '.join(parts)}")

    def _best(self) -> tuple[str, float] | None:
        """The setting with the highest mean validation accuracy of the seeds so far, and that."""
        seeds: dict[tuple[str, ...], list[float]] = {}
        for run, row in self.outcomes.items():
            labels = self._planned[run].labels
            if labels and isinstance(row, Row) and row.val_accuracy is not None:
                seeds.setdefault(labels, []).append(row.val_accuracy)
        means = [(", ".join(labels), statistics.fmean(values)) for labels, values in seeds.items()]
        return max(means, key=lambda pair: pair[1], default=None)

    def _running(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for title in ("running", "epoch", "validation"):
            table.add_column(title, justify="left" if title == "running" else "right")
        for run, planned in self._planned.items():
            if run in self.outcomes or planned.job is None:
                continue
            try:
                if planned.job.folder.status()["state"] != "running":
                    continue
                logged = history.read(planned.job.folder, live=True)
            except CheckpointError:
                continue
            accuracy = f"{logged.series('val/accuracy')[-1]:.3f}" if logged.epochs else "-"
            config = planned.job.config
            epochs = (
                f"{len(logged.epochs)}/{config.epochs}" if config.takes_steps else config.method
            )
            table.add_row(escape(clean(planned.title)), epochs, accuracy)
            if table.row_count == _MOST:
                break
        if not table.row_count and len(self.outcomes) < len(self._planned):
            table.add_row("starting", "-", "-")  # until a worker has imported torch and the data
        return table


class Forecast(NamedTuple):
    """A run that is planned: its state, and its seconds, known or estimated; None if unknown."""

    run: str | None
    title: str
    state: str
    seconds: float | None
    is_left: bool


def forecast(
    planned: Sequence[Planned], common: Common, say: Callable[[str], None]
) -> list[Forecast]:
    """What is done and what is left; each cost is timed once, and remembered on this machine.

    `say` is told what is timed.
    """
    from stl10bench.training.estimate import Timings, estimate_seconds

    forecasts = []
    timings: Timings | None = None
    for place in planned:
        if place.job is None:
            assert place.failure is not None
            text = f"cannot run: {place.failure.error}"
            forecasts.append(Forecast(place.run, place.title, text, None, False))
            continue
        outcome = jobs.known_outcome(place.job, tidy=False)
        if isinstance(outcome, Row):
            seconds = outcome.train_seconds
            forecasts.append(Forecast(place.run, place.title, "done", seconds, False))
        elif outcome is not None:
            text = f"{outcome.state}: {outcome.error}"
            forecasts.append(Forecast(place.run, place.title, text, None, False))
        else:
            timings = timings or Timings(place.job, say)
            cost = timings.cost(place.job, common.data)
            images = place.train_images, place.val_images
            seconds = timings.start() + estimate_seconds(place.job, cost, common.data, images)
            state = place.job.folder.status()["state"]
            state = "missing" if state == "new" else state
            forecasts.append(Forecast(place.run, place.title, state, seconds, True))
    return forecasts


def outcome_line(outcome: Row | Failure) -> str:
    """How a run ended, in some words."""
    if isinstance(outcome, Failure):
        return f"{outcome.state}: {outcome.error.removeprefix('diverged: ')}"
    seconds = "" if outcome.train_seconds is None else f", {outcome.train_seconds:.0f} s"
    if outcome.val_accuracy is None:
        return f"test {outcome.test_accuracy:.3f}{seconds}"
    return f"validation {outcome.val_accuracy:.3f}{seconds}"


def duration(seconds: float) -> str:
    """A time as people say it: 45 s, 12 min, 8 h 28 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
