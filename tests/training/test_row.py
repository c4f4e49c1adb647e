"""What a row says of cost and of what made it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import stl10bench

TINY: dict[str, Any] = {"image_size": 8, "epochs": 1, "batch_size": 8, "tracker": "none"}


def test_a_row_says_what_inference_costs(data_dir: Path, tmp_path: Path) -> None:
    options = {**TINY, "data_dir": data_dir, "runs_dir": tmp_path, "threads": 1}
    small = stl10bench.train("mlp", hidden=(4,), **options)
    large = stl10bench.train("mlp", hidden=(4096, 4096), **options)
    for row in (small, large):
        assert 0 < row["latency_ms"] <= row["latency_p95_ms"]
        checkpoint = tmp_path / row["checkpoint"]
        assert row["checkpoint_mb"] == checkpoint.stat().st_size / 1e6
        assert row["peak_memory_mb"] > 50
    assert small["latency_ms"] < large["latency_ms"]
    assert small["inference_images_per_second"] > large["inference_images_per_second"]
    assert large["peak_memory_mb"] >= small["peak_memory_mb"]


def test_a_row_says_what_made_it_and_nothing_of_who(data_dir: Path, tmp_path: Path) -> None:
    row = stl10bench.train(
        "logistic", data_dir=data_dir, runs_dir=tmp_path, deterministic=True, threads=1, **TINY
    )
    assert torch.__version__.startswith(row["libraries"]["torch"])
    assert (row["threads"], row["processes"], row["deterministic"]) == (1, 1, True)
    assert row["contamination"] == "none"
    assert row["weights"] == {"source": "none", "sha256": None}
    assert len(row.config.data) == 64
    text = (tmp_path / row["run"] / "result.json").read_text()
    assert str(tmp_path) not in text
    assert os.uname().nodename not in text
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("change", "expected"), [("", False), ("\n", True)], ids=["as committed", "changed"]
)
def test_a_row_names_the_commit_and_whether_the_code_was_changed(
    tmp_path: Path, change: str, expected: bool
) -> None:
    package = tmp_path / "stl10bench"
    source = Path(stl10bench.__file__).parent
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__"))
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    with (package / "__init__.py").open("a") as file:
        file.write(change)
    code = (
        "import torch; from stl10bench.training.row import provenance;"
        "found = provenance(torch.device('cpu'));"
        "print(found['commit'], found['dirty'])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    commit, dirty = ended.stdout.split()
    assert re.fullmatch(r"[0-9a-f]{40}", commit)
    assert dirty == str(expected)
