"""A run's metrics.jsonl -> its epochs; light."""

import json
import math
from pathlib import Path
from typing import Any

from stl10bench import files
from stl10bench.errors import CheckpointError

_LIMIT = 64 << 20  # bytes


def read(folder: Path) -> list[dict[str, Any]]:
    """The logged epochs, in order; none without a log.

    A last line that is still being written is left out. Raises CheckpointError for what is no log.
    """
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    lines = files.read(path, _LIMIT, CheckpointError).splitlines()
    found: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("an object is needed")
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise CheckpointError(f"{path}: line {number} is damaged: {error}") from None
        if isinstance(row.get("epoch"), int):
            found[row["epoch"]] = row
    return [found[epoch] for epoch in sorted(found)]


def number(epoch: dict[str, Any], metric: str) -> float:
    """A metric of an epoch; nan where it has none."""
    value = epoch.get(metric)
    return float(value) if isinstance(value, int | float) else math.nan
