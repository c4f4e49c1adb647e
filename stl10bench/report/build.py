"""Run folders -> a report on each group of runs that can be compared."""

from collections.abc import Sequence
from pathlib import Path

from stl10bench.core.errors import DataError
from stl10bench.data.load import data_folder
from stl10bench.report import predictions
from stl10bench.report.document import Gallery, GroupReport, Section, Text
from stl10bench.report.load import load_groups, without_folder
from stl10bench.report.provenance import environment
from stl10bench.report.results import costs, curves, results_table, summary
from stl10bench.report.studies import load_studies, study_section
from stl10bench.results.rows import Row
from stl10bench.results.run_folder import RunFolder
from stl10bench.results.study_runs import StudyRuns


def build_report(
    runs_dir: Path,
    names: Sequence[str],
    *,
    data_dir: Path | None,
    shared: Sequence[tuple[RunFolder, Row]] = (),
    of_studies: StudyRuns = StudyRuns(),  # noqa: B008  frozen
) -> list[GroupReport]:
    """A report on each set of test images and protocol, of the runs `names` or all, and `shared`.

    Of all runs those that a study varied are not read.

    The data folder is the default one where `data_dir` is None. Raises what `load_groups` raises,
    and DataError for a `data_dir` that has the images of no run.
    """
    reports = []
    said: dict[str, None] = {}  # a note on the folder belongs to all groups, and is said once
    has_pictures = False
    groups = load_groups(runs_dir, names, shared, of_studies)
    studies, damaged = ([], []) if names else load_studies(runs_dir, groups)
    study_notes = [without_folder(runs_dir, error) for error in damaged]
    for number, group in enumerate(groups):
        worst = predictions.worst_mistakes(group, data_folder(data_dir))
        galleries = (block for block in worst.blocks if isinstance(block, Gallery)) if worst else ()
        has_pictures |= any(gallery.mistakes[0].png is not None for gallery in galleries)
        notes = dict.fromkeys(note for note in [*group.notes, *study_notes] if note not in said)
        said |= notes
        sections = [
            results_table(group),
            costs(group),
            curves(group),
            study_section([study for study in studies if study.group == number]),
            predictions.calibration_section(group),
            predictions.confusion_section(group),
            predictions.class_section(group),
            predictions.agreement_section(group),
            worst,
            environment(group) if group.settings else None,
            Section("Notes", tuple(Text(note, "note") for note in notes)) if notes else None,
        ]
        kept = tuple(section for section in sections if section is not None)
        all_damaged = (*group.damaged, *damaged)
        reports.append(GroupReport(group.title, summary(group), kept, all_damaged))
    if data_dir is not None and not has_pictures:
        raise DataError(
            f"--data-dir {data_dir}: it does not hold the images that these runs were tested on "
            "(or no run has a mistake to show); leave it out, or pass the folder that they used"
        )
    return reports
