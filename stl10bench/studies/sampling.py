"""How Optuna searches: its sampler, its pruner, and where it keeps what it knows; extra `tune`."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import NamedTuple

import optuna
from filelock import FileLock
from optuna.samplers import BaseSampler, GridSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from stl10bench.core.errors import StorageError, UsageError, unknown
from stl10bench.studies import plan, record
from stl10bench.studies.study import Study, levels
from stl10bench.studies.sweep import Sweep

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("none", "median", "hyperband")
_FAIL = TrialState.FAIL
_WARM_UP = 1  # epochs after which no trial is pruned yet


class Plan(NamedTuple):
    """How to search: `trials` in all, those of earlier calls included."""

    sampler: str
    trials: int
    pruner: str
    storage: str | None


def check(study: Study, how: Plan) -> None:
    """Raise UsageError for what can be known to be wrong before the first run."""
    for kind, name, known in (("sampler", how.sampler, SAMPLERS), ("pruner", how.pruner, PRUNERS)):
        if name not in known:
            raise unknown(kind, name, known)
    if how.sampler == "grid" and not study.is_grid:
        raise UsageError("--sampler grid: a range has no values to list; use tpe or random")


@contextmanager
def opened(sweep: Sweep, how: Plan, *, rank: int, epochs: int) -> Iterator[optuna.Study]:
    """The search in its storage, made if need be; another definition, data or weights: another."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = sweep.study
    content = [
        study.model_dump(mode="json", include={"model", "recipe", "settings", "vary", "seeds"}),
        sweep.record.data,
        plan.weights(study, sweep.start),
    ]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    storage = _storage(how.storage, record.folder(sweep.runs_dir, study.name))
    found = optuna.create_study(
        study_name=f"{study.name}-{digest[:8]}",
        storage=storage,
        direction="maximize",
        load_if_exists=True,
    )
    # Begun again, a sampler must not draw what it drew before.
    seed = study.seeds[0] + 1000 * len(found.get_trials(deepcopy=False)) + rank
    found.sampler = _sampler(how.sampler, study, seed)
    found.pruner = {
        "none": optuna.pruners.NopPruner(),
        "median": optuna.pruners.MedianPruner(n_warmup_steps=_WARM_UP),
        "hyperband": optuna.pruners.HyperbandPruner(max_resource=epochs),
    }[how.pruner]
    try:
        yield found
    finally:
        storage.remove_session()


def most(study: Study, how: Plan) -> int:
    """The trials of a search: those asked for, and no more than a grid has."""
    if how.sampler != "grid":
        return how.trials
    return min(how.trials, prod(len(levels(name, own)) for name, own in study.vary.items()))


def _sampler(name: str, study: Study, seed: int) -> BaseSampler:
    if name == "grid":
        space = {key: [text for text, _ in levels(key, f)] for key, f in study.vary.items()}
        return _Grid(space, seed=study.seeds[0])  # one order for all workers and calls
    return TPESampler(seed=seed) if name == "tpe" else RandomSampler(seed=seed)


class _Grid(GridSampler):
    """Optuna's, for a search that is asked and told, and that tries again what failed."""

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Optuna's would stop the study, which is allowed in `Study.optimize` alone."""

    def _get_unvisited_grid_ids(self, study: optuna.Study) -> list[int]:
        """The points that no trial has, or only ones that failed."""
        # Not `study.get_trials`: those that Hyperband shows a sampler are not all.
        trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
        taken = {one.system_attrs.get("grid_id") for one in trials if one.state is not _FAIL}
        return [number for number in range(len(self._all_grids)) if number not in taken]


class _Lock(JournalFileOpenLock):
    """A lock of the journal that dies with its process; Optuna's own stay for half a minute."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))

    def acquire(self) -> bool:
        self._lock.acquire()
        with self._path.open("r+b") as file:  # half a line of a killed process would stop all
            content = file.read()
            if content and not content.endswith(b"\n"):
                file.truncate(content.rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        self._lock.release()


def _storage(url: str | None, folder: Path) -> BaseStorage:
    if url is None:
        path = folder / "search.journal"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error}") from error
        return JournalStorage(JournalFileBackend(str(path), _Lock(path)))
    try:
        return RDBStorage(url)
    except Exception as error:  # of any database driver
        kind = url.partition(":")[0]  # the rest may hold a password
        raise UsageError(
            f"--storage {kind}:...: cannot be opened ({type(error).__name__}); it must be a URL of "
            "SQLAlchemy's, e.g. sqlite:///trials.db, and its driver installed"
        ) from error
