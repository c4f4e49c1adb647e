"""Run folders -> what a report is made of; a file that cannot be read becomes a note."""

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stl10bench.core.console import clean
from stl10bench.core.errors import BenchError, CheckpointError, UsageError
from stl10bench.core.safetensors import read_safetensors_metadata
from stl10bench.metrics import calibration
from stl10bench.metrics.calibration import Reliability
from stl10bench.results import history, ranking
from stl10bench.results.aggregate import aggregate
from stl10bench.results.benchmark_table import apart_notes, by_protocol
from stl10bench.results.comparison import finished_folders
from stl10bench.results.history import History
from stl10bench.results.labels import row_labels
from stl10bench.results.rows import Failure, Row
from stl10bench.results.run_folder import OLD, RunFolder, copy_error, run_folders
from stl10bench.results.study_runs import StudyRuns

_EPOCHS = 10**9  # beyond which an epoch cannot be drawn


class RunPredictions(NamedTuple):
    """What a run predicted for the N test images."""

    labels: NDArray[np.int64]  # (N,), 0..C-1
    predicted: NDArray[np.int64]  # (N,), 0..C-1; of equal logits the first class
    confidences: NDArray[np.float64]  # (N,) the softmax probability of `predicted`; nan perhaps
    reliability: Reliability | None  # None for too few images, or logits that are not finite
    scaled: Reliability | None  # of the logits over the row's temperature; None without one


class LoadedRun(NamedTuple):
    """A finished run, with those of its files that can be read."""

    row: Row
    folder: RunFolder
    history: History | None
    predictions: RunPredictions | None
    notes: tuple[str, ...]  # on files that cannot be read, and figures that are missing
    damaged: tuple[CheckpointError, ...]  # of those files


class Setting(NamedTuple):
    """The runs of one setting, over seeds or folds."""

    name: str  # differs from that of every other setting
    row: Row  # their aggregate, and how it compares with the best
    runs: tuple[LoadedRun, ...]

    @property
    def predictions(self) -> list[RunPredictions]:
        """Those of the runs that have any."""
        return [run.predictions for run in self.runs if run.predictions is not None]


class RunGroup(NamedTuple):
    """The runs that can be compared: on the same test images, by the same protocol."""

    title: str
    settings: tuple[Setting, ...]  # the most accurate first
    baselines: tuple[Setting, ...]  # without runs
    failures: tuple[tuple[str, Failure], ...]  # each with a name that differs from all others
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    damaged: tuple[CheckpointError, ...]  # of these runs, and of those that are left out


def load_groups(
    runs_dir: Path,
    names: Sequence[str],
    shared: Sequence[tuple[RunFolder, Row]] = (),
    of_studies: StudyRuns = StudyRuns(),  # noqa: B008  frozen
) -> list[RunGroup]:
    """The runs that `names` mean, or all below `runs_dir`, in groups that can be compared.

    Runs that a study varied are not read. `shared` are runs of others, see
    `row_archive.shared_rows`.

    Raises UsageError for a name that is none, for one run named twice, and when there is no run;
    CheckpointError where no result.json holds a row, and for labels that differ within a group.
    """
    notes: list[str] = []
    damaged: list[CheckpointError] = []
    runs: dict[str, LoadedRun] = {}
    for folder in finished_folders(runs_dir, names, fewest=0):
        if folder.name in of_studies.varied:
            continue
        try:
            row = folder.row()
        except CheckpointError as error:
            damaged.append(error)
            notes.append(f"{clean(folder.name)} is left out: {without_folder(folder.path, error)}")
            continue
        name = row.run or folder.name  # aggregates name their runs, and would skip one without
        if name in runs and names:
            raise UsageError(
                f"two runs are named {clean(name)!r}: {runs[name].folder.path} and {folder.path}; "
                "name only one of them"
            )
        if name in runs:
            damaged.append(copy_error(folder, runs[name].folder.path))
            notes.append(f"{clean(folder.name)} is left out: it is a copy of {clean(name)}")
            continue
        runs[name] = load_run(folder, row.model_copy(update={"run": name}))
    runs |= {str(row.run): load_run(folder, row) for folder, row in shared}
    failures = [] if names else _unfinished(runs_dir, notes, damaged)
    if not runs and not failures:
        if damaged:
            raise damaged[0]
        if of_studies.varied:
            raise UsageError(f"no finished run that no study varied in {runs_dir}: add --studies")
        raise UsageError(f"no finished run in {runs_dir}: train one, or pass --runs-dir")
    rows = sorted((run.row for run in runs.values()), key=ranking.best_first)
    parts = by_protocol([*rows, *failures])
    apart = apart_notes(rows, [part for _, part in parts])
    groups = [
        _group(title, part, runs, [*notes, *([reason] if reason else [])], of_studies)
        for (title, part), reason in zip(parts, apart, strict=True)
    ]
    return [group._replace(damaged=(*damaged, *group.damaged)) for group in groups]


