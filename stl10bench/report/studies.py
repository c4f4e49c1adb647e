"""A part of the runs -> the studies in it: figures of accuracy over one setting, and numbers."""

from stl10bench.escaping import clean
from stl10bench.report import charts
from stl10bench.report.blocks import Block, Cell, Details, Figure, Section, Table, Text, Tiles
from stl10bench.report.families import Family, families, is_numeric
from stl10bench.report.material import Part
from stl10bench.report.scores import point
from stl10bench.tables import columns

MOST = 12
_STUDY = (
    "Settings that differ in one point alone. Bars: 95 % interval of the mean; small dots: the "
    "runs. The band is what noise explains around the best: twice the SD over its runs, or for a "
    "single run its interval. Hollow: worse than the best by the test of the table, corrected for "
    "this study."
)


def studies(part: Part) -> Section | None:
    """A figure for each setting of which there are three values or more, all else equal."""
    found = families([setting.row for setting in part.settings])
    if not found:
        return None
    shown = found[:MOST]
    numbers = Details("Numbers", tuple(map(_numbers, shown)))
    blocks: list[Block] = [Text(_STUDY, "legend"), Tiles(tuple(map(_study, shown))), numbers]
    if len(found) > MOST:
        blocks.append(Text(f"{len(found) - MOST} more are left out", "note"))
    return Section("Studies", tuple(blocks))


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
