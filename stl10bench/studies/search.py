"""A study with ranges -> runs that Optuna chooses, by any number of workers; extra `tune`.

Optuna sees the hold-out only. What it knows lies in its storage, a journal file in the study's
folder or a database, so that workers may come, go and be killed as in a grid: a trial whose worker
died is taken over, its run goes on from its checkpoint.
"""

import math
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import optuna
from filelock import FileLock
from optuna.trial import FrozenTrial, Trial, TrialState
from rich.console import Console

from stl10bench.core import files
from stl10bench.core.errors import StorageError
from stl10bench.results import history
from stl10bench.studies import ledger, plan, record
from stl10bench.studies.hands import Hands
from stl10bench.studies.jobs import BUSY
from stl10bench.studies.plan import Planned
from stl10bench.studies.ranking import Trained
from stl10bench.studies.record import Entry, Record
from stl10bench.studies.sampling import Plan, most, opened
from stl10bench.studies.study import Point, Range, Settings, Study, label, levels, point
from stl10bench.studies.sweep import Sweep, made_hands

_PAUSE = 1.0  # seconds between two looks at what others have in hand
_LOST = timedelta(minutes=5)  # after which a trial that never got a run is given up
_STOPPED = (130, 143, -2, -15)  # how a run ends that was asked to


def train(sweep: Sweep, how: Plan, console: Console, *, ddp: bool) -> tuple[Record, list[Trained]]:
    """Train what the sampler proposes; returns the record of all trials and what there is of each.

    The first worker of a launcher waits for what others have in hand, the others do not. Raises
    InterruptedRunError, StorageError, and UsageError for a storage that cannot be opened.
    """
    longest = plan.longest(sweep.study, sweep.start)
    with made_hands(sweep, ddp=ddp) as hands:
        if hands.follows:
            hands.follow()
            return sweep.record, []
        here = hands.place
        with opened(sweep, how, rank=here.rank, epochs=longest) as search:

            def say(line: str) -> None:
                console.print(line, markup=False, highlight=False, soft_wrap=True)

            work(search, sweep, how, hands, say, wait=here.is_main)
            found = _record(search, sweep, home_of(sweep.runs_dir))
    return found, record.trained(found, sweep.runs_dir)


def work(
    search: optuna.Study,
    sweep: Sweep,
    how: Plan,
    hands: Hands,
    say: Callable[[str], None],
    *,
    wait: bool,
) -> None:
    """Train what the sampler proposes until there are `how.trials`, or only others' are left.

    For those of our runs folder it waits with `wait`. A trial that failed is replaced when the
    search is begun again; one that diverged counts, with an accuracy of 0. Raises
    InterruptedRunError.
    """
    home = home_of(sweep.runs_dir)
    _begin(search, sweep, home)
    waiting = _Waiting(say)
    while True:
        with ExitStack() as claims:
            trial = _next(search, sweep, how, home, claims, waiting)
            if trial is not None:
                if line := _train(trial, search, sweep, hands):
                    _record(search, sweep, home)
                    say(line)
                continue
        others = in_hand(search, home)
        if not wait or not others:
            return
        waiting.wait(_claim_of(others[0]))


class _Waiting:
    """Waits a while for a run that another has in hand, and says so once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said: set[str] = set()

    def wait(self, run: str) -> None:
        if run not in self._said:
            self._said.add(run)
            self._say(f"waiting for {run}")
        time.sleep(_PAUSE)


def home_of(runs_dir: Path) -> str:
    """What tells one runs folder from another that shares the storage."""
    path = runs_dir / "studies" / "id"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(".id.lock")):
        if not path.exists():
            files.write(path, uuid4().hex.encode())
    return files.read(path, 64, StorageError).decode("ascii", "replace")


def in_hand(search: optuna.Study, home: str) -> list[FrozenTrial]:
    """The trials of our runs folder that have begun and not ended."""
    running = search.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [one for one in running if one.user_attrs.get("home") == home]


def _lock(sweep: Sweep) -> FileLock:
    """Held by the one worker that asks for a trial or writes the record."""
    return FileLock(record.folder(sweep.runs_dir, sweep.study.name) / ".ask.lock")


def _begin(search: optuna.Study, sweep: Sweep, home: str) -> None:
    """Note which trials were there before, unless we join others at work: what failed is replaced.

    It is known to all workers: by its own count, one that came late would replace, too, what has
    failed just now, and so exceed the number of trials.
    """
    with _lock(sweep), ExitStack() as claims:
        trials = search.get_trials(deepcopy=False)
        running = [one for one in trials if one.state is TrialState.RUNNING and not _is_lost(one)]
        names = {_claim_of(one) for one in running if one.user_attrs.get("home") == home}
        dead = claims.enter_context(ledger.claimed(sweep.runs_dir, sorted(names)))
        others = [one for one in running if one.user_attrs.get("home") != home]
        if not others and len(dead) == len(names):
            search.set_user_attr("first", len(trials))


def _is_lost(trial: FrozenTrial) -> bool:
    """Whether a trial's worker died before it had said which run it is."""
    age = datetime.now() - (trial.datetime_start or datetime.min)  # Optuna's have no zone
    return "home" not in trial.user_attrs and age > _LOST


