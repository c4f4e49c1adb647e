"""A run -> its page at Weights & Biases: where it logs, settings, and what is shown at its end."""

import logging
import os
import re
import warnings
from dataclasses import dataclass
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from stl10bench.core import files
from stl10bench.core.errors import StorageError, UsageError
from stl10bench.core.network import reachable
from stl10bench.data.stl10 import Dataset
from stl10bench.metrics.calibration import log_probabilities, reliability
from stl10bench.metrics.classification import confusion_matrix
from stl10bench.results.rows import Row
from stl10bench.training.job import Job

PROJECT = "stl10bench"
MISTAKES = 36  # pictures of them, at most
_LARGEST = 100  # classes of a confusion matrix: W&B's tables have at most 10,000 rows
UPLOAD_PATIENCE = 600.0  # seconds that a run waits for a checkpoint or pictures to upload
_BEST = {"loss": "min", "accuracy": "max"}  # what the summary keeps of a curve


class Mode(NamedTuple):
    """online, offline, disabled or shared, and why."""

    name: str
    reason: str


def choose_mode() -> Mode:
    """WANDB_MODE where it is set; else online with a key and a server that answers, else offline.

    Waits up to 2 s for that server.
    """
    if (mode := os.environ.get("WANDB_MODE")) is not None:
        return Mode(mode, "WANDB_MODE")
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    if not has_key(server):
        return Mode("offline", "no key: run 'wandb login'")
    if not reachable(server):
        warnings.warn(f"no connection to {server}: logging to W&B offline", stacklevel=5)
        return Mode("offline", f"no connection to {server}")
    return Mode("online", server)


def has_key(server: str) -> bool:
    """Whether wandb has a key for `server`: in the environment, or from `wandb login`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc().authenticators(urlsplit(server).hostname or "") is not None
    except FileNotFoundError:
        return False
    except NetrcParseError as error:  # whose text may quote the key
        where = f"{error.filename}, near line {error.lineno},"
        warnings.warn(f"cannot read the W&B key from .netrc: {where} is damaged", stacklevel=5)
        return False
    except OSError as error:
        warnings.warn(f"cannot read the W&B key from .netrc: {error}", stacklevel=5)
        return False


def describe(mode: Mode, job: Job) -> str:
    """Where a run logs to, in a few words."""
    text = f"W&B project {_project()}, {mode.name} ({mode.reason})"
    if mode.name == "offline":
        text += f"; upload it with wandb sync {job.folder.path / 'wandb'}/offline-run-*"
    return text


def init_settings(job: Job, mode: Mode) -> dict[str, Any]:
    """Keywords of wandb.init for a run that never asks, never prints and never waits long.

    W&B's own variables (WANDB_PROJECT, _ENTITY, _NAME, _NOTES, _TAGS, _RUN_GROUP, _JOB_TYPE) are
    obeyed: as they are now, not as they were when wandb was imported. In a sweep it takes the
    agent's run instead of ours.
    """
    import wandb

    logging.getLogger("wandb").setLevel(logging.WARNING)  # below it, it logs paths
    folder, variables = job.folder, os.environ
    identity = folder.tracker_id_file
    if not identity.exists():
        files.write(identity, uuid4().hex[:8].encode())
    tags = [tag.strip() for tag in variables.get("WANDB_TAGS", "").split(",")]
    return {
        "id": files.read(identity, 64, StorageError).decode("ascii", "replace"),
        "resume": "allow",
        "dir": str(folder.path),
        "project": _project(),
        "entity": variables.get("WANDB_ENTITY") or None,
        "name": variables.get("WANDB_NAME") or folder.name,
        "notes": variables.get("WANDB_NOTES") or None,
        "tags": [tag for tag in tags if tag] or None,
        "group": variables.get("WANDB_RUN_GROUP") or job.config.model,
        "job_type": variables.get("WANDB_JOB_TYPE") or "train",
        "mode": mode.name,
        "settings": wandb.Settings(
            silent=True,
            console="off",
            init_timeout=6,
            x_disable_meta=True,  # the command line, host and paths
            disable_git=True,
        ),
    }


def _project() -> str:
    return os.environ.get("WANDB_PROJECT") or PROJECT


def define_metrics(run: Any) -> None:
    """Let the summary of a wandb run keep the best of each curve, beside the last value."""
    for split in ("train", "val"):
        for name, best in _BEST.items():
            run.define_metric(f"{split}/{name}", summary=f"{best},last")


@dataclass(frozen=True)
class Result:
    """A finished run: its row, and its test images' logits float32 (N, C) and labels int64 (N,)."""

    job: Job
    dataset: Dataset
    row: Row
    logits: NDArray[Any]
    labels: NDArray[Any]


