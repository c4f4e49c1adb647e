"""The programs in scripts/ run; what they measure is not tested, for machines differ."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from stl10bench.studies import parse, plan, study

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True)


def test_every_side_of_the_speed_comparison_is_measured() -> None:
    code = "import speed, json; print(json.dumps([f('logistic', 1) for f in speed.SIDES.values()]))"
    ended = run_python("-c", f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); {code}")
    assert ended.returncode == 0, ended.stderr
    speeds = json.loads(ended.stdout)
    assert len(speeds) == 9
    assert min(speeds) > 0


def test_one_side_of_the_speed_comparison_runs_alone() -> None:
    ended = run_python(str(SCRIPTS / "speed.py"), "--side", "step", "logistic", "1")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) > 0


def test_a_ratio_of_speeds_is_that_of_the_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import speed

    ours, bare = iter([1.0, 9.0, 2.0]), iter([4.0, 4.0, 5.0])
    figures = speed.measure({"ours": lambda: next(ours), "bare": lambda: next(bare)}, turns=3)
    assert figures["ours"] == {"min": 1.0, "median": 2.0, "max": 9.0, "ratio": 1.0}
    assert figures["bare"]["ratio"] == 0.5


def test_the_speed_comparison_names_its_parts() -> None:
    ended = run_python(str(SCRIPTS / "speed.py"), "limits")
    assert ended.returncode == 1
    assert ended.stderr == (
        "error: unknown part 'limits': choose from augmentation, limit, peers, evaluation, "
        "commands, memory\n"
    )


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


@pytest.mark.parametrize("form", [[], ["--reduced"]])
def test_the_report_is_reproduced_by_its_nine_studies_and_its_table(
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
    *studies, table, summary = map(shlex.split, (tmp_path / "calls").read_text().splitlines())
    assert {words[2] for words in studies} == set(parse.REPORT)
    assert len(studies) == 9
    for words in studies:
        assert words[:2] == ["study", "run"]
        assert words[-4:] == options
        pairs = list(zip(words[3:-4:2], words[4:-4:2], strict=True))
        vary = [value for key, value in pairs if key == "--vary"]
        settings = {"epochs": 3} if "--epochs" in words else {}
        definition = parse.define(words[2], parse.Changes(vary=vary, settings=settings))
        plan.check(definition, plan.Start())
        best = tuple(definition.best[factor] for factor in definition.vary)
        assert best in {point.labels for point in study.points(definition)}
    assert table[0] == "benchmark"
    assert summary == ["study", "list", "--runs-dir", "here"]