def _next(
    search: optuna.Study,
    sweep: Sweep,
    how: Plan,
    home: str,
    claims: ExitStack,
    waiting: _Waiting,
) -> Trial | None:
    """A trial whose run is ours until `claims` ends: one of a dead worker, or a new one."""
    with _lock(sweep):
        for one in in_hand(search, home):
            if _claim(search, one, sweep, claims):
                return Trial(search, one._trial_id)
        trials = search.get_trials(deepcopy=False)
        for one in trials:
            if one.state is TrialState.RUNNING and _is_lost(one):
                search.tell(one.number, state=TrialState.FAIL)
        first = search.user_attrs.get("first", 0)
        counted = [one for one in trials if one.state is not TrialState.FAIL or one.number >= first]
        if len(counted) >= most(sweep.study, how):
            return None
        trial = search.ask()
        try:
            planned = propose(trial, sweep)
        except BaseException:
            search.tell(trial, state=TrialState.FAIL)
            raise
        note(trial, planned, home)
        _write(search, sweep, home)
        one = search.get_trials(deepcopy=False)[trial.number]
        claimed = _claim(search, one, sweep, claims)
    # The same settings can be another worker's just now: then their row is waited for.
    while not claimed:
        waiting.wait(_claim_of(one))
        if not _is_open(search, one):
            return _next(search, sweep, how, home, claims, waiting)
        claimed = _claim(search, one, sweep, claims)
    return trial


def _claim(search: optuna.Study, one: FrozenTrial, sweep: Sweep, claims: ExitStack) -> bool:
    """Whether a trial's run is ours now, until `claims` ends, and the trial still to do."""
    with ExitStack() as attempt:
        ours = attempt.enter_context(ledger.claimed(sweep.runs_dir, [_claim_of(one)]))
        if not ours or not _is_open(search, one):  # it may have ended before the claim
            return False
        claims.push(attempt.pop_all())
    return True


def _claim_of(one: FrozenTrial) -> str:
    """What is claimed for a trial: its run, or, of one that cannot be, the trial."""
    return str(one.user_attrs["run"] or f"trial-{one.number}")


def _is_open(search: optuna.Study, one: FrozenTrial) -> bool:
    return search.get_trials(deepcopy=False)[one.number].state is TrialState.RUNNING


def note(trial: Trial, planned: Planned, home: str) -> str:
    """Write down which run a trial is and where, for whoever takes it over; the run's name."""
    name = "" if planned.config is None else planned.config.name
    for key, value in (
        ("labels", list(planned.point.labels)),
        ("val_images", planned.val_images),
        ("run", name),
        ("home", home),  # last: who sees it finds the others
    ):
        trial.set_user_attr(key, value)
    return name


def propose(trial: Trial, sweep: Sweep) -> Planned:
    """The run that a trial's parameters mean."""
    study = sweep.study
    chosen: list[tuple[str, Settings]] = []
    for name, factor in study.vary.items():
        if isinstance(factor, Range):
            value = _suggest(trial, study, name, factor)
            chosen.append((label(value), {name: value}))
        else:
            known = dict(levels(name, factor))
            text = trial.suggest_categorical(name, list(known))
            chosen.append((text, known[text]))
    one: Point = point(study, chosen, study.seeds[0])
    return plan.plan(study, [one], sweep.start, sweep.data, sweep.device)[0]


