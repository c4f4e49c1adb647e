"""While other processes compute, a run's OpenMP threads wait asleep; its numbers stay the same."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from stl10bench.core import cores, waiting
from stl10bench.core.waiting import considerate_threads


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.setattr(waiting, "_LOOK", 0.005)
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How many cores others keep busy; to be changed."""
    busy, last = [1.0], [time.monotonic(), 0.0]

    def used_seconds() -> float:
        now = time.monotonic()
        last[:] = now, last[1] + busy[0] * (now - last[0])
        return last[1] + time.process_time()

    monkeypatch.setattr(cores, "used_seconds", used_seconds)
    return busy


def teams() -> int:
    return [thread.name for thread in threading.enumerate()].count(waiting.NAME)


def comes_true(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + 20
    while not condition() and time.monotonic() < until:
        time.sleep(0.002)
    return condition()


def test_threads_wait_asleep_just_as_long_as_others_compute(others: list[float]) -> None:
    with considerate_threads():
        assert comes_true(lambda: teams() == 1)
        others[0] = 0.1
        assert comes_true(lambda: teams() == 0)
        others[0] = 2.0
        assert comes_true(lambda: teams() == 1)
    assert comes_true(lambda: teams() == 0)


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize("why", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "ranks"])
def test_nobody_watches_where_there_is_nothing_to_choose(
    monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    if why == "ranks":
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    else:
        monkeypatch.setenv(why, "1")
    watched: list[threading.Event] = []
    monkeypatch.setattr(waiting, "_watch", watched.append)
    with considerate_threads():
        pass
    assert not watched


@pytest.mark.usefixtures("others")
def test_waiting_asleep_changes_no_bit_of_a_step() -> None:
    torch.manual_seed(0)
    images, layer = torch.randn(32, 3072), torch.nn.Linear(3072, 64)

    def gradient() -> torch.Tensor:
        layer.zero_grad()
        layer(images).relu().sum().backward()  # large enough for two threads
        assert layer.weight.grad is not None
        return layer.weight.grad.clone()

    before = gradient()
    with considerate_threads():
        assert comes_true(lambda: teams() == 1)
        assert torch.equal(gradient(), before)
