"""The programs in scripts/ run; what they measure is not tested, for machines differ."""

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from helpers.forks import Forks
from PIL import Image
from rich.console import Console

from stl10bench.config import RunConfig
from stl10bench.data.load import open_data
from stl10bench.data.splits import training_rows
from stl10bench.studies import parse, plan, study

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True)


@pytest.fixture
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.mark.faults
def test_every_side_of_the_speed_comparison_is_measured() -> None:
    code = (
        "import speed_sides as s, json; "
        "print(json.dumps([f(s.Case('logistic', 1)) for f in s.SIDES.values()]))"
    )
    ended = run_python("-c", f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); {code}")
    assert ended.returncode == 0, ended.stderr
    speeds = json.loads(ended.stdout)
    assert len(speeds) == 9
    assert min(speeds) > 0


def test_one_side_of_the_speed_comparison_runs_alone(forks: Forks) -> None:
    program = f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); import speed; speed.app()"
    ended = forks.run("side", "step", "logistic", "1", before=program)
    assert ended.code == 0, ended.err
    assert json.loads(ended.out) > 0


@pytest.mark.usefixtures("_scripts")
def test_a_ratio_of_speeds_is_that_of_the_medians() -> None:
    import speed

    ours, bare = iter([1.0, 9.0, 2.0]), iter([4.0, 4.0, 5.0])
    figures = speed.measure({"ours": lambda: next(ours), "bare": lambda: next(bare)}, turns=3)
    assert figures["ours"] == {"min": 1.0, "median": 2.0, "max": 9.0, "ratio": 1.0}
    assert figures["bare"]["ratio"] == 0.5


def test_the_speed_comparison_names_its_parts() -> None:
    ended = run_python(str(SCRIPTS / "speed.py"), "parts", "limits")
    assert ended.returncode == 1
    assert ended.stderr == (
        "error: unknown part 'limits': choose from augmentation, limit, peers, evaluation, "
        "commands, memory\n"
    )


@pytest.mark.faults
@pytest.mark.usefixtures("_scripts")
def test_steps_beside_a_busy_process_are_timed_and_nothing_is_left_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import speed_load

    before = psutil.Process().children()
    monkeypatch.setattr(speed_load, "MODEL", "logistic")
    threads, rate = speed_load.measure(speed_load.TORCHS, "1 busy process", 1)
    assert (threads, rate > 0) == (speed_load.CORES, True)
    assert psutil.Process().children() == before


@pytest.mark.usefixtures("_scripts")
def test_the_race_is_run_on_the_images_of_our_split(data_dir: Path, tmp_path: Path) -> None:
    import speed_race

    data = open_data("stl10", data_dir, download=False, verify=False, console=Console(quiet=True))
    config = RunConfig(model="mobilenetv2", val_fraction=0.25, seed=3)
    speed_race.write_folders(data, config, tmp_path)
    train, val = training_rows(config, data)
    splits = [("train", data.train, train), ("val", data.train, val)]
    for name, split, rows in [*splits, ("test", data.test, range(len(data.test.labels)))]:
        files = {int(path.stem): path for path in (tmp_path / name).glob("*/*.png")}
        assert sorted(files) == list(rows)
        for row, path in files.items():
            assert int(path.parent.name[:3]) == split.labels[row]
            assert (np.asarray(Image.open(path)).transpose(2, 0, 1) == split.images[row]).all()


@pytest.mark.usefixtures("_scripts")
def test_a_race_ends_at_the_first_epoch_with_the_target_and_tests_once(tmp_path: Path) -> None:
    import speed_race

    log, tested = tmp_path / "log", []
    code = f"import time\nfor x in (0.5, 0.8, 0.7):\n print(x, file=open({str(log)!r}, 'a'))\n"
    code += " time.sleep(0.2)\nprint('0.6')\n"

    def accuracies() -> list[float]:
        return [float(line) for line in log.read_text().split()] if log.exists() else []

    def test(printed: str) -> float:
        tested.append(printed)
        return float(printed)

    side = speed_race.Side([sys.executable, "-c", code], accuracies, test)
    result = speed_race.run(side, target=0.75)
    assert (result["epoch"], result["val_accuracy"], result["test_accuracy"]) == (2, 0.8, 0.6)
    assert tested == ["0.6\n"]
    figures = speed_race.figures([9.0, 11.0, 13.5], [0.5, 0.8, 0.7], 0.75)
    assert (figures["seconds_to"], figures["seconds_to_without_setup"]) == (11.0, 4.25)
    never = speed_race.figures([9.0, 11.0], [0.5, 0.6], 0.75)
    assert (never["seconds_to"], never["best_epoch"]) == (None, 2)


@pytest.mark.usefixtures("_scripts")
def test_the_race_reads_what_timms_programs_write(tmp_path: Path) -> None:
    import speed_race

    (tmp_path / "race").mkdir()
    summary = tmp_path / "race" / "summary.csv"
    (tmp_path / "validate.py").write_text('print("--result\\n{\\"top1\\": 81.5}")\n')
    shared = speed_race.Race(tmp_path, [], tmp_path / "w.safetensors", 2, 64, 128, 0)
    side = speed_race.timms(shared, "--opt adamw", tmp_path, tmp_path)
    assert side.accuracies() == []
    summary.write_text("epoch,eval_top1\n0,50.0\n1,62.5\n2,7")  # the last is being written
    assert side.accuracies() == [0.5, 0.625]
    assert side.test("") == pytest.approx(0.815)


