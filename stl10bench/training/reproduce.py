"""A stored run -> the same run again, and whether its bits, or only its statistics, agree."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from stl10bench.core.errors import UsageError
from stl10bench.metrics.significance import count_pairs, decode_hits, mcnemar_p
from stl10bench.models import checkpoint
from stl10bench.results.rows import Row
from stl10bench.results.run_folder import RunFolder
from stl10bench.training.job import Job
from stl10bench.training.row import made_by_this_code
from stl10bench.training.run import run_job

_MADE_ON = ("device", "cpu", "threads", "processes", "python", "libraries", "version", "commit")


class Outcome(NamedTuple):
    """What became of a run that was trained again."""

    predictions: bool  # whether all logits are equal, bit by bit
    weights: bool | None  # and the weights; None where the first run came without
    p: float  # exact McNemar, for the accuracies on the same test images
    first: Row  # the stored row
    second: Row  # the new one
    differences: dict[str, tuple[Any, Any]]  # of what the rows were made on: stored, new
    earlier: str | None  # local time at which the new one was trained, if that was not now

    @property
    def bits(self) -> bool:
        """Whether all that can be compared is equal, bit by bit."""
        return self.predictions and self.weights is not False

    @property
    def note(self) -> str:
        """What to add to a result whose new run was not trained now."""
        if self.earlier is None:
            return ""
        return f"; trained again on {self.earlier}, not now: pass --overwrite to train it anew"


def reproduce_run(folder: RunFolder, job: Job, console: Console | None = None) -> Outcome:
    """Train the job, which has the config of the finished run in `folder`, and compare.

    See `train_again` for a copy that is there already. Raises UsageError for a copy beside the run
    itself, and what `run_job` raises, also for data or weights that are not those of the run.
    """
    first = folder.row()
    if job.runs_dir.resolve() == folder.path.parent.resolve():
        raise UsageError(
            f"{job.runs_dir} contains the run itself: choose another folder with --into"
        )
    second, earlier = train_again(job, console or Console(quiet=True))
    theirs, ours = folder.predictions(first), job.folder.predictions(second)
    hits = [decode_hits(predicted.hits()) for predicted in (theirs, ours)]
    files = [run.tested_file(job.config) for run in (folder, job.folder)]
    return Outcome(
        predictions=np.array_equal(theirs.logits, ours.logits),
        weights=_same_weights(*files) if files[0].is_file() else None,
        p=mcnemar_p(count_pairs(hits[0], hits[1], len(ours.labels))),
        first=first,
        second=second,
        differences={
            key: (first[key], second[key]) for key in _MADE_ON if first[key] != second[key]
        },
        earlier=earlier,
    )


def train_again(job: Job, console: Console) -> tuple[Row, str | None]:
    """The row of the job, and when it was trained, if that was not now.

    A finished run in its folder counts if the code and the libraries of now trained it.
    """
    if job.overwrite or not job.folder.is_finished:
        return run_job(job, console), None
    if made_by_this_code(job.folder.row()):
        seconds = job.folder.result_file.stat().st_mtime
        row = run_job(job, console)  # which checks that it is of this config
        return row, time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    text = f"{job.folder.path} is of other code or libraries, or of changed files: training it anew"
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    return run_job(job.model_copy(update={"overwrite": True}), console), None


def _same_weights(first: Path, second: Path) -> bool:
    theirs, ours = (checkpoint.load(path)[0] for path in (first, second))
    return theirs.keys() == ours.keys() and all(theirs[key].equal(ours[key]) for key in ours)
