"""A study -> its runs, trained by this worker and by all others that have the same runs folder."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from stl10bench.config import Limits
from stl10bench.core.device import choose_device, set_threads
from stl10bench.core.errors import UsageError
from stl10bench.data.load import open_data
from stl10bench.data.stl10 import Dataset
from stl10bench.studies import place, plan, record, workers
from stl10bench.studies.channel import Channel
from stl10bench.studies.hands import Hands
from stl10bench.studies.jobs import command_line
from stl10bench.studies.ledger import Ledger
from stl10bench.studies.plan import Planned, Start
from stl10bench.studies.progress import Board
from stl10bench.studies.ranking import Trained
from stl10bench.studies.record import Record
from stl10bench.studies.study import Point, Study

_OF_STACK = ("dataset", "data_dir", "verify", "runs_dir", "tracker", "plugin")
_NOT_OF_STACK = ("compile", "deterministic", *(Limits.model_fields.keys() - {"timeout_minutes"}))
_OF_TRAIN = (*_OF_STACK, "compile", "deterministic", *Limits.model_fields)


class Sweep(NamedTuple):
    """A study on some data: what is to be trained, and where."""

    study: Study
    start: Start
    options: Mapping[str, Any]  # of `train`: where and how, nothing that decides a run's numbers
    data: Dataset
    device: str
    planned: list[Planned]
    record: Record

    @property
    def runs_dir(self) -> Path:
        return Path(self.options["runs_dir"])


def prepare(
    study: Study,
    points: Sequence[Point],
    start: Start,
    options: Mapping[str, Any],
    console: Console,
) -> Sweep:
    """Open the data and name the runs; says when the study is not what it was when it last ran."""
    data = open_data(
        options["dataset"],
        options["data_dir"],
        download=options["download"],
        verify=options["verify"],
        console=console,
    )
    kind = choose_device(options["device"])
    planned = plan.plan(study, points, start, data, kind)
    base = plan.base(study, start, data, kind)
    made = record.make(study, planned, data=data.fingerprint, dataset=data.name, base=base)
    runs_dir = Path(options["runs_dir"])
    old = record.read(runs_dir, study.name)
    if old is not None and (note := record.changes(old, made, runs_dir)):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    return Sweep(study, start, options, data, kind, planned, made)


def train(sweep: Sweep, console: Console, *, stack: bool, ddp: bool) -> list[Trained]:
    """Train what is missing of a grid; returns what there is of each run then.

    Options that a stack cannot honour have each run trained on its own.

    The first worker of a launcher waits for what others have in hand, the others do not. Raises
    InterruptedRunError, StorageError, and UsageError for `ddp` without a launcher.
    """
    with made_hands(sweep, ddp=ddp) as hands:
        if hands.follows:
            hands.follow()
            return []
        main = hands.place.is_main
        if main:
            record.write(sweep.runs_dir, sweep.record)
        configs = {one.config.name: one.config for one in sweep.planned if one.config is not None}
        book = Ledger(sweep.runs_dir, configs)
        # A stack trains in the plain loop alone, without checkpoints, and nobody shares it.
        given = [sweep.options[key] for key in _NOT_OF_STACK]
        asked = [one is not None and one is not False for one in given]
        plain = not (any(asked) or ddp)
        with Board(sweep.study.name, sweep.planned, book, console) as board:
            workers.work(
                *(sweep.planned, book, hands, board.tick), wait=main, stack=stack and plain
            )
    return record.trained(sweep.record, sweep.runs_dir, book.settled)


@contextmanager
def made_hands(sweep: Sweep, *, ddp: bool) -> Iterator[Hands]:
    """How this worker trains the study's runs; at the end those that follow are let go."""
    here = place.here()
    if ddp and here.world == 1:
        raise UsageError(
            "--ddp: all processes of a launcher train each run together, and there is none; use "
            "torchrun --nproc_per_node N scripts/sweep.py ... --ddp"
        )
    threads = set_threads(sweep.options["threads"])
    gpus = 0
    if sweep.device == "cuda":
        from torch import cuda

        gpus = cuda.device_count()
    machine = {"device": sweep.device, "threads": threads}
    of_train, of_stack = (
        tuple(command_line({key: sweep.options[key] for key in keys} | machine))
        for keys in (_OF_TRAIN, _OF_STACK)
    )
    hands = Hands(
        study=sweep.study.name,
        for_train=of_train,
        for_stack=("--recipe", sweep.study.recipe, *of_stack),
        logs=record.folder(sweep.runs_dir, sweep.study.name) / "log",
        place=here,
        threads=threads,
        gpus=gpus,
        channel=Channel(here) if ddp else None,
    )
    try:
        yield hands
    finally:
        if hands.channel is not None and here.is_main:
            hands.channel.end()
