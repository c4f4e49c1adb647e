"""What several test modules need: small data in STL-10's layout, and runs without a tracker."""

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # two workers with two threads each would starve each other
for name in ("COLUMNS", "LINES"):  # pytest's readline sets them for child processes alone
    os.unsetenv(name)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell's background job: so would
    signal.signal(signal.SIGINT, signal.default_int_handler)  # be every program that we start

import pytest
from helpers.forks import Forks
from helpers.layout import save, write_layout
from hypothesis import HealthCheck, settings

from stl10bench.cli.main import main

OURS = ("DATA", "RUNS", "WEIGHTS", "TRACKER")

# Machines differ.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, in this order: so both workers end at about the same time."""
    folders = ("training", "studies", "cli", "models", "tests")
    items.sort(key=lambda item: item.path.parent.name not in folders)


@pytest.fixture(scope="session", autouse=True)
def _few_passes() -> Iterator[None]:
    """A row's latency is timed in the fewest passes, not for up to two seconds a run."""
    from stl10bench.training import row

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row, "_MOST_SECONDS", 0.0)
        yield


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Starts `stl10bench` commands in forked children of one process that has imported torch."""
    if sys.platform != "linux":
        pytest.skip("the tests fork, and adopt orphans, as Linux alone can")
    with Forks(tmp_path_factory.mktemp("forks")) as one:
        yield one


@pytest.fixture
def forked_jobs(forks: Forks, monkeypatch: pytest.MonkeyPatch) -> None:
    """The children of benchmarks are forked: they need not import torch, which takes seconds."""
    from stl10bench.studies import jobs
    from stl10bench.training.job import write_job

    def run(task: jobs.Task, environment: Mapping[str, str]) -> tuple[int, str]:
        file = task.home.absolute() / f"{task.run}.job"
        write_job(file, task.job)
        before = f"import os; os.chdir({str(Path.cwd())!r})"
        ended = forks.run("train", "--job", file, "--json", before=before, env=environment)
        return ended.code, ended.out

    monkeypatch.setattr(jobs, "_run_child", run)


@pytest.fixture
def quick_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run times as little as it can: its forecast is another test's."""
    monkeypatch.setattr("stl10bench.training.estimate._SECONDS", 0.0)
    monkeypatch.setattr("stl10bench.training.estimate._time_start", lambda: 1.0)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No user's W&B key, data folder or launcher reaches a test; no test reaches a network."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", *(f"STL10BENCH_{x}" for x in OURS)):
        monkeypatch.delenv(name, raising=False)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("stl10bench.core.cores.busy", lambda: 0.0)  # the other tests are
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """Run the entry point in an empty folder: no data, no runs. Returns code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setenv("STL10BENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")  # one thread each

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stl10bench", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The models that a test registers are forgotten after it."""
    from stl10bench.models import registry
    from stl10bench.models.factory import get_builder

    modules = set(sys.modules)
    for name in registry._BUILT_IN:
        get_builder(name)  # what is imported under the copy would be forgotten with it
    ours = {name: registry._registered[name] for name in registry._BUILT_IN}
    monkeypatch.setattr(registry, "_registered", ours)  # not what other tests left behind
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in set(sys.modules) - modules:
        if name.startswith("my_"):
            del sys.modules[name]


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 40 training and 20 test images of four classes."""
    return write_layout(tmp_path_factory.mktemp("data"))


@pytest.fixture
def model(tmp_path: Path) -> str:
    return save(tmp_path / "model.safetensors").name
