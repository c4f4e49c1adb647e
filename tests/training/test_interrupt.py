"""Signals, time limits and dead launchers: a run saves, leaves, and goes on with the same bits."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.forks import Ended, Forks
from helpers.killer import contents

TINY = [
    *("--image-size", "8", "--epochs", "3", "--batch-size", "8", "--optimizer", "adam"),
    *("--precision", "no", "--tracker", "none", "--threads", "1"),
]
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
# Python code for the child: it signals itself when a function is called for the n-th time.
SIGNAL = """
import os, time, {module}
calls, original = [], {module}.{name}
def signalled(*args, **kwargs):
    calls.append(1)
    if len(calls) == {call}:
        for number in {numbers}:
            os.kill(os.getpid(), number)
            time.sleep({pause})
    return original(*args, **kwargs)
{module}.{name} = signalled
"""
SLOW = """
import time, stl10bench.training.epoch
original = stl10bench.training.epoch.nan_if_infinite
def slow(losses):
    time.sleep(0.02)
    return original(losses)
stl10bench.training.epoch.nan_if_infinite = slow
"""


@pytest.fixture(scope="module")
def straight(
    forks: Forks, data_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What a run of the mlp leaves that nobody stops."""
    runs_dir = tmp_path_factory.mktemp("straight")
    assert forks.run(*train("mlp", data_dir, runs_dir)).code == 0
    return contents(runs_dir)


def train(model: str, data_dir: Path, runs_dir: Path, *more: str) -> list[str]:
    hidden = ["--hidden", "16,8"] if model == "mlp" else []
    return [
        *("train", model, *TINY, *hidden, *more),
        *("--data-dir", str(data_dir), "--runs-dir", str(runs_dir)),
    ]


