"""What a study consisted of when it ran <-> its file in the runs folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stl10bench.core import files
from stl10bench.core.errors import CheckpointError, first_problem
from stl10bench.results.rows import Failure, Row
from stl10bench.results.run_folder import RunFolder
from stl10bench.studies.plan import Common, Planned, base_run
from stl10bench.studies.ranking import Trained
from stl10bench.studies.study import Study

FORMAT = 1
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,80}$")]


class Entry(BaseModel):
    """A run of a study: its place in it and its name; no name where it cannot be.

    One that failed has a `reason`: a run that was refused leaves no folder that could say it. One
    that a search gave up has the `state` pruned, and when for a `reason`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    labels: list[str]
    seed: int
    run: Name | None
    reason: str = ""
    state: Literal["", "pruned"] = ""
    val_images: int = Field(ge=0)


class Record(BaseModel):
    """A study, the data it ran on and its runs; `base` is the one with nothing varied."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    study: Study
    data: str
    dataset: str
    base: Name | None
    runs: list[Entry]

    @model_validator(mode="after")
    def _labelled(self) -> "Record":
        for entry in self.runs:
            if len(entry.labels) != len(self.study.vary):
                raise ValueError(f"{entry.labels}: must be a value of each factor")
        return self


def folder(runs_dir: Path, name: str) -> Path:
    """Where a study keeps its record, its runs' messages and, unless told otherwise, figures."""
    return runs_dir / "studies" / name


def make(study: Study, planned: Sequence[Planned], common: Common) -> Record:
    """The record of a study that is about to run."""
    entries = [
        Entry(
            labels=list(place.labels),
            seed=place.seed,
            run=place.run,
            reason="" if place.failure is None else place.failure.error,
            val_images=place.val_images,
        )
        for place in planned
    ]
    return Record(
        format=FORMAT,
        study=study,
        data=common.data.fingerprint,
        dataset=common.data.name,
        base=base_run(study, common),
        runs=entries,
    )


def write(runs_dir: Path, record: Record) -> None:
    """Put the record into the study's folder. Raises StorageError."""
    path = folder(runs_dir, record.study.name) / "study.json"
    files.write_json(path, record.model_dump(mode="json"))


def note_failures(runs_dir: Path, record: Record, outcomes: Mapping[str, Row | Failure]) -> Record:
    """Store why runs of a study failed. Raises StorageError."""
    reasons = {run: end.error for run, end in outcomes.items() if isinstance(end, Failure)}
    if not reasons:
        return record
    entries = [
        entry.model_copy(update={"reason": reasons[entry.run]}) if entry.run in reasons else entry
        for entry in record.runs
    ]
    record = record.model_copy(update={"runs": entries})
    write(runs_dir, record)
    return record


def names(runs_dir: Path) -> list[str]:
    """The studies that have run in a runs folder."""
    return sorted(path.parent.name for path in (runs_dir / "studies").glob("*/study.json"))


def damaged(runs_dir: Path) -> list[CheckpointError]:
    """The records of a runs folder that cannot be read."""
    errors: list[CheckpointError] = []
    for name in names(runs_dir):
        try:
            read(runs_dir, name)
        except CheckpointError as error:
            errors.append(error)
    return errors


def read(runs_dir: Path, name: str) -> Record | None:
    """The record of a study, or None if it never ran; raises CheckpointError for a damaged one."""
    path = folder(runs_dir, name) / "study.json"
    if not path.exists():
        return None
    try:
        record = Record.model_validate(files.read_json(path, CheckpointError))
    except ValidationError as error:
        raise CheckpointError(
            f"{path} is not a study record: {first_problem(error)}; remove it and run the study "
            "again: finished runs are found again"
        ) from None
    if record.format != FORMAT:
        raise CheckpointError(
            f"{path} has format {record.format}, this version reads {FORMAT}: remove it and run "
            "the study again: finished runs are found again"
        )
    return record


def changes(old: Record, new: Record, runs_dir: Path) -> str | None:
    """What differs between what a study was and what it is, and how much of it is of use still."""
    before, after = old.study.model_dump(mode="json"), new.study.model_dump(mode="json")
    words = ("about", "finding", "best")  # they change no run
    keys = [key for key in after if before[key] != after[key] and key not in words]
    keys += ["data"] if old.data != new.data else []
    names = {entry.run for entry in new.runs}
    done = [e.run for e in old.runs if e.run and (runs_dir / e.run / "result.json").exists()]
    fitting = sum(name in names for name in done)
    if not keys or not done:
        return None
    return (
        f"study {new.study.name} has changed since its last runs ({', '.join(keys)}): it reuses "
        f"{fitting} of {len(done)} finished runs and leaves out {len(done) - fitting}"
    )


def trained(
    record: Record, runs_dir: Path, outcomes: Mapping[str, Row | Failure] | None = None
) -> list[Trained]:
    """What there is of each run of a study; known `outcomes` are not looked up."""
    runs = []
    for entry in record.runs:
        row: Row | Failure | None = None
        if entry.run is None:
            row = Failure(model=record.study.model, error=entry.reason)
        elif outcomes and entry.run in outcomes:
            row = outcomes[entry.run]
        elif (runs_dir / entry.run).exists():
            row = _outcome(RunFolder(runs_dir / entry.run), record)
        if isinstance(row, Row) and record.study.over_labels:
            row = _with_hits(row, RunFolder(runs_dir / str(entry.run)))
        elif isinstance(row, Row) and row.val_accuracy is None:
            text = f"{entry.run}: its row has no val_accuracy, by which a study compares"
            row = Failure(run=entry.run, model=row.model, error=text)
        if row is None and entry.reason:
            model, state = record.study.model, entry.state or "failed"
            row = Failure(run=entry.run, model=model, error=entry.reason, state=state)
        runs.append(Trained(tuple(entry.labels), entry.seed, entry.run, entry.val_images, row))
    return runs


def _with_hits(row: Row, folder: RunFolder) -> Row | Failure:
    try:
        return folder.with_hits(row)
    except CheckpointError as error:
        return Failure(run=folder.name, model=row.model, state="damaged", error=str(error))


def _outcome(folder: RunFolder, record: Record) -> Row | Failure | None:
    """A run's row, or how it failed or diverged; None while it is neither."""
    try:
        return folder.row() if folder.is_finished else folder.failure()
    except CheckpointError as error:
        model = record.study.model
        return Failure(run=folder.name, model=model, state="damaged", error=str(error))
