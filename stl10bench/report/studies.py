"""The runs of a report -> their studies: rankings, findings, figures of one setting."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from stl10bench.core.console import clean
from stl10bench.report import charts
from stl10bench.report.document import Block, Cell, Details, Figure, Section, Table, Text, Tiles
from stl10bench.report.load import Part, Study, distinct_names
from stl10bench.report.results import point
from stl10bench.results import columns, ranking
from stl10bench.results.rows import Row
from stl10bench.studies import summary
from stl10bench.studies.ranking import rank

_LARGEST = 1e15  # that an axis shows; nan is none of these
FEWEST = 3  # values that make a study
_NO_FACTOR = ("model", "data", "weights", "seed", "fold")
_FOLLOWS = ("precision",)  # may change because another setting does


class Family(NamedTuple):
    """Rows of one model that differ in one setting, by rising value; each says where it stands."""

    model: str
    setting: str
    values: tuple[Any, ...]
    rows: tuple[Row, ...]  # annotated among themselves: `vs_best`, `p_vs_best`


def families(rows: Sequence[Row]) -> list[Family]:
    """Each setting of each model that has `FEWEST` values or more while all others are equal.

    A precision that follows from the setting does not count as another.
    """
    finished = [row for row in rows if "error" not in row and not row.baseline]
    flat = [{**row.config, **row.model_options} for row in finished]
    keys = sorted({key for one in flat for key in one} - {*_NO_FACTOR, "model_options"})
    return [family for key in keys for family in _named(list(_of(key, finished, flat)), key)]


def _named(found: Sequence[Family], key: str) -> list[Family]:
    """Families of one setting, told apart by what else differs between them."""
    models = distinct_names([_without(family.rows[0], key) for family in found])
    return [one._replace(model=model) for one, model in zip(found, models, strict=True)]


def _of(key: str, rows: Sequence[Row], flat: Sequence[dict[str, Any]]) -> Iterator[Family]:
    groups: dict[str, list[tuple[Any, Row]]] = {}
    for row, settings in zip(rows, flat, strict=True):
        if key in settings:
            ignored = {key, "seed", "fold", "model_options", *_FOLLOWS}
            rest = {k: v for k, v in settings.items() if k not in ignored}
            groups.setdefault(json.dumps(rest, sort_keys=True), []).append((settings[key], row))
    for group in groups.values():
        values = {json.dumps(value): value for value, _ in group}
        if len(values) < FEWEST or len(values) < len(group):
            continue
        group.sort(key=lambda pair: _order(pair[0]))
        annotated = ranking.annotate([row for _, row in group])
        yield Family(
            annotated[0]["model"], key, tuple(value for value, _ in group), tuple(annotated)
        )


def is_numeric(family: Family) -> bool:
    """Whether the setting's values are numbers, which an axis can be made of."""
    return all(
        isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < _LARGEST
        for v in family.values
    )


def _order(value: Any) -> tuple[int, float, str]:
    if isinstance(value, int | float):
        return 0, value, ""
    return 1, 0.0, str(value)


def _without(row: Row, key: str) -> Row:
    """The row as it is named without the setting that is varied."""
    config = {k: v for k, v in row.config.items() if k != key}
    options = {k: v for k, v in config.get("model_options", {}).items() if k != key}
    return {**row, "stacked": 1, "config": {**config, "model_options": options}}


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
        held = summary.held(record, places) if theirs else ""
        texts = (record.study.name, summary.best(record, places), theirs, held)
        lines.append(tuple(Cell(clean(text)) for text in texts))
    return Table("Findings", header, tuple(lines), left=header)


def _ranking(ran: Study) -> Details:
    """A study's settings in order."""
    grid = summary.study_to_grid(*ran)
    lines = tuple(tuple(Cell(clean(cell)) for cell in line) for line in grid.lines)
    table = Table(f"Ranking of {ran.record.study.name}", grid.header, lines, left=grid.left)
    notes = [
        Text(clean(text), "note") for text in (*summary.findings(*ran), *(n for _, n in grid.notes))
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