def status(runs_dir: Path) -> dict[str, Any]:
    (path,) = runs_dir.glob("*/status.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def checkpoints(runs_dir: Path) -> list[str]:
    return sorted(path.name for path in runs_dir.glob("*/checkpoints/step-*"))


def by(
    module: str, name: str, number: int, *, call: int = 1, times: int = 1, pause: float = 0
) -> str:
    numbers = [int(number)] * times
    return SIGNAL.format(module=module, name=name, call=call, numbers=numbers, pause=pause)


def assert_stopped(ended: Ended, runs_dir: Path, code: int) -> None:
    """It left by its own will, with a line and no traceback, and says so in its folder."""
    assert (ended.code, ended.out) == (code, ""), ended.err
    assert "Traceback" not in ended.err
    assert status(runs_dir)["state"] == "interrupted"
    assert not list(runs_dir.rglob("*.part"))


MOMENTS = {  # -> what is called at that moment, for which time, and the step that is then saved
    "the first step": ("training.epoch.nan_if_infinite", 1, "step-00000001"),
    "the last step of an epoch": ("training.epoch.nan_if_infinite", 4, "step-00000004"),
    "the first hold-out": ("training.trainer.compute_logits", 1, "step-00000004"),
    "the last hold-out": ("training.trainer.compute_logits", 3, "step-00000012"),
    "the test split": ("training.trainer.compute_logits", 4, "step-00000012"),
    "the data's loading": ("training.setup.load_training_images", 1, None),
}


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        *zip(MOMENTS, 3 * [signal.SIGINT, signal.SIGTERM], strict=True),
        ("the first step", signal.SIGTERM),
    ],
)
def test_a_signal_saves_and_the_same_command_goes_on_with_the_same_bits(
    forks: Forks,
    data_dir: Path,
    tmp_path: Path,
    straight: dict[str, Any],
    moment: str,
    number: signal.Signals,
) -> None:
    place, call, saved = MOMENTS[moment]
    module, _, name = place.rpartition(".")
    command = train("mlp", data_dir, tmp_path)
    ended = forks.run(*command, before=by(f"stl10bench.{module}", name, number, call=call))
    assert_stopped(ended, tmp_path, CODES[number])
    assert checkpoints(tmp_path) == [saved] * bool(saved)
    if saved:
        (line,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
        assert line.endswith(f"Interrupted ({number.name}). Run the same command again to resume.")
    assert forks.run(*command).code == 0
    assert contents(tmp_path) == straight


@pytest.mark.parametrize("call", [1, 3, 6])
def test_a_signal_during_a_save_waits_for_it(
    forks: Forks, data_dir: Path, tmp_path: Path, straight: dict[str, Any], call: int
) -> None:
    """At the n-th rename into place, where a checkpoint, after each step, has three."""
    command = train("mlp", data_dir, tmp_path, "--checkpoint-minutes", "0")
    call += 2  # config.json and status.json come first
    before = by("stl10bench.core.files", "sync_folder", signal.SIGTERM, call=call)
    ended = forks.run(*command, before=before)
    assert_stopped(ended, tmp_path, 143)
    assert len(checkpoints(tmp_path)) in (1, 2)
    assert forks.run(*command).code == 0
    assert contents(tmp_path) == straight


def test_a_second_signal_leaves_at_once(
    forks: Forks, data_dir: Path, tmp_path: Path, straight: dict[str, Any]
) -> None:
    command = train("mlp", data_dir, tmp_path)
    before = by(
        "stl10bench.training.epoch", "nan_if_infinite", signal.SIGINT, call=6, times=2, pause=0.6
    )
    ended = forks.run(*command, before=before)
    assert (ended.code, checkpoints(tmp_path)) == (130, [])
    assert status(tmp_path)["state"] == "running"  # nobody was left to say more
    assert forks.run(*command).code == 0
    assert contents(tmp_path) == straight


def test_a_signal_that_comes_twice_at_once_counts_once(
    forks: Forks, data_dir: Path, tmp_path: Path
) -> None:
    """A terminal gives Ctrl-C to a launcher and its children, and the launcher passes it on."""
    before = by("stl10bench.training.epoch", "nan_if_infinite", signal.SIGINT, call=6, times=2)
    assert_stopped(forks.run(*train("mlp", data_dir, tmp_path), before=before), tmp_path, 130)
    assert checkpoints(tmp_path) == ["step-00000006"]


def test_a_run_out_of_time_saves_and_the_same_command_goes_on(
    forks: Forks, data_dir: Path, tmp_path: Path, straight: dict[str, Any]
) -> None:
    command = train("mlp", data_dir, tmp_path, "--max-minutes", "0.001")
    codes = []
    while not codes or (codes[-1] and len(codes) < 20):
        ended = forks.run(*command, before=SLOW)
        codes.append(ended.code)
        if ended.code:
            assert_stopped(ended, tmp_path, 143)
            assert "--max-minutes reached" in ended.err
    assert 3 <= len(codes) < 20
    assert contents(tmp_path) == straight


@pytest.mark.parametrize("done", [11, 12])
def test_a_limit_shorter_than_any_evaluation_still_ends(
    forks: Forks, data_dir: Path, tmp_path: Path, straight: dict[str, Any], done: int
) -> None:
    """One session for each step, of which it is sure, and one for what comes after the last."""
    first = by("stl10bench.training.epoch", "nan_if_infinite", signal.SIGTERM, call=done)
    assert forks.run(*train("mlp", data_dir, tmp_path), before=first).code == 143
    command = train("mlp", data_dir, tmp_path, "--max-minutes", "1e-9")
    codes = [forks.run(*command).code for _ in range(13 - done)]
    assert codes == [143] * (12 - done) + [0]
    assert contents(tmp_path) == straight


LAUNCHERS = {  # -> what they set for their child
    "accelerate launch": (
        "os.environ['ACCELERATE_MIXED_PRECISION'] = 'no'; import psutil; "
        "psutil.Process.cmdline = lambda process: ['python', '/bin/accelerate', 'launch']"
    ),
    "torchrun": "os.environ['TORCHELASTIC_RUN_ID'] = 'none'",
    "benchmark": "os.environ['STL10BENCH_LAUNCHED'] = str(os.getppid())",
    "nohup": "os.environ['ACCELERATE_MIXED_PRECISION'] = 'no'",  # a shell's, as good as anybody's
}


@pytest.mark.parametrize(
    ("launcher", "moment"),
    [
        *((name, "training.epoch.nan_if_infinite") for name in LAUNCHERS),
        ("accelerate launch", "training.setup.load_training_images"),
    ],
)
def test_a_run_whose_launcher_is_killed_saves_and_leaves_but_one_without_goes_on(
    forks: Forks,
    data_dir: Path,
    tmp_path: Path,
    straight: dict[str, Any],
    launcher: str,
    moment: str,
) -> None:
    """The launcher dies in the sixth step, or while the data are loaded."""
    killed = f"""
import os, signal, time, stl10bench.training.trainer
{LAUNCHERS[launcher]}
calls, original = [], stl10bench.{moment}
def called(*args, **kwargs):
    calls.append(1)
    if len(calls) == {6 if moment == "training.epoch.nan_if_infinite" else 1}:
        parent = os.getppid()
        os.kill(parent, signal.SIGKILL)
        while os.getppid() == parent:
            time.sleep(0.001)
    return original(*args, **kwargs)
stl10bench.{moment} = called
"""
    command = train("mlp", data_dir, tmp_path)
    ended = forks.run(*command, before=killed, under=True)
    if launcher == "nohup":
        assert ended.code == 0
    else:
        assert_stopped(ended, tmp_path, 143)
        assert "Interrupted (its launcher died)" in ended.err
        assert checkpoints(tmp_path) == [
            "step-00000006" if moment == "training.epoch.nan_if_infinite" else "step-00000001"
        ]
        assert forks.run(*command).code == 0
    assert contents(tmp_path) == straight


def benchmark(data_dir: Path, runs_dir: Path) -> list[str]:
    return [
        *("benchmark", "logistic", "mlp", *TINY, "--epochs", "100000", "--image-size", "16"),
        *("--data-dir", str(data_dir), "--runs-dir", str(runs_dir), "--format", "json"),
    ]


@pytest.mark.faults
def test_a_benchmark_that_dies_or_is_stopped_takes_its_run_along_saved(
    forks: Forks, data_dir: Path, tmp_path: Path
) -> None:
    """SIGKILL, the same command again, Ctrl-C; each time the child saves, and no other starts."""
    first = forks.start(*benchmark(data_dir, tmp_path))
    first.says("epoch      1/100000")
    pid = status(tmp_path)["pid"]
    first.signal(signal.SIGKILL)
    assert first.wait().code == -9
    assert forks.wait(pid) == 143
    assert "its launcher died" in status(tmp_path)["reason"]
    (saved,) = checkpoints(tmp_path)

    second = forks.start(*benchmark(data_dir, tmp_path))
    second.says(" images/s")
    second.signal(signal.SIGINT)
    ended = second.wait()
    assert_stopped(ended, tmp_path, 130)  # and so there is one run folder
    assert "Resuming at epoch" in ended.err
    assert ended.err.count("error: ") == 1  # the driver's: the child has the same to say
    assert checkpoints(tmp_path)[-1] > saved


STAND_IN = """#!{python}
import os, signal, sys, time
came = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: came.append(number))
open({folder!r} + "/started", "a").write("x")
if os.environ["STL10BENCH_LAUNCHED"] != str(os.getppid()):
    sys.exit(1)
while not came:
    time.sleep(0.01)
time.sleep(0.2)  # for a second one
open({folder!r} + "/came", "a").write(",".join(map(str, map(int, came))))
print("null")
sys.exit({code})
"""


@pytest.mark.parametrize("code", [0, 130, 143])
def test_a_benchmark_gives_its_child_each_signal_once_and_ends_with_it(
    forks: Forks, data_dir: Path, tmp_path: Path, code: int
) -> None:
    """Whatever the child makes of it."""
    number = signal.SIGINT if code == 130 else signal.SIGTERM
    child = forks.start(
        *benchmark(data_dir, tmp_path / "runs"), before=stand_in(tmp_path, code=code)
    )
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    child.signal(number)
    ended = child.wait()
    assert (ended.code, "Traceback" in ended.err) == (CODES[number], False), ended.err
    assert (tmp_path / "started").read_text() == "x"
    assert (tmp_path / "came").read_text() == str(int(number))


def test_a_benchmark_ends_with_a_signal_that_comes_before_its_child(
    forks: Forks, data_dir: Path, tmp_path: Path
) -> None:
    before = stand_in(tmp_path, code=0) + by("subprocess", "Popen", signal.SIGTERM)
    ended = forks.run(*benchmark(data_dir, tmp_path / "runs"), before=before)
    assert (ended.code, "Traceback" in ended.err) == (143, False), ended.err


def stand_in(folder: Path, *, code: int) -> str:
    """Python code that gives a benchmark a light child in place of `stl10bench train`."""
    path = folder / "python"
    path.write_text(STAND_IN.format(python=sys.executable, folder=str(folder), code=code))
    path.chmod(0o755)
    return f"import sys; sys.executable = {str(path)!r}\n"


def start(*command: str) -> "subprocess.Popen[str]":
    """A real command, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


@pytest.mark.faults
@pytest.mark.parametrize("number", CODES)
def test_a_real_process_ends_on_a_signal_at_any_moment_of_its_start(
    data_dir: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """While Python starts, a signal kills as it kills any program; from then on it is obeyed."""
    rng = random.Random(0)
    codes = []
    for _ in range(12):
        child = start("stl10bench", *train("mlp", data_dir, tmp_path, "--epochs", "100000"))
        time.sleep(rng.uniform(0.3, 8))
        child.send_signal(number)
        _, err = child.communicate(timeout=60)
        codes.append(child.returncode)
        assert child.returncode in (CODES[number], -number), err
        assert child.returncode < 0 or "Traceback" not in err, err
    assert codes.count(CODES[number]) >= 8
    assert status(tmp_path)["state"] == "interrupted"


@pytest.mark.faults
def test_a_run_whose_accelerate_launch_is_killed_saves_and_leaves(
    data_dir: Path, tmp_path: Path
) -> None:
    command = train("mlp", data_dir, tmp_path, "--epochs", "100000")
    launcher = start("accelerate.commands.launch", "--cpu", "-m", "stl10bench", *command)
    until = time.monotonic() + 120
    while not list(tmp_path.glob("*/best.safetensors")):
        assert time.monotonic() < until
        time.sleep(0.05)
    launcher.kill()
    launcher.communicate()
    while status(tmp_path)["state"] == "running":
        assert time.monotonic() < until
        time.sleep(0.05)
    assert status(tmp_path)["reason"].startswith("Interrupted (its launcher died)")
    assert len(checkpoints(tmp_path)) == 1
