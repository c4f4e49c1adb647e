"""Studies on the small data, planned by the product's own functions; programs and processes."""

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console

from stl10bench.metrics.calibration import nll
from stl10bench.results import predictions
from stl10bench.results.rows import Row
from stl10bench.studies import parse, plan, record
from stl10bench.studies.cluster import Workers
from stl10bench.studies.engine import Batch
from stl10bench.studies.plan import Common, Planned, Start
from stl10bench.studies.record import Record
from stl10bench.studies.study import points

ROOT = Path(__file__).parents[2]
QUIET = Console(quiet=True)
SETTINGS: dict[str, Any] = {
    **{"image_size": 8, "epochs": 2, "batch_size": 8, "precision": "no"},
    **{"optimizer": "sgd", "schedule": "constant"},
}
TINY = [
    *("--image-size", "8", "--epochs", "2", "--batch-size", "8", "--precision", "no"),
    *("--optimizer", "sgd", "--schedule", "constant", "--tracker", "none", "--seeds", "1"),
]


def prepared(data_dir: Path, runs_dir: Path, start: Start = Start(), **options: Any) -> Common:  # noqa: B008  frozen
    """What runs on the small data share."""
    own: dict[str, Any] = {"dataset": "stl10", "data_dir": data_dir, "runs_dir": runs_dir}
    own |= {"download": False, "verify": True, "tracker": "none", "device": "cpu", "threads": 1}
    return plan.prepare(start, own | options, QUIET)


def planned_study(
    common: Common, *vary: str, model: str = "logistic", seeds: int = 1, **settings: Any
) -> tuple[Record, list[Planned]]:
    """The record and the runs of a study of a model; no runs for one with a range."""
    varied = {text.partition("=")[0] for text in vary}
    settings = {k: v for k, v in {**SETTINGS, **settings}.items() if k not in varied}
    study = parse.define(None, parse.Changes(model, None, vary, seeds, settings))
    planned = plan.plan_runs(points(study) if study.is_grid else [], study.recipe, common)
    return record.make(study, planned, common), planned


def leave_finished(planned: Planned, accuracy: float = 0.5, *, predicted: bool = False) -> None:
    """Leave the files of a finished run with a validation and test accuracy."""
    assert planned.job is not None
    folder, config = planned.job.folder, planned.job.config
    folder.path.mkdir(parents=True, exist_ok=True)
    labels = np.arange(20) % 4
    shown = np.where(np.arange(20) < 20 * accuracy, labels, (labels + 1) % 4)
    logits = np.eye(4, dtype=np.float32)[shown]
    if predicted:
        predictions.save(folder.predictions_file, {"logits": logits, "labels": labels})
    row = Row(
        run=config.name,
        model=config.model,
        config=config,
        dataset="STL-10 layout",
        selection="validation",
        test_accuracy=accuracy,
        test_loss=nll(logits.astype(np.float64), labels),
        test_images=20,
        val_accuracy=accuracy,
        train_seconds=1.0,
    )
    folder.result_file.write_text(json.dumps(row.stored()))
    folder.status_file.write_text('{"state": "finished", "reason": ""}')


def batch_of(common: Common, name: str = "test", **workers: Any) -> Batch:
    logs = common.runs_dir / "studies" / name / "log"
    return Batch(name, common, Workers(**{"workers": 1, **workers}), logs)


def start(
    *arguments: str | Path,
    data_dir: Path,
    cwd: Path = ROOT,
    under: Sequence[str] = (),
    **environment: str,
) -> "subprocess.Popen[str]":
    """A program of its own, as a user would start it, perhaps `under` another."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "STL10BENCH_DATA": str(data_dir)}
    return subprocess.Popen(
        [*under, sys.executable, "-m", *map(str, arguments)],
        cwd=cwd,
        env=variables | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines_of(runs_dir: Path, name: str) -> list[dict[str, str]]:
    """The lines of a study's CSV."""
    text = (runs_dir / "studies" / name / f"{name}.csv").read_text()
    return list(csv.DictReader(io.StringIO(text)))


def first_epochs(runs_dir: Path, name: str) -> list[int]:
    """How often each run's first epoch was trained, by what its children said."""
    logs = sorted((runs_dir / "studies" / name / "log").glob("*.txt"))
    return [log.read_text().count("epoch   1/") + log.read_text().count("epoch 1/") for log in logs]


def wait_until(there: Callable[[], Any], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until
        time.sleep(0.05)


def listening(process: psutil.Process) -> set[str]:
    """The addresses at which a process or one of its children listens."""
    addresses = set()
    for member in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            connections = member.net_connections("inet")
            addresses |= {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
    return addresses


def jobs_of(process: psutil.Process) -> list[psutil.Process]:
    """The processes below another that train a job."""
    found = []
    for child in process.children(recursive=True):
        try:
            if "--job" in child.cmdline():
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def workers_of(process: psutil.Process) -> Sequence[psutil.Process]:
    """The processes of Dask workers below another."""
    return [
        child
        for child in process.children(recursive=True)
        if "multiprocessing.spawn" in " ".join(child.cmdline())
    ]
