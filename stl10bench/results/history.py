"""Run folders -> what they have logged, epoch by epoch."""

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stl10bench.core import files
from stl10bench.core.errors import CheckpointError, UsageError
from stl10bench.results import run_folder

LOG = "metrics.jsonl"
_LOG_LIMIT = 64 << 20  # bytes
_LISTED = 20  # runs that an error names
_SHOWN = 3  # settings that a label names


class History(NamedTuple):
    """What a run has logged so far."""

    name: str
    state: str  # one of runs.STATES, or new
    settings: dict[str, Any]  # of config.json, its model options among them; {} without one
    epochs: tuple[int, ...]
    values: dict[str, tuple[float, ...]]  # path -> one for each epoch, nan where there is none

    def series(self, path: str) -> tuple[float, ...]:
        """The values of a metric, one for each epoch; all nan for one that was not logged."""
        return self.values.get(path, (math.nan,) * len(self.epochs))


def find_runs(runs_dir: Path, names: Sequence[str]) -> list[Path]:
    """The folder of each run, as `runs.find` finds it; each once.

    Raises UsageError with the runs that there are, also where no name is given at all.
    """
    if not names:
        known = sorted(path.parent.name for path in runs_dir.glob("*/config.json"))
        listed = ", ".join(known[:_LISTED]) + (", ..." if len(known) > _LISTED else "")
        there = f"in {runs_dir} are {listed}" if known else f"there is none in {runs_dir}"
        raise UsageError(f"name a run, or how its name begins: {there}")
    return list(dict.fromkeys(run_folder.find(runs_dir, name) for name in names))


def read(folder: Path, *, live: bool = False) -> History:
    """The history of a run; one without a log has no epochs.

    A torn last line (the run was killed while it wrote it) is left out with a warning, unless the
    run is `live`: then the next reading has it whole. Raises CheckpointError for anything else
    that is no log.
    """
    path = folder / LOG
    rows: dict[int, dict[str, Any]] = {}
    content = files.read(path, _LOG_LIMIT, CheckpointError) if path.exists() else b""
    for number, line in enumerate(lines := content.splitlines(), 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("an object is needed")
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise CheckpointError(f"{path}: line {number} is damaged: {error}") from None
            if not live:
                warnings.warn(f"{path}: the torn last line is left out", stacklevel=2)
            continue
        if isinstance(epoch := row.get("epoch"), int):
            rows[epoch] = row
    epochs = tuple(sorted(rows))
    paths = dict.fromkeys(path for row in rows.values() for path in row)
    values = {path: tuple(_number(rows[epoch].get(path)) for epoch in epochs) for path in paths}
    return History(
        folder.name, run_folder.status(folder)["state"], _settings(folder), epochs, values
    )


def labels(histories: Sequence[History]) -> list[str]:
    """Each run's name, and of several runs the first settings that they do not share."""
    keys = dict.fromkeys(key for history in histories for key in history.settings)
    apart = [
        key
        for key in keys
        if len({json.dumps(history.settings.get(key)) for history in histories}) > 1
        and key not in ("model", "data", "weights")
    ]
    found = []
    for history in histories:
        own = [(key, history.settings[key]) for key in apart if key in history.settings]
        text = ", ".join(f"{key} {_plain(value)}" for key, value in own[:_SHOWN])
        found.append(f"{history.name}: {text}" if text else history.name)
    return found


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    settings = files.read_json(path, CheckpointError) if path.exists() else {}
    options = settings.pop("model_options", {})
    return settings | (options if isinstance(options, dict) else {})


def _number(value: Any) -> float:
    """A finite number as it is, anything else as nan."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:  # an int beyond floats
        return math.nan


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "-".join(map(str, value)) if isinstance(value, list) else str(value)
