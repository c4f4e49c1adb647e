"""Cores that other processes keep busy are left to them: threads are chosen when a run starts."""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stl10bench.core import cores, device

busy = cores.busy  # conftest.py replaces it: the other tests keep the machine busy


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "_QUOTA", Path("/nonexistent"))


@pytest.fixture
def _threads_as_they_were() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("taken", "left"), [(0.7, 7), (3.2, 5), (30.0, 1)])
def test_cores_that_others_use_are_left_to_them_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, taken: float, left: int
) -> None:
    monkeypatch.setattr(cores, "busy", lambda: taken)
    told = f"the machine is busy: other processes use {taken} of 8 cores; computing with {left} "
    with pytest.warns(UserWarning, match=told + r"\(--threads N changes that\)"):
        assert cores.free() == left


def test_all_cores_are_used_where_nobody_else_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "busy", lambda: 0.4)
    with warnings.catch_warnings(action="error"):
        assert cores.free() == 8


@pytest.mark.usefixtures("_threads_as_they_were")
def test_a_launchers_single_thread_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch` sets it for a single process, too, which leaves all other cores idle."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert device.set_threads(None) == torch.get_num_threads() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert device.set_threads(None) == torch.get_num_threads() == 2


@pytest.mark.usefixtures("_threads_as_they_were")
def test_what_others_do_is_not_measured_where_it_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cores, "busy", lambda: pytest.fail("measured"))
    assert device.set_threads(3) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert cores.free() == 8


@pytest.mark.parametrize(("quota", "count"), [("max 100000", 8), ("150000 100000", 2)])
def test_a_containers_quota_limits_its_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, count: int
) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(cores, "_QUOTA", tmp_path / "cpu.max")
    assert cores.count() == count


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([3.0, 0.2], 0.2),  # a spike of a fifth of a second
        ([3.0, 2.0, 2.5, 2.0, 9.0], 2.0),
        ([0.1, 9.0], 0.1),  # an idle machine is known after one sample
    ],
)
def test_a_short_spike_is_no_load(
    monkeypatch: pytest.MonkeyPatch, samples: list[float], expected: float
) -> None:
    clock, own, used = [0.0], [0.0], [0.0]
    coming = iter(samples)

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        own[0] += 2.5 * seconds  # threads of ours: not the others'
        used[0] += (next(coming) + 2.5) * seconds

    monkeypatch.setattr(cores, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: clock[0]))
    monkeypatch.setattr(cores, "used_seconds", lambda: used[0])
    monkeypatch.setattr(cores, "_own", lambda: own[0])
    assert busy() == pytest.approx(expected)


def test_what_our_children_compute_is_ours() -> None:
    code = "import time\nwhile time.process_time() < 0.2: pass\n"
    before, used = cores._own(), cores.used_seconds()
    child = subprocess.Popen(
        [sys.executable, "-c", code + "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    child.stdout.readline()
    assert cores._own() - before > 0.15  # while it lives
    child.communicate(b"\n")
    assert cores._own() - before > 0.15
    assert cores.used_seconds() - used > 0.15


@pytest.mark.usefixtures("_threads_as_they_were")
def test_all_processes_compute_with_the_threads_of_the_one_that_has_fewest() -> None:
    torch.set_num_threads(3)
    two = SimpleNamespace(device="cpu", gather=lambda own: torch.cat([own, own - 1]))
    device.share_threads(two)  # type: ignore[arg-type]
    assert torch.get_num_threads() == 2
