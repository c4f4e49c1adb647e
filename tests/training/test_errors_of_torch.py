"""Processes that die, raise, hang or change in number, and memory that ends: said, never lost."""

import contextlib
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
    *("--hidden", "16,8", "--precision", "no", "--tracker", "none", "--threads", "1"),
]
BOTH = {"processes": 2}
# Python code for the processes: one of them does something in a step (of 12).
IN_STEP = """
import os, signal, sys, time, stl10bench.training.epoch
steps, original = [], stl10bench.training.epoch.nan_if_infinite
def poisoned(losses):
    steps.append(1)
    if len(steps) == {step} and os.environ.get("RANK", "0") == "{rank}":
        {what}
    return original(losses)
stl10bench.training.epoch.nan_if_infinite = poisoned
"""
IMPATIENT = "import stl10bench.training.interrupt; stl10bench.training.interrupt._PATIENCE = 0.5"


def train(data_dir: Path, runs_dir: Path, *more: str) -> list[str]:
    return [
        *("train", "mlp", *TINY, "--checkpoint-minutes", "0", *more),
        *("--data-dir", str(data_dir), "--runs-dir", str(runs_dir)),
    ]


def in_step(step: int, what: str, *, rank: int = 0) -> str:
    return IN_STEP.format(step=step, rank=rank, what=what)