def _suggest(trial: Trial, study: Study, name: str, factor: Range) -> int | float:
    if plan.is_whole(study, name):
        return trial.suggest_int(name, int(factor.low), int(factor.high), log=factor.log)
    found = trial.suggest_float(name, factor.low, factor.high, log=factor.log)
    short = float(f"{found:.4g}")  # as a table shows it: what is tried is what is said
    return min(max(short, factor.low), factor.high)


def _train(trial: Trial, search: optuna.Study, sweep: Sweep, hands: Hands) -> str:
    """Train a trial's run and tell the search what it reached; returns a line that says so.

    An empty one for a run in whose folder somebody else is at work: it is still to do.
    """
    planned = propose(trial, sweep)
    head = f"[trial {trial.number + 1}] {planned.title}"
    if planned.config is None:
        return f"{head}: {_fail(search, trial, planned.reason)}"
    name, one = planned.config.name, planned.trial
    book = ledger.Ledger(sweep.runs_dir, {name: planned.config})
    watch = _Watch(trial, sweep.runs_dir / name)
    code, answer = 0, dict[str, Any]()
    if not book.look(name):
        code, answer = hands.train(name, one.model, one.arguments, planned.point.labels, watch)
    watch()  # what the run logged after the last look
    if not book.look(name):
        if code == BUSY:
            return ""
        if watch.pruned_after is not None and code in _STOPPED:
            trial.set_user_attr("pruned_after", watch.pruned_after)
            search.tell(trial, state=TrialState.PRUNED)
            return f"{head}: pruned after epoch {watch.pruned_after}"
        return f"{head}: {_fail(search, trial, str(answer.get('error', 'it left no row')))}"
    row = book.settled[name]
    if row.get("state") == "failed":
        return f"{head}: {_fail(search, trial, row['error'])}"
    accuracy = 0.0 if "error" in row else row["val_accuracy"]
    search.tell(trial, accuracy)
    said = row.get("error", f"hold-out {accuracy:.3f}")
    return f"{head}: {said}, best so far {search.best_value:.3f}"


def _fail(search: optuna.Study, trial: Trial, reason: str) -> str:
    trial.set_user_attr("reason", reason)
    search.tell(trial, state=TrialState.FAIL)
    return f"failed: {reason}"


class _Watch:
    """Tells the pruner of each epoch that a run has logged; True when the run is to end."""

    def __init__(self, trial: Trial, folder: Path) -> None:
        self._trial = trial
        self._folder = folder
        self._told = 0
        self.pruned_after: int | None = None

    def __call__(self) -> bool:
        logged = history.read(self._folder, live=True)
        pairs = list(zip(logged.epochs, logged.series("val/accuracy"), strict=True))
        for epoch, accuracy in pairs[self._told :]:
            self._told += 1
            if self.pruned_after is None and math.isfinite(accuracy):
                with warnings.catch_warnings(action="ignore"):  # of an epoch told by a dead worker
                    self._trial.report(accuracy, epoch)
                if self._trial.should_prune():
                    self.pruned_after = epoch
        return self.pruned_after is not None


def _record(search: optuna.Study, sweep: Sweep, home: str) -> Record:
    """Write down what the search has come to, so that it can be shown after any end."""
    with _lock(sweep):
        return _write(search, sweep, home)


def _write(search: optuna.Study, sweep: Sweep, home: str) -> Record:
    found = sweep.record.model_copy(update={"runs": entries_of(search, home)})
    record.write(sweep.runs_dir, found)
    return found


def entries_of(search: optuna.Study, home: str) -> list[Entry]:
    """The trials of our runs folder as runs of a study; of equal ones the last."""
    found: dict[str, Entry] = {}
    for one in search.get_trials(deepcopy=False):
        facts = one.user_attrs
        if facts.get("home") != home:
            continue
        pruned, reason = one.state is TrialState.PRUNED, facts.get("reason", "")
        if pruned:
            reason = f"pruned after epoch {facts['pruned_after']}"
        found[facts["run"] or str(one.number)] = Entry(
            labels=facts["labels"],
            seed=0,
            run=facts["run"] or None,
            reason=reason,
            state="pruned" if pruned else "",
            val_images=facts["val_images"],
        )
    return list(found.values())
