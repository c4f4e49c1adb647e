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
