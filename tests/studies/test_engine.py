"""Many jobs: each run once, whoever trains it, whatever fails; nothing beyond loopback."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call

import psutil
import pytest
from helpers.study import (
    batch_of,
    first_epochs,
    leave_finished,
    listening,
    planned_study,
    prepared,
)
from rich.console import Console

from stl10bench.core.errors import InterruptedRunError, StorageError, UsageError
from stl10bench.results.rows import Failure, Row, read_row
from stl10bench.results.run_folder import RunFolder
from stl10bench.studies import cluster, engine, jobs, ranking, record
from stl10bench.studies.cluster import Rank, Workers
from stl10bench.studies.jobs import Interrupted, Task
from stl10bench.studies.plan import Common, Planned
from stl10bench.studies.progress import Progress, duration

QUIET = Console(quiet=True)


@pytest.fixture
def common(data_dir: Path, tmp_path: Path) -> Common:
    return prepared(data_dir, tmp_path / "runs")


def task_of(planned: Planned, home: Path) -> Task:
    assert planned.job is not None
    home.mkdir(parents=True, exist_ok=True)
    return Task(planned.job, home, home / "log.txt")


def test_two_workers_train_each_job_once_on_loopback_alone_and_record_what_fails(
    common: Common,
) -> None:
    _, planned = planned_study(common, "lr=0.1,1e30")
    progress = Progress("test", planned, QUIET)
    addresses: set[str] = set()
    before = listening(psutil.Process())
    tick, ticks = progress.tick, count()

    def look() -> None:
        if next(ticks) % 5 == 0:  # once a second: to look takes a while
            addresses.update(listening(psutil.Process()) - before)
        tick()

    progress.tick = look  # type: ignore[method-assign]
    outcomes = engine.train(planned, batch_of(common, workers=2), progress)
    assert addresses == {"127.0.0.1"}
    first, wild = (outcomes[str(place.run)] for place in planned)
    assert isinstance(first, Row)
    assert first.threads == 1
    assert isinstance(wild, Failure)
    assert wild.state == "diverged"
    assert sorted(first_epochs(common.runs_dir, "test")) == [0, 1]
    assert not list((common.runs_dir / "studies").glob(".driver-*"))


def test_the_live_table_says_that_runs_are_starting_until_one_is_at_work(common: Common) -> None:
    _, planned = planned_study(common, "lr=0.1")
    job = planned[0].job
    assert job is not None
    for at_work in (False, True):
        console = Console(file=io.StringIO(), force_terminal=True, width=80)
        with contextlib.ExitStack() as stack:
            if at_work:
                stack.enter_context(job.folder.owned(job.config))
            stack.enter_context(progress := Progress("test", planned, console))
            progress.tick()
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        assert ("starting" in shown, "lr=0.1 seed 0" in shown) == (not at_work, at_work)


def test_runs_that_are_done_need_no_workers(
    common: Common, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, planned = planned_study(common, "lr=0.1,0.01")
    for place in planned:
        leave_finished(place)
    monkeypatch.setattr(engine, "opened", lambda *_: pytest.fail("workers were started"))
    outcomes = engine.train(planned, batch_of(common), Progress("test", planned, QUIET))
    assert [isinstance(outcomes[str(place.run)], Row) for place in planned] == [True, True]


def test_five_hundred_runs_that_are_done_are_ranked_within_two_seconds(
    common: Common, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = ",".join(f"{n / 1e5}" for n in range(1, 168))
    made, planned = planned_study(common, f"lr={rates}", seeds=3)
    for number, place in enumerate(planned):
        leave_finished(place, 0.3 + (number % 50) / 100)
    reads: list[Path] = []

    def read(self: RunFolder) -> Row:
        reads.append(self.path)
        return read_row(self.result_file)

    monkeypatch.setattr(RunFolder, "row", read)
    begun = time.process_time()  # of this process alone, whatever else the machine does
    made, planned = planned_study(common, f"lr={rates}", seeds=3)
    outcomes = engine.train(planned, batch_of(common), Progress("test", planned, QUIET))
    places = ranking.rank(record.trained(made, common.runs_dir, outcomes))
    assert time.process_time() - begun < 2
    assert len(places) == 167
    assert len(reads) == len(planned) == 501


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Replaces the child process by an answer; returns the list of runs that were begun."""
    begun: list[str] = []

    def replace(
        code: int,
        printed: str = "",
        seconds: float = 0.0,
        *,
        finishes: bool = False,
        once_begun: Callable[[Task], None] = lambda task: None,
    ) -> Any:
        def run(task: Task, environment: Any) -> tuple[int, str]:
            begun.append(task.run)
            once_begun(task)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                if numbers := jobs._signals(task):
                    return 128 + numbers[0], ""
                time.sleep(0.01)
            if finishes:
                leave_finished(Planned("", (), 0, 4, task.job))
            return code, printed

        monkeypatch.setattr(jobs, "_run_child", run)
        return begun

    return replace


