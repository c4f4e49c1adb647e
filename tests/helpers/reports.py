"""Runs for a report."""

import json
from typing import Any

import numpy as np
import safetensors.numpy

from helpers.finished import make_run
from stl10bench.config import RunConfig
from stl10bench.results.run_folder import RunFolder
from stl10bench.studies import parse, record
from stl10bench.studies.study import points

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


def leave_study(
    runs_dir: Any, data: str, name: str, *changes: str, recipe: str | None = None, **settings: Any
) -> Any:
    """The record of one of the report's studies, and its runs, each better than the one before."""
    changed = parse.Changes(vary=changes, seeds=1, settings=settings, recipe=recipe)
    study = parse.define(name, changed)
    entries = []
    for number, place in enumerate(points(study)):
        run = f"{place.model}-{name}-{number}"
        config = {key: x for key, x in place.settings.items() if key in RunConfig.model_fields}
        options = {key: x for key, x in place.settings.items() if key not in config}
        add_run(
            runs_dir, run, 1 + 0.1 * number, val_accuracy=0.5 + 0.02 * number,
            config={"data": data, "epochs": 3, **config}, model_options=options,
        )  # fmt: skip
        entries.append(record.Entry(labels=list(place.labels), seed=0, run=run, val_images=500))
    facts: dict[str, Any] = {"data": data, "dataset": "STL-10 layout", "base": None}
    stored = record.Record(format=record.FORMAT, study=study, runs=entries, **facts)
    record.write(runs_dir, stored)
    return stored
