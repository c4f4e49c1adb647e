"""What a study consisted of when it ran <-> its file in the runs folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stl10bench.core import files
from stl10bench.core.errors import BenchError, CheckpointError
from stl10bench.results import run_folder
from stl10bench.results.rows import Row
from stl10bench.studies.ledger import read_study_row
from stl10bench.studies.plan import Planned
from stl10bench.studies.ranking import Trained
from stl10bench.studies.study import Study

FORMAT = 1
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,80}$")]


class Entry(BaseModel):
    """A run of a study: its place in it and its name; no name where it cannot be.

    One that a search gave up has the `state` pruned, and when for a `reason`.
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
    """Where a study keeps its record, its children's words and, unless told otherwise, figures."""
    return runs_dir / "studies" / name


def make(
    study: Study, planned: Sequence[Planned], *, data: str, dataset: str, base: str | None
) -> Record:
    """The record of a study that is about to run."""
    entries = [
        Entry(
            labels=list(one.point.labels),
            seed=one.point.seed,
            run=None if one.config is None else one.config.name,
            reason=one.reason,
            val_images=one.val_images,
        )
        for one in planned
    ]
    return Record(format=FORMAT, study=study, data=data, dataset=dataset, base=base, runs=entries)


def write(runs_dir: Path, record: Record) -> None:
    """Put the record into the study's folder. Raises StorageError."""
    path = folder(runs_dir, record.study.name) / "study.json"
    files.write_json(path, record.model_dump(mode="json"))


def names(runs_dir: Path) -> list[str]:
    """The studies that have run in a runs folder."""
    return sorted(path.parent.name for path in (runs_dir / "studies").glob("*/study.json"))


def read(runs_dir: Path, name: str) -> Record | None:
    """The record of a study, or None if it never ran; raises CheckpointError for a damaged one."""
    path = folder(runs_dir, name) / "study.json"
    if not path.exists():
        return None
    try:
        record = Record.model_validate(files.read_json(path, CheckpointError))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "study"
        raise CheckpointError(
            f"{path} is no record of a study: {where}: {first['msg']}; remove it: the runs are not "
            "in it, and what fits is found again"
        ) from None
    if record.format != FORMAT:
        raise CheckpointError(f"{path} has format {record.format}, {FORMAT} is read; remove it")
    return record


def changes(old: Record, new: Record, runs_dir: Path) -> str | None:
    """What differs between what a study was and what it is, and how much of it is of use still."""
    before, after = old.study.model_dump(mode="json"), new.study.model_dump(mode="json")
    keys = [key for key in after if before[key] != after[key]]
    keys += ["data"] if old.data != new.data else []
    names = {entry.run for entry in new.runs}
    done = [e.run for e in old.runs if e.run and (runs_dir / e.run / "result.json").exists()]
    fitting = sum(name in names for name in done)
    if not keys or not done:
        return None
    return (
        f"study {new.study.name} has changed since its last runs ({', '.join(keys)}): {fitting} of "
        f"its {len(done)} finished runs still fit and are used, {len(done) - fitting} are left out"
    )


def trained(
    record: Record, runs_dir: Path, known: Mapping[str, Row] | None = None
) -> list[Trained]:
    """What there is of each run of a study; `known` rows are not looked up."""
    found = []
    for entry in record.runs:
        row = None
        if entry.run is None:
            row = {"error": entry.reason, "state": "failed"}
        elif known and entry.run in known:
            row = known[entry.run]
        elif (runs_dir / entry.run).exists():
            row = _row(runs_dir / entry.run)
        if row is None and entry.state:
            row = {"error": entry.reason, "state": entry.state}
        found.append(Trained(tuple(entry.labels), entry.seed, entry.run, entry.val_images, row))
    return found


def _row(folder: Path) -> Row | None:
    """A run's row, with an `error` when it failed or diverged; None while it is neither."""
    try:
        if (folder / "result.json").exists():
            return read_study_row(folder)
        facts = run_folder.status(folder)
    except BenchError as error:
        return {"error": str(error), "state": "failed"}
    if facts["state"] in ("diverged", "failed"):
        return {"error": facts["reason"], "state": facts["state"]}
    return None
