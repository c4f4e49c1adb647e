"""Disks that are full, folders that cannot be written, what killed processes left half written."""

import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from helpers.forks import Ended, Forks
from helpers.killer import contents

from stl10bench.config import RunConfig
from stl10bench.results.run_folder import RunFolder
from stl10bench.training import resume

TINY = [
    *("--image-size", "8", "--epochs", "3", "--batch-size", "8", "--optimizer", "adam"),
    *("--hidden", "16,8", "--precision", "no", "--tracker", "none", "--threads", "1"),
]
# Python code for the child: from the n-th call of a function on, no file may grow beyond a size.
# Its stderr, which is a file, is a pipe for that long.
FULL = """
import atexit, os, resource, signal, sys, {module}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then it is an error, as on a full disk
read, write = os.pipe()
file = os.dup(2)
os.dup2(write, 2)

def relay():
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    os.set_blocking(read, False)
    os.write(file, os.read(read, 1 << 16))

atexit.register(relay)
calls, original = [], {module}.{name}

def limited(*args, **more):
    calls.append(1)
    if len(calls) == {call}:
        resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY))
    return original(*args, **more)

{module}.{name} = limited
"""
KEEP = """
from stl10bench.results.run_folder import RunFolder
# which removes the checkpoints of a finished run
RunFolder._tidy = lambda folder: None
"""


