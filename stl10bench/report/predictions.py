"""The runs of a report -> calibration, confusion, agreement and the worst mistakes."""

import io
import math
from collections.abc import Sequence
from functools import partial
from itertools import combinations, permutations, product, starmap
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stl10bench.data.stl10 import FOLDER, SIDE, open_dataset
from stl10bench.metrics.calibration import BINS
from stl10bench.metrics.significance import wilson_interval
from stl10bench.plots.results import reliability_diagram
from stl10bench.report.document import (
    Block,
    Details,
    Figure,
    Gallery,
    Mistake,
    Section,
    Text,
    Tiles,
)
from stl10bench.report.load import RunGroup, RunPredictions
from stl10bench.report.results import cells_of
from stl10bench.results import columns
from stl10bench.results.columns import MISSING
from stl10bench.results.rows import Row
from stl10bench.results.table import Cell, Table

THUMBNAILS = 24  # of all galleries together: 20 to 30 KB each, in a page of at most 3 MB
_MATRIX = 20  # classes, up to which a confusion matrix is readable
_AGREEING = 20  # settings, for which a page has room
_SETTINGS = 8  # columns with a setting's name, likewise
_PAIRS = 15  # pairs of classes that are listed where it is not
_GALLERIES = 4
_CALIBRATION_COLUMNS = (
    *("test_ece", "test_ece_scaled", "test_brier", "test_brier_scaled"),
    *("test_loss", "test_loss_scaled", "test_temperature"),
)
_CALIBRATION = (
    f"Accuracy over confidence in {BINS} bins of equally many test images: before (orange, dashed) "
    "and after temperature scaling (blue), with the temperature that fits the validation images "
    "best. Grey diagonal: perfect calibration. ECE is the mean distance from it; noise can "
    "only raise it."
)
_CONFUSION = (
    "A row for each true class, a column for each predicted one; the counts of several runs are "
    "added. Colour: the share of the row."
)
_CLASSES = "The share of each class's test images that were classified correctly, over all runs."
_AGREEMENT = (
    "Above the diagonal: the share of test images that two settings classify alike. Below: Cohen's "
    "kappa, 0 at chance and 1 for equal predictions. On it: the share between the runs of one "
    "setting. All are means over pairs of runs."
)
_MISTAKES = (
    "The misclassified test images of the highest confidence, of the first run of the most "
    "accurate settings. The last line of each says how many of all runs were right."
)


def calibration_section(group: RunGroup) -> Section | None:
    """Reliability diagrams and the figures beside them."""
    settings = [setting for setting in group.settings if setting.row.test_ece is not None]
    if not settings:
        return None
    chosen = [columns.column(key) for key in _CALIBRATION_COLUMNS]
    lines = [(Cell(name, name), *cells_of(row, chosen)) for name, row, _ in settings]
    header = (columns.LABEL, *(column.title for column in chosen))
    figures = []
    for setting in settings:
        before = [run.reliability for run in setting.predictions if run.reliability]
        after = [run.scaled for run in setting.predictions if run.scaled]
        if before:
            ece, scaled = setting.row.test_ece, setting.row.test_ece_scaled
            caption = f"ECE {ece:.3f}"
            if scaled is not None and setting.row.test_temperature is not None:
                caption += f" → {scaled:.3f} at temperature {setting.row.test_temperature:.2f}"
            text = f"Accuracy over confidence: {setting.name}"
            draw = partial(reliability_diagram, before, after)
            figures.append(Figure(setting.name, text, draw, caption=caption))
    tiles = Tiles(tuple(figures))
    table = Table("Calibration", header, tuple(lines))
    return Section("Calibration", (Text(_CALIBRATION, "legend"), tiles, table))


def confusion_section(group: RunGroup) -> Section | None:
    """A confusion matrix for each setting; of many classes the pairs confused most."""
    names = group.class_names
    show = _confusion_matrix if len(names) <= _MATRIX else _confused_pairs
    blocks: list[Block] = []
    for setting in group.settings:
        counts = setting.row.confusion
        if counts is not None and len(counts) == len(names):
            table = show(f"Confusion of {setting.name}", counts, names)
            blocks.append(Details(setting.name, (table,), open=not blocks))
    if not blocks:
        return None
    pairs = f"The {_PAIRS} most confused pairs of classes."
    return Section("Confusion", (Text(_CONFUSION if show is _confusion_matrix else pairs), *blocks))


def _confusion_matrix(title: str, counts: Sequence[Sequence[int]], names: Sequence[str]) -> Table:
    lines = []
    for name, line in zip(names, counts, strict=True):
        images = sum(line) or 1
        cells = [Cell(f"{count:,}" if count else "·", heat=count / images) for count in line]
        lines.append((name, *cells))
    return Table(title, ("true ↓ predicted →", *names), tuple(lines))


def _confused_pairs(title: str, counts: Sequence[Sequence[int]], names: Sequence[str]) -> Table:
    places = permutations(range(len(names)), 2)
    pairs = sorted(places, key=lambda place: -counts[place[0]][place[1]])
    lines = []
    for i, j in [(i, j) for i, j in pairs[:_PAIRS] if counts[i][j]]:
        images, share = sum(counts[i]), counts[i][j] / sum(counts[i])
        low, high = wilson_interval(share, images)
        text = f"{share:.2f} [{low:.2f}, {high:.2f}]"
        lines.append((names[i], names[j], f"{counts[i][j]:,} of {images:,}", text))
    header = ("true class", "predicted", "images", "share [95 %]")
    return Table(title, header, tuple(lines), left=("predicted",))