@pytest.mark.parametrize(
    ("code", "printed", "reason"),
    [
        (
            2,
            '{"error": "batch_size = 64: too large", "exit_code": 2}',
            "batch_size = 64: too large",
        ),
        (1, "", "its process ended without an error message (exit code 1)"),
        (-9, "", "its process ended without an error message (killed by SIGKILL)"),
    ],
)
def test_a_child_that_leaves_no_row_is_a_failure_with_its_reason(
    common: Common, tmp_path: Path, child: Any, code: int, printed: str, reason: str
) -> None:
    child(code, printed)
    _, (planned,) = planned_study(common, "lr=0.1")
    outcome = jobs.train(task_of(planned, tmp_path / "home"), {})
    assert isinstance(outcome, Failure)
    assert (outcome.run, outcome.state, outcome.error) == (planned.run, "failed", reason)


def test_a_run_in_which_another_driver_is_at_work_is_waited_for_and_its_row_used(
    common: Common, tmp_path: Path, child: Any
) -> None:
    begun = child(1)
    _, (planned,) = planned_study(common, "lr=0.1")
    assert planned.job is not None
    task = task_of(planned, tmp_path / "home")
    held = threading.Event()

    def other() -> None:
        assert planned.job is not None
        with planned.job.folder.lock():
            held.set()
            time.sleep(0.6)
            planned.job.folder.path.rmdir()
            leave_finished(planned)

    thread = threading.Thread(target=other)
    thread.start()
    assert held.wait(10)
    outcome = jobs.train(task, {})
    thread.join()
    assert isinstance(outcome, Row)
    assert begun == []


def test_a_runs_folder_that_the_worker_does_not_see_is_said(common: Common, tmp_path: Path) -> None:
    _, (planned,) = planned_study(common, "lr=0.1")
    assert planned.job is not None
    outcome = jobs.train(Task(planned.job, tmp_path / "elsewhere", None), {})
    assert isinstance(outcome, Failure)
    assert "must share the runs folder" in outcome.error


def test_workers_that_do_not_share_the_runs_folder_are_found_at_the_start(tmp_path: Path) -> None:
    class Client:
        def run(self, *_: Any) -> dict[str, bool]:
            return {"tcp://10.0.0.1:1": True, "tcp://10.0.0.2:1": False}

    with pytest.raises(StorageError, match=r"worker tcp://10.0.0.2:1 does not see .*must be on a"):
        cluster.slots(Client(), tmp_path)  # type: ignore[arg-type]


def test_the_jobs_at_once_are_those_of_the_largest_machine_and_of_all(tmp_path: Path) -> None:
    class Client:
        def run(self, *_: Any) -> dict[str, bool]:
            return {}

        def scheduler_info(self, n_workers: int) -> dict[str, Any]:
            hosts = {"a": ("x", 1), "b": ("x", 2), "c": ("y", 1)}
            workers = {k: {"host": host, "nthreads": n} for k, (host, n) in hosts.items()}
            return {"workers": workers}

    assert cluster.slots(Client(), tmp_path) == (3, 4)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_driver_reaches_the_running_child_once_and_the_others_never_begin(
    common: Common, child: Any, number: int
) -> None:
    begun = child(0, seconds=30, once_begun=lambda _: os.kill(os.getpid(), number))
    _, planned = planned_study(common, "lr=0.1,0.01,0.001")
    with pytest.raises(InterruptedRunError, match="Run the same command again to resume") as raised:
        engine.train(planned, batch_of(common), Progress("test", planned, QUIET))
    assert raised.value.exit_code == 128 + number
    assert begun == [planned[0].run]


