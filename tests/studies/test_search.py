"""Searches with Optuna: on the hold-out only, each trial once, those of dead workers taken over."""

import io
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from stl10bench.studies.hands import Hands
from torch import nn

from stl10bench.cli.main import main
from stl10bench.core.errors import UsageError
from stl10bench.models import registry
from stl10bench.studies import ledger, parse, plan, record, sampling, search, sweep
from stl10bench.studies.jobs import BUSY
from stl10bench.studies.plan import Start

QUIET = Console(quiet=True)
SETTINGS: dict[str, Any] = {
    **{"image_size": 8, "epochs": 3, "batch_size": 8, "precision": "no"},
    **{"optimizer": "sgd", "schedule": "constant"},
}


@pytest.fixture
def prepare(data_dir: Path, tmp_path: Path) -> Callable[..., sweep.Sweep]:
    """Makes a search by what it varies, on the small data."""
    options: dict[str, Any] = {
        **{"dataset": "stl10", "data_dir": data_dir, "verify": True, "download": False},
        **{"runs_dir": tmp_path / "runs", "tracker": "none", "plugin": None, "device": "cpu"},
        **{"threads": 1, "compile": False, "deterministic": False, "checkpoint_minutes": None},
        **{"checkpoint_epochs": None, "max_minutes": None, "timeout_minutes": None},
    }

    def make(*vary: str, model: str = "logistic", start: Start = Start()) -> sweep.Sweep:  # noqa: B008  frozen
        varied = {one.partition("=")[0] for one in vary}
        settings = {key: value for key, value in SETTINGS.items() if key not in varied}
        keywords: dict[str, Any] = {"model": model, "recipe": None, "seeds": 1}
        study = parse.define(None, vary=vary, settings=settings, **keywords)
        return sweep.prepare(study, [], start, options, QUIET)

    return make


@pytest.fixture
def made(prepare: Callable[..., sweep.Sweep]) -> sweep.Sweep:
    """A search over the learning rate of logistic regression."""
    return prepare("lr=1e-4..0.1:log", "weight_decay=0,0.5")


def trials_of(made: sweep.Sweep, how: sampling.Plan) -> list[FrozenTrial]:
    with sampling.opened(made, how, rank=0, epochs=3) as found:
        return found.get_trials()


class Said(io.StringIO):
    """What a console prints, of which `hear` is told."""

    def __init__(self, hear: Callable[[str], None]) -> None:
        super().__init__()
        self._hear = hear

    def write(self, text: str) -> int:
        self._hear(text)
        return super().write(text)


def test_a_search_takes_over_what_a_dead_worker_left_and_counts_it_once(
    made: sweep.Sweep,
) -> None:
    how = sampling.Plan("tpe", 2, "none", None)
    with sampling.opened(made, how, rank=0, epochs=3) as found:
        left = found.ask()  # by a worker that dies before its run has begun
        planned = search.propose(left, made)
        assert planned.config is not None
        search.note(left, planned, search.home_of(made.runs_dir))
    record, trained = search.train(made, how, QUIET, ddp=False)
    assert trained[0].run == planned.config.name
    assert len({one.run for one in trained}) == 2
    rows = [one.row for one in trained]
    assert all(row is not None and "error" not in row for row in rows)
    with sampling.opened(made, how, rank=0, epochs=3) as found:
        trials = found.get_trials()
        assert [one.state for one in trials] == [TrialState.COMPLETE] * 2
        assert [one.value for one in trials] == [row["val_accuracy"] for row in rows if row]
    again, _ = search.train(made, how, QUIET, ddp=False)
    assert again == record
    assert len(list(made.runs_dir.glob("*/result.json"))) == 2


def test_a_run_that_is_worse_than_the_median_is_pruned_and_recorded(made: sweep.Sweep) -> None:
    how = sampling.Plan("random", 1, "median", None)
    long = {**made.study.settings, "epochs": 2000}  # else it ends before it is asked to
    made = made._replace(study=made.study.model_copy(update={"settings": long}))
    with sampling.opened(made, how, rank=0, epochs=3) as found:
        for _ in range(5):  # others, that were right from the start
            other = found.ask()
            other.suggest_float("lr", 1e-4, 0.1, log=True)
            for epoch in (1, 2, 3):
                other.report(1.1, epoch)
            found.tell(other, 1.0)
    record, trained = search.train(made, how._replace(trials=6), QUIET, ddp=False)
    assert [entry.state for entry in record.runs] == ["pruned"]
    assert trained[0].row is not None
    assert trained[0].row["error"].startswith("pruned after epoch ")


