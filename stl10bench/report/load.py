"""Run folders -> what a report is made of; what cannot be read is a note, not an end."""

import io
import json
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stl10bench.core.console import clean
from stl10bench.core.errors import BenchError, CheckpointError, UsageError
from stl10bench.core.safetensors import read_safetensors_metadata
from stl10bench.data.stl10 import FOLDER, open_dataset
from stl10bench.metrics import calibration
from stl10bench.metrics.calibration import Reliability
from stl10bench.results import history, ranking, run_folder
from stl10bench.results.aggregate import aggregate
from stl10bench.results.comparison import finished_folders, run_predictions
from stl10bench.results.history import History
from stl10bench.results.rows import Row, failed_rows, read_row
from stl10bench.results.tables import by_data, row_label
from stl10bench.studies import record
from stl10bench.studies.ranking import Trained
from stl10bench.studies.record import Record

_SHOWN = 3  # settings that tell rows of one name apart


def distinct_names(found: Sequence[Row]) -> list[str]:
    """The label of each row; rows of one label are told apart by settings, then by a number."""
    labels = [clean(row_label(row)) for row in found]
    made: list[str] = []
    seen: Counter[str] = Counter()
    for row, label in zip(found, labels, strict=True):
        twins = [one for one, other in zip(found, labels, strict=True) if other == label]
        own = [f"{key} {_plain(row.config.get(key))}" for key in _telling(row, twins)]
        name = clean(", ".join([label, *own]))
        seen[name] += 1
        made.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return made


def _telling(row: Row, twins: Sequence[Row]) -> list[str]:
    """The settings, in their order, that tell a row from its twins; at most `_SHOWN`."""
    config = row.config
    keys = [key for key in config if key not in ("seed", "fold", "model_options")]
    left, chosen = [one for one in twins if one is not row], list[str]()
    while left and len(chosen) < _SHOWN:
        best = max(keys, key=lambda key: sum(_differ(row, one, key) for one in left), default="")
        others = [one for one in left if not _differ(row, one, best)]
        if len(others) == len(left):
            break
        left = others
        chosen.append(best)
    return sorted(chosen, key=keys.index)


def _differ(first: Row, second: Row, key: str) -> bool:
    return json.dumps(first["config"].get(key)) != json.dumps(second["config"].get(key))


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return "-".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)[:40]


class Answers(NamedTuple):
    """What a run took the N test images for."""

    labels: NDArray[np.int64]  # (N,), 0..C-1
    predicted: NDArray[np.int64]  # (N,), 0..C-1; of equal logits the first class
    confidences: NDArray[np.float64]  # (N,) the softmax probability of `predicted`; nan perhaps
    before: Reliability | None  # None for too few images, or logits that are not finite
    after: Reliability | None  # of the logits over the row's temperature; None without one

    def highest(self) -> int:
        """The highest class that is a label or an answer."""
        return int(max(self.labels.max(), self.predicted.max()))


def read_answers(folder: Path, row: Row) -> Answers:
    """The answers of a finished run; raises CheckpointError for files that do not prove them."""
    found = run_predictions(folder, row)
    logits = found.logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        confidences = np.exp(calibration.log_probabilities(logits).max(1))
    temperature = row.test_temperature
    return Answers(
        found.labels,
        logits.argmax(1),
        confidences,
        _reliability(logits, found.labels),
        _reliability(logits / temperature, found.labels) if temperature else None,
    )


def mistakes(answers: Answers, most: int) -> NDArray[np.int64]:
    """The rows of at most `most` images with a wrong answer, the highest confidence first."""
    wrong = np.flatnonzero((answers.predicted != answers.labels) & np.isfinite(answers.confidences))
    return wrong[np.argsort(-answers.confidences[wrong], kind="stable")][:most]


def agreement(first: Answers, second: Answers) -> tuple[float, float | None]:
    """The share of images that both take for the same class, 0..1, and Cohen's kappa, -1..1.

    kappa = (share - chance) / (1 - chance), with chance = sum_c p_c q_c the share for independent
    answers of the same class frequencies; None where that is 1. Cohen (1960), "A coefficient of
    agreement for nominal scales".
    """
    classes = 1 + int(max(first.predicted.max(), second.predicted.max()))
    p, q = (
        np.bincount(one.predicted, minlength=classes) / len(one.predicted)
        for one in (first, second)
    )
    share = float((first.predicted == second.predicted).mean())
    chance = float(p @ q)
    return share, (share - chance) / (1 - chance) if chance < 1 else None


def _reliability(logits: calibration.Logits, labels: calibration.Labels) -> Reliability | None:
    if not np.isfinite(logits).all():
        return None
    try:
        return calibration.reliability(logits, labels)
    except UsageError:  # too few images, as the row's notes say
        return None