@pytest.fixture(scope="module")
def straight(forks: Forks, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a run of two processes leaves that nobody stops."""
    runs_dir = tmp_path_factory.mktemp("straight")
    ended = forks.run(*train(data_dir, runs_dir), **BOTH)
    assert ended.code == 0, ended.err
    return contents(runs_dir)


def read(runs_dir: Path, name: str) -> Any:
    (path,) = runs_dir.glob(f"*/{name}")
    return json.loads(path.read_text())


def errors(ended: Ended) -> list[str]:
    return [line for line in ended.err.splitlines() if line.startswith("error: ")]


FAULTS = {
    "is killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "raises": "raise OSError('a fault')",
}


@pytest.mark.parametrize(("fault", "rank"), [("is killed", 1), ("is killed", 0), ("raises", 1)])
def test_when_one_process_ends_the_others_say_so_and_the_same_command_goes_on(
    forks: Forks, data_dir: Path, tmp_path: Path, straight: Any, fault: str, rank: int
) -> None:
    started = time.monotonic()
    before = (
        in_step(6, FAULTS[fault], rank=rank)
        + "import stl10bench.training.interrupt as f; f._PATIENCE = 0.5"
    )
    ended = forks.run(*train(data_dir, tmp_path), before=before, **BOTH)
    assert ended.code == 1  # torchrun's, whatever its processes say
    assert time.monotonic() - started < 60
    (line,) = errors(ended)
    assert line.startswith(f"error: process {rank} of 2 died, or did not answer")
    if rank == 1:
        assert read(tmp_path, "status.json")["state"] == "failed"
        assert read(tmp_path, "status.json")["reason"] == line.removeprefix("error: ")
    assert sorted(tmp_path.glob("*/checkpoints/step-*"))
    assert forks.run(*train(data_dir, tmp_path), **BOTH).code == 0
    assert contents(tmp_path) == straight


def test_processes_that_are_told_to_stop_save_the_same_step_and_go_on(
    forks: Forks, data_dir: Path, tmp_path: Path, straight: Any
) -> None:
    """The signal reaches torchrun, which passes it on; each process may hear it in another step."""
    command = train(data_dir, tmp_path, "--checkpoint-minutes", "5")
    launcher = "os.kill(os.getppid(), signal.SIGTERM)"
    ended = forks.run(*command, before=in_step(6, launcher, rank=1), **BOTH)
    assert ended.code == 1
    assert errors(ended) == 2 * [
        "error: Interrupted (SIGTERM). Run the same command again to resume."
    ]
    assert read(tmp_path, "status.json")["state"] == "interrupted"
    assert len(list(tmp_path.glob("*/checkpoints/step-*"))) == 1
    assert forks.run(*command, **BOTH).code == 0
    assert contents(tmp_path) == straight


def test_processes_whose_launcher_is_killed_save_and_leave(
    forks: Forks, data_dir: Path, tmp_path: Path, straight: Any
) -> None:
    command = train(data_dir, tmp_path, "--checkpoint-minutes", "5")
    launcher = "parent = os.getppid(); os.kill(parent, signal.SIGKILL)\n"
    launcher += "        while os.getppid() == parent: time.sleep(0.001)"
    assert forks.run(*command, before=in_step(6, launcher), **BOTH).code == -9
    until = time.monotonic() + 30
    while read(tmp_path, "status.json")["state"] == "running":
        assert time.monotonic() < until
        time.sleep(0.01)
    assert read(tmp_path, "status.json")["reason"].startswith("Interrupted (its launcher died)")
    again = forks.run(*command, **BOTH)
    assert (again.code, "Resuming at epoch 2/3" in again.err) == (0, True), again.err
    assert contents(tmp_path) == straight


@pytest.mark.parametrize("moment", ["a step", "the hold-out"])
def test_a_process_that_hangs_is_named(
    forks: Forks, data_dir: Path, tmp_path: Path, moment: str
) -> None:
    pid = tmp_path / "pid"
    hang = f"open({str(pid)!r}, 'w').write(str(os.getpid())); os.kill(os.getpid(), signal.SIGSTOP)"
    before = in_step(6, hang, rank=1)
    if moment == "the hold-out":
        before = before.replace("training.epoch", "training.trainer")
        before = before.replace("nan_if_infinite", "compute_logits")
        before = before.replace("(losses)", "(*losses, **more)")
        before = before.replace("== 6", "== 1")
    before += IMPATIENT
    child = forks.start(
        *train(data_dir, tmp_path / "runs", "--timeout-minutes", "0.05"), before=before, **BOTH
    )
    child.says("error: process 1 of 2 died, or did not answer within 0.05 minutes (--time")
    os.kill(int(pid.read_text()), signal.SIGKILL)  # or torchrun does, 30 s later
    assert child.wait().code == 1
    assert "process 1 of 2" in read(tmp_path / "runs", "status.json")["reason"]


def test_a_run_of_two_processes_goes_on_with_one_and_says_what_that_means(
    forks: Forks, data_dir: Path, tmp_path: Path, straight: Any
) -> None:
    command = train(data_dir, tmp_path, "--dropout", "0")
    assert forks.run(*train(data_dir, tmp_path / "straight", "--dropout", "0"), **BOTH).code == 0
    before = in_step(6, "os.kill(os.getppid(), signal.SIGTERM)", rank=1)
    assert forks.run(*command, before=before, **BOTH).code == 1
    ended = forks.run(*command)
    assert ended.code == 0
    assert (
        "warning: this run was trained by 2 processes and resumes with 1 process: rounding"
        in ended.err
    )
    (found,) = tmp_path.glob("mlp*/metrics.jsonl")
    (expected,) = tmp_path.glob("straight/*/metrics.jsonl")
    for one, other in zip(*(rows(path) for path in (found, expected)), strict=True):
        for key in one.keys() - {"time", "seconds", "images_per_second"}:
            assert one[key] == pytest.approx(other[key], rel=1e-5), key


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    "error",
    [
        "__import__('torch').OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')",
        "RuntimeError('DefaultCPUAllocator: can\\'t allocate memory: you tried to allocate')",
        "RuntimeError('std::bad_alloc')",
        "MemoryError()",
    ],
)
def test_out_of_memory_names_what_needs_it_and_changes_nothing(
    forks: Forks, data_dir: Path, tmp_path: Path, error: str
) -> None:
    ended = forks.run(*train(data_dir, tmp_path), before=in_step(6, f"raise {error}"))
    assert (ended.code, "Traceback" in ended.err) == (7, False)
    text = "out of memory at batch_size = 8, image_size = 8: lower --batch-size or --image-size, or"
    assert errors(ended)[0].startswith(f"error: {text}")
    assert read(tmp_path, "status.json")["reason"].startswith(text)
    assert forks.run(*train(data_dir, tmp_path)).code == 0


def test_memory_that_really_ends_is_named(forks: Forks, data_dir: Path, tmp_path: Path) -> None:
    limit = """
import resource
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20),) * 2)
"""
    more = ("--image-size", "1024", "--batch-size", "36")
    ended = forks.run(*train(data_dir, tmp_path, *more), before=limit)
    assert (ended.code, "Traceback" in ended.err) == (7, False), ended.err
    assert "out of memory at batch_size = 36, image_size = 1024" in ended.err


def torchrun(*arguments: str) -> "subprocess.Popen[str]":
    """The real launcher, in a process group of its own."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", "2", "-m", "stl10bench", *arguments),
        ],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def workers(launcher: int) -> list[int]:
    """The processes that a launcher started."""
    return [
        int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    ]


