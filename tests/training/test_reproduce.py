"""A stored run is made again: the same bits, the same statistics, or neither."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.layout import write_layout

import stl10bench
from stl10bench.core.errors import DataError, UsageError
from stl10bench.results.run_folder import RunFolder
from stl10bench.training import row as row_module
from stl10bench.training.job import Job
from stl10bench.training.reproduce import Outcome, reproduce_run

TINY: dict[str, Any] = {"image_size": 8, "epochs": 2, "batch_size": 8, "tracker": "none"}


@pytest.fixture(autouse=True)
def _committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code is that of a commit, whatever the checkout of these tests."""
    monkeypatch.setattr(row_module, "_code", lambda: {"commit": "c" * 40, "dirty": False})


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


def test_a_run_trained_again_before_counts_with_its_date_until_the_code_is_another(
    run: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (reproduce(run, tmp_path / "again", data_dir) for _ in range(2))
    assert (first.earlier, first.note) == (None, "")
    assert re.search(r"trained again on 20.*, not now: pass --overwrite to train", second.note)
    assert second.bits
    assert len(list((tmp_path / "again").glob("*/"))) == 1
    for commit, dirty in (("d" * 40, False), ("d" * 40, True)):
        monkeypatch.setattr(row_module, "_code", lambda: {"commit": commit, "dirty": dirty})  # noqa: B023
        third = reproduce(run, tmp_path / "again", data_dir)
        assert third.earlier is None
        assert third.second["commit"] == commit
    assert len(list((tmp_path / "again").glob("*.old-*"))) == 2


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