def load_run(folder: RunFolder, row: Row) -> LoadedRun:
    """A finished run; a file that cannot be read becomes a note."""
    notes = []
    damaged = []
    logged = predictions = None
    try:
        row = folder.with_hits(row)
        predictions = read_predictions(folder, row)
    except CheckpointError as error:
        damaged.append(error)
    try:
        with warnings.catch_warnings(record=True) as torn:
            warnings.simplefilter("always")
            logged = history.read(folder)
        notes += ["the last line of metrics.jsonl is incomplete and left out" for _ in torn]
        if any(abs(epoch) > _EPOCHS for epoch in logged.epochs):
            raise CheckpointError(f"{folder.log_file} has an epoch beyond {_EPOCHS:,}")
        if not logged.epochs:
            notes.append("metrics.jsonl has no epoch, so there are no curves")
    except CheckpointError as error:
        damaged.append(error)
        logged = None
    notes += [without_folder(folder.path, error) for error in damaged]
    return LoadedRun(row, folder, logged, predictions, tuple(notes), tuple(damaged))


def read_predictions(folder: RunFolder, row: Row) -> RunPredictions:
    """What a finished run predicted; raises CheckpointError for files that are not the row's."""
    stored = folder.predictions(row)
    logits = stored.logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # logits can be infinite: then a confidence is nan
        confidences = np.exp(calibration.log_probabilities(logits).max(1))
    labels, temperature = stored.labels, row.test_temperature
    scaled = _reliability(logits / temperature, labels) if temperature else None
    reliability = _reliability(logits, labels)
    return RunPredictions(labels, logits.argmax(1), confidences, reliability, scaled)


def _reliability(logits: calibration.Logits, labels: calibration.Labels) -> Reliability | None:
    with suppress(UsageError):  # too few images, as the row's notes say
        return calibration.reliability(logits, labels) if np.isfinite(logits).all() else None
    return None


def _unfinished(runs_dir: Path, notes: list[str], damaged: list[CheckpointError]) -> list[Failure]:
    """The runs that failed; `notes` gets a line on each other that is not finished."""
    failures = []
    for folder in run_folders(runs_dir):
        if OLD in folder.name or folder.is_finished:
            continue
        failure = None
        try:
            failure = folder.failure()
        except CheckpointError as error:  # its state is then "damaged"
            damaged.append(error)
        if failure is not None:
            failures.append(failure)
        else:
            state = folder.describe()["state"]
            if state == "finished" and folder.pretraining_file.is_file():
                continue  # which has no row
            notes.append(f"{clean(folder.name)} is left out: it is not finished ({state})")
    return failures


def _group(
    title: str,
    part: Sequence[Row | Failure],
    runs: dict[str, LoadedRun],
    notes: Sequence[str],
    of_studies: StudyRuns,
) -> RunGroup:
    combined = aggregate(part, of_studies.seeds)
    annotated = ranking.annotate([*ranking.baselines(part), *combined])
    named = list(zip(row_labels(annotated), annotated, strict=True))
    named.sort(key=lambda pair: ranking.best_first(pair[1]))
    rows = [
        Setting(name, row, tuple(runs[run] for run in row.repeats))
        for name, row in named
        if isinstance(row, Row)
    ]
    settings = tuple(setting for setting in rows if not setting.row.baseline)
    if len({run.labels.tobytes() for each in settings for run in each.predictions}) > 1:
        raise CheckpointError(
            f"the test labels in predictions.safetensors differ between runs on {title}: one file "
            "was edited; name the runs to report on"
        )
    damaged = [error for each in settings for run in each.runs for error in run.damaged]
    baselines = tuple(setting for setting in rows if setting.row.baseline)
    failures = tuple((name, row) for name, row in named if isinstance(row, Failure))
    names = _class_names(settings)
    kept = tuple(dict.fromkeys([*notes, *_notes(settings)]))
    return RunGroup(title, settings, baselines, failures, names, kept, tuple(damaged))


def _notes(settings: Sequence[Setting]) -> Iterator[str]:
    """What there is to say of runs and of settings, each note once with all that it concerns."""
    of_runs: dict[str, dict[str, None]] = {}
    of_settings: dict[str, dict[str, None]] = {}
    for name, row, runs in settings:
        for run in runs:
            for note in run.notes:
                of_runs.setdefault(note, {})[clean(str(run.row.run))] = None
        for note in (*(note for run in runs for note in run.row.test_notes), *row.failures):
            of_settings.setdefault(note, {})[name] = None
    count = sum(len(setting.runs) for setting in settings)
    for notes, everything, all_of_them in (
        (of_runs, count, f"all {count} runs"),
        (of_settings, len(settings), f"all {len(settings)} settings"),
    ):
        for note, names in notes.items():
            concerned = "; ".join(names) if len(names) < max(2, everything) else all_of_them
            yield f"{concerned}: {note}"


def without_folder(folder: Path, error: BenchError) -> str:
    """What went wrong, without where the folder lies on this machine."""
    return str(error).replace(f"{folder}{os.sep}", "")


def _class_names(settings: Sequence[Setting]) -> tuple[str, ...]:
    """The class names in a checkpoint's header; else numbers, as many as a run has classes."""
    rows = [setting.row for setting in settings]
    count = max((len(row.confusion or row.per_class_accuracy or ()) for row in rows), default=0)
    folders = (run.folder for setting in settings for run in setting.runs)
    for path in (file for folder in folders for file in (folder.best_file, folder.last_file)):
        if len(names := _header_names(path)) == count:
            return names
    return tuple(f"class {number}" for number in range(count))


def _header_names(path: Path) -> tuple[str, ...]:
    try:
        names = json.loads(read_safetensors_metadata(path)["stl10bench"])["class_names"]
    except (CheckpointError, ValueError, KeyError, TypeError, RecursionError):
        return ()  # then the classes have numbers
    is_whole = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(clean(name)[:60] for name in names) if is_whole else ()
