"""The programs in scripts/ run: what they measure is not tested, machines differ."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


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
