"""Run folders with logs that were made up."""

import json
from pathlib import Path
from typing import Any

from stl10bench.results.run_folder import RunFolder


def row(epoch: int, **values: Any) -> dict[str, Any]:
    return {
        "step": 10 * epoch,
        "epoch": epoch,
        "train/loss": 2 / epoch,
        "train/accuracy": 0.25,
        "lr": 0.001,
        "images_per_second": 100.0,
        "val/loss": 3 / epoch,
        "val/accuracy": 0.5,
    } | values


def make_run(
    runs_dir: Path, name: str, epochs: int = 3, state: str = "", **settings: Any
) -> RunFolder:
    """A run folder with a log of so many epochs; a state only if one is passed."""
    folder = RunFolder(runs_dir / name)
    folder.path.mkdir(parents=True)
    lines = "".join(json.dumps(row(epoch)) + "\n" for epoch in range(1, epochs + 1))
    folder.log_file.write_text(lines)
    folder.config_file.write_text(json.dumps({"model": "mlp", "epochs": 5} | settings))
    if state:
        folder.status_file.write_text(json.dumps({"state": state, "reason": ""}))
    return folder
