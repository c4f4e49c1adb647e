"""Run folders -> what a report is made of; what cannot be read is a note, not an end."""

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from stl10bench import history, runs, structure
from stl10bench.errors import BenchError, CheckpointError, UsageError
from stl10bench.escaping import clean
from stl10bench.history import History
from stl10bench.report import answers, naming
from stl10bench.report.answers import Answers
from stl10bench.studies import record
from stl10bench.studies.ranking import Trained
from stl10bench.studies.record import Record
from stl10bench.tables import comparison, repeats, results, rows, standing
from stl10bench.tables.rows import Row

_EPOCHS = 10**9


class Run(NamedTuple):
    """One finished run."""

    row: Row
    folder: Path
    history: History | None
    answers: Answers | None


class Setting(NamedTuple):
    """The runs of one setting, over seeds or folds."""

    name: str  # differs from that of every other setting
    row: Row  # combined, and annotated with where it stands
    runs: tuple[Run, ...]


class Study(NamedTuple):
    """A study that ran, and what there is of its runs."""

    record: Record
    trained: tuple[Trained, ...]


class Part(NamedTuple):
    """The runs on the same test images by the same protocol."""

    title: str
    settings: tuple[Setting, ...]  # the most accurate first
    baselines: tuple[Row, ...]
    failures: tuple[tuple[str, str], ...]  # a name, and what went wrong
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    studies: tuple[Study, ...] = ()


def gather(runs_dir: Path, names: Sequence[str]) -> list[Part]:
    """The runs that `names` mean, or all below `runs_dir`, sorted into parts.

    Raises UsageError for a name that is none, for two runs of one name, and when there is no run;
    CheckpointError for a result.json that holds no row.
    """
    found: dict[str, tuple[Row, Path]] = {}
    for folder in comparison.find(runs_dir, names, fewest=0):
        row = rows.read(folder / "result.json")
        if row["run"] in found:
            raise UsageError(
                f"two runs are named {clean(row['run'])!r}: {found[row['run']][1]} and {folder}; "
                "give one of them"
            )
        found[row["run"]] = row, folder
    failed = [] if names else rows.failures(runs_dir)
    if not found and not failed:
        raise UsageError(f"no finished run in {runs_dir}: train one, or give --runs-dir")
    ordered = sorted(found.values(), key=lambda pair: -pair[0]["test_accuracy"])
    parts = results.by_data([*(row for row, _ in ordered), *failed])
    folders = {name: folder for name, (_, folder) in found.items()}
    unfinished = [] if names else _unfinished(runs_dir)
    ran, damaged = ([], []) if names else _studies(runs_dir)
    return _with_studies(
        [_part(title, part, folders, [*unfinished, *damaged]) for title, part in parts], ran
    )


def _studies(runs_dir: Path) -> tuple[list[Study], list[str]]:
    """The studies that ran in a runs folder, and a note on each whose record cannot be read."""
    found, notes = [], []
    for name in record.names(runs_dir):
        try:
            stored = record.read(runs_dir, name)
        except CheckpointError as error:
            notes.append(f"study {clean(name)}: {_without(runs_dir, error)}")
            continue
        if stored is not None:
            found.append(Study(stored, tuple(record.trained(stored, runs_dir))))
    return found, notes


def _with_studies(parts: list[Part], ran: Sequence[Study]) -> list[Part]:
    """The parts, each study in the one that has most of its runs."""
    members = [{run.row["run"] for one in part.settings for run in one.runs} for part in parts]
    for study in ran:
        counts = [len(own & {one.run for one in study.trained}) for own in members]
        if max(counts) > 0:
            at = counts.index(max(counts))
            parts[at] = parts[at]._replace(studies=(*parts[at].studies, study))
    return parts


