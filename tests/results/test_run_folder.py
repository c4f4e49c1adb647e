"""Run folders: listed, shown and removed, whatever state they are in."""

import io
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from helpers.forks import Forks
from rich.console import Console

import stl10bench
from stl10bench.config import RunConfig, make_config
from stl10bench.core.errors import BenchError, BusyError, UsageError
from stl10bench.results.run_folder import RunFolder, find_run
from stl10bench.training.resolve import check_settings

TINY: dict[str, Any] = {"image_size": 8, "epochs": 2, "batch_size": 8, "tracker": "none"}


# Python code for a child: it is killed in its fifth step, the first of the second epoch.
KILLED = """
import os, signal, stl10bench.training.epoch as epoch
original, calls = epoch.nan_if_infinite, []
def killed(losses):
    calls.append(1)
    if len(calls) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(losses)
epoch.nan_if_infinite = killed
"""


@pytest.fixture(scope="module")
def runs_dir(forks: Forks, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run and the one that it replaced, a killed one, a diverged one, a damaged one."""
    folder = tmp_path_factory.mktemp("runs")
    options = {**TINY, "data_dir": data_dir, "runs_dir": folder, "threads": 1}
    for _ in range(2):
        stl10bench.train("logistic", **options, overwrite=True)
    diverging = {"lr": 1e30, "optimizer": "sgd", "schedule": "constant", "hidden": (4,)}
    with pytest.raises(ValueError, match="diverged"):
        stl10bench.train("mlp", **options, **diverging)
    row = stl10bench.train("logistic", **options, seed=1)
    (folder / row["run"] / "status.json").write_text("{")
    words = ["--image-size", "8", "--epochs", "2", "--batch-size", "8", "--tracker", "none"]
    words += ["--seed", "2", "--checkpoint-minutes", "0", "--threads", "1"]
    places = ["--data-dir", data_dir, "--runs-dir", folder]
    assert forks.run("train", "logistic", *words, *places, before=KILLED).code == -9
    return folder


def test_each_state_is_told(cli: Any, runs_dir: Path) -> None:
    _, out, _ = cli("runs", "list", "--runs-dir", str(runs_dir), "--json")
    listed = json.loads(out)["runs"]
    states = sorted(run["state"] for run in listed)
    assert states == ["damaged", "diverged", "finished", "killed", "old"]
    by_state = {run["state"]: run for run in listed}
    assert by_state["finished"]["epoch"] == by_state["finished"]["epochs"] == 2
    assert by_state["killed"]["epoch"] < 2
    assert "not finite" in by_state["diverged"]["reason"]
    assert "is not JSON" in by_state["damaged"]["reason"]
    folder = runs_dir / by_state["finished"]["run"]
    assert by_state["finished"]["bytes"] == sum(p.stat().st_size for p in folder.iterdir())


def test_the_list_is_a_table_with_a_total(cli: Any, runs_dir: Path) -> None:
    code, out, _ = cli("runs", "list", "--runs-dir", str(runs_dir))
    assert code == 4, "one is damaged"
    assert "killed" in out
    assert out.strip().endswith("in 5 runs")


def test_the_list_says_each_setting_once_and_no_fingerprint(cli: Any, tmp_path: Path) -> None:
    configs = {
        "a": {"unlabeled": None, "method": "probe"},
        "b": {"unlabeled": "100", "unlabeled_data": "f" * 64, "model_options": {"centroids": 20}},
        "c": {"unlabeled": "100", "unlabeled_data": "f" * 64, "model_options": {"centroids": 30}},
    }
    for name, config in configs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model": "kmeans", **config}))
    _, out, _ = cli("runs", "list", "--runs-dir", str(tmp_path))
    labels = [line.split("  ")[0].strip() for line in out.splitlines()[4:7]]
    assert labels == ["kmeans (probe)", "kmeans, centroids 20", "kmeans, centroids 30"]
    assert time.strftime("%Y-%m-") not in out, "no status says since when"


def test_a_run_that_is_at_work_is_running_and_not_removed(data_dir: Path, tmp_path: Path) -> None:
    row = stl10bench.train("logistic", data_dir=data_dir, runs_dir=tmp_path, threads=1, **TINY)
    folder = tmp_path / row["run"]
    config = check_settings("logistic", settings={})[0].model_validate(row["config"])
    (folder / "result.json").unlink()
    with RunFolder(folder).owned(config):
        assert RunFolder(folder).describe()["state"] == "running"
        with pytest.raises(BusyError, match=r"written by process \d+ on .*, for \d+ s"):
            RunFolder(folder).remove()
    assert folder.exists()


REPAIRED = {"batch_size": 8, "optimizer": "sgd", "fold": None, "labels_per_class": None}
REFUSED = {  # settings -> what is said
    "optimizer": ({"optimizer": "sdg"}, "unknown optimizer 'sdg'"),
    "batch": ({"batch_size": 1000}, "larger than the 36 training images"),
    "fold": ({"fold": 1}, "have folds"),
    "labels": ({"labels_per_class": 90}, "has only 10 images"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_run_that_is_refused_leaves_nothing_and_names_no_log(
    data_dir: Path, tmp_path: Path, kind: str
) -> None:
    settings, text = REFUSED[kind]
    console = Console(file=io.StringIO())
    options = {**TINY, "threads": 1, "data_dir": data_dir, "runs_dir": tmp_path, **settings}
    with pytest.raises(BenchError, match=text):
        stl10bench.train("logistic", console=console, **options)
    assert list(tmp_path.iterdir()) == []
    assert "logs to" not in console.file.getvalue()  # type: ignore[attr-defined]
    stl10bench.train("logistic", console=console, **options | REPAIRED)
    assert "metrics.jsonl" in console.file.getvalue()  # type: ignore[attr-defined]


def refuse(folder: RunFolder, config: RunConfig, *, overwrite: bool) -> None:
    with pytest.raises(UsageError, match="not so"), folder.owned(config, overwrite=overwrite):
        raise UsageError("not so")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("state", ["interrupted", "finished"])
def test_a_run_that_is_refused_leaves_what_was_there_as_it_was(
    tmp_path: Path, state: str, overwrite: bool
) -> None:
    config = make_config({"model": "logistic"})
    folder = RunFolder(tmp_path / config.name)
    with suppress(SystemExit), folder.owned(config):
        folder.log_file.write_text("{}\n")
        if state == "interrupted":
            raise SystemExit(143)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert folder.status()["state"] == state
    refuse(folder, config, overwrite=overwrite)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_that_has_begun_is_never_removed(tmp_path: Path) -> None:
    config = make_config({"model": "logistic"})
    folder = RunFolder(tmp_path / config.name)
    folder.path.mkdir()
    folder.log_file.write_text("{}\n")
    refuse(folder, config, overwrite=False)
    assert folder.status()["state"] == "failed"
    assert folder.log_file.exists()


def test_a_run_is_shown_by_the_beginning_of_its_name(cli: Any, runs_dir: Path) -> None:
    words = ("runs", "show", "mlp", "--runs-dir", str(runs_dir))
    facts = json.loads(cli(*words, "--json")[1])
    assert facts["config"]["model_options"]["hidden"] == [4]
    assert facts["files"]["metrics.jsonl"] == 0
    text = cli(*words)[1]
    assert "diverged" in text
    assert "config.json" in text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("logistic", r"run 'logistic' is ambiguous: logistic-.*; type more of the name"),
        ("logistik-edda6f7e", r"unknown run 'logistik-.*': did you mean 'logistic-"),
        ("..", r"unknown run '\.\.'"),
    ],
)
def test_a_name_that_is_none_is_refused(runs_dir: Path, name: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        find_run(runs_dir, name)


def test_the_name_of_a_model_removes_nothing_where_it_has_several_runs(
    cli: Any, tmp_path: Path
) -> None:
    for name in ("mlp-1", "mlp-2"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.json").write_text("{}")
    code, _, err = cli("runs", "rm", "mlp")
    assert (code, "run 'mlp' is ambiguous" in err) == (2, True)
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_runs_are_removed_by_name_and_by_state(cli: Any, data_dir: Path, tmp_path: Path) -> None:
    rows = [
        stl10bench.train("logistic", data_dir=data_dir, runs_dir=tmp_path, seed=seed, **TINY)
        for seed in (0, 1)
    ]
    stl10bench.train("logistic", data_dir=data_dir, runs_dir=tmp_path, overwrite=True, **TINY)
    _, out, _ = cli("runs", "rm", "--state", "old", "--runs-dir", str(tmp_path))
    assert out.startswith(f"removed {rows[0]['run']}.old-1: ")
    assert cli("runs", "rm", rows[1]["run"], "--runs-dir", str(tmp_path))[0] == 0
    left = [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert left == [rows[0]["run"]]
    code, _, err = cli("runs", "rm", "--runs-dir", str(tmp_path))
    assert (code, "Missing run" in err) == (2, True)


def test_an_ambiguous_name_says_a_methods_options_as_the_list_of_runs_does(tmp_path: Path) -> None:
    for views in (1, 2):
        settings = {"model": "kmeans", "method": "probe", "method_options": {"views": views}}
        config = make_config(settings)
        (tmp_path / f"kmeans-{views}").mkdir()
        text = json.dumps(config.model_dump(mode="json"))
        (tmp_path / f"kmeans-{views}" / "config.json").write_text(text)
    with pytest.raises(UsageError, match=r"kmeans-1 \(views 1, new\), kmeans-2 \(views 2, new\)"):
        find_run(tmp_path, "kmeans")
