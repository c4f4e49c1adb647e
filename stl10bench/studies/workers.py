"""Planned runs -> trained ones, each by one of any number of workers that share a runs folder.

A worker takes the next run that is open, nobody's and not failed in its own hands, and trains it in
a child process. What it knows of the others is what lies in the runs folder, so that workers may
come, go and be killed at any time, on any machine that sees the folder.
"""

import json
import time
from collections.abc import Callable, Sequence

from stl10bench.studies import ledger
from stl10bench.studies.hands import Hands
from stl10bench.studies.jobs import BUSY
from stl10bench.studies.ledger import Ledger
from stl10bench.studies.plan import Planned
from stl10bench.training import stack

_PAUSE = 1.0  # seconds between two looks at what others have in hand
_STACKED = ("logistic", "mlp")  # models for which augmentation is most of the work
_HIGHEST = 8  # members of a stack


def work(
    planned: Sequence[Planned],
    book: Ledger,
    hands: Hands,
    tick: Callable[[], None],
    *,
    wait: bool = True,
    stack: bool = True,
) -> None:
    """Train what is open in `book` until nothing is, or nothing but what others have in hand.

    For those it waits with `wait`, and takes them over when their workers die; `tick` is called
    now and then. Small models are stacked with `stack`. Raises InterruptedRunError.
    """
    by_name = {one.config.name: one for one in planned if one.config is not None}
    groups = stacks(book) if stack else []
    stacked = {name for group in groups for name in group}
    groups += [[name] for name in book.open if name not in stacked]
    start = hands.place.rank * len(groups) // hands.place.world  # so that they seldom collide
    while True:
        moved = False
        for group in groups[start:] + groups[:start]:
            moved |= _take([by_name[name] for name in group], book, hands, tick)
        if not (wait and book.open):
            return
        if not moved:
            tick()
            time.sleep(_PAUSE)


def stacks(book: Ledger) -> list[list[str]]:
    """The open runs that nobody has begun and that can share their batches, in groups."""

    alike: dict[str, list[str]] = {}
    for name in book.open:
        config = book.configs[name]
        if config.model in _STACKED and not (book.runs_dir / name).exists():
            shared = json.dumps(config.model_dump(mode="json", exclude=stack.OWN), sort_keys=True)
            alike.setdefault(shared, []).append(name)
    groups = [
        names[start : start + _HIGHEST]
        for names in alike.values()
        for start in range(0, len(names), _HIGHEST)
    ]
    return [group for group in groups if len(group) > 1]


def _take(group: Sequence[Planned], book: Ledger, hands: Hands, tick: Callable[[], None]) -> bool:
    """Train what of a group is open and nobody's; whether any of it was settled by that."""
    by_name = {one.config.name: one for one in group if one.config is not None}

    def watch() -> bool:
        tick()
        return False

    names = [name for name in by_name if not book.look(name)]
    with ledger.claimed(book.runs_dir, names) as ours:
        ours = [name for name in ours if not book.look(name)]  # one may have ended before the claim
        if len(ours) > 1:
            _train_stack([by_name[name] for name in ours], hands, watch)
        for name in [name for name in ours if not book.look(name)]:  # the rest of a failed stack
            one = by_name[name]
            code, answer = hands.train(
                name, one.trial.model, one.trial.arguments, one.point.labels, watch
            )
            if code != BUSY and not book.look(name):
                book.fail(name, str(answer.get("error", "it left no row")))
        tick()
        return any(name in book.settled for name in ours)


def _train_stack(members: Sequence[Planned], hands: Hands, watch: Callable[[], bool]) -> None:
    """Train members of a stack in one child; what it does not finish is left open."""
    settings = [{**one.point.settings, "seed": one.point.seed} for one in members]
    first = members[0]
    assert first.config is not None
    hands.train_stack(f"{first.config.name}-stack", first.trial.model, json.dumps(settings), watch)
