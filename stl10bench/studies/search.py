"""A study with ranges -> runs that Optuna chooses, several at once; extra `tune`.

The driver asks and tells; Optuna sees the validation accuracy only. What it knows lies in its
storage, a journal file in the study's folder or a database: a search that was killed resumes, and
so do its runs.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import optuna
from optuna.exceptions import StorageInternalError
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from stl10bench.core import files
from stl10bench.core.errors import (
    CheckpointError,
    InterruptedRunError,
    StorageError,
    UsageError,
    unknown,
)
from stl10bench.results import history
from stl10bench.results.rows import Failure, Row
from stl10bench.studies import engine, jobs, plan, record
from stl10bench.studies.engine import Batch, Pool
from stl10bench.studies.jobs import Interrupted, Outcome
from stl10bench.studies.plan import Planned
from stl10bench.studies.progress import outcome_line
from stl10bench.studies.ranking import Trained
from stl10bench.studies.record import Entry, Record
from stl10bench.studies.study import Range, Settings, Study, label, levels, point

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("none", "median", "hyperband")
_WARM_UP = 1  # epochs after which no trial is pruned yet
_BEGUN = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)


class Search(NamedTuple):
    """How to search: `trials` in all, those of earlier calls included."""

    sampler: str
    trials: int
    pruner: str
    storage: str | None

    def __repr__(self) -> str:
        return f"Search({self.sampler}, {self.trials}, {self.pruner})"  # a URL has a password


def check(study: Study, search: Search) -> None:
    """Raise UsageError for what can be known to be wrong before the first run."""
    if search.sampler not in SAMPLERS:
        raise unknown("sampler", search.sampler, SAMPLERS)
    if search.pruner not in PRUNERS:
        raise unknown("pruner", search.pruner, PRUNERS)
    if search.sampler == "grid" and not study.is_grid:
        raise UsageError("--sampler grid cannot list the values of a range: use tpe or random")


def train(
    template: Record, search: Search, batch: Batch, console: Console
) -> tuple[Record, list[Trained]]:
    """Train what Optuna proposes; returns the record of all trials and what there is of each.

    A trial that failed is replaced when the search is begun again; one that diverged counts, with
    an accuracy of 0. Raises InterruptedRunError, StorageError, BusyError while another driver has
    the search, and UsageError for a storage that cannot be opened.
    """
    runs_dir = batch.common.runs_dir
    with opened(template, search, batch) as memory:
        driver = _Driver(template, search, batch, memory, console)
        driver.begin()
        if driver.left():
            with engine.opened(batch, driver.left(), console) as pool:
                driver.work(pool)
        final = driver.write()
    return final, record.trained(final, runs_dir)


@contextmanager
def opened(template: Record, search: Search, batch: Batch) -> Iterator[optuna.Study]:
    """The search in its storage, made if need be; another definition, data or weights: another."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = template.study
    content = [
        study.model_dump(mode="json", include={"model", "recipe", "settings", "vary", "seeds"}),
        template.data,
        plan.weight_sources(study, batch.common.start),
    ]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    folder = record.folder(batch.common.runs_dir, study.name)
    # One driver a search: trials that another left running can be told from those at work.
    busy = f"another process is searching in {folder}: wait for it, or stop it"
    with files.locked(folder / ".search.lock", lambda: busy, timeout=0):
        storage = _storage(search.storage, folder)
        try:
            memory = optuna.create_study(
                study_name=f"{study.name}-{digest[:8]}",
                storage=storage,
                direction="maximize",
                load_if_exists=True,
            )
            # Begun again, a sampler must not draw what it drew before.
            seed = study.seeds[0] + 1000 * len(memory.get_trials(deepcopy=False))
            random = search.sampler in ("random", "grid")
            memory.sampler = RandomSampler(seed=seed) if random else TPESampler(seed=seed)
            memory.pruner = _pruner(search.pruner, plan.longest(study, batch.common.start))
            yield memory
        except (StorageInternalError, SQLAlchemyError) as error:
            kind = type(error.__cause__ or error).__name__  # its text quotes the trial's values
            raise StorageError(f"--storage: the database failed ({kind}). {jobs.RESUME}") from None
        finally:
            storage.remove_session()
            if isinstance(storage, RDBStorage):
                storage.engine.dispose()  # or its connections stay open until they are collected