@pytest.mark.faults
def test_the_gpu_check_is_rehearsed_on_a_cpu(tmp_path: Path) -> None:
    script = ["bash", str(SCRIPTS / "gpu_check.sh"), "--device", "cpu", "--reduced", "--turns", "1"]
    ended = subprocess.run([*script, "--json", str(tmp_path / "found")], capture_output=True)
    assert ended.returncode == 0, ended.stderr.decode()
    found = json.loads((tmp_path / "found").read_text())
    runs = {**found["rows"], **found["compiled"], **found["processes"]}
    assert not [row["error"] for row in runs.values() if "error" in row]
    assert found["resumed"]["as it is"] == {"again": 0.0, "resumed": 0.0}


def test_the_readmes_tables_are_those_of_the_reference_rows() -> None:
    ended = run_python(str(SCRIPTS / "readme_table.py"), "--check")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_an_outdated_table_in_the_readme_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import readme_table

    old = "x\n<!-- table report test_loss,test_accuracy -->\nold\n<!-- end -->\ny\n"
    new = readme_table.updated(old)
    assert "| mobilenetv2 (fine-tuned) | 0.589 | 0.834" in new
    assert "old" not in new
    assert readme_table.updated(new) == new
    assert new.startswith("x\n")
    assert new.endswith("\ny\n")


@pytest.mark.usefixtures("_scripts")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- recipes -->\n", "must stand on a line before its own <!-- end -->"),
        ("<!-- rows -->\n<!-- recipes -->\n<!-- end -->\n", "must stand on a line"),
        ("<!-- rows --> x\n<!-- end -->\n", "must stand on a line"),
        ("<!-- rows -->\n<!-- end -->\n", "no page has the part commands, recipes, table"),
    ],
)
def test_a_page_without_its_parts_or_with_half_a_part_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    import readme_table

    monkeypatch.setattr(readme_table, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(SystemExit, match=message):
        readme_table.main()
    assert (tmp_path / "README.md").read_text() == text


@pytest.mark.parametrize("form", [[], ["--reduced"], ["--quick"]])
def test_the_report_is_reproduced_by_its_nine_studies_its_table_and_the_document(
    tmp_path: Path, form: list[str]
) -> None:
    stub = tmp_path / "stl10bench"
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$*" >> "$CALLS"\n')
    stub.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}
    options = ["--tracker", "none", "--runs-dir", "here"]
    arguments = ["--runs-dir=here", *form, "--tracker", "none"]  # in any order
    script = ["bash", str(SCRIPTS / "reproduce_report.sh"), *arguments]
    subprocess.run(script, env=environment, check=True, capture_output=True)
    *studies, table, document = map(shlex.split, (tmp_path / "calls").read_text().splitlines())
    assert {words[2] for words in studies} == set(parse.REPORT)
    assert len(studies) == 9
    for words in studies:
        assert words[:2] == ["study", "run"]
        assert words[-4:] == options
        assert ("--seeds" in words) == (form == ["--quick"])
        pairs = list(zip(words[3:-4:2], words[4:-4:2], strict=True))
        vary = [value for key, value in pairs if key == "--vary"]
        settings = {"epochs": 3} if "--epochs" in words else {}
        definition = parse.define(words[2], parse.Changes(vary=vary, settings=settings))
        plan.check(definition, plan.Start())
        best = tuple(definition.best[factor] for factor in definition.vary)
        assert best in {point.labels for point in study.points(definition)}
    assert table[:2] == ["benchmark", "--all"], "the CNN is in the table of each form"
    assert document[:3] == ["report", "--template", "study"]
    assert document[3:] == ["--runs-dir", "here"]


@pytest.mark.usefixtures("_scripts", "quick_timings")
def test_the_forecast_of_all_commands_times_each_cost_once_and_counts_each_run_once(
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import forecast

    monkeypatch.setenv("STL10BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr("stl10bench.training.estimate._time_start", lambda: 100.0)
    tiny = f"--image-size 8 --epochs 1 --threads 1 --device cpu --data-dir {data_dir} --batch-size"
    study = "study run --model logistic --tracker none --seeds 1"
    lines = f"{study} {tiny} 8 --vary lr=0.1,0.01\n{study} {tiny} 8 --vary lr=0.1,0.02\n"
    lines += f"benchmark logistic --tracker none {tiny} 4 --labels-per-class 5\n"
    for timed in (1, 0):  # the second time it is remembered
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        forecast.main()
        shown = capsys.readouterr()
        assert shown.err.count("timing logistic, 8 px") == timed
        assert shown.err.count("timing the start of a process") == timed
        assert "Estimated time left for all: 7 min" in shown.out  # four runs of 100 s
    (stored,) = tmp_path.glob("timings.json")
    wrong = json.dumps({key: [1.0, 2.0] for key in json.loads(stored.read_text())})
    for content, said in (("{", 1), ('{"a": ["b"]}', 1), ('{"a": [-1]}', 1), (wrong, 0)):
        stored.write_text(content)
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        forecast.main()  # no file is believed: what is in it is timed again
        shown = capsys.readouterr()
        assert shown.err.count("timings.json is damaged") >= said
        assert shown.err.count("timing logistic, 8 px") == 1
        assert "Estimated time left for all: 7 min" in shown.out


def test_the_report_script_prints_its_help_and_does_nothing(tmp_path: Path) -> None:
    command = ["bash", str(SCRIPTS / "reproduce_report.sh"), "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert ended.stdout.startswith("Reproduce the course report")
    assert "set -euo" not in ended.stdout
    assert not list(tmp_path.iterdir())
