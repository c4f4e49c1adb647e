"""Runs for a report."""

import json
from typing import Any

import numpy as np
import safetensors.numpy

from helpers.finished import make_run
from stl10bench.results.run_folder import RunFolder

NAMES = ("ant", "bee", "cow")


def add_run(runs_dir: Any, name: str, strength: float, **other: Any) -> RunFolder:
    """A finished run with all of its files; `lr` and `seed` go into its settings."""
    names = other.pop("names", NAMES)
    settings = {key: other.pop(key) for key in ("lr", "seed") if key in other}
    options = other.pop("model_options", {})
    config = {"model": name.partition("-")[0], "data": "0" * 64, "model_options": options}
    config |= settings | other.pop("config", {})
    facts = {"latency_ms": 2.5, "device": "cpu", "threads": 2, "commit": "abc", "dirty": False}
    facts |= {"model_options": options, **other}
    folder = make_run(runs_dir, name, strength, config=config, **facts)
    header = {"stl10bench": json.dumps({"class_names": list(names)})}
    safetensors.numpy.save_file({"x": np.zeros(1)}, folder.best_file, header)
    write_log(folder, 3)
    return folder


def write_log(folder: RunFolder, epochs: int) -> None:
    lines = [
        {"step": n, "epoch": n, "train/loss": 2 / n, "train/accuracy": 0.3, "val/loss": 1 / n}
        for n in range(1, epochs + 1)
    ]
    text = "".join(json.dumps(line | {"val/accuracy": 0.4}) + "\n" for line in lines)
    folder.log_file.write_text(text)
