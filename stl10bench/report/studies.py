"""The studies that ran in a runs folder -> what each found, and its ranking."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from stl10bench.core.console import clean
from stl10bench.core.errors import CheckpointError
from stl10bench.report.document import Block, Details, Section, Text
from stl10bench.report.load import RunGroup
from stl10bench.results.table import Table
from stl10bench.studies import record, summary


class Study(NamedTuple):
    """What a study found."""

    name: str
    findings: tuple[str, ...]
    rankings: tuple[Table, ...]
    group: int  # the place of the group that has most of its runs


def load_studies(
    runs_dir: Path, groups: Sequence[RunGroup]
) -> tuple[list[Study], list[CheckpointError]]:
    """The studies with runs in the groups, or if these leave them out on the same data.

    Second, the faults of those whose record cannot be read.
    """
    group_of: dict[str | None, int] = {}
    data_of: dict[str, int] = {}
    for number, group in enumerate(groups):
        rows = [run.row for setting in group.settings for run in setting.runs]
        data_of = {row.config.data: number for row in rows} | data_of
        group_of |= {run.row.run: number for setting in group.settings for run in setting.runs}
    studies, damaged = [], []
    for name in record.names(runs_dir):
        try:
            stored = record.read(runs_dir, name)
        except CheckpointError as error:
            damaged.append(error)
            continue
        if stored is None:
            continue
        counts = Counter(group_of[entry.run] for entry in stored.runs if entry.run in group_of)
        largest = counts.most_common(1)[0][0] if counts else data_of.get(stored.data)
        if largest is None:
            continue
        jobs = record.trained(stored, runs_dir)
        findings, rankings = summary.findings(stored, jobs), summary.study_to_tables(stored, jobs)
        studies.append(Study(clean(name), tuple(map(clean, findings)), tuple(rankings), largest))
    return studies, damaged


def study_section(studies: Sequence[Study]) -> Section | None:
    """What each study found, beside the course report's finding, and its ranking."""
    blocks: list[Block] = []
    for study in studies:
        blocks.append(Text(f"{study.name}: {'; '.join(study.findings)}."))
        blocks.append(Details(f"Ranking of {study.name}", study.rankings))
    return Section("Studies", tuple(blocks)) if blocks else None
