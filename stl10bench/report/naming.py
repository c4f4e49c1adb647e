"""Rows -> names that tell them apart; light."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from stl10bench.escaping import clean
from stl10bench.tables import results
from stl10bench.tables.rows import Row

_SHOWN = 3  # settings that tell rows of one name apart


def names(found: Sequence[Row]) -> list[str]:
    """The label of each row; rows of one label are told apart by settings, then by a number."""
    labels = [clean(results.label(row)) for row in found]
    made: list[str] = []
    seen: Counter[str] = Counter()
    for row, label in zip(found, labels, strict=True):
        twins = [one for one, other in zip(found, labels, strict=True) if other == label]
        own = [f"{key} {_plain(row['config'].get(key))}" for key in _telling(row, twins)]
        name = clean(", ".join([label, *own]))
        seen[name] += 1
        made.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return made


def _telling(row: Row, twins: Sequence[Row]) -> list[str]:
    """The settings, in their order, that tell a row from its twins; at most `_SHOWN`."""
    config = row["config"]
    keys = [key for key in config if key not in ("seed", "fold", "model_options")]
    left, chosen = [one for one in twins if one is not row], list[str]()
    while left and len(chosen) < _SHOWN:
        best = max(keys, key=lambda key: sum(_differ(row, one, key) for one in left), default="")
        others = [one for one in left if not _differ(row, one, best)]
        if len(others) == len(left):
            break
        left = others
        chosen.append(best)
    return sorted(chosen, key=keys.index)


def _differ(first: Row, second: Row, key: str) -> bool:
    return json.dumps(first["config"].get(key)) != json.dumps(second["config"].get(key))


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return "-".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)[:40]
