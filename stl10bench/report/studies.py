"""A part of the runs -> the studies in it: figures of accuracy over one setting, and numbers."""

from collections.abc import Sequence

from stl10bench.escaping import clean
from stl10bench.report import charts
from stl10bench.report.blocks import Block, Cell, Details, Figure, Section, Table, Text, Tiles
from stl10bench.report.families import Family, families, is_numeric
from stl10bench.report.material import Part, Study
from stl10bench.report.scores import point
from stl10bench.studies import findings
from stl10bench.studies.ranking import rank
from stl10bench.tables import columns

MOST = 12
_STUDY = (
    "Settings that differ in one point alone, on the test split. Bars: 95 % interval of the mean; "
    "small dots: the runs. The band is what noise explains around the best: twice the SD over its "
    "runs, or for a single run its interval. Hollow: worse than the best by the test of the table, "
    "corrected for this study."
)


def studies(part: Part) -> Section | None:
    """The studies that ran; a figure for each setting of three values or more, all else equal."""
    blocks: list[Block] = [_findings(part.studies)] if part.studies else []
    blocks += [_ranking(one) for one in part.studies]
    found = families([setting.row for setting in part.settings])
    shown = found[:MOST]
    if shown:
        blocks += [Text(_STUDY, "legend"), Tiles(tuple(map(_study, shown)))]
        blocks.append(Details("Numbers", tuple(map(_numbers, shown))))
    if len(found) > MOST:
        blocks.append(Text(f"{len(found) - MOST} more are left out", "note"))
    return Section("Studies", tuple(blocks)) if blocks else None


def _findings(ran: Sequence[Study]) -> Table:
    """What each study found, beside the report's finding."""
    header = ("study", "found here, on the hold-out", "the report found", "does it hold?")
    lines = []
    for record, trained in ran:
        places, theirs = rank(trained), record.study.finding
        held = findings.held(record, places) if theirs else ""
        texts = (record.study.name, findings.best(record, places), theirs, held)
        lines.append(tuple(Cell(clean(text)) for text in texts))
    return Table("Findings", header, tuple(lines), left=header)


def _ranking(ran: Study) -> Details:
    """A study's settings in order."""
    grid = findings.to_grid(*ran)
    lines = tuple(tuple(Cell(clean(cell)) for cell in line) for line in grid.lines)
    table = Table(f"Ranking of {ran.record.study.name}", grid.header, lines, left=grid.left)
    notes = [
        Text(clean(text), "note") for text in (*findings.said(*ran), *(n for _, n in grid.notes))
    ]
    return Details(f"{ran.record.study.name}: its settings, ranked", (table, *notes))


def _study(family: Family) -> Figure:
    numeric = is_numeric(family)
    points = [
        point(_label(value), float(value) if numeric else float(n), row)
        for n, (value, row) in enumerate(zip(family.values, family.rows, strict=True))
    ]
    best = max(points, key=lambda point: point.accuracy)
    band = best.low, best.high
    if deviation := family.rows[points.index(best)].get("test_accuracy_sd"):
        band = best.accuracy - 2 * deviation, best.accuracy + 2 * deviation
    ticks = None if numeric else [point.name for point in points]
    draw = charts.levels(points, ticks, _factor(family), band)
    return Figure(_title(family), draw(charts.NARROW), "")


def _numbers(family: Family) -> Table:
    """What a study's figure shows."""
    keys = ("test_accuracy", "runs", "test_accuracy_sd", "vs_best", "p_vs_best")
    chosen = [columns.COLUMNS[key] for key in keys]
    lines = tuple(
        (Cell(_label(value)), *(Cell(columns.text(row, column)) for column in chosen))
        for value, row in zip(family.values, family.rows, strict=True)
    )
    titles = [column.title for column in chosen]
    return Table(_title(family), (_factor(family), *titles), lines, left=(titles[0],))


def _title(family: Family) -> str:
    return f"{_factor(family)} of {clean(family.model)}"


def _factor(family: Family) -> str:
    return clean(family.setting.replace("_", " "))


def _label(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return "-".join(map(_label, value))
    return clean(f"{value:g}" if isinstance(value, float) else str(value))[:40]
