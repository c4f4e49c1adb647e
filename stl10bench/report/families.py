"""Rows -> studies of one setting: rows that differ in it alone; light."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from stl10bench.report import naming
from stl10bench.tables import standing
from stl10bench.tables.rows import Row

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
    finished = [row for row in rows if "error" not in row and not row.get("baseline")]
    flat = [{**row["config"], **row["model_options"]} for row in finished]
    keys = sorted({key for one in flat for key in one} - {*_NO_FACTOR, "model_options"})
    return [family for key in keys for family in _named(list(_of(key, finished, flat)), key)]


def _named(found: Sequence[Family], key: str) -> list[Family]:
    """Families of one setting, told apart by what else differs between them."""
    models = naming.names([_without(family.rows[0], key) for family in found])
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
        annotated = standing.annotate([row for _, row in group])
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
    config = {k: v for k, v in row["config"].items() if k != key}
    options = {k: v for k, v in config.get("model_options", {}).items() if k != key}
    return {**row, "stacked": 1, "config": {**config, "model_options": options}}
