"""A new user's walk through the commands, each within the time that its help states."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.faults
def test_a_new_user_gets_from_drawn_data_to_a_model_that_runs_elsewhere(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", str(Path(__file__).parent / "walk.sh"), str(tmp_path)],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("under") == 8
