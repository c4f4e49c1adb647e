"""The records of studies in a runs folder -> the runs that are of studies."""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ValidationError

from stl10bench.core import files
from stl10bench.core.errors import CheckpointError


class StudyRuns(NamedTuple):
    """The runs of the studies in a runs folder, by name.

    `varied` are those in which a study varied something; a run that is the unvaried one of any
    study is not among them: it is the model as it is. `beside_bases` are all but those with nothing
    varied and a study's first seed. `seeds` is how many a study asked of the setting of each run.
    """

    varied: frozenset[str] = frozenset()
    beside_bases: frozenset[str] = frozenset()
    seeds: Mapping[str, int] = {}


class _Entry(BaseModel):
    labels: tuple[str, ...]
    run: str | None


class _Record(BaseModel):
    """The part of `studies.record.Record` that says which run is the unvaried one."""

    base: str | None
    runs: list[_Entry]


def study_runs(runs_dir: Path) -> StudyRuns:
    """The runs of all studies that can be read; `studies.record.damaged` tells the others."""
    varied: set[str] = set()
    unvaried: set[str] = set()
    bases: set[str | None] = set()
    seeds: dict[str, int] = {}
    for path in sorted((runs_dir / "studies").glob("*/study.json")):
        with suppress(CheckpointError, ValidationError):
            record = _Record.model_validate(files.read_json(path, CheckpointError))
            bases.add(record.base)
            base = next((entry.labels for entry in record.runs if entry.run == record.base), None)
            asked = Counter(entry.labels for entry in record.runs)
            for entry in record.runs:
                if entry.run is not None:
                    (unvaried if entry.labels == base else varied).add(entry.run)
                    seeds[entry.run] = max(asked[entry.labels], seeds.get(entry.run, 1))
    return StudyRuns(frozenset(varied - unvaried), frozenset(seeds.keys() - bases), seeds)