def _storage(url: str | None, folder: Path) -> BaseStorage:
    if url is None:
        path = folder / "search.journal"
        with files.storage_errors(f"cannot write {path}"):
            path.touch()
            with path.open("r+b") as file:  # half a line of a driver that was killed
                content = file.read()
                if content and not content.endswith(b"\n"):
                    file.truncate(content.rfind(b"\n") + 1)
            # Only the driver that was killed can have held Optuna's lock: we have ours.
            path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
        return JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))
    try:
        return RDBStorage(url)
    except Exception as error:  # of any database driver, whose text may quote the password
        kind = url.partition(":")[0]
        raise UsageError(
            f"--storage {kind}:...: cannot open it ({type(error).__name__}); pass a SQLAlchemy "
            "URL, e.g. sqlite:///trials.db, and install its driver"
        ) from None


def _pruner(name: str, epochs: int) -> BasePruner:
    if name == "median":
        return MedianPruner(n_warmup_steps=_WARM_UP)
    return HyperbandPruner(max_resource=epochs) if name == "hyperband" else NopPruner()


def _home(runs_dir: Path) -> str:
    """What tells one runs folder from another that shares the storage."""
    path = runs_dir / "studies" / "id"
    if not path.exists():
        files.write(path, uuid4().hex.encode())
    return files.read(path, 64, StorageError).decode("ascii", "replace")


class _Driver:
    """Keeps the pool at work: asks for trials, reports their epochs, tells how they ended."""

    def __init__(
        self, template: Record, search: Search, batch: Batch, memory: optuna.Study, console: Console
    ) -> None:
        self._template = template
        self._search = search
        self._batch = batch
        self._memory = memory
        self._console = console
        self._home = _home(batch.common.runs_dir)
        self._failed = 0  # trials of this call; those of earlier ones are replaced
        self._trials: dict[str, list[_Running]] = {}  # by run: equal settings share one

    def begin(self) -> None:
        """What a driver that died left running is put first in the queue, so that it resumes."""
        trials = self._memory.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state is TrialState.RUNNING and self._is_ours(trial):
                self._memory.tell(trial.number, state=TrialState.FAIL)
                self._enqueue(trial.params)
        if self._search.sampler == "grid":
            study = self._template.study
            tried = [trial.params for trial in trials if trial.state in _BEGUN]
            tried += [trial.user_attrs.get("values", {}) for trial in self._waiting()]
            texts = [[text for text, _ in levels(*item)] for item in study.vary.items()]
            for values in product(*texts):
                params: dict[str, Any] = dict(zip(study.vary, values, strict=True))
                if params not in tried:
                    self._enqueue(params)

    def _enqueue(self, params: dict[str, Any]) -> None:
        self._memory.enqueue_trial(params, user_attrs={"values": params, "home": self._home})

    def _waiting(self) -> list[FrozenTrial]:
        return self._memory.get_trials(deepcopy=False, states=(TrialState.WAITING,))

    def _is_ours(self, trial: FrozenTrial) -> bool:
        """Whether a trial is of our runs folder; one that has no run yet is anybody's."""
        return bool(trial.user_attrs.get("home", self._home) == self._home)

    def left(self) -> int:
        """The trials that are still to be asked for."""
        most = self._search.trials
        if self._search.sampler == "grid":
            most = min(most, prod(len(levels(*item)) for item in self._template.study.vary.items()))
        trials = self._memory.get_trials(deepcopy=False)
        return most - self._failed - sum(trial.state in _BEGUN for trial in trials)

    def work(self, pool: Pool) -> None:
        """Ask, train and tell until there are no more trials."""
        while True:
            while len(self._trials) < pool.size and self.left() > 0:
                self._ask(pool)
            if not self._trials:
                return
            for run, outcome in pool.ended():
                self._end(run, outcome)
            self._prune(pool)

    def _ask(self, pool: Pool) -> None:
        """Begin a trial; its run may be there already, or cannot be."""
        trial = self._memory.ask()
        planned = propose(trial, self._template.study, self._batch)
        for key, value in (
            ("labels", list(planned.labels)),
            ("val_images", planned.val_images),
            ("run", planned.run or ""),
            ("home", self._home),
        ):
            trial.set_user_attr(key, value)
        self.write()
        running = _Running(trial, planned)
        if planned.job is None or planned.run is None:
            assert planned.failure is not None
            self._tell(running, planned.failure)
        elif planned.run in self._trials:
            self._trials[planned.run].append(running)
        elif (outcome := jobs.known_outcome(planned.job)) is not None:
            self._tell(running, outcome)
        else:
            self._trials[planned.run] = [running]
            pool.submit(self._batch.task(planned, pool.home))

    def _end(self, run: str, outcome: Outcome) -> None:
        for running in self._trials.pop(run):
            running.look()  # what was logged after the last look
            if isinstance(outcome, Interrupted) and running.pruned_after is None:
                raise InterruptedRunError(outcome.reason, outcome.exit_code)
            self._tell(running, outcome)

    def _prune(self, pool: Pool) -> None:
        """Ask runs to stop that the pruner gives up."""
        if self._search.pruner == "none":
            return
        for run, (running, *_) in self._trials.items():
            if running.pruned_after is None and running.look():
                pool.stop(run)

    def _tell(self, running: "_Running", outcome: Outcome) -> None:
        """Tell Optuna how a trial ended, and whoever waits."""
        trial, text = running.trial, ""
        if isinstance(outcome, Interrupted):
            trial.set_user_attr("pruned_after", running.pruned_after)
            self._memory.tell(trial, state=TrialState.PRUNED)
            text = f"pruned after epoch {running.pruned_after}"
        elif isinstance(outcome, Failure) and outcome.state != "diverged":
            trial.set_user_attr("reason", outcome.error)
            self._memory.tell(trial, state=TrialState.FAIL)
            self._failed += 1
            text = outcome_line(outcome)
        else:
            accuracy = outcome.val_accuracy if isinstance(outcome, Row) else 0.0
            self._memory.tell(trial, accuracy)
            text = f"{outcome_line(outcome)}, best so far {self._memory.best_value:.3f}"
        self.write()
        line = f"[trial {trial.number + 1}] {running.planned.title}: {text}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def write(self) -> Record:
        """Write down what the search has come to, so that it can be shown after any end."""
        entries: dict[str, Entry] = {}
        for trial in self._memory.get_trials(deepcopy=False):
            facts = trial.user_attrs
            if facts.get("home") != self._home or "run" not in facts:
                continue
            pruned, reason = trial.state is TrialState.PRUNED, facts.get("reason", "")
            entries[facts["run"] or str(trial.number)] = Entry(  # of equal ones the last
                labels=facts["labels"],
                seed=0,
                run=facts["run"] or None,
                reason=f"pruned after epoch {facts['pruned_after']}" if pruned else reason,
                state="pruned" if pruned else "",
                val_images=facts["val_images"],
            )
        final = self._template.model_copy(update={"runs": list(entries.values())})
        record.write(self._batch.common.runs_dir, final)
        return final