def test_a_failed_run_is_tried_again_and_a_diverged_one_is_a_result(
    common: Common, tmp_path: Path, child: Any
) -> None:
    begun = child(0, finishes=True)
    _, (failed, diverged) = planned_study(common, "lr=0.1,0.01")
    for planned, state in ((failed, "failed"), (diverged, "diverged")):
        assert planned.job is not None
        with pytest.raises(ValueError, match="x"), planned.job.folder.owned(planned.job.config):
            raise ValueError("x")
        status = {"state": state, "reason": "x"}
        planned.job.folder.status_file.write_text(json.dumps(status))
    progress = Progress("test", [failed, diverged], QUIET)
    outcomes = engine.train([failed, diverged], batch_of(common), progress)
    assert begun == [failed.run]
    assert isinstance(outcomes[str(failed.run)], Row)
    stored = outcomes[str(diverged.run)]
    assert isinstance(stored, Failure)
    assert (stored.state, stored.error) == ("diverged", "x")


def test_what_a_killed_driver_left_is_swept_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    dead = tmp_path / "studies" / ".driver-0"
    dead.mkdir(parents=True)
    with engine._home(tmp_path) as living, engine._home(tmp_path) as home:
        assert sorted(tmp_path.glob("studies/.driver-*")) == sorted([living, home])
    assert not list(tmp_path.glob("studies/.driver-*"))


