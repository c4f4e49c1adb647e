"""Rows -> names that tell them apart; light."""

import json
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
    for row, label in zip(found, labels, strict=True):
        same = [one for one, other in zip(found, labels, strict=True) if other == label]
        own = [
            f"{key} {_plain(row['config'].get(key))}"
            for key in row["config"]
            if key not in ("seed", "fold", "model_options")
            and len({json.dumps(one["config"].get(key)) for one in same}) > 1
        ]
        name = clean(", ".join([label, *own[:_SHOWN]]))
        twins = made.count(name)
        made.append(f"{name} #{twins + 1}" if twins else name)
    return made


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return "-".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)[:40]
