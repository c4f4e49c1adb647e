"""Run folders of finished runs with predictions that were made up."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from helpers.rows import row_values
from stl10bench.metrics.calibration import nll
from stl10bench.metrics.classification import measures
from stl10bench.metrics.significance import wilson_interval
from stl10bench.results import predictions
from stl10bench.results.run_folder import RunFolder

LABELS = np.arange(600) % 3


def make_run(
    runs_dir: Path, name: str, strength: float, labels: Any = LABELS, **other: Any
) -> RunFolder:
    """A run folder with a row and predictions that belong together; runs share most mistakes.

    `other` goes into the row as it is; a `config` into config.json, too.
    """
    common = np.random.default_rng(0).normal(size=(600, 3))
    of_run = np.random.default_rng(sum(map(ord, name))).normal(size=(600, 3))
    logits = (common + 0.5 * of_run + strength * np.eye(3)[labels]).astype(np.float32)
    row = row_values(name.partition("-")[0], run=name, **scores(logits, labels)) | other
    folder = RunFolder(runs_dir / name)
    folder.path.mkdir(parents=True)
    folder.result_file.write_text(json.dumps(row))
    folder.config_file.write_text(json.dumps({"model": row["model"], **row["config"]}))
    predictions.save(folder.predictions_file, {"logits": logits, "labels": labels})
    return folder


def scores(logits: Any, labels: Any, validation: Any = None) -> dict[str, Any]:
    """What a row says of test logits (N, C) and labels (N,), and of those of validation images."""
    accuracy = float((logits.argmax(1) == labels).mean())
    return {
        "test_accuracy": accuracy,
        "test_loss": nll(logits.astype(np.float64), labels),
        "test_images": len(labels),
        "test_accuracy_interval": list(wilson_interval(accuracy, len(labels))),
        **measures(logits, labels, validation),
    }
