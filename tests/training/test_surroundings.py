"""Odd folders, odd terminals and few resources: a run works, or says what it lacks."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.forks import Forks
from helpers.layout import write_layout

SOURCE = Path(__file__).parents[2]
TINY = [
    *("--image-size", "8", "--epochs", "1", "--batch-size", "8", "--threads", "1"),
    *("--tracker", "none", "--val-fraction", "0"),
]
ODD = os.fsdecode("Ünsere Läufe 🐒; it's $HOME [red] %s {} \\".encode() + b"\xff" + b"x" * 180)


def stl10bench(
    folder: Path, *arguments: str, limits: Callable[[], None] | None = None, **environment: str
) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, "-m", "stl10bench", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(SOURCE), **environment},
        preexec_fn=limits,
        capture_output=True,
        check=False,
    )


@pytest.mark.skipif(os.name != "posix", reason="bytes as names are POSIX's")
@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C.UTF-8"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},  # ASCII alone
    ],
    ids=["UTF-8", "ASCII"],
)
def test_a_run_works_in_a_folder_of_any_name(tmp_path: Path, environment: dict[str, str]) -> None:
    folder = tmp_path / ODD
    write_layout(folder / ODD, train=8, test=4, names=("é", "🐒"))
    where = ["--data-dir", str(folder / ODD)]
    trained = stl10bench(folder, "train", "logistic", *TINY, *where, "--json", **environment)
    assert trained.returncode == 0, trained.stderr
    row = json.loads(trained.stdout)
    assert (folder / "runs" / row["checkpoint"]).is_file()
    table = stl10bench(folder, "table", "--runs-dir", str(folder / "runs"), **environment)
    assert (table.returncode, b"logistic" in table.stdout) == (0, True)
    missing = stl10bench(folder, "table", "--runs-dir", str(folder / "none"), **environment)
    assert (missing.returncode, missing.stderr[:6], missing.stderr.count(b"\n")) == (
        *(2, b"error:"),
        1,
    )


def test_a_run_needs_few_open_files(tmp_path: Path, data_dir: Path) -> None:
    resource = pytest.importorskip("resource")
    ended = stl10bench(
        tmp_path,
        *("train", "logistic", *TINY, "--data-dir", str(data_dir)),
        limits=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24)),
    )
    assert ended.returncode == 0, ended.stderr


# Python code for the child: our modules, all of them, find nothing that Windows or macOS lacks.
ELSEWHERE = """
import builtins, importlib, os, pkgutil, sys
original = builtins.__import__
def elsewhere(name, globals=None, *more, **keywords):
    ours = str((globals or {}).get("__name__")).partition(".")[0] == "stl10bench"
    if ours and name in ("resource", "fcntl", "termios", "pwd", "grp", "tty", "pty"):
        raise ModuleNotFoundError(f"No module named {name!r}")
    return original(name, globals, *more, **keywords)
builtins.__import__ = elsewhere
del os.sched_getaffinity
for name in [name for name in sys.modules if name.partition(".")[0] == "stl10bench"]:
    del sys.modules[name]
import stl10bench
for module in pkgutil.walk_packages(stl10bench.__path__, "stl10bench."):
    if module.name != "stl10bench.__main__":
        importlib.import_module(module.name)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every test shows it")
def test_no_module_needs_what_one_system_alone_has(
    forks: Forks, data_dir: Path, tmp_path: Path
) -> None:
    where = ("--data-dir", data_dir, "--runs-dir", tmp_path)
    ended = forks.run("train", "logistic", *TINY, *where, "--json", before=ELSEWHERE)
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["peak_memory_mb"] > 100