def end(launcher: "subprocess.Popen[str]", pids: list[int]) -> None:
    """Leave nothing behind, whatever a test did."""
    for pid in (launcher.pid, *pids):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.faults
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGTERM])
def test_torchrun_itself_ends_when_a_process_dies_and_passes_signals_on(
    data_dir: Path, tmp_path: Path, straight: Any, fault: signal.Signals
) -> None:
    """SIGKILL to one of its processes; SIGTERM to torchrun, whose processes save within 30 s."""
    command = train(data_dir, tmp_path, "--epochs", "2000", "--schedule", "constant")
    launcher = torchrun(*command)
    pids: list[int] = []
    try:
        until = time.monotonic() + 120
        while not list(tmp_path.glob("*/checkpoints/step-*")):
            assert time.monotonic() < until
            time.sleep(0.05)
        pids = workers(launcher.pid)
        started = time.monotonic()
        os.kill(pids[1] if fault is signal.SIGKILL else launcher.pid, fault)
        _, err = launcher.communicate(timeout=60)
        assert time.monotonic() - started < (60 if fault is signal.SIGKILL else 30)
    finally:
        end(launcher, pids)
    assert launcher.returncode == 1
    state = read(tmp_path, "status.json")
    if fault is signal.SIGKILL:
        assert "process 1 of 2 died" in err
        assert state["state"] == "failed"
    else:
        assert err.count("error: Interrupted (SIGTERM)") == 2
        assert state["state"] == "interrupted"
    assert list(tmp_path.glob("*/checkpoints/step-*"))


@pytest.mark.faults
def test_two_processes_killed_at_random_moments_end_with_the_same_bits(
    forks: Forks, data_dir: Path, tmp_path: Path, straight: Any
) -> None:
    """One of them, or the launcher, at a random operation on files or step; 20 times."""
    rng = random.Random(0)
    killed = 0
    for number in range(20):
        runs_dir = tmp_path / str(number)
        for _ in range(rng.randint(1, 3)):
            what = rng.choice(["os.getpid()", "os.getppid()"])
            name, module = rng.choice(
                [
                    ("nan_if_infinite", "stl10bench.training.epoch"),
                    ("replace", "os"),
                    ("rename", "os"),
                ]
            )
            rank = 0 if module == "os" else rng.randint(0, 1)
            before = in_step(rng.randint(1, 9), f"os.kill({what}, signal.SIGKILL)", rank=rank)
            before = before.replace("stl10bench.training.epoch.nan_if_infinite", f"{module}.{name}")
            before = before.replace("(losses)", "(*losses, **more)") + f"import {module}\n"
            ended = forks.run(*train(data_dir, runs_dir), before=before + IMPATIENT, **BOTH)
            killed += ended.code != 0
            wait_until_free(runs_dir)
        ended = forks.run(*train(data_dir, runs_dir), **BOTH)
        assert ended.code == 0, ended.err
        assert contents(runs_dir) == straight
    assert killed >= 20
    print(f"\ntwo processes: {killed} kills")


def wait_until_free(runs_dir: Path) -> None:
    """A killed launcher's processes save and leave on their own."""
    from filelock import FileLock

    for lock in runs_dir.glob(".*.lock"):
        with FileLock(lock, timeout=30):
            pass
