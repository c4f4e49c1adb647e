"""Runs for a report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from helpers.finished import make_run

NAMES = ("ant", "bee", "cow")


def add_run(runs_dir: Path, name: str, strength: float, **other: Any) -> Path:
    """A finished run with all of its files; `lr` and `seed` go into its settings."""
    names = other.pop("names", NAMES)
    own = {key: other.pop(key) for key in ("lr", "seed", "model_options") if key in other}
    options = own.pop("model_options", {})
    config = {"model": name.partition("-")[0], "data": "0" * 64, "model_options": options, **own}
    config |= other.pop("config", {})
    facts = {"latency_ms": 2.5, "device": "cpu", "threads": 2, "commit": "abc", "dirty": False}
    folder = make_run(
        runs_dir, name, strength, config=config, model_options=options, **{**facts, **other}
    )
    (folder / "config.json").write_text(json.dumps(config))
    header = {"stl10bench": json.dumps({"class_names": list(names)})}
    safetensors.numpy.save_file({"x": np.zeros(1)}, folder / "best.safetensors", header)
    write_log(folder, 3)
    return folder


def write_log(folder: Path, epochs: int) -> None:
    lines = [
        {"step": n, "epoch": n, "train/loss": 2 / n, "train/accuracy": 0.3, "val/loss": 1 / n}
        for n in range(1, epochs + 1)
    ]
    text = "".join(json.dumps(line | {"val/accuracy": 0.4}) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