@pytest.fixture(scope="module")
def straight(forks: Forks, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a run leaves that finds room."""
    runs_dir = tmp_path_factory.mktemp("straight")
    assert forks.run(*train(data_dir, runs_dir)).code == 0
    return contents(runs_dir)


def train(data_dir: Path, runs_dir: Path, *more: str) -> list[str]:
    return [
        *("train", "mlp", *TINY, "--checkpoint-minutes", "0", *more),
        *("--data-dir", str(data_dir), "--runs-dir", str(runs_dir)),
    ]


def full(name: str, *, size: int, call: int = 1, module: str = "stl10bench.training.setup") -> str:
    return FULL.format(module=module, name=name, call=call, size=size)


def folder_of(runs_dir: Path) -> Path:
    (folder,) = (path for path in runs_dir.iterdir() if path.is_dir())
    return folder


def assert_no_room(ended: Ended, path: str) -> None:
    """One line with the path, and the bytes that are needed and free."""
    assert (ended.code, "Traceback" in ended.err) == (7, False), ended.err
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert re.search(
        rf"no room for .*{path}: it needs [\d,]+ bytes, [\d,]+ are free: .*File too large", line
    ), line


def test_a_disk_that_fills_while_a_checkpoint_is_written_leaves_the_one_before(
    forks: Forks, data_dir: Path, tmp_path: Path, straight: Any
) -> None:
    ended = forks.run(
        *train(data_dir, tmp_path),
        before=full("nan_if_infinite", call=6, size=5000, module="stl10bench.training.epoch"),
    )
    assert_no_room(ended, "/checkpoints/.*step-00000006.*/state.safetensors")
    folder = folder_of(tmp_path)
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["step-00000003", "step-00000005"]  # and no part of another
    config = RunConfig.model_validate_json((folder / "config.json").read_text())
    whole = resume.newest(RunFolder(folder), config)
    assert whole is not None
    assert whole.position.step(4) == 5
    facts = json.loads((folder / "status.json").read_text())
    assert facts["state"] == "failed"
    assert facts["reason"].startswith("no room for ")
    assert forks.run(*train(data_dir, tmp_path)).code == 0
    assert contents(tmp_path) == straight


@pytest.mark.parametrize("name", ["best", "last"])
def test_a_disk_that_fills_while_weights_are_written_is_an_error(
    forks: Forks, data_dir: Path, tmp_path: Path, straight: Any, name: str
) -> None:
    call = {"best": 1, "last": 2}[name]
    before = full("save", call=call, size=3000, module="stl10bench.models.checkpoint")
    more = ("--epochs", "1") if name == "last" else ()
    ended = forks.run(*train(data_dir, tmp_path, *more), before=before)
    assert_no_room(ended, f"{name}.safetensors")
    assert not list(tmp_path.rglob("*.part"))
    assert forks.run(*train(data_dir, tmp_path, *more)).code == 0
    assert more or contents(tmp_path) == straight


@pytest.mark.parametrize("room", [0, 10])
def test_metrics_that_cannot_be_written_end_the_run_with_their_name(
    forks: Forks, data_dir: Path, tmp_path: Path, straight: Any, room: int
) -> None:
    """Of a row none or half is written; then not even the state has room, which is a warning."""
    more = ("--checkpoint-minutes", "5")
    ended = forks.run(
        *train(data_dir, tmp_path, *more),
        before=full("epoch_values", size=room, module="stl10bench.training.trainer"),
    )
    assert_no_room(ended, "metrics.jsonl")
    assert "warning: no room for" in ended.err
    assert "status.json does not say that the run failed" in ended.err
    assert forks.run(*train(data_dir, tmp_path, *more)).code == 0
    assert contents(tmp_path) == straight


def test_half_a_row_of_metrics_is_cut_off_when_the_run_goes_on(
    forks: Forks, data_dir: Path, tmp_path: Path, straight: Any
) -> None:
    (log,) = (value for key, value in straight.items() if key.endswith("metrics.jsonl"))
    assert len(log) == 4
    before = full(
        "nan_if_infinite", call=8, size=500, module="stl10bench.training.epoch"
    )  # the first row takes some 250 bytes
    ended = forks.run(*train(data_dir, tmp_path, "--checkpoint-minutes", "5"), before=before)
    assert_no_room(ended, "metrics.jsonl")
    text = (folder_of(tmp_path) / "metrics.jsonl").read_text()
    assert (len(text), text.count("\n")) == (500, 1)
    assert forks.run(*train(data_dir, tmp_path)).code == 0
    assert contents(tmp_path) == straight


def test_a_disk_without_room_for_the_checkpoints_is_said_before_training(
    forks: Forks, data_dir: Path, tmp_path: Path
) -> None:
    before = """
import shutil
shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)
"""
    ended = forks.run(*train(data_dir, tmp_path), before=before)
    assert ended.code == 7
    line = r"error: no room for .*: its checkpoints need [\d,]+ bytes, 1,000 are free; make room"
    assert re.search(line, ended.err)
    assert "epoch" not in ended.err


@pytest.mark.parametrize(
    "what", ["the runs folder is a file", "the run folder is a file", "the kernel's own folder"]
)
def test_a_folder_that_cannot_be_written_is_said_before_training(
    forks: Forks, data_dir: Path, tmp_path: Path, straight: Any, what: str
) -> None:
    """Also to root, who is not stopped by permissions."""
    runs_dir = tmp_path / "runs"
    if what == "the runs folder is a file":
        runs_dir.touch()
    elif what == "the run folder is a file":
        runs_dir.mkdir()
        name = next(key.split("/")[0] for key in straight if "/" in key)
        (runs_dir / name).touch()
    else:
        runs_dir = Path("/proc/runs")
    ended = forks.run(*train(data_dir, runs_dir))
    assert (ended.code, "epoch" in ended.err) == (7, False), ended.err
    assert "error: cannot write the run folder " in ended.err


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_permissions_that_the_umask_leaves(
    forks: Forks, data_dir: Path, tmp_path: Path, umask: int, mode: int
) -> None:
    """Those of checkpoints too, and of the lock, which others of a group must be able to take."""
    before = f"import os; os.umask({umask})" + KEEP
    assert forks.run(*train(data_dir, tmp_path, "--epochs", "1"), before=before).code == 0
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert any(path.name == "manifest.json" for path in modes)
    folders = {path: mode | (mode & 0o444) >> 2 for path in modes if path.is_dir()}
    assert modes == {path: folders.get(path, mode) for path in modes}


def test_what_a_killed_process_left_half_written_is_swept(
    forks: Forks, data_dir: Path, tmp_path: Path, straight: Any
) -> None:
    assert forks.run(*train(data_dir, tmp_path), before=full("create_model", size=0)).code == 7
    folder = folder_of(tmp_path)
    for place in (folder, folder / "checkpoints"):
        (place / ".step-00000009.ab12cd34.part").mkdir(parents=True)
        (place / ".step-00000009.ab12cd34.part" / "state.safetensors").write_text("half")
        (place / ".status.json.ab12cd34.part").write_text("half")
    (folder / "notes.txt").write_text("mine")
    assert forks.run(*train(data_dir, tmp_path)).code == 0
    assert (folder / "notes.txt").read_text() == "mine"
    (folder / "notes.txt").unlink()
    assert contents(tmp_path) == straight
