"""Run folders -> the parts of a report."""

from collections.abc import Sequence
from pathlib import Path

from stl10bench.core.errors import DataError
from stl10bench.data.load import data_folder
from stl10bench.report import predictions, studies
from stl10bench.report.document import Chapter, Gallery, Section, notes
from stl10bench.report.load import gather
from stl10bench.report.provenance import environment
from stl10bench.report.results import costs, curves, results_table, summary


def chapters(runs_dir: Path, names: Sequence[str], *, data_dir: Path | None) -> list[Chapter]:
    """A chapter for each set of test images and protocol, of the runs `names` or all.

    The data folder is the default one where none is given. Raises what `material.gather` raises,
    and DataError for a given folder that has the images of no chapter.
    """
    folder = data_folder(data_dir)
    found = []
    pictures = False
    for part in gather(runs_dir, names):
        worst = predictions.worst(part, folder)
        pictures |= worst is not None and _has_pictures(worst)
        sections = [
            results_table(part),
            costs(part),
            curves(part),
            studies.studies(part),
            predictions.calibrated(part),
            predictions.confused(part),
            predictions.classes(part),
            predictions.agreeing(part),
            worst,
            environment(part) if part.settings else None,
            Section("Notes", tuple(notes(part.notes))) if part.notes else None,
        ]
        kept = tuple(section for section in sections if section is not None)
        found.append(Chapter(part.title, summary(part), kept))
    if data_dir is not None and not pictures:
        raise DataError(
            f"--data-dir {data_dir}: it does not hold the images that these runs were tested on "
            "(or no run has a mistake to show); leave it out, or give the folder that they used"
        )
    return found


def _has_pictures(section: Section) -> bool:
    galleries = [block for block in section.blocks if isinstance(block, Gallery)]
    return any(one.png is not None for gallery in galleries for one in gallery.mistakes)