def test_another_definition_or_a_torn_journal_does_not_disturb_a_search(made: sweep.Sweep) -> None:
    how = sampling.Plan("random", 1, "none", None)
    with sampling.opened(made, how, rank=0, epochs=3) as found:
        found.ask()
        name = found.study_name
    journal = made.runs_dir / "studies" / made.study.name / "search.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole.splitlines()[-1][:20])  # its writer was killed
    with sampling.opened(made, how, rank=0, epochs=3) as found:
        found.ask()
        assert (found.study_name, len(found.get_trials())) == (name, 2)
    other = made._replace(study=made.study.model_copy(update={"settings": {"epochs": 1}}))
    with sampling.opened(other, how, rank=0, epochs=1) as found:
        assert (found.study_name == name, found.get_trials()) == (False, [])


def test_a_database_is_shared_by_runs_folders_that_leave_each_other_alone(
    made: sweep.Sweep, tmp_path: Path
) -> None:
    how = sampling.Plan("random", 9, "none", f"sqlite:///{tmp_path / 'trials.db'}")
    with sampling.opened(made, how, rank=0, epochs=3) as found:
        search.note(trial := found.ask(), search.propose(trial, made), "another machine's folder")
        assert search.in_hand(found, search.home_of(made.runs_dir)) == []
    with pytest.raises(UsageError, match=r"--storage nosuch:\.\.\.: cannot be opened"):
        sampling.opened(
            made, how._replace(storage="nosuch://me:secret@x"), rank=0, epochs=3
        ).__enter__()


def test_a_grid_search_tries_each_value_once_and_what_failed_again_when_it_is_begun_again(
    prepare: Callable[..., sweep.Sweep],
) -> None:
    made = prepare("batch_size=4,8,64")  # there are but 36 images to train on
    how = sampling.Plan("grid", 20, "none", None)
    search.train(made, how._replace(trials=2), QUIET, ddp=False)
    assert len({one.params["batch_size"] for one in trials_of(made, how)}) == 2
    search.train(made, how, QUIET, ddp=False)
    before = trials_of(made, how)
    found, _ = search.train(made, how, QUIET, ddp=False)
    *same, again = [(one.params["batch_size"], one.state) for one in trials_of(made, how)]
    assert same == [(one.params["batch_size"], one.state) for one in before]
    assert again == ("64", TrialState.FAIL)
    assert sorted(one for one in same if one[0] != "64") == [
        *(("4", TrialState.COMPLETE), ("8", TrialState.COMPLETE))
    ]
    assert sorted({entry.labels[0] for entry in found.runs}) == ["4", "64", "8"]


def test_a_search_is_on_record_after_each_trial(prepare: Callable[..., sweep.Sweep]) -> None:
    made = prepare("lr=0.1..1", "batch_size=64")
    recorded: list[list[str]] = []

    def look(line: str) -> None:
        if line.startswith("[trial ") and (found := record.read(made.runs_dir, made.study.name)):
            recorded.append([entry.reason for entry in found.runs])

    console = Console(file=Said(look))
    search.train(made, sampling.Plan("random", 3, "none", None), console, ddp=False)
    assert [len(reasons) for reasons in recorded] == [1, 2, 3]
    assert all("there are only 36 training images" in reason for reason in recorded[-1])


