"""What only looks writes nothing: dry runs, lists, checks."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import stl10bench
from stl10bench.data import demo

pytestmark = pytest.mark.usefixtures("quick_timings")

TINY = [
    *("--image-size", "8", "--epochs", "1", "--batch-size", "8", "--threads", "1"),
    *("--tracker", "none", "--device", "cpu"),
]
VARY = ("study", "run", "--model", "logistic", "--vary", "lr=0.1,0.01", "--seeds", "1")
COMMANDS = {  # -> its exit code
    ("benchmark", "logistic", "mlp", *TINY, "--dry-run"): 0,
    ("benchmark", "logistic", *TINY, "--compile", "--download", "--dry-run"): 0,
    (*VARY, *TINY, "--dry-run"): 0,
    ("doctor",): None,
    ("describe", "logistic"): 0,
    ("models",): 0,
    ("study", "list"): 0,
    ("study", "show", "logistic-lr"): 0,
    ("runs", "list"): 0,
    ("runs", "show", "logistic"): 0,
    ("table",): 0,
}


def everything(*folders: Path) -> dict[Path, Any]:
    """All that lies below the folders, and when it was written."""
    paths = [path for folder in folders for path in folder.rglob("*")]
    return {path: path.is_dir() or path.stat().st_mtime_ns for path in paths}


@pytest.fixture
def here(cli: Any, data_dir: Path, tmp_path: Path) -> Path:
    """A folder with data that were never opened, and a finished run that was killed at its end."""
    settings: dict[str, Any] = {"image_size": 8, "epochs": 1, "batch_size": 8, "threads": 1}
    row = stl10bench.train("logistic", data_dir=data_dir, tracker="none", device="cpu", **settings)
    shutil.copytree(data_dir / "stl10_binary", "data/stl10_binary")
    (tmp_path / "data/stl10_binary/.stl10bench.json").unlink()
    folder = tmp_path / "runs" / str(row.run)
    (folder / "checkpoints").mkdir()
    (folder / "status.json").write_text(json.dumps({"state": "running", "reason": ""}))
    (tmp_path / "runs" / f".{folder.name}.lock").unlink()  # as in a copy
    return tmp_path


def test_a_command_that_only_looks_writes_nothing(cli: Any, here: Path) -> None:
    before = everything(here)
    for words, expected in COMMANDS.items():
        code, _, err = cli(*words)
        assert expected in (code, None), err
        assert everything(here) == before, words


def test_a_dry_run_draws_the_demo_data_in_memory(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "draw_demo", partial(demo.draw_demo, train=40, test=20))
    code, out, err = cli(*VARY, *TINY, "--val-fraction", "0.5", "--dataset", "demo", "--dry-run")
    assert code == 0, err
    assert out.count("missing") == 2
    folds = ("--protocol", "folds", "--dataset", "demo", "--dry-run")
    code, out, _ = cli("benchmark", "logistic", *TINY, *folds)
    assert (code, out.count("missing")) == (0, 10), out
    assert not list(tmp_path.iterdir())
