"""A run at Weights & Biases: where it logs, and what its page shows; read from the offline file."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers import wandb_file
from rich.console import Console
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

import stl10bench
from stl10bench.config import make_config
from stl10bench.core.errors import UsageError
from stl10bench.data.load import open_data
from stl10bench.results.rows import Row
from stl10bench.studies.jobs import Task, child_environment
from stl10bench.training import wandb_run
from stl10bench.training.job import make_job

ROOT = Path(__file__).parents[2]
TINY: dict[str, Any] = {
    **{"image_size": 8, "epochs": 2, "batch_size": 8, "threads": 1, "precision": "no"},
    **{"recipe": "quick", "hidden": (8, 4)},
}
ASKED = {
    **{"WANDB_PROJECT": "photos", "WANDB_ENTITY": "team", "WANDB_NOTES": "first try"},
    **{"WANDB_TAGS": "a, b", "WANDB_NAME": "mine", "WANDB_MODE": "offline"},
}


@pytest.fixture(scope="module")
def run(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run with all that can be asked for: its row, what was printed, what W&B got."""
    runs_dir = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ASKED.items():
            patch.setenv(name, value)
        patch.setenv("HOME", str(runs_dir))
        console = Console(file=StringIO(), width=80)
        extras = {"wandb_images": True, "wandb_artifact": True}
        row = stl10bench.train(
            "mlp", **TINY, **extras, data_dir=data_dir, runs_dir=runs_dir, console=console
        )
    assert isinstance(console.file, StringIO)
    return row, console.file.getvalue(), wandb_file.read(runs_dir / str(row.run))


def test_wandbs_variables_are_obeyed_and_a_line_says_where_it_logs(run: Any) -> None:
    row, printed, logged = run
    assert (logged.run.project, logged.run.entity) == ("photos", "team")
    assert (logged.run.notes, list(logged.run.tags)) == ("first try", ["a", "b"])
    assert (logged.run.display_name, logged.run.run_group) == ("mine", "mlp")
    assert logged.run.job_type == "train"
    line = printed.splitlines()[1]
    assert f"{row.run}/metrics.jsonl, W&B project photos, offline (WANDB_MODE)" in line
    assert line.endswith("offline-run-*")


def test_the_config_has_settings_dataset_recipe_and_protocol(run: Any) -> None:
    row, _, logged = run
    wanted = {"model": "mlp", "epochs": 2, "lr": row.config.lr, "model.hidden": "8,4"}
    wanted |= {"dataset": "STL-10 layout", "recipe": "quick", "protocol": row.protocol}
    assert {key: logged.config[key] for key in wanted} == wanted


def test_each_epoch_the_curve_by_step_and_the_best_values_are_there(run: Any) -> None:
    row, _, logged = run
    epochs = [line for line in logged.history if "epoch" in line]
    assert [line["epoch"] for line in epochs] == [1, 2]
    assert all({"train/loss", "val/accuracy", "lr"} <= line.keys() for line in epochs)
    steps = [line["_step"] for line in logged.history if "step/loss" in line]
    assert steps == list(range(1, epochs[-1]["_step"] + 1))
    best = logged.metrics["val/accuracy"].summary
    assert (best.max, best.last) == (True, True)
    assert logged.metrics["val/loss"].summary.min
    assert logged.summary["test_accuracy"] == row.test_accuracy
    assert logged.summary["test_loss"] == pytest.approx(row.test_loss)


def test_the_test_is_shown_with_mistakes_and_the_checkpoint_as_asked(run: Any) -> None:
    row, _, logged = run
    (last,) = [line for line in logged.history if "test/mistakes" in line]
    assert {"test/confusion_table", "test/classes_table"} <= last.keys()
    wrong = round((1 - row.test_accuracy) * row.test_images)
    assert last["test/mistakes"]["count"] == wrong
    assert all(" is " in caption for caption in last["test/mistakes"]["captions"])
    (artifact,) = [each for each in logged.artifacts if each.type == "model"]
    assert artifact.name == row.run
    assert [entry.path for entry in artifact.manifest.contents] == ["best.safetensors"]
    assert json.loads(artifact.metadata)["test_accuracy"] == row.test_accuracy


def test_the_runs_of_a_study_keep_their_own_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_NAME", "mine")
    monkeypatch.setenv("WANDB_NOTES", "first try")
    job = make_job(make_config({"model": "logistic"}), runs_dir=tmp_path)
    variables = child_environment(Task(job, tmp_path, None, ("widths", "hidden=8")))
    assert "WANDB_NAME" not in variables
    assert (variables["WANDB_RUN_GROUP"], variables["WANDB_NOTES"]) == ("widths", "first try")


