"""Run folders -> what they have logged, epoch by epoch."""

import json
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stl10bench.core import files
from stl10bench.core.console import clean
from stl10bench.core.errors import CheckpointError, UsageError
from stl10bench.results.labels import tell_apart
from stl10bench.results.run_folder import RunFolder, run_folders, runs_of

_LOG_LIMIT = 64 << 20  # bytes
_LISTED = 20  # runs that an error names


class History(NamedTuple):
    """What a run has logged so far."""

    name: str
    state: str  # one of run_folder.STATES, or new
    settings: dict[str, Any]  # of config.json, its model options among them; {} without one
    epochs: tuple[int, ...]
    values: dict[str, tuple[float, ...]]  # path -> one for each epoch, nan where there is none

    def series(self, path: str) -> tuple[float, ...]:
        """The values of a metric, one for each epoch; all nan for one that was not logged."""
        return self.values.get(path, (math.nan,) * len(self.epochs))


def find_runs(runs_dir: Path, names: Sequence[str]) -> list[RunFolder]:
    """The folders of the runs, as `runs_of` finds them; each once.

    Raises UsageError with the runs that there are, also where no name is given at all.
    """
    if not names:
        stored = [folder.name for folder in run_folders(runs_dir)]
        listed = ", ".join(stored[:_LISTED]) + (", ..." if len(stored) > _LISTED else "")
        there = f"in {runs_dir} are {listed}" if stored else f"there is none in {runs_dir}"
        raise UsageError(f"Missing run: pass a name or its beginning; {there}")
    return list(dict.fromkeys(folder for name in names for folder in runs_of(runs_dir, name)))


def read(folder: RunFolder, *, live: bool = False) -> History:
    """The history of a run; one without a log has no epochs.

    A torn last line (the run was killed while it wrote it) is left out with a warning, unless the
    run is `live`: then the next reading has it whole. Raises CheckpointError for anything else
    that is no log.
    """
    path = folder.log_file
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
                warnings.warn(f"{path}: the last line is incomplete and left out", stacklevel=2)
            continue
        if isinstance(epoch := row.get("epoch"), int):
            rows[epoch] = row
    epochs = tuple(sorted(rows))
    paths = dict.fromkeys(path for row in rows.values() for path in row)
    values = {path: tuple(_number(rows[epoch].get(path)) for epoch in epochs) for path in paths}
    return History(folder.name, folder.status()["state"], _settings(folder), epochs, values)


def labels(histories: Sequence[History]) -> tuple[str, list[str]]:
    """What all runs are, and what tells each from the others: its name where no setting does."""
    models = [clean(str(history.settings.get("model", history.name))) for history in histories]
    what = models[0] if len(set(models)) == 1 else f"{len(histories)} runs"
    if all(history.settings == histories[0].settings for history in histories):
        return what, [history.name for history in histories]
    settings = [{k: v for k, v in each.settings.items() if k != "model"} for each in histories]
    names = tell_apart(models, settings)
    return what, [name.removeprefix(f"{what}, ") for name in names]


def _settings(folder: RunFolder) -> dict[str, Any]:
    path = folder.config_file
    settings = files.read_json(path, CheckpointError) if path.exists() else {}
    settings.pop("unlabeled_data", None)  # a fingerprint
    options = [settings.pop(f"{kind}_options", {}) for kind in ("model", "method")]
    for each in options:
        settings |= each if isinstance(each, dict) else {}
    return settings


def _number(value: Any) -> float:
    """A finite number as it is, anything else as nan."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    # Not isfinite(value), which an int beyond floats would overflow.
    return float(value) if abs(value) <= sys.float_info.max else math.nan
