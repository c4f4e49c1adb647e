"""Searches with Optuna: on the hold-out only, each trial once, those of dead workers taken over."""

import sys
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from rich.console import Console

from stl10bench.cli import main
from stl10bench.errors import UsageError
from stl10bench.studies import definition, sampling, search, sweep
from stl10bench.studies.plan import Start

QUIET = Console(quiet=True)
SETTINGS: dict[str, Any] = {
    **{"image_size": 8, "epochs": 3, "batch_size": 8, "precision": "no"},
    **{"optimizer": "sgd", "schedule": "constant"},
}


@pytest.fixture
def made(data_dir: Path, tmp_path: Path) -> sweep.Sweep:
    """A search over the learning rate of logistic regression, on the small data."""
    options: dict[str, Any] = {
        **{"dataset": "stl10", "data_dir": data_dir, "verify": True, "download": False},
        **{"runs_dir": tmp_path / "runs", "tracker": "none", "plugin": None, "device": "cpu"},
        **{"threads": 1, "compile": False, "deterministic": False, "checkpoint_minutes": None},
        **{"checkpoint_epochs": None, "max_minutes": None, "timeout_minutes": None},
    }
    vary = ["lr=1e-4..0.1:log", "weight_decay=0,0.5"]
    keywords = {"model": "logistic", "recipe": None, "seeds": 1, "settings": SETTINGS}
    study = definition.define(None, vary=vary, **keywords)
    return sweep.prepare(study, [], Start(), options, QUIET)


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


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("--vary lr=1,2 --sampler tpee", "unknown sampler 'tpee': did you mean 'tpe'"),
        ("--vary lr=1,2 --sampler tpe --pruner medain", "unknown pruner 'medain': did you mean"),
        ("--vary lr=1..2 --sampler grid", "a range has no values to list"),
        ("--vary lr=1..2 --sampler tpe --seeds 2", "--seeds 2: a search has one seed"),
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
