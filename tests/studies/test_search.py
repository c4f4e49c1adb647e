"""Searches with Optuna: on validation images only, each trial once, resumed after any end."""

import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from helpers.study import batch_of, leave_finished, planned_study, prepared
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from safetensors.torch import save_file
from torch import nn

from stl10bench.core.errors import BusyError, InterruptedRunError
from stl10bench.models import registry
from stl10bench.results.rows import Failure, Row
from stl10bench.studies import jobs, plan, record, search
from stl10bench.studies.jobs import Task
from stl10bench.studies.plan import Common, Start
from stl10bench.studies.record import Record
from stl10bench.studies.search import Search

QUIET = Console(quiet=True)


class Case:
    """A search on the small data, whose children are replaced by an accuracy each."""

    def __init__(self, common: Common, *vary: str, **settings: Any) -> None:
        self.made, _ = planned_study(common, *vary, **settings)
        self.batch = batch_of(common, self.made.study.name)

    def train(self, how: Search, console: Console = QUIET) -> tuple[Record, list[Any]]:
        return search.train(self.made, how, self.batch, console)

    @contextmanager
    def opened(self, how: Search) -> Iterator[optuna.Study]:
        with search.opened(self.made, how, self.batch) as memory:
            yield memory

    def trials(self, how: Search) -> list[FrozenTrial]:
        with self.opened(how) as memory:
            return memory.get_trials()


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that were begun; a child's accuracy is its learning rate, cut at 1."""
    runs: list[str] = []

    def run(task: Task, environment: Any) -> tuple[int, str]:
        runs.append(task.run)
        if task.job.config.batch_size > 36:
            return 2, '{"error": "there are only 36 training images"}'
        leave_finished(plan.Planned("", (), 0, 4, task.job), min(task.job.config.lr, 1.0))
        return 0, ""

    monkeypatch.setattr(jobs, "_run_child", run)
    return runs


@pytest.fixture
def case(data_dir: Path, tmp_path: Path) -> Callable[..., Case]:
    """Makes a search by what it varies, in one runs folder."""
    common = prepared(data_dir, tmp_path / "runs")
    return lambda *vary, **settings: Case(common, *vary, **settings)


class Printed(io.StringIO):
    """What a console prints, of which `hear` is told."""

    def __init__(self, hear: Callable[[str], None]) -> None:
        super().__init__()
        self._hear = hear

    def write(self, text: str) -> int:
        self._hear(text)
        return super().write(text)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_trains_as_many_trials_as_were_asked_for_and_more_when_more_are(
    case: Callable[..., Case], begun: list[str], sampler: str
) -> None:
    made = case("lr=1e-4..0.1:log", "weight_decay=0,0.5")
    how = Search(sampler, 3, "none", None)
    found, trained = made.train(how)
    assert len(begun) == len(found.runs) == 3
    rows = [run.row for run in trained]
    assert all(isinstance(row, Row) for row in rows)
    assert [trial.value for trial in made.trials(how)] == [row.val_accuracy for row in rows]
    again, _ = made.train(how)
    assert (again, len(begun)) == (found, 3)
    made.train(how._replace(trials=5))
    assert len(set(begun)) == 5


def test_what_a_killed_driver_left_resumes_first_and_counts_once(
    case: Callable[..., Case], begun: list[str]
) -> None:
    made, how = case("lr=1e-4..0.1:log", "weight_decay=0,0.5"), Search("tpe", 2, "none", None)
    with made.opened(how) as memory:
        planned = search.propose(memory.ask(), made.made.study, made.batch)  # then it was killed
    made.train(how)
    assert begun[0] == planned.run
    assert len(begun) == 2
    states = [trial.state for trial in made.trials(how)]
    assert states == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]