def class_section(group: RunGroup) -> Section | None:
    """The accuracy of each class: a line a setting; of many classes a line a class."""
    measured = {name: row.per_class_accuracy or () for name, row, _ in group.settings}
    classes = len(group.class_names)
    shares_of = {name: shares for name, shares in measured.items() if len(shares) == classes > 0}
    if not shares_of:
        return None
    text, corner = _CLASSES, columns.LABEL
    names, titles = list(shares_of), group.class_names
    lines: list[tuple[float | None, ...]] = list(map(tuple, shares_of.values()))
    if classes > _MATRIX:
        if len(names) > _SETTINGS:
            text += f" Of the {_SETTINGS} most accurate settings."
        names, titles, corner = list(titles), tuple(names[:_SETTINGS]), "class"
        lines = list(zip(*lines[:_SETTINGS], strict=True))
    rows = tuple(
        (Cell(name, name), *map(_share, line)) for name, line in zip(names, lines, strict=True)
    )
    table = Table("Accuracy of each class", (corner, *titles), rows)
    return Section("Classes", (Text(text), table))


def _share(share: float | None) -> Cell:
    return Cell(MISSING if share is None else f"{share:.2f}", share, heat=share)


def agreement_section(group: RunGroup) -> Section | None:
    """How often the settings predict the same class."""
    settings = [setting for setting in group.settings if setting.predictions]
    if len(settings) < 2:
        return None
    text = _AGREEMENT
    if len(settings) > _AGREEING:
        settings = settings[:_AGREEING]
        text += f" Of the {_AGREEING} most accurate settings."
    lines = []
    for i, setting in enumerate(settings):
        cells = [Cell(f"{i + 1}  {setting.name}")]
        for j, other in enumerate(settings):
            runs, others = setting.predictions, other.predictions
            pairs = combinations(runs, 2) if i == j else product(runs, others)
            agreements = starmap(agreement, pairs)
            shares = [kappa if j < i else share for share, kappa in agreements]
            defined = [share for share in shares if share is not None]
            mean = fmean(defined) if defined else math.nan
            cells.append(Cell(f"{mean:.2f}", heat=max(0.0, mean)) if defined else Cell(MISSING))
        lines.append(tuple(cells))
    header = ("", *(str(number + 1) for number in range(len(settings))))
    return Section("Agreement", (Text(text), Table("Agreement", header, tuple(lines))))


def agreement(first: RunPredictions, second: RunPredictions) -> tuple[float, float | None]:
    """The share of images that both classify alike, 0..1, and Cohen's kappa, -1..1.

    kappa = (share - chance) / (1 - chance), with chance = sum_c p_c q_c the share for independent
    predictions of the same class frequencies; None where that is 1. Cohen (1960), "A coefficient
    of agreement for nominal scales".
    """
    classes = 1 + int(max(first.predicted.max(), second.predicted.max()))
    predicted = (first.predicted, second.predicted)
    p, q = (np.bincount(labels, minlength=classes) / len(labels) for labels in predicted)
    share = float((first.predicted == second.predicted).mean())
    chance = float(p @ q)
    return share, (share - chance) / (1 - chance) if chance < 1 else None


def worst_mistakes(group: RunGroup, data_dir: Path) -> Section | None:
    """The mistakes of the highest confidence; with pictures where the images are in `data_dir`.

    Raises DataError, StorageError for data that are there, but damaged.
    """
    shown = [setting for setting in group.settings if setting.predictions][:_GALLERIES]
    everyone = [run for setting in group.settings for run in setting.predictions]
    pixels = _test_images(shown[0].row, data_dir) if shown else None
    galleries: list[Block] = []
    for setting in shown:
        run = setting.predictions[0]
        wrong = []
        for image in mistakes(run, THUMBNAILS // len(shown)).tolist():
            right = sum(int(other.predicted[image] == other.labels[image]) for other in everyone)
            others = f"{right} of {len(everyone)} right"
            label = group.class_names[run.labels[image]]
            predicted = group.class_names[run.predicted[image]]
            png = None if pixels is None else _png(pixels[image])
            confidence = float(run.confidences[image])
            wrong.append(Mistake(image, label, predicted, confidence, others, png))
        if wrong:
            galleries.append(Gallery(setting.name, tuple(wrong)))
    if not galleries:
        return None
    hint = Text("To show the images, pass --data-dir DIR with the data that the runs used.")
    hints = [hint] if pixels is None else []
    return Section("Worst mistakes", (Text(_MISTAKES), *hints, *galleries))


def mistakes(predictions: RunPredictions, most: int) -> NDArray[np.int64]:
    """The places of at most `most` misclassified images, the highest confidence first."""
    is_wrong = predictions.predicted != predictions.labels
    wrong = np.flatnonzero(is_wrong & np.isfinite(predictions.confidences))
    return wrong[np.argsort(-predictions.confidences[wrong], kind="stable")][:most]


def _test_images(row: Row, data_dir: Path) -> NDArray[np.uint8] | None:
    """The test images (N, 3, S, S) of a run's data; None where they are not in `data_dir`.

    The demo data lie in the subfolder `demo`.
    """
    folder = data_dir / "demo" if row.dataset == "demo" else data_dir
    if not (folder / FOLDER).is_dir():
        return None
    data = open_dataset(folder, verify=False)  # the fingerprint says whether they are the run's
    if data.fingerprint != row.config.data or len(data.test.images) != row.test_images:
        return None
    return data.test.images


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels.transpose(1, 2, 0))
    image.thumbnail((2 * SIDE, 2 * SIDE))  # the page shows SIDE pixels, on fine screens twice that
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
