"""No reader believes its file: damaged ones end in one of our errors, in time and in memory."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.hostile import READERS, trial
from hypothesis import example, given, settings
from hypothesis import strategies as st

SEEDS = st.integers(0, 2**64)
SHORT = {"images": 20, "row": 40, "rows": 40, "run": 25}  # trials; what is not named here has more
SOURCE = Path(__file__).parent


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = tmp_path / "made"
    made.mkdir()
    READERS[name].make(made)

    @settings(max_examples=SHORT.get(name, 200))
    @given(SEEDS)
    @example(0)
    def try_it(seed: int) -> None:
        trial(READERS[name], random.Random(seed), made, tmp_path / "trial")

    try_it()


@pytest.mark.parametrize("name", READERS)
def test_a_whole_file_is_read(name: str, tmp_path: Path) -> None:
    READERS[name].make(tmp_path)
    READERS[name].read(tmp_path)


def test_the_long_run_reads_ten_thousand_damaged_files() -> None:
    assert sum(reader.trials for reader in READERS.values()) >= 10_000


@pytest.mark.faults
@pytest.mark.parametrize("name", READERS)
def test_thousands_of_damaged_files_are_read_or_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = random.randrange(10**6)
    ended = subprocess.run(
        [
            *(sys.executable, "-W", "error::RuntimeWarning", str(SOURCE / "helpers/hostile.py")),
            *(name, str(READERS[name].trials), str(seed)),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(SOURCE), str(SOURCE.parent)))},
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    with capsys.disabled():
        print(f"\n{ended.stdout.strip()}, seed {seed}")
