"""A part of the runs -> their surest mistakes, with the images where they are at hand."""

from collections.abc import Sequence
from pathlib import Path

from stl10bench.report import answers, thumbnails
from stl10bench.report.answers import Answers
from stl10bench.report.blocks import Block, Gallery, Mistake, Section, Text
from stl10bench.report.material import Part

THUMBNAILS = 24
GALLERIES = 4
_MISTAKES = (
    "Test images with a wrong answer of the highest confidence, of the first run of the most "
    "accurate settings. The last line of each says how many of all runs were right."
)


def worst(part: Part, data_dir: Path, *, shown: int = THUMBNAILS) -> Section | None:
    """The surest mistakes; with pictures where the images are in `data_dir`.

    Raises DataError, StorageError for data that are there, but damaged.
    """
    everyone = [run.answers for s in part.settings for run in s.runs if run.answers]
    known = [(s, next((r for r in s.runs if r.answers), None)) for s in part.settings]
    chosen = [(s, run) for s, run in known if run is not None][:GALLERIES]
    galleries: list[Block] = []
    missing = False
    for setting, run in chosen:
        own = run.answers
        assert own is not None
        rows = answers.mistakes(own, shown // len(chosen)).tolist()
        row = run.row
        pngs = thumbnails.pngs(data_dir, row["dataset"], row["config"]["data"], rows)
        missing |= pngs is None
        pictures: list[bytes | None] = list(pngs) if pngs else [None] * len(rows)
        found = tuple(
            _mistake(image, own, everyone, part.class_names, png)
            for image, png in zip(rows, pictures, strict=True)
        )
        if found:
            galleries.append(Gallery(setting.name, found))
    if not galleries:
        return None
    hint = "The images are not here; --data-dir DIR with the data of the runs shows them."
    return Section(
        "Worst mistakes", (Text(_MISTAKES), *([Text(hint)] if missing else []), *galleries)
    )


def _mistake(
    image: int, own: Answers, everyone: Sequence[Answers], names: Sequence[str], png: bytes | None
) -> Mistake:
    right = sum(int(one.predicted[image] == one.labels[image]) for one in everyone)
    return Mistake(
        image,
        names[own.labels[image]],
        names[own.predicted[image]],
        float(own.confidences[image]),
        f"{right} of {len(everyone)} right",
        png,
    )