def test_image_pngs(
    data_dir: Path, dataset: str, fingerprint: str, rows: Sequence[int]
) -> list[bytes] | None:
    """The images `rows` of the test split as PNG files, 96x96 px; None where they are not here.

    The demo data lie in the subfolder `demo`. Raises DataError, StorageError for data that are
    there, but damaged.
    """
    folder = data_dir / "demo" if dataset == "demo" else data_dir
    if not (folder / FOLDER).is_dir():
        return None
    data = open_dataset(folder, verify=False)  # the fingerprint says whether they are the run's
    if data.fingerprint != fingerprint or max(rows, default=0) >= len(data.test.images):
        return None
    found = []
    for row in rows:
        buffer = io.BytesIO()
        Image.fromarray(data.test.images[row].transpose(1, 2, 0)).save(buffer, "PNG", optimize=True)
        found.append(buffer.getvalue())
    return found


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
    for folder in finished_folders(runs_dir, names, fewest=0):
        row = read_row(folder / "result.json")
        if row.run in found:
            raise UsageError(
                f"two runs are named {clean(row.run)!r}: {found[row.run][1]} and {folder}; "
                "give one of them"
            )
        found[row.run] = row, folder
    failed = [] if names else failed_rows(runs_dir)
    if not found and not failed:
        raise UsageError(f"no finished run in {runs_dir}: train one, or give --runs-dir")
    ordered = sorted(found.values(), key=lambda pair: -pair[0]["test_accuracy"])
    parts = by_data([*(row for row, _ in ordered), *failed])
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
    members = [{run.row.run for one in part.settings for run in one.runs} for part in parts]
    for study in ran:
        counts = [len(own & {one.run for one in study.trained}) for own in members]
        if max(counts) > 0:
            at = counts.index(max(counts))
            parts[at] = parts[at]._replace(studies=(*parts[at].studies, study))
    return parts


def _part(title: str, part: Sequence[Row], folders: dict[str, Path], said: list[str]) -> Part:
    notes = list(said)
    annotated = ranking.annotate([*ranking.baselines(part), *aggregate(part)])
    finished = [row for row in annotated if "error" not in row and not row.baseline]
    finished.sort(key=lambda row: -row.test_accuracy)
    single = {row.run: row for row in part if "error" not in row}
    settings = []
    for name, row in zip(distinct_names(finished), finished, strict=True):
        members = [_run(single[run], folders[run], notes) for run in row.repeats]
        settings.append(Setting(name, row, tuple(members)))
        notes += [f"{name}: {one}" for run in members for one in _said(run.row)]
        notes += [f"{name}: {one}" for one in row.failures]
    labels = {one.answers.labels.tobytes() for s in settings for one in s.runs if one.answers}
    if len(labels) > 1:
        raise CheckpointError(
            f"the test labels in predictions.safetensors differ between runs on {title}: one of "
            "them was edited; name the runs that shall be in the report"
        )
    return Part(
        title=title,
        settings=tuple(settings),
        baselines=tuple(row for row in annotated if row.baseline),
        failures=tuple((row_label(row), row.error) for row in annotated if "error" in row),
        class_names=_class_names(settings),
        notes=tuple(dict.fromkeys(notes)),
    )


def _run(row: Row, folder: Path, notes: list[str]) -> Run:
    """A run with all of its files that can be read; the others are noted."""
    name = clean(row.run)
    logged = answered = None
    try:
        answered = read_answers(folder, row)
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
    found = row.test_notes
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []


def _unfinished(runs_dir: Path) -> list[str]:
    """A note on each run that has a state, but neither a row nor a failure that makes one."""
    notes = []
    for path in sorted(runs_dir.glob("*/config.json")):
        folder = path.parent
        if run_folder.OLD in folder.name or (folder / "result.json").exists():
            continue
        state = run_folder.describe(folder)["state"]
        if state not in ("diverged", "failed"):
            notes.append(f"{folder.name} is not in the report: it is not finished ({state})")
    return notes


def _class_names(settings: Sequence[Setting]) -> tuple[str, ...]:
    """The classes by a checkpoint's header, which is enough for a title; else their numbers."""
    members = [run for setting in settings for run in setting.runs]
    counts = [len(setting.row.confusion or ()) for setting in settings]
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
            names = json.loads(read_safetensors_metadata(folder / name)["stl10bench"])[
                "class_names"
            ]
        except (CheckpointError, ValueError, KeyError, TypeError, RecursionError):
            continue  # then the classes have numbers
        if isinstance(names, list) and all(isinstance(one, str) for one in names):
            return tuple(clean(one)[:60] for one in names)
    return ()
