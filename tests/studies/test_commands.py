"""`study`, `benchmark` and `train --job`: what they print, write and refuse."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
from helpers.study import (
    ROOT,
    TINY,
    leave_finished,
    lines_of,
    planned_study,
    prepared,
)
from safetensors.torch import save_file

from stl10bench.studies import jobs, plan, ranking, record
from stl10bench.studies.jobs import Task
from stl10bench.training.job import write_job

FIXTURE = Path(__file__).parents[1] / "fixtures" / "runs-0.1.0"
OWN = ["--model", "logistic", "--runs-dir", "runs", "--device", "cpu", "--workers", "1"]


@pytest.fixture
def study(cli: Any, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The command `stl10bench` on the small data."""
    monkeypatch.setenv("STL10BENCH_DATA", str(data_dir))
    return lambda *words: cli(*words)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces children by finished rows; the runs in their order. A rate above 1 diverges."""
    begun: list[str] = []

    def run(task: Task, environment: Any) -> tuple[int, str]:
        begun.append(task.run)
        config = task.job.config
        if config.lr <= 1:
            accuracy = 0.25 if config.lr < 0.1 else 1.0
            leave_finished(plan.Planned("", (), 0, 4, task.job), accuracy, predicted=True)
            return 0, ""
        with pytest.raises(ValueError, match="x"), task.job.folder.owned(config):
            raise ValueError("x")
        status = {"state": "diverged", "reason": "diverged: step 3"}
        task.job.folder.status_file.write_text(json.dumps(status))
        return 5, '{"error": "diverged: step 3"}'

    monkeypatch.setattr(jobs, "_run_child", run)
    return begun


def test_a_study_is_ranked_drawn_and_shown_in_the_words_of_all_tables(
    study: Callable[..., Any], children: list[str], tmp_path: Path
) -> None:
    code, out, err = study("study", "run", *OWN, "--vary", "lr=0.1,0.01,1e30", *TINY)
    assert code == 0, err
    assert [line[:5] for line in err.splitlines() if line.startswith("[")] == [
        *("[1/3]", "[2/3]", "[3/3]")
    ]
    runs = tmp_path / "runs"
    states = [(line["lr"], line["state"]) for line in lines_of(runs, "logistic-by-lr")]
    assert states == [("0.1", "finished"), ("0.01", "finished"), ("1e+30", "diverged")]
    assert re.search(r"^ 0.1 .* best .*1.000", out, re.M)
    assert re.search(r"^ 0.01 .* (tied|worse) ", out, re.M)
    assert "diverged: lr=1e+30" in " ".join(out.split())
    folder = runs / "studies" / "logistic-by-lr"
    page = (folder / "logistic-by-lr.md").read_text()
    assert "| validation accuracy | behind | vs best |" in page
    (figure,) = re.findall(r"!\[.*\]\((.*)\)", page)
    assert (folder / figure).read_bytes().startswith(b"\x89PNG")
    shown = study("study", "show", "logistic-by-lr", "--runs-dir", "runs", "--format", "markdown")
    assert shown[:2] == (0, page.split("\n![")[0])
    code, out, _ = study("study", "list", "--runs-dir", "runs")
    assert re.search(r"logistic-by-lr .*best: lr=0.1", " ".join(out.split()))
    assert study("study", "run", *OWN, "--vary", "lr=0.1,0.01,1e30", *TINY)[0] == 0
    assert len(children) == 3


def test_runs_that_a_study_varied_are_in_tables_and_reports_only_when_asked(
    study: Callable[..., Any], children: list[str], tmp_path: Path
) -> None:
    run = ["study", "run", *OWN, *TINY, "--lr", "0.01"]
    assert study(*run, "--vary", "weight_decay=0.1,0.2")[0] == 0
    code, _, err = study("table")
    assert (code, "no finished run that no study varied" in err, "--studies" in err) == (
        2,
        True,
        True,
    )
    assert "add --studies" in study("report")[2]
    assert study(*run, "--vary", "momentum=0.9,0.5")[0] == 0  # 0.9 is the unvaried one

    def rows(*words: str) -> tuple[set[str], str]:
        code, out, err = study("table", "--format", "json", "--no-baselines", *words)
        assert code == (4 if "study.json" in err else 0), err
        return {row["run"] for row in json.loads(out)}, err

    everything, err = rows("--studies")
    assert (len(everything), err) == (4, "")
    unvaried, err = rows()
    assert (len(unvaried), "3 runs of studies left out (--studies adds them)" in err) == (1, True)
    assert study("report", "--format", "markdown")[0] == 0
    assert set(re.findall(r"logistic-[0-9a-f]{8}", Path("report.md").read_text())) == unvaried
    first, _ = sorted(tmp_path.glob("runs/studies/*/study.json"))
    first.write_text("{")
    some, err = rows()  # what cannot be read hides nothing
    assert (len(some) > 1, "study.json" in err) == (True, True)


def test_the_seeds_of_a_study_are_asked_of_no_other_model(
    study: Callable[..., Any], children: list[str]
) -> None:
    at_work = OWN[2:]
    run = ["study", "run", *OWN, *TINY, "--vary", "lr=1e-4,0.1", "--seeds", "2"]
    assert study(*run)[0] == 0  # 1e-4 is the unvaried rate
    assert study("benchmark", "mlp", "resnet9", *at_work, *TINY)[0] == 0

    def runs(*words: str) -> dict[str, set[str]]:
        code, out, err = study("table", "--format", "csv", "--no-baselines", *words)
        assert code == 0, err
        counts: dict[str, set[str]] = {}
        for row in csv.DictReader(io.StringIO(out)):
            counts.setdefault(row["model"], set()).add(f"{row['runs']} {bool(row['vs_best'])}")
        return counts

    alone = {"logistic": {"2 True"}, "mlp": {"1 True"}, "resnet9": {"1 True"}}
    assert runs() == runs("--studies") == alone
    assert study("report", "--format", "markdown")[0] == 0
    assert "not ranked" not in Path("report.md").read_text()
    assert study("benchmark", "mlp", *at_work, *TINY, "--seeds", "3")[0] == 0  # asks 3 of all
    assert runs() == {"logistic": {"2/3 False"}, "mlp": {"3 False"}, "resnet9": {"1/3 False"}}
    note = "2/3: 2 of 3 runs are finished; such a row is not ranked"
    assert note in study("table", "--format", "markdown")[1]


def test_a_name_that_begins_runs_of_a_study_and_another_means_the_other(
    study: Callable[..., Any], children: list[str], tmp_path: Path
) -> None:
    study("study", "run", *OWN, "--vary", "momentum=0.9,0.5", *TINY, "--seeds", "2")
    for result in tmp_path.glob("runs/*/result.json"):
        config = json.loads(result.read_text())["config"]
        result.with_name("config.json").write_text(json.dumps(config))
    code, out, _ = study("runs", "show", "logistic", "--json")
    (base,) = (
        json.loads(path.read_text())["base"] for path in tmp_path.glob("runs/*/*/study.json")
    )
    assert (code, json.loads(out)["run"]) == (0, base)
    shown = study("table", "logistic", "--no-combine", "--no-baselines", "--format", "csv")[1]
    assert len(shown.splitlines()) == 3  # the base with two seeds, of four runs
    code, _, err = study("runs", "rm", "logistic")  # which does not guess
    assert (code, "run 'logistic' is ambiguous" in err) == (2, True)
    shutil.copytree(tmp_path / "runs" / base, tmp_path / "runs" / "logistic-mine")
    _, _, err = study("runs", "show", "logistic")
    assert (base in err, "logistic-mine" in err, err.count("accuracy")) == (True, True, 2)


def test_a_study_with_other_settings_says_what_of_it_still_fits(
    study: Callable[..., Any], children: list[str], tmp_path: Path
) -> None:
    study("study", "run", *OWN, "--vary", "lr=0.1,0.01", *TINY)
    _, _, err = study("study", "run", *OWN, "--vary", "lr=0.1,0.2", *TINY)
    assert "has changed since its last runs (vary): it reuses 1 of 2 finished runs" in err
    assert len(children) == 3
    (tmp_path / "runs" / "studies" / "logistic-by-lr" / "study.json").write_text("{}")
    code, out, _ = study("study", "list", "--runs-dir", "runs")
    assert (code, "is not a study record" in " ".join(out.split())) == (4, True)


def test_a_study_without_a_single_row_ends_with_an_error_after_its_table(
    study: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_run_child", lambda *_: (1, '{"error": "no luck"}'))
    code, out, err = study("study", "run", *OWN, "--vary", "lr=0.1,0.01", *TINY)
    assert (code, "no run succeeded; the table says why" in err) == (2, True)
    assert "failed: no luck" in out
    shown = study("study", "show", "logistic-by-lr", "--runs-dir", "runs")[1]
    assert "failed: no luck" in shown  # although no folder of a run could say it


def test_a_dry_run_lists_the_runs_with_their_times_and_trains_none(
    study: Callable[..., Any], tmp_path: Path
) -> None:
    code, out, err = study("study", "run", *OWN, "--vary", "lr=0.1,0.01", *TINY, "--dry-run")
    assert code == 0, err
    assert out.count("missing") == 2
    assert re.search(r"Estimated time left: \d+ s, one run at a time", out)
    assert not list(tmp_path.glob("runs/*/config.json"))


@pytest.mark.usefixtures("quick_timings")
@pytest.mark.parametrize(
    "command",
    [
        ["study", "run", "--model", "logistic", "--vary", "model=logistic,mobilenetv2"],
        ["benchmark", "logistic", "mobilenetv2", "--freeze"],
    ],
)
def test_weights_are_for_backbones_and_ignored_for_other_models(
    study: Callable[..., Any], tmp_path: Path, command: list[str]
) -> None:
    file = tmp_path / "mobilenetv2.safetensors"
    save_file(timm.create_model("mobilenetv2_100").state_dict(), file)
    words = [*command, *OWN[2:], *TINY, "--dry-run", "--weights"]
    code, out, err = study(*words, str(file))
    assert (code, out.count("missing")) == (0, 2), err
    code, out, err = study(*words, str(tmp_path / "none.safetensors"))
    assert (code, "none.safetensors" in err) == (4, True), err


@pytest.mark.usefixtures("quick_timings")
def test_a_study_has_the_options_of_its_method(study: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "resnet.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), file)
    words = ["study", "run", "--model", "timm:test_resnet", *OWN[2:], "--weights", str(file)]
    words += ["--method", "probe", "--vary", "image_size=32,40", "--seeds", "1", "--dry-run"]
    code, out, err = study(*words, "--method-option", "views=2")
    assert (code, out.count("missing")) == (0, 2), err
    code, _, err = study(*words, "--method-option", "view=2")
    assert (code, "did you mean 'views'" in err) == (2, True), err


def test_a_record_of_0_1_0_is_read_and_ranked(study: Callable[..., Any], tmp_path: Path) -> None:
    shutil.copytree(FIXTURE, tmp_path / "old")
    stored = record.read(tmp_path / "old", "logistic-by-lr")
    assert stored is not None
    trained = record.trained(stored, tmp_path / "old")
    assert any(run.row is not None for run in trained)
    assert ranking.rank(trained)
    code, out, err = study("study", "show", "logistic-by-lr", "--runs-dir", "old")
    assert (code, "validation accuracy" in out) == (0, True), err


def test_showing_studies_needs_neither_torch_nor_dask(tmp_path: Path) -> None:
    shutil.copytree(FIXTURE, tmp_path / "old")
    code = (
        "import sys\nfrom stl10bench.cli.main import app\n"
        "for words in ('--help', 'list --runs-dir old', 'show logistic-by-lr --runs-dir old'):\n"
        "    try: app(['study', *words.split()], standalone_mode=False)\n"
        "    except SystemExit: pass\n"
        "print([n for n in ('torch', 'distributed', 'dask', 'optuna') if n in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    out = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert out.stdout.splitlines()[-1] == "[]"


@pytest.mark.usefixtures("quick_timings")
def test_a_benchmark_trains_one_run_at_a_time_and_prints_one_table(
    study: Callable[..., Any], children: list[str], tmp_path: Path
) -> None:
    words = ["benchmark", "logistic", "mlp", "--seeds", "2", "--hidden", "8", "--lr", "0.1"]
    words += [*TINY[:-2], "--runs-dir", "runs", "--device", "cpu"]
    code, out, err = study(*words)
    assert code == 0, err
    assert [run.partition("-")[0] for run in children] == ["logistic", "mlp"] * 2
    assert "[2/4] mlp --seed 0: validation 1.000" in err
    assert re.search(r"^ logistic .*1.000", out, re.M)
    assert study(*words)[0] == 0
    assert len(children) == 4
    assert study(*words, "--overwrite")[0] == 0
    assert len(children) == 8
    code, out, _ = study(*words, "--dry-run")
    assert (code, out.count("done")) == (0, 4)
    config = json.loads(next(tmp_path.glob("runs/mlp-*/result.json")).read_text())["config"]
    assert config["model_options"]["hidden"] == [8]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "Missing model"),
        (["mlq"], "unknown model 'mlq': did you mean 'mlp'"),
        (["logistic", "--hidden", "8"], "none of the models has the option hidden=8"),
        (["mlp", "--seeds", "2", "--seed", "1"], "--seed 1 contradicts --seeds"),
        (["mlp", "--protocol", "flods"], "unknown protocol 'flods': did you mean 'folds'"),
    ],
)
def test_a_benchmark_that_cannot_be_is_refused(
    study: Callable[..., Any], words: list[str], text: str
) -> None:
    code, _, err = study("benchmark", *words)
    assert (code, text in err) == (2, True), err


def test_a_job_file_is_all_of_a_run(
    study: Callable[..., Any], data_dir: Path, tmp_path: Path
) -> None:
    common = prepared(data_dir, tmp_path / "runs")
    _, (planned,) = planned_study(common, "lr=0.1")
    assert planned.job is not None
    write_job(tmp_path / "x.job", planned.job)
    code, out, err = study("train", "--job", "x.job", "--json")
    assert code == 0, err
    assert json.loads(out)["run"] == planned.run
    for words in (["logistic"], ["--epochs", "3"]):
        code, _, err = study("train", *words, "--job", "x.job")
        assert (code, "--job has all settings: leave out" in err) == (2, True), err
    code, out, _ = study("train", "--help")
    assert (code, "--job" in out) == (0, False)
    (tmp_path / "x.job").write_text("{}")
    code, _, err = study("train", "--job", "x.job")
    assert (code, "is not a job file" in err) == (2, True)


@pytest.mark.parametrize("rows", ["runs", "rows"], ids=["study", "benchmark"])
def test_stdout_is_one_json_object_also_where_no_run_succeeded(
    study: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, rows: str
) -> None:
    monkeypatch.setattr(jobs, "_run_child", lambda *_: (1, '{"error": "no luck"}'))
    command = ["benchmark", "logistic", *OWN[2:]]
    if rows == "runs":
        command = ["study", "run", "--vary", "lr=0.1,0.01", *OWN]
    code, out, _ = study(*command, *TINY, "--json")
    assert code == 2
    assert {row["state"] for row in json.loads(out)[rows]} == {"failed"}
