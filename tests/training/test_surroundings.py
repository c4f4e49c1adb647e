"""Odd folders, odd terminals and few resources: a run works, or says what it lacks."""

import json
import os
import subprocess
import sys
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


# Python code for a process: the commands among its arguments, one after another.
COMMANDS = """
import sys
from stl10bench.cli.main import main
words = sys.argv[1:]
while words:
    end = words.index("END")
    sys.argv, words = ["stl10bench", *words[:end]], words[end + 1:]
    try:
        main()
    except SystemExit as ended:
        for stream in (sys.stdout, sys.stderr):
            print(f"CODE {ended.code}", file=stream, flush=True)
"""


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
    train = ["train", "logistic", *TINY, "--data-dir", str(folder / ODD), "--json", "END"]
    tables = [["table", "--runs-dir", str(folder / runs), "END"] for runs in ("runs", "none")]
    ended = subprocess.run(
        [sys.executable, "-c", COMMANDS, *train, *tables[0], *tables[1]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(SOURCE), **environment},
        capture_output=True,
        check=False,
    )
    trained, table, _, rest = ended.stdout.split(b"CODE ")
    assert rest == b"2\n", ended.stderr
    row = json.loads(trained)
    assert (folder / "runs" / row["checkpoint"]).is_file()
    assert (table[:2], b"logistic" in table) == (b"0\n", True)
    missing = ended.stderr.split(b"CODE ")[2].partition(b"\n")[2]
    assert (missing[:6], missing.count(b"\n")) == (b"error:", 1)


def test_a_run_needs_few_open_files(forks: Forks, tmp_path: Path, data_dir: Path) -> None:
    pytest.importorskip("resource")
    limit = "import os, resource; most = max(map(int, os.listdir('/proc/self/fd'))) + 20\n"
    limit += "resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))"
    where = ("--data-dir", data_dir, "--runs-dir", tmp_path)
    ended = forks.run("train", "logistic", *TINY, *where, before=limit)
    assert ended.code == 0, ended.err


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