class _Running:
    """A trial at work, and how far the pruner was told of it."""

    def __init__(self, trial: Trial, planned: Planned) -> None:
        self.trial = trial
        self.planned = planned
        self.pruned_after: int | None = None
        self._told = 0

    def look(self) -> bool:
        """Report the epochs that were logged since the last look; True when the run is to end."""
        assert self.planned.job is not None
        try:
            logged = history.read(self.planned.job.folder, live=True)
        except CheckpointError:
            return False  # the run itself says what is wrong
        pairs = list(zip(logged.epochs, logged.series("val/accuracy"), strict=True))
        for epoch, accuracy in pairs[self._told :]:
            self._told += 1
            if self.pruned_after is None and math.isfinite(accuracy):
                self.trial.report(accuracy, epoch)
                if self.trial.should_prune():
                    self.pruned_after = epoch
        return self.pruned_after is not None


def propose(trial: Trial, study: Study, batch: Batch) -> Planned:
    """The run that a trial's parameters mean."""
    chosen: list[tuple[str, Settings]] = []
    for name, factor in study.vary.items():
        if isinstance(factor, Range):
            value = _suggest(trial, study, name, factor)
            chosen.append((label(value), {name: value}))
        else:
            settings = dict(levels(name, factor))
            text = trial.suggest_categorical(name, list(settings))
            chosen.append((text, settings[text]))
    place = point(study, chosen, study.seeds[0])
    return plan.plan_runs([place], study.recipe, batch.common)[0]


def _suggest(trial: Trial, study: Study, name: str, factor: Range) -> int | float:
    if plan.is_whole(study, name):
        return trial.suggest_int(name, int(factor.low), int(factor.high), log=factor.log)
    value = trial.suggest_float(name, factor.low, factor.high, log=factor.log)
    short = float(f"{value:.4g}")  # as a table shows it: what is tried is what is said
    return min(max(short, factor.low), factor.high)