def test_uploads_to_wandb_without_it_are_refused(data_dir: Path, tmp_path: Path) -> None:
    options = {**TINY, "data_dir": data_dir, "runs_dir": tmp_path, "tracker": "none"}
    with pytest.raises(UsageError, match="--wandb-images uploads to W&B: add wandb to --tracker"):
        stl10bench.train("mlp", **options, wandb_images=True)


def test_neither_pictures_nor_checkpoints_leave_the_machine_unasked(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    row = stl10bench.train("mlp", **TINY, data_dir=data_dir, runs_dir=tmp_path)
    logged = wandb_file.read(tmp_path / str(row.run))
    assert not any("test/mistakes" in line for line in logged.history)
    assert not any(each.type == "model" for each in logged.artifacts)
    assert not list(tmp_path.rglob("*.png"))
    assert logged.run.display_name == row.run
    assert logged.run.project == "stl10bench"


class Shown:
    """In place of a wandb run, whose files lie in `dir`."""

    def __init__(self, folder: Path) -> None:
        self.dir = str(folder)
        self.summary: dict[str, Any] = {}
        self.charts: dict[str, Any] = {}

    def log(self, values: dict[str, Any]) -> None:
        self.charts |= values

    def _publish_file(self, name: str) -> None: ...


def test_reliability_is_shown_where_there_are_images_enough(data_dir: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(300, 4)).astype(np.float32), rng.integers(0, 4, 300)
    config = make_config({"model": "logistic"})
    row = Row(model="logistic", config=config, dataset="demo", test_accuracy=0.5, test_images=300)
    job, shown = make_job(config, runs_dir=tmp_path), Shown(tmp_path)
    console = Console(quiet=True)
    data = open_data("stl10", data_dir, download=False, verify=True, console=console)
    wandb_run.log_result(shown, wandb_run.Result(job, data, row, logits, labels))
    bins = np.array(shown.charts["test/reliability"].table.data)
    assert (len(bins), bins[:, 2].sum()) == (15, 300)
    hits = (logits.argmax(1) == labels).mean()
    assert (bins[:, 1] * bins[:, 2]).sum() / 300 == pytest.approx(hits)
    classes = shown.charts["test/classes"].table.data
    assert sum(accuracy * images for _, accuracy, images in classes) / 300 == pytest.approx(hits)


def test_the_sweep_that_we_ship_trains_by_the_file_that_wandbs_agent_writes(
    cli: Any, tmp_path: Path
) -> None:
    sweep = yaml.safe_load((ROOT / "scripts/sweep.wandb.yaml").read_text())
    command = create_sweep_command(sweep["command"])
    assert command[1:] == ["stl10bench", "train", "cnn", "--config", "${args_json_file}"]
    drawn = {
        name: {"value": rule.get("value", rule.get("min", rule.get("values", [None])[-1]))}
        for name, rule in sweep["parameters"].items()
    }
    (content,) = create_sweep_command_args({"args": drawn})["args_json"]
    (tmp_path / "config.json").write_text(content)
    code, out, err = cli("config", "show", "cnn", "--config", "config.json", "--json")
    assert code == 0, err
    for name, value in drawn.items():
        assert f'"{name}": {{"value": {json.dumps(value["value"])}' in out
    assert sweep["metric"]["name"] in Row.model_fields


def test_a_sweeps_point_whose_run_exists_is_logged_from_its_row(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**TINY, "data_dir": data_dir, "runs_dir": tmp_path}
    row = stl10bench.train("mlp", **settings, tracker="none")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert stl10bench.train("mlp", **settings).run == row.run
    assert not (tmp_path / str(row.run) / "wandb").exists()  # a finished run is no new one
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    predictions = tmp_path / str(row.run) / "predictions.safetensors"
    predictions.rename(tmp_path / "moved")  # which only W&B's tables need, in the main process
    assert stl10bench.train("mlp", **settings, tracker="none").run == row.run
    with monkeypatch.context() as patch:
        patch.setenv("RANK", "1")
        assert stl10bench.train("mlp", **settings).run == row.run
    (tmp_path / "moved").rename(predictions)
    assert stl10bench.train("mlp", **settings).test_loss == row.test_loss
    logged = wandb_file.read(tmp_path / str(row.run))
    truth = (tmp_path / str(row.run) / "metrics.jsonl").read_text().splitlines()
    epochs = [line for line in map(json.loads, truth) if "epoch" in line]
    for line, expected in zip(logged.history[:2], epochs, strict=True):
        assert line["_step"] == expected["step"]
        assert line["val/accuracy"] == pytest.approx(expected["val/accuracy"])
    assert logged.summary["test_accuracy"] == row.test_accuracy
