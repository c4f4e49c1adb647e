"""Run folders of finished runs with predictions that were made up."""

import json
from pathlib import Path
from typing import Any

import torch

from helpers.rows import row_of
from stl10bench.metrics.classification import measures, score
from stl10bench.metrics.significance import wilson_interval
from stl10bench.training.row import save_predictions

LABELS = torch.arange(600) % 3


def make_run(
    runs_dir: Path, name: str, strength: float, labels: Any = LABELS, **other: Any
) -> Path:
    """A run folder with a row and predictions that belong together; runs share most mistakes."""
    common = torch.randn(600, 3, generator=torch.Generator().manual_seed(0))
    own = torch.Generator().manual_seed(sum(map(ord, name)))
    logits = common + 0.5 * torch.randn(600, 3, generator=own) + strength * torch.eye(3)[labels]
    scores = score(logits, labels, "test")
    accuracy = scores["test/accuracy"]
    row = row_of(
        name.partition("-")[0],
        accuracy,
        run=name,
        test_loss=scores["test/loss"],
        test_images=600,
        test_accuracy_interval=list(wilson_interval(accuracy, 600)),
        **measures(logits, labels),
    )
    folder = runs_dir / name
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(row | other))
    (folder / "config.json").write_text(json.dumps(row["config"]))
    save_predictions(folder / "predictions.safetensors", logits, labels)
    return folder