def log_result(run: Any, result: Result) -> None:
    """Give a wandb run the row's figures as its summary, tables of the test, and what was asked.

    That is, with `wandb_images`, the mistakes that the model was surest of, and with
    `wandb_artifact` the tested checkpoint.
    """
    values = result.row.stored()
    run.summary.update({k: v for k, v in values.items() if isinstance(v, int | float | str)})
    charts = _charts(result)
    for key, chart in charts.items():
        # A table that belongs to the run already is one of the run's files and no more. W&B would
        # make it an artifact too, in the user's home, which an offline run's file would then name.
        chart.set_key(key)
        chart.table.bind_to_run(run, chart.spec.table_key, 0)
    if result.job.wandb_images:
        charts["test/mistakes"] = _mistakes(result)
    run.log(charts)
    if result.job.wandb_artifact:
        run.log_artifact(_artifact(result))


def _charts(result: Result) -> dict[str, Any]:
    """Confusion matrix, accuracy by class, and reliability where there are images enough."""
    import wandb

    names, logits, labels = result.dataset.class_names, result.logits, result.labels
    charts: dict[str, Any] = {}
    if len(names) <= _LARGEST:
        charts["test/confusion"] = wandb.plot.confusion_matrix(
            y_true=labels.tolist(), preds=logits.argmax(1).tolist(), class_names=list(names)
        )
    counts = confusion_matrix(logits, labels)
    hits, images = counts.diagonal().tolist(), counts.sum(1).tolist()
    rows = [[name, h / n, n] for name, h, n in zip(names, hits, images, strict=True) if n]
    classes = wandb.Table(columns=["class", "accuracy", "images"], data=rows)
    charts["test/classes"] = wandb.plot.bar(
        classes, "class", "accuracy", title="Test accuracy by class"
    )
    try:
        bins = reliability(logits.astype(np.float64), labels)
    except UsageError:  # too few images: the row's notes say so
        return charts
    columns: list[str | int] = ["confidence", "accuracy", "images"]
    data = np.column_stack([bins.confidences, bins.accuracies, bins.counts]).tolist()
    charts["test/reliability"] = wandb.plot.line(
        wandb.Table(columns=columns, data=data),
        "confidence",
        "accuracy",
        title="Reliability: accuracy over confidence",
    )
    return charts


def _mistakes(result: Result) -> list[Any]:
    """Pictures of the misclassified test images that the model was surest of."""
    import wandb

    shares = np.exp(log_probabilities(result.logits.astype(np.float64)))
    predicted, names = shares.argmax(1), result.dataset.class_names
    wrong = np.flatnonzero(predicted != result.labels)
    surest = wrong[np.argsort(-shares[wrong, predicted[wrong]], kind="stable")][:MISTAKES]
    return [
        wandb.Image(
            np.ascontiguousarray(result.dataset.test.images[row].transpose(1, 2, 0)),
            caption=f"{names[predicted[row]]} ({shares[row, predicted[row]]:.2f}), "
            f"is {names[result.labels[row]]}; test image {row}",
        )
        for row in surest.tolist()
    ]


def _artifact(result: Result) -> Any:
    """The tested checkpoint, with the figures that it is chosen by."""
    import wandb

    row, folder = result.row, result.job.folder
    facts = {"model": row.model, "protocol": row.protocol, "val_accuracy": row.val_accuracy}
    artifact = wandb.Artifact(
        re.sub(r"[^A-Za-z0-9_.-]", "-", folder.name),
        type="model",
        metadata={**facts, "test_accuracy": row.test_accuracy, "version": row.version},
    )
    file: Path = folder.tested_file(row.config)
    artifact.add_file(str(file), name=file.name, policy="immutable")  # no second copy on the disk
    return artifact
