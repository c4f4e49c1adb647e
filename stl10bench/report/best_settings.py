"""Finished runs -> the best setting of each of the report's five models, beside the report's."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stl10bench.core.errors import CheckpointError
from stl10bench.metrics.calibration import log_probabilities
from stl10bench.metrics.significance import Z95
from stl10bench.results import benchmark_table, columns
from stl10bench.results.aggregate import aggregate
from stl10bench.results.columns import MISSING, plain
from stl10bench.results.labels import data_title
from stl10bench.results.rows import Row
from stl10bench.results.run_folder import RunFolder
from stl10bench.results.table import Table

MODELS = {
    "logistic": "Logistic regression",
    "mlp": "Fully connected network",
    "cnn": "Convolutional network",
    "mobilenetv2": "MobileNetV2",
}
_NOTE = (
    "The best setting of each model is chosen by its mean accuracy on the validation images; the "
    "test images choose nothing. Brackets: 95 % intervals, which cover the noise of a finite test "
    "split (accuracy: Wilson; loss: normal, of the mean over the images)."
)


class Final(NamedTuple):
    """The final table, the data that its rows were tested on, its runs, and what it lacks."""

    table: Table
    data: str
    runs: tuple[tuple[Row, ...], ...]  # of the best setting of each model
    missing: tuple[str, ...]  # the models


def final_table(runs_dir: Path, data: str | None) -> tuple[Final, list[CheckpointError]]:
    """Of the runs on `data` (a fingerprint; None: on any), and the files that cannot be read."""
    rows, damaged = benchmark_table.stored_rows(runs_dir)
    finished = [row for row in rows if isinstance(row, Row) and data in (None, row.config.data)]
    best = best_of_each(finished)
    by_name = {str(row.run): row for row in finished}
    lines, runs, missing = [], [], []
    for published in benchmark_table.reference_rows("report"):
        row = best.get(_kind(published))
        if row is None:
            missing.append(_name(published))
            here = ("not run yet", *[MISSING] * 3)
        else:
            runs.append(tuple(by_name[name] for name in row.repeats))
            here = (setting(row), f"{row.val_accuracy:.3f}", _loss(row, runs_dir), _accuracy(row))
        theirs = (f"{published.test_loss:.3f}", f"{published.test_accuracy:.3f}")
        lines.append((_name(published), *here, *theirs))
    header = (
        *("model", "setting", "validation", "test loss", "test accuracy"),
        *("the report's loss", "the report's accuracy"),
    )
    table = Table("The final table", header, tuple(lines), (("setting", _NOTE),), ("setting",))
    title = data_title(list(best.values())) if best else ""
    return Final(table, title, tuple(runs), tuple(missing)), damaged


def _name(row: Row) -> str:
    frozen = row.model_options.get("freeze")
    return MODELS[row.model] + (
        "" if frozen is None else f" ({'frozen' if frozen else 'fine-tuned'})"
    )


def best_of_each(rows: Sequence[Row]) -> dict[tuple[str, bool | None], Row]:
    """The setting of each model with the highest mean validation accuracy, seeds combined.

    Of the protocol that has most of the report's models, and of these the one with most runs.
    """
    found: list[tuple[int, int, dict[tuple[str, bool | None], Row]]] = []
    for _, part in benchmark_table.by_protocol(rows):
        best: dict[tuple[str, bool | None], Row] = {}
        for row in aggregate(part):
            if not isinstance(row, Row) or row.val_accuracy is None or row.method != "supervised":
                continue
            other = best.get(_kind(row))
            if other is None or _rank(row) > _rank(other):
                best[_kind(row)] = row
        found.append((len(best), len(part), best))
    return max(found, key=lambda each: each[:2], default=(0, 0, {}))[2]


def _rank(row: Row) -> tuple[bool, float]:
    """Settings with all of their seeds before those with fewer, then the mean accuracy."""
    return row.runs == row.runs_asked, row.val_accuracy or 0.0


def _kind(row: Row) -> tuple[str, bool | None]:
    """A model, and of a backbone whether it is frozen."""
    return row.model, bool(row.model_options["freeze"]) if "freeze" in row.model_options else None


def setting(row: Row) -> str:
    """What a row was trained with: rate, batch, optimizer, epochs, and the model's own options."""
    config = row.config
    parts = [
        f"lr {plain(config.lr)}",
        f"batch {config.batch_size}",
        config.optimizer,
        f"{config.epochs} epochs",
    ]
    options = {**config.model_options}
    options.pop("freeze", None)
    parts += [f"{key.replace('_', ' ')} {plain(value)}" for key, value in options.items()]
    if row.model_options.get("freeze") is not None and not row.pretrained:
        parts.append("random weights")
    parts.append(f"{row.runs} seed{'s'[: (row.runs or 1) - 1]}")
    return ", ".join(parts)


def _accuracy(row: Row) -> str:
    return columns.text(row, columns.column("test_accuracy"))


def _loss(row: Row, runs_dir: Path) -> str:
    """The test loss and its interval, of the mean over the seeds; without predictions no interval.

    The standard error is that of the images' losses.
    """
    if row.test_loss is None:
        return MISSING
    losses = []
    for run in row.repeats:
        try:
            folder = RunFolder(runs_dir / run)
            stored = folder.predictions(folder.row())
        except CheckpointError:  # which reading the rows has reported
            return f"{row.test_loss:.3f}"
        logs = log_probabilities(stored.logits.astype(np.float64))
        losses.append(-logs[np.arange(len(logs)), stored.labels])
    error = Z95 * float(np.mean(losses, axis=0).std()) / math.sqrt(row.test_images)
    return f"{row.test_loss:.3f} [{row.test_loss - error:.3f}, {row.test_loss + error:.3f}]"