def test_a_folder_in_which_somebody_else_is_at_work_is_no_failure_of_a_trial(
    prepare: Callable[..., sweep.Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepare("lr=0.01")
    calls: list[str] = []
    train = Hands.train

    def train_later(self: Hands, name: str, *given: Any) -> tuple[int, dict[str, Any]]:
        calls.append(name)
        if len(calls) == 1:
            return BUSY, {"error": f"{name} is being written"}
        return train(self, name, *given)

    monkeypatch.setattr(Hands, "train", train_later)
    how = sampling.Plan("random", 1, "none", None)
    search.train(made, how, QUIET, ddp=False)
    assert [one.state for one in trials_of(made, how)] == [TrialState.COMPLETE]
    assert len(calls) == 2


def test_a_search_says_once_which_run_of_another_it_waits_for(
    made: sweep.Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = sampling.Plan("random", 1, "none", None)
    name = ask(made, how)
    held, over = threading.Event(), threading.Event()

    def work() -> None:  # the other
        with ledger.claimed(made.runs_dir, [name]):
            held.set()
            over.wait(60)

    other = threading.Thread(target=work)
    other.start()
    assert held.wait(60)

    def hear(line: str) -> None:
        if line.startswith("waiting for "):
            threading.Timer(2.5, over.set).start()

    monkeypatch.setattr(Hands, "train", lambda *_: (1, {"error": "no"}))
    said = Said(hear)
    search.train(made, how, Console(file=said), ddp=False)
    other.join()
    assert said.getvalue().count(f"waiting for {name}\n") == 1
    assert [one.user_attrs["reason"] for one in trials_of(made, how)] == ["no"]


def test_a_worker_that_joins_late_does_not_replace_what_has_just_failed(
    made: sweep.Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = sampling.Plan("random", 2, "none", None)
    with sampling.opened(made, how, rank=0, epochs=3) as found:
        found.tell(found.ask(), state=TrialState.FAIL)
    with ledger.claimed(made.runs_dir, [ask(made, how)]):
        for key, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
            monkeypatch.setenv(key, value)
        search.train(made, how, QUIET, ddp=False)
    states = [one.state for one in trials_of(made, how)]
    assert states == [TrialState.FAIL, TrialState.RUNNING]


def ask(made: sweep.Sweep, how: sampling.Plan) -> str:
    """Begin a trial as a worker of this runs folder does; the name of its run."""
    with sampling.opened(made, how, rank=0, epochs=3) as found:
        trial = found.ask()
        return search.note(trial, search.propose(trial, made), search.home_of(made.runs_dir))


def test_a_range_has_whole_numbers_where_its_setting_has_and_only_there(
    prepare: Callable[..., sweep.Sweep], forgetful: None
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

    made = prepare(
        *("batch_size=4..1.6e1", "weight_decay=0..1", "width=1..1e6:log", "depth=1..9e0"),
        "scale=0..1000000",
        model="mine",
    )
    plan.check(made.study, Start())
    with sampling.opened(made, sampling.Plan("random", 1, "none", None), rank=0, epochs=3) as found:
        settings = search.propose(found.ask(), made).point.settings
    kinds = {key: type(settings[key]) for key in made.study.vary}
    assert kinds == {
        **{"batch_size": int, "weight_decay": float, "width": int, "depth": int, "scale": float}
    }
    assert settings["weight_decay"] not in (0, 1)


def test_a_search_goes_on_with_the_same_weights_alone(
    prepare: Callable[..., sweep.Sweep], tmp_path: Path
) -> None:
    names = []
    for file, content in (("a", b"1"), ("b", b"1"), ("c", b"2"), (None, b"")):
        start = Start(None, pretrained=False)
        if file is not None:
            start = Start(tmp_path / file)
            (tmp_path / file).write_bytes(content)
        made = prepare("lr=0.1..1", "freeze=false", model="mobilenetv2", start=start)
        how = sampling.Plan("random", 1, "none", None)
        with sampling.opened(made, how, rank=0, epochs=3) as found:
            names.append(found.study_name)
    assert names[0] == names[1]
    assert len(set(names)) == 3


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("--vary lr=1,2 --sampler tpee", "unknown sampler 'tpee': did you mean 'tpe'"),
        ("--vary lr=1,2 --sampler tpe --pruner medain", "unknown pruner 'medain': did you mean"),
        ("--vary lr=1..2 --sampler grid", "a range has no values to list"),
        ("--vary lr=1..2 --sampler tpe --seeds 2", "--seeds 2: a search has one seed"),
        ("--vary schedule=1..2 --sampler tpe", "schedule cannot have a range: it is no number"),
        ("--vary rotation=1..2 --sampler tpe", "rotation cannot have a range: it is no number"),
        ("--vary model=1..2 --sampler tpe", "model cannot have a range: it is no number"),
        ("--vary batch_size=1.5..8 --sampler tpe", "batch_size = 1.5: must be a valid integer"),
        ("--vary lr=1,2 --trials 5", "--trials is of a search: it needs --sampler"),
        ("--vary lr=1..2 --sampler tpe --dry-run", "--dry-run: a search decides as it goes"),
    ],
)
def test_a_search_that_cannot_be_is_refused(
    arguments: str,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["stl10bench", "study", "run", "--model", "logistic", *arguments.split()]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert text in capsys.readouterr().err
