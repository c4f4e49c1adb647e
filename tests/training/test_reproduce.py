"""A stored run is made again: the same bits, the same statistics, or neither."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.layout import write_layout

import stl10bench
from stl10bench.core.errors import DataError, UsageError
from stl10bench.results.run_folder import RunFolder
from stl10bench.training.job import Job
from stl10bench.training.reproduce import Outcome, reproduce_run

TINY: dict[str, Any] = {"image_size": 8, "epochs": 2, "batch_size": 8, "tracker": "none"}


@pytest.fixture
def run(data_dir: Path, tmp_path: Path) -> Path:
    """The folder of a finished run."""
    row = stl10bench.train(
        "mlp", hidden=(8,), lr=0.02, data_dir=data_dir, runs_dir=tmp_path / "runs", threads=1,
        **TINY,
    )  # fmt: skip
    return tmp_path / "runs" / str(row["run"])


def reproduce(run: Path, runs_dir: Path, data_dir: Path) -> Outcome:
    folder = RunFolder(run)
    job = Job(
        config=folder.config(), data_dir=data_dir, runs_dir=runs_dir, threads=1, tracker="none"
    )
    return reproduce_run(folder, job)


def test_the_same_machine_gives_the_same_bits(run: Path, data_dir: Path, tmp_path: Path) -> None:
    outcome = reproduce(run, tmp_path / "again", data_dir)
    assert outcome.bits
    assert outcome.p == 1
    assert outcome.differences == {}
    assert (tmp_path / "again" / run.name / "result.json").exists()


def test_other_weights_with_the_same_answers_are_the_same_statistics(
    run: Path, data_dir: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "again"
    shutil.copytree(run.parent, copy)
    row = json.loads((run / "result.json").read_text())
    from stl10bench.inference.predictor import load
    from stl10bench.models import checkpoint

    predictor = load(copy / row["checkpoint"])
    with torch.no_grad():
        next(predictor.model.parameters())[0, 0] += 1e-4
    checkpoint.save(copy / row["checkpoint"], predictor.model, predictor.header)
    outcome = reproduce(run, copy, data_dir)
    assert not outcome.bits
    assert outcome.p == 1


def test_other_data_are_refused_with_both_fingerprints(run: Path, tmp_path: Path) -> None:
    other = write_layout(tmp_path / "other", train=44)
    with pytest.raises(
        DataError, match=r"contains data \w{12}, but the run used \w{12}: pass the run's"
    ):
        reproduce(run, tmp_path / "again", other)


def test_a_copy_beside_the_run_itself_is_refused(run: Path, data_dir: Path) -> None:
    with pytest.raises(UsageError, match="contains the run itself"):
        reproduce(run, run.parent, data_dir)
