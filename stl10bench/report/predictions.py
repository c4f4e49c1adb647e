"""The runs of a report -> calibration, confusion, agreement and the worst mistakes."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from stl10bench.metrics import calibration
from stl10bench.metrics.significance import wilson_interval
from stl10bench.report import charts
from stl10bench.report.document import (
    Block,
    Cell,
    Details,
    Figure,
    Gallery,
    Mistake,
    Section,
    Table,
    Text,
    Tiles,
)
from stl10bench.report.load import Answers, Part, Setting, agreement, mistakes, test_image_pngs
from stl10bench.results import columns

MATRIX = 20  # classes, up to which a confusion matrix is readable
CONFUSED = 15  # pairs of classes that are listed where it is not
_CALIBRATED = (
    *("test_ece", "test_ece_scaled", "test_brier", "test_brier_scaled"),
    *("test_loss", "test_loss_scaled", "test_temperature"),
)
_CALIBRATION = (
    f"Accuracy over confidence in {calibration.BINS} bins of equally many test images, before "
    "(orange, dashed) and after (blue) dividing the logits by the temperature that fits the "
    "hold-out best; on the grey line confidence would be accuracy. ECE is the mean distance from "
    "it, and never below 0: noise makes it too high."
)
_CONFUSION = (
    "A row for each true class, a column for each predicted one; over several runs the counts are "
    "added. The colour is the share of the row."
)
_CLASSES = "The share of each class's test images classified correctly; colours over all of them."
_AGREEMENT = (
    "Above the diagonal: the share of test images that two settings take for the same class. "
    "Below: Cohen's kappa, 0 for what chance explains and 1 for the same answers. On it: the share "
    "between the runs of one setting. All are means over pairs of runs."
)


def calibrated(part: Part) -> Section | None:
    """Reliability diagrams and the figures beside them."""
    known = [one for one in part.settings if one.row.test_ece is not None]
    if not known:
        return None
    chosen = [columns.COLUMNS[key] for key in _CALIBRATED]
    lines = tuple(
        (
            Cell(one.name, one.name),
            *(Cell(columns.text(one.row, c), columns.value(one.row, c.key)) for c in chosen),
        )
        for one in known
    )
    header = (columns.LABEL, *(column.title for column in chosen))
    figures = []
    for setting in known:
        found = [run.answers for run in setting.runs if run.answers]
        before = [one.before for one in found if one.before]
        after = [one.after for one in found if one.after]
        if before:
            drawn = charts.reliability(before, after)
            figures.append(Figure(setting.name, drawn, "", _ece(setting)))
    blocks: tuple[Block, ...] = (Text(_CALIBRATION, "legend"), Tiles(tuple(figures)))
    return Section("Calibration", (*blocks, Table("Calibration", header, lines, sortable=True)))


def confused(part: Part) -> Section | None:
    """A confusion matrix for each setting; of many classes the pairs taken for each other most."""
    count = len(part.class_names)
    known = [one for one in part.settings if len(one.row.confusion or ()) == count]
    if not known:
        return None
    blocks = tuple(
        Details(one.name, (_matrix(one, part.class_names),), open=number == 0)
        for number, one in enumerate(known)
    )
    few = len(part.class_names) <= MATRIX
    text = _CONFUSION if few else f"The {CONFUSED} pairs of classes confused most."
    return Section("Confusion", (Text(text), *blocks))


def classes(part: Part) -> Section | None:
    """The accuracy of each class, a line a class."""
    known = [one for one in part.settings if one.row.per_class_accuracy]
    known = [s for s in known if len(s.row.per_class_accuracy) == len(part.class_names)]
    if not known:
        return None
    lines = []
    for number, name in enumerate(part.class_names):
        shares = [one.row.per_class_accuracy[number] for one in known]
        cells = [Cell(_two_digits(share), share, heat=share) for share in shares]
        lines.append((Cell(name, name), *cells))
    header = ("class", *(one.name for one in known))
    table = Table("Accuracy of each class", header, tuple(lines), sortable=True)
    return Section("Classes", (Text(_CLASSES), table))


def agreeing(part: Part) -> Section | None:
    """How often the settings give the same answers."""
    known = [(s, [run.answers for run in s.runs if run.answers]) for s in part.settings]
    known = [(setting, found) for setting, found in known if found]
    if len(known) < 2:
        return None
    lines = []
    for i, (setting, mine) in enumerate(known):
        cells = [Cell(f"{i + 1}  {setting.name}")]
        for j, (_, theirs) in enumerate(known):
            pairs = [
                agreement(a, b)
                for m, a in enumerate(mine)
                for n, b in enumerate(theirs)
                if i != j or m < n
            ]
            cells.append(_agreement([pair[1] if j < i else pair[0] for pair in pairs]))
        lines.append(tuple(cells))
    header = ("", *(str(number + 1) for number in range(len(known))))
    return Section("Agreement", (Text(_AGREEMENT), Table("Agreement", header, tuple(lines))))


def _matrix(setting: Setting, names: Sequence[str]) -> Table:
    counts = setting.row.confusion
    if len(names) > MATRIX:
        return _pairs(setting, names)
    lines = []
    for name, line in zip(names, counts, strict=True):
        whole = sum(line) or 1
        cells = [Cell(f"{count:,}" if count else "·", count, count / whole) for count in line]
        lines.append((Cell(name), *cells))
    title = f"Confusion of {setting.name}"
    return Table(title, ("", *names), tuple(lines), corner="true ↓ predicted →")


def _pairs(setting: Setting, names: Sequence[str]) -> Table:
    counts = setting.row.confusion
    found = sorted(
        (
            (-count, i, j, sum(line))
            for i, line in enumerate(counts)
            for j, count in enumerate(line)
            if count and i != j
        ),
    )[:CONFUSED]
    lines = tuple(
        (
            Cell(names[i]),
            Cell(names[j]),
            Cell(f"{-count:,} of {whole:,}"),
            Cell(
                "{:.2f} [{:.2f}, {:.2f}]".format(
                    -count / whole, *wilson_interval(-count / whole, whole)
                )
            ),
        )
        for count, i, j, whole in found
    )
    header = ("true class", "taken for", "images", "share [95 %]")
    return Table(f"Confusion of {setting.name}", header, lines, left=("taken for",))


def _agreement(values: Sequence[float | None]) -> Cell:
    known = [value for value in values if value is not None]
    if not known:
        return Cell(columns.MISSING)
    mean = fmean(known)
    return Cell(f"{mean:.2f}", mean, heat=max(0.0, mean))


def _two_digits(share: float | None) -> str:
    return columns.MISSING if share is None else f"{share:.2f}"


def _ece(setting: Setting) -> str:
    row = setting.row
    text = f"ECE {row.test_ece:.3f}"
    if row.test_ece_scaled is None or row.test_temperature is None:
        return text
    return f"{text} → {row.test_ece_scaled:.3f} at temperature {row.test_temperature:.2f}"


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
        rows = mistakes(own, shown // len(chosen)).tolist()
        row = run.row
        pngs = test_image_pngs(data_dir, row.dataset, row.config.data, rows)
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