def test_a_child_sees_its_own_device_and_nothing_of_a_launcher_or_of_a_storage(
    common: Common, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, (planned,) = planned_study(common, "lr=0.1")
    assert planned.job is not None
    task = Task(planned.job, tmp_path, None, ("study", "a,b", "x" * 99))
    launched = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    others = {"MASTER_ADDR": "x", "TORCHELASTIC_RUN_ID": "y", "ACCELERATE_MIXED_PRECISION": "no"}
    others["STL10BENCH_STORAGE"] = "postgresql://me:secret@host"
    for name, value in {**launched, **others, "KEPT": "z"}.items():
        monkeypatch.setenv(name, value)
    assert Rank.here() == Rank(5, 8, 1, 4)
    variables = jobs.child_environment(task, threads=2, slot=1, gpus=4)
    assert not variables.keys() & (launched | others).keys()
    assert (variables["KEPT"], variables["OMP_NUM_THREADS"]) == ("z", "2")
    assert variables["CUDA_VISIBLE_DEVICES"] == "1"
    assert variables["WANDB_RUN_GROUP"] == "study"
    assert variables["WANDB_TAGS"] == f"study,a b,{'x' * 64}"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")
    of_two = jobs.child_environment(task, slot=1, gpus=2)
    assert of_two["CUDA_VISIBLE_DEVICES"] == "7"
    assert jobs.child_environment(task)["CUDA_VISIBLE_DEVICES"] == "6,7"


def test_gpus_decide_the_number_of_workers_else_cores_and_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert engine.default_size(4, None, 8) == 4
    monkeypatch.setattr(engine, "_BYTES", 1)
    assert (engine.default_size(0, None, 8), engine.default_size(0, 3, 8)) == (8, 2)
    monkeypatch.setattr(engine, "_BYTES", psutil.virtual_memory().total)
    assert engine.default_size(0, None, 8) == 1


def test_all_runs_get_the_threads_that_were_free_when_the_first_began(
    common: Common, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that their seconds can be compared; what the user says counts first."""
    _, planned = planned_study(common, "lr=0.1,0.01")
    jobs_seen: list[int | None] = []

    def train(task: Task) -> Failure:
        jobs_seen.append(task.job.threads)
        return jobs.failure(task.job.config, "not trained")

    monkeypatch.setattr(jobs, "train", train)
    measured = iter([5, 3])
    monkeypatch.setattr(engine.cores, "free", lambda: next(measured))
    free = replace(common, options={**common.options, "threads": None})
    unset = [
        place._replace(job=place.job.model_copy(update={"threads": None}))
        for place in planned
        if place.job is not None
    ]
    engine.train(unset, batch_of(free, workers=1), Progress("test", unset, QUIET))
    engine.train(planned, batch_of(common, workers=1), Progress("test", planned, QUIET))
    assert jobs_seen == [5, 5, 1, 1]


def test_an_address_beyond_loopback_without_tls_is_warned_of(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    console = Console()
    open_one = Workers().security()
    cluster._warn_if_open("127.0.0.1", open_one, console)
    assert capsys.readouterr().out == ""
    cluster._warn_if_open("10.0.0.1", open_one, console)
    assert "anyone who can reach the port can run" in capsys.readouterr().out
    (tmp_path / "x.pem").write_text("")
    file = tmp_path / "x.pem"
    cluster._warn_if_open("10.0.0.1", Workers(None, None, file, file, file).security(), console)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("workers", "text"),
    [
        ({"scheduler": "localhost:1"}, "--scheduler localhost:1: must be tcp://HOST:PORT"),
        ({"scheduler": "tcp://127.0.0.1:9", "workers": 2}, "--workers 2: the launcher or the"),
        ({"scheduler": "tls://h:1", "tls_ca": Path("x")}, "--tls-ca x: no such file"),
        ({"scheduler": "tls://h:1", "tls_key": Path("x")}, "Missing --tls-ca"),
        ({"scheduler": "tls://h:1"}, "--scheduler tls://h:1: TLS needs --tls-ca"),
    ],
)
def test_workers_that_cannot_be_are_refused_in_a_line(
    common: Common, workers: dict[str, Any], text: str
) -> None:
    _, planned = planned_study(common, "lr=0.1")
    batch = batch_of(common, **{"workers": None, **workers})
    with pytest.raises(UsageError) as raised:
        engine.train(planned, batch, Progress("test", planned, QUIET))
    assert str(raised.value).startswith(text)


def test_a_run_that_is_stopped_by_its_own_limit_ends_the_study(common: Common, child: Any) -> None:
    child(143, '{"error": "Interrupted (--max-minutes reached)"}')
    _, planned = planned_study(common, "lr=0.1,0.01")
    with pytest.raises(InterruptedRunError, match="max-minutes reached") as raised:
        engine.train(planned, batch_of(common), Progress("test", planned, QUIET))
    assert raised.value.exit_code == 143


def test_a_stopped_run_says_so(common: Common, tmp_path: Path, child: Any) -> None:
    begun = child(0, seconds=30, once_begun=lambda task: jobs.ask_to_stop(task.home, task.run, 15))
    _, (planned,) = planned_study(common, "lr=0.1")
    task = task_of(planned, tmp_path / "home")
    assert jobs.train(task, {}) == Interrupted(143)
    jobs.ask_to_stop(task.home, None, 15)
    assert jobs.train(task, {}) == Interrupted(143)
    assert begun == [task.run]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(45, "45 s"), (720, "12 min"), (30_480, "8 h 28 min"), (3590, "1 h 0 min")],
)
def test_a_duration_is_said_as_people_say_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_terminal_shows_the_runs_at_work_the_best_so_far_and_the_time_left(
    common: Common,
) -> None:
    _, planned = planned_study(common, "lr=0.1,0.01,0.001")
    at_work = planned[1].job
    assert at_work is not None
    at_work.folder.path.mkdir(parents=True)
    at_work.folder.status_file.write_text('{"state": "running", "reason": ""}')
    at_work.folder.log_file.write_text('{"epoch": 1, "val/accuracy": 0.625}\n')
    console = Console(file=io.StringIO(), force_terminal=True, width=200, no_color=True)
    progress = Progress("test", planned, console)
    with progress:
        leave_finished(planned[0], 0.75)
        outcome = jobs.known_outcome(planned[0].job)  # type: ignore[arg-type]
        assert isinstance(outcome, Row)
        progress.ended(str(planned[0].run), outcome)
        progress.tick()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    shown = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", text)
    assert "[1/3] lr=0.1 seed 0: validation 0.750, 1 s" in shown
    assert "test: 1 of 3 runs done, best so far 0.1 at 0.750, estimated time left: " in shown
    assert re.search(r"lr=0.01 seed 0 +1/2 +0.625", shown)
    assert "lr=0.001 seed 0 " not in shown


def test_on_windows_a_child_is_asked_to_save_by_ctrl_break(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Mock(spec=subprocess.Popen)
    jobs._send(process, signal.SIGINT)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(signal, "CTRL_BREAK_EVENT", 1, raising=False)
    jobs._send(process, signal.SIGINT)
    assert process.send_signal.call_args_list == [call(signal.SIGINT), call(1)]