def test_an_interrupted_search_resumes_the_trial_that_was_running(
    case: Callable[..., Case], begun: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, how = case("lr=1e-4..0.1:log"), Search("random", 2, "none", None)
    train = jobs._run_child
    stopped: list[str] = []

    def stop(task: Task, environment: Any) -> tuple[int, str]:
        stopped.append(task.run)
        return 143, ""

    monkeypatch.setattr(jobs, "_run_child", stop)
    with pytest.raises(InterruptedRunError):
        made.train(how)
    monkeypatch.setattr(jobs, "_run_child", train)
    found, trained = made.train(how)
    assert begun[0] == stopped[0]
    assert len(begun) == len(found.runs) == len(trained) == 2


def test_two_drivers_of_one_search_do_not_work_at_once(case: Callable[..., Case]) -> None:
    made, how = case("lr=1e-4..0.1:log"), Search("random", 1, "none", None)
    with made.opened(how), pytest.raises(BusyError, match="another process is searching"):
        made.train(how)


def test_a_run_that_is_worse_than_the_median_is_pruned_and_recorded(
    case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, how = case("lr=1e-4..0.1:log"), Search("random", 6, "median", None)
    with made.opened(how) as memory:
        for _ in range(5):  # others, that were right from the start
            other = memory.ask()
            other.suggest_float("lr", 1e-4, 0.1, log=True)
            for epoch in (1, 2, 3):
                other.report(1.0, epoch)
            memory.tell(other, 1.0)

    def run(task: Task, environment: Any) -> tuple[int, str]:
        task.job.folder.path.mkdir(parents=True, exist_ok=True)
        with task.job.folder.log_file.open("w") as log:
            for epoch in range(1, 1200):  # a minute, unless it is pruned
                log.write(json.dumps({"epoch": epoch, "val/accuracy": 0.25}) + "\n")
                log.flush()
                time.sleep(0.05)
                if jobs._signals(task):
                    return 143, ""
        return 1, ""

    monkeypatch.setattr(jobs, "_run_child", run)
    found, trained = made.train(how)
    assert [entry.state for entry in found.runs] == ["pruned"]
    assert isinstance(trained[0].row, Failure)
    assert trained[0].row.state == "pruned"
    assert trained[0].row.error.startswith("pruned after epoch ")
    assert made.trials(how)[-1].state is TrialState.PRUNED


def test_another_definition_or_a_torn_journal_does_not_disturb_a_search(
    case: Callable[..., Case],
) -> None:
    made, how = case("lr=1e-4..0.1:log"), Search("random", 1, "none", None)
    with made.opened(how) as memory:
        memory.ask()
        name = memory.study_name
    journal = made.batch.common.runs_dir / "studies" / made.made.study.name / "search.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole.splitlines()[-1][:20])  # its writer was killed
    (journal.parent / "search.journal.lock").touch()  # and held the lock
    begun = time.monotonic()
    with made.opened(how) as memory:
        memory.ask()
        assert (memory.study_name, len(memory.get_trials())) == (name, 2)
    assert time.monotonic() - begun < 10
    with case("lr=1e-4..0.1:log", epochs=1).opened(how) as memory:
        assert (memory.study_name == name, memory.get_trials()) == (False, [])


def test_a_database_is_shared_by_runs_folders_that_leave_each_other_alone(
    case: Callable[..., Case], begun: list[str], tmp_path: Path
) -> None:
    made = case("lr=1e-4..0.1:log")
    how = Search("random", 3, "none", f"sqlite:///{tmp_path / 'trials.db'}")
    with made.opened(how) as memory:
        memory.ask().set_user_attr("home", "another machine's folder")
    found, _ = made.train(how)
    assert len(begun) == len(found.runs) == 2
    assert made.trials(how)[0].state is TrialState.RUNNING


def test_the_password_of_a_storage_is_nowhere_to_be_read(
    cli: Any, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = "Canary7"
    url = f"nosuch://me:{canary}@host/db"
    monkeypatch.setenv("STL10BENCH_STORAGE", url)
    monkeypatch.setenv("STL10BENCH_TALK", "")  # which --verbose sets
    monkeypatch.setenv("STL10BENCH_DATA", str(data_dir))
    words = ["--model", "logistic", "--vary", "lr=0.1..1", "--sampler", "tpe", "--device", "cpu"]
    for given in ([], ["--storage", url]):
        code, out, err = cli("study", "run", *words, *given, "--runs-dir", "runs", "--verbose")
        assert code == 2
        assert "--storage nosuch:...: cannot open it (" in err
        assert canary not in out + err
    assert canary not in repr(Search("tpe", 1, "none", url))
    _, out, _ = cli("study", "run", "--help")
    assert canary not in out
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and canary in p.read_text("latin1")]


def test_a_grid_search_tries_each_value_once_and_what_failed_again_when_it_is_begun_again(
    case: Callable[..., Case], begun: list[str]
) -> None:
    made = case("batch_size=4,8,64")  # there are but 36 images to train on
    how = Search("grid", 20, "none", None)
    made.train(how._replace(trials=2))
    assert len(set(begun)) == 2
    made.train(how)
    tried = [(trial.params["batch_size"], trial.state) for trial in made.trials(how)]
    fail, complete = TrialState.FAIL, TrialState.COMPLETE
    assert tried == [("4", complete), ("8", complete), ("64", fail)]
    found, _ = made.train(how)
    again = [(trial.params["batch_size"], trial.state) for trial in made.trials(how)]
    assert again == [*tried, ("64", fail)]
    assert sorted({entry.labels[0] for entry in found.runs}) == ["4", "64", "8"]


def test_a_search_is_on_record_after_each_trial(
    case: Callable[..., Case], begun: list[str]
) -> None:
    made = case("lr=0.1..1", "batch_size=64")
    recorded: list[list[str]] = []

    def look(line: str) -> None:
        stored = record.read(made.batch.common.runs_dir, made.made.study.name)
        if line.startswith("[trial ") and stored is not None:
            recorded.append([entry.reason for entry in stored.runs])

    made.train(Search("random", 3, "none", None), Console(file=Printed(look)))
    assert [len(reasons) for reasons in recorded] == [1, 2, 3]
    assert all("there are only 36 training images" in reason for reason in recorded[-1])


def test_a_range_has_whole_numbers_where_its_setting_has_and_only_there(
    case: Callable[..., Case], forgetful: None
) -> None:
    @registry.register
    def mine(
        num_classes: int,
        image_size: int,
        *,
        width: int = 4,
        depth: int | None = None,
        scale: float | None = None,
    ) -> nn.Module:
        return nn.Linear(image_size, num_classes)

    made = case(
        *("batch_size=4..1.6e1", "weight_decay=0..1", "width=1..1e6:log", "depth=1..9e0"),
        "scale=0..1000000",
        model="mine",
    )
    plan.check(made.made.study, Start())
    with made.opened(Search("random", 1, "none", None)) as memory:
        planned = search.propose(memory.ask(), made.made.study, made.batch)
    assert planned.job is not None
    config = planned.job.config
    values = {**config.model_dump(), **config.model_options}
    kinds = {key: type(values[key]) for key in made.made.study.vary}
    assert kinds == {
        **{"batch_size": int, "weight_decay": float, "width": int, "depth": int, "scale": float}
    }
    assert config.weight_decay not in (0, 1)


def test_a_search_resumes_with_the_same_weights_alone(data_dir: Path, tmp_path: Path) -> None:
    names = []
    for file, number in (("a", 1), ("b", 1), ("c", 2), (None, 0)):
        start = Start(None, pretrained=False)
        if file is not None:
            start = Start(tmp_path / file)
            save_file({"x": torch.tensor([number])}, tmp_path / file)
        common = prepared(data_dir, tmp_path / "runs", start)
        made = Case(common, "lr=0.1..1", "freeze=false", model="mobilenetv2")
        with made.opened(Search("random", 1, "none", None)) as memory:
            names.append(memory.study_name)
    assert names[0] == names[1]
    assert len(set(names)) == 3


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("--vary lr=1,2 --sampler tpee", "unknown sampler 'tpee': did you mean 'tpe'"),
        ("--vary lr=1,2 --sampler tpe --pruner medain", "unknown pruner 'medain': did you mean"),
        ("--vary lr=1..2 --sampler grid", "cannot list the values of a range: use tpe"),
        ("--vary lr=1..2 --sampler tpe --seeds 2", "--seeds 2: a search uses one seed"),
        ("--vary schedule=1..2 --sampler tpe", "schedule is not a number and cannot have a range"),
        ("--vary rotation=1..2 --sampler tpe", "rotation is not a number and cannot have a range"),
        ("--vary model=1..2 --sampler tpe", "model is not a number and cannot have a range"),
        ("--vary batch_size=1.5..8 --sampler tpe", "batch_size = 1.5: must be a whole number"),
        ("--vary lr=1,2 --trials 5", "--trials needs a search: add --sampler"),
        (
            "--vary lr=1..2 --sampler tpe --dry-run",
            "--dry-run: a search chooses its runs as it goes",
        ),
    ],
)
def test_a_search_that_cannot_be_is_refused(cli: Any, arguments: str, text: str) -> None:
    code, _, err = cli("study", "run", "--model", "logistic", *arguments.split())
    assert (code, text in err) == (2, True), err
