"""Run folders -> the chapters of a report."""

from collections.abc import Sequence
from pathlib import Path

from stl10bench.data.datasets import data_folder
from stl10bench.errors import DataError
from stl10bench.report import judgement, material, mistakes, origins, scores, studies
from stl10bench.report.blocks import Chapter, Gallery, Section, notes


def chapters(runs_dir: Path, names: Sequence[str], *, data_dir: Path | None) -> list[Chapter]:
    """A chapter for each set of test images and protocol, of the runs `names` or all.

    The data folder is the default one where none is given. Raises what `material.gather` raises,
    and DataError for a given folder that has the images of no chapter.
    """
    folder = data_folder(data_dir)
    found = []
    pictures = False
    for part in material.gather(runs_dir, names):
        worst = mistakes.worst(part, folder)
        pictures |= worst is not None and _has_pictures(worst)
        sections = [
            scores.table(part),
            scores.costs(part),
            scores.curves(part),
            studies.studies(part),
            judgement.calibrated(part),
            judgement.confused(part),
            judgement.classes(part),
            judgement.agreeing(part),
            worst,
            origins.environment(part) if part.settings else None,
            Section("Notes", tuple(notes(part.notes))) if part.notes else None,
        ]
        kept = tuple(section for section in sections if section is not None)
        found.append(Chapter(part.title, scores.summary(part), kept))
    if data_dir is not None and not pictures:
        raise DataError(
            f"--data-dir {data_dir}: it does not hold the images that these runs were tested on "
            "(or no run has a mistake to show); leave it out, or give the folder that they used"
        )
    return found


def _has_pictures(section: Section) -> bool:
    galleries = [block for block in section.blocks if isinstance(block, Gallery)]
    return any(one.png is not None for gallery in galleries for one in gallery.mistakes)
