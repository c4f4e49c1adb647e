"""The programs in scripts/ run: what they measure is not tested, machines differ."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from stl10bench.studies import parse, plan, study

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.parametrize("side", ["loop", "peer"])
def test_a_side_of_the_speed_comparison_is_measured(side: str) -> None:
    command = [sys.executable, str(SCRIPTS / "speed_sides.py"), "side", side, "logistic"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout) > 0


def test_the_speed_comparison_explains_itself() -> None:
    command = [sys.executable, str(SCRIPTS / "speed.py"), "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--json" in ended.stdout


def test_the_readmes_tables_are_those_of_the_reference_rows() -> None:
    script = SCRIPTS / "readme_table.py"
    ended = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_an_old_table_in_the_readme_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import readme_table

    old = "x\n<!-- table report test_loss,test_accuracy -->\nold\n<!-- end -->\ny\n"
    new = readme_table.updated(old)
    assert "| mobilenetv2 (learned) | 0.589 | 0.834" in new
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
    given = ["--runs-dir=here", *form, "--tracker", "none"]  # in any order
    script = ["bash", str(SCRIPTS / "reproduce_report.sh"), *given]
    subprocess.run(script, env=environment, check=True, capture_output=True)
    *studies, table, findings = map(shlex.split, (tmp_path / "calls").read_text().splitlines())
    assert {words[2] for words in studies} == set(parse.REPORT)
    assert len(studies) == 9
    for words in studies:
        assert words[:2] == ["study", "run"]
        assert words[-4:] == options
        given = list(zip(words[3:-4:2], words[4:-4:2], strict=True))
        vary = [value for key, value in given if key == "--vary"]
        settings = {"epochs": 3} if "--epochs" in words else {}
        made = parse.define(
            words[2], model=None, recipe=None, seeds=None, vary=vary, settings=settings
        )
        plan.check(made, plan.Start())
        assert tuple(made.best[factor] for factor in made.vary) in {
            point.labels for point in study.points(made)
        }
    assert table[0] == "benchmark"
    assert findings == ["study", "list", "--runs-dir", "here"]