def _part(title: str, part: Sequence[Row], folders: dict[str, Path], said: list[str]) -> Part:
    notes = list(said)
    annotated = standing.annotate([*standing.baselines(part), *repeats.combine(part)])
    finished = [row for row in annotated if "error" not in row and not row.get("baseline")]
    finished.sort(key=lambda row: -row["test_accuracy"])
    single = {row["run"]: row for row in part if "error" not in row}
    settings = []
    for name, row in zip(naming.names(finished), finished, strict=True):
        members = [_run(single[run], folders[run], notes) for run in row["repeats"]]
        settings.append(Setting(name, row, tuple(members)))
        notes += [f"{name}: {one}" for run in members for one in _said(run.row)]
        notes += [f"{name}: {one}" for one in row["failures"]]
    labels = {one.answers.labels.tobytes() for s in settings for one in s.runs if one.answers}
    if len(labels) > 1:
        raise CheckpointError(
            f"the test labels in predictions.safetensors differ between runs on {title}: one of "
            "them was edited; name the runs that shall be in the report"
        )
    return Part(
        title=title,
        settings=tuple(settings),
        baselines=tuple(row for row in annotated if row.get("baseline")),
        failures=tuple((results.label(row), row["error"]) for row in annotated if "error" in row),
        class_names=_class_names(settings),
        notes=tuple(dict.fromkeys(notes)),
    )


def _run(row: Row, folder: Path, notes: list[str]) -> Run:
    """A run with all of its files that can be read; the others are noted."""
    name = clean(row["run"])
    logged = answered = None
    try:
        answered = answers.read(folder, row)
    except BenchError as error:
        notes.append(f"{name}: {_without(folder, error)}")
    try:
        with warnings.catch_warnings(record=True) as torn:
            warnings.simplefilter("always")
            logged = history.read(folder)
        notes += [f"{name}: the torn last line of metrics.jsonl is left out" for _ in torn]
        if any(abs(epoch) > _EPOCHS for epoch in logged.epochs):
            raise CheckpointError(f"metrics.jsonl has an epoch beyond {_EPOCHS:,}")
        if not logged.epochs:
            notes.append(f"{name}: metrics.jsonl has no epoch, so there are no curves")
    except BenchError as error:
        notes.append(f"{name}: {_without(folder, error)}")
        logged = None
    return Run(row, folder, logged, answered)


def _without(folder: Path, error: BenchError) -> str:
    """What went wrong, without where the run lies on this machine."""
    return str(error).replace(f"{folder}{os.sep}", "")


def _said(row: Row) -> list[str]:
    """A row's own notes."""
    found = row.get("test_notes")
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []


def _unfinished(runs_dir: Path) -> list[str]:
    """A note on each run that has a state, but neither a row nor a failure that makes one."""
    notes = []
    for path in sorted(runs_dir.glob("*/config.json")):
        folder = path.parent
        if runs.OLD in folder.name or (folder / "result.json").exists():
            continue
        state = runs.describe(folder)["state"]
        if state not in ("diverged", "failed"):
            notes.append(f"{folder.name} is not in the report: it is not finished ({state})")
    return notes


def _class_names(settings: Sequence[Setting]) -> tuple[str, ...]:
    """The classes by a checkpoint's header, which is enough for a title; else their numbers."""
    members = [run for setting in settings for run in setting.runs]
    counts = [len(setting.row.get("confusion") or ()) for setting in settings]
    counts += [1 + one.highest() for run in members if (one := run.answers)]
    count = max(counts, default=0)
    for run in members:
        names = _header_names(run.folder)
        if len(names) == count:
            return names
    return tuple(f"class {number}" for number in range(count))


def _header_names(folder: Path) -> tuple[str, ...]:
    for name in ("best.safetensors", "last.safetensors"):
        if not (folder / name).is_file():
            continue
        try:
            names = json.loads(structure.read_metadata(folder / name)["stl10bench"])["class_names"]
        except (CheckpointError, ValueError, KeyError, TypeError, RecursionError):
            continue  # then the classes have numbers
        if isinstance(names, list) and all(isinstance(one, str) for one in names):
            return tuple(clean(one)[:60] for one in names)
    return ()
