"""Run folders that 0.1.0 wrote are read, resumed and tabled: nothing orphans an old run."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.layout import write_layout

import stl10bench
from stl10bench.core.errors import CheckpointError, DivergedError
from stl10bench.models import checkpoint
from stl10bench.results.aggregate import hits_of
from stl10bench.results.benchmark_table import stored_rows
from stl10bench.results.rows import Failure, Row
from stl10bench.results.run_folder import RunFolder, run_folders

FIXTURE = Path(__file__).parent / "fixtures" / "runs-0.1.0"
FINISHED = sorted(path.parent.name for path in FIXTURE.glob("*/result.json"))
STOPPED, DIVERGED = "mlp-6585d2c6", "logistic-df39eca9"


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    return shutil.copytree(FIXTURE, tmp_path / "runs")


def train(tmp_path: Path, runs_dir: Path, model: str, **settings: Any) -> Row:
    data = tmp_path / "data"
    if not data.exists():
        write_layout(data)
    return stl10bench.train(
        model,
        **{"data_dir": data, "runs_dir": runs_dir, "tracker": "none", "threads": 1},
        **{"image_size": 8, "batch_size": 8, "precision": "no", **settings},
    )


@pytest.mark.parametrize("name", FINISHED)
def test_a_finished_run_is_read_with_what_a_ranking_needs(runs_dir: Path, name: str) -> None:
    folder = RunFolder(runs_dir / name)
    stored = json.loads(folder.result_file.read_text())
    row = folder.with_hits(folder.row())
    assert (row.test_accuracy, row.config) == (stored["test_accuracy"], folder.config())
    assert row.selection == ("validation" if row.config.val_fraction else "last epoch")
    assert hits_of(row) == (stored["test_hits"],)
    predicted = folder.predictions(row)  # from which newer rows are completed
    assert (predicted.hits(), predicted.confusion()) == (row.test_hits, row.confusion)


def test_old_runs_stand_in_the_table_beside_what_failed(runs_dir: Path) -> None:
    rows, damaged = stored_rows(runs_dir)
    assert not damaged
    assert {row.run for row in rows if isinstance(row, Row)} == set(FINISHED)
    assert [row.run for row in rows if isinstance(row, Failure)] == [DIVERGED]
    assert {row.stacked for row in rows if isinstance(row, Row)} == {1, 2}


def test_a_finished_run_keeps_its_name_and_is_not_trained_again(
    tmp_path: Path, runs_dir: Path
) -> None:
    before = (runs_dir / FINISHED[0] / "result.json").read_bytes()
    row = train(tmp_path, runs_dir, "logistic", epochs=2)
    assert row.run == "logistic-3ccf0de0"
    assert (runs_dir / FINISHED[0] / "result.json").read_bytes() == before


def test_a_diverged_run_stays_on_record(tmp_path: Path, runs_dir: Path) -> None:
    with pytest.raises(DivergedError, match="on record"):
        train(tmp_path, runs_dir, "logistic", epochs=2, optimizer="sgd", lr=1e30)


def test_a_stopped_run_resumes_from_its_checkpoint_to_what_a_straight_run_gives(
    tmp_path: Path, runs_dir: Path
) -> None:
    settings = {"epochs": 3, "hidden": "16", "dropout": 0.3}
    logged = (runs_dir / STOPPED / "metrics.jsonl").read_text()
    row = train(tmp_path, runs_dir, "mlp", **settings)
    assert row.run == STOPPED
    assert (runs_dir / STOPPED / "metrics.jsonl").read_text().startswith(logged)
    straight = train(tmp_path, tmp_path / "straight", "mlp", **settings)
    assert row.test_loss == pytest.approx(straight.test_loss, rel=1e-4)  # of another processor
    weights = [
        checkpoint.load(folder.last_file)[0]
        for runs in (runs_dir, tmp_path / "straight")
        for folder in run_folders(runs)
        if folder.name == STOPPED
    ]
    assert all(weights[0][key].allclose(weights[1][key], atol=1e-5) for key in weights[1])


@pytest.mark.parametrize("name", [*FINISHED, STOPPED])
def test_a_config_without_a_newer_setting_is_completed_with_its_default(
    runs_dir: Path, name: str
) -> None:
    folder = RunFolder(runs_dir / name)
    config = folder.config()
    values = json.loads(folder.config_file.read_text())
    del values["label_smoothing"]  # as if it had come after 0.1.0
    folder.config_file.write_text(json.dumps(values))
    folder.check_config(config)
    assert folder.config().name == name


def test_a_config_with_a_setting_that_nobody_knows_is_refused(runs_dir: Path) -> None:
    folder = RunFolder(runs_dir / STOPPED)
    values = json.loads(folder.config_file.read_text())
    folder.config_file.write_text(json.dumps({**values, "label_smoothnig": 0.1}))
    with pytest.raises(CheckpointError, match=r"label_smoothnig.*did you mean 'label_smoothing'"):
        folder.check_config(RunFolder(FIXTURE / STOPPED).config())
