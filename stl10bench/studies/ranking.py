"""The rows of a study -> its settings in order, each with a verdict."""

import statistics
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

from stl10bench.metrics.significance import (
    SIGNIFICANCE,
    Sample,
    holm,
    pooled_variance,
    samples_p_value,
    wilson_interval,
)
from stl10bench.results.rows import Failure, Row

BEST, TIED, WORSE = "best", "tied", "worse"


class Trained(NamedTuple):
    """A run of a study as the ranking sees it: what was varied, and its row or why it has none.

    None stands for a run that is still to do.
    """

    labels: tuple[str, ...]
    seed: int
    run: str | None
    val_images: int
    row: Row | Failure | None


class Place(NamedTuple):
    """Where a setting stands. Accuracies are 0..1; what cannot be known is None."""

    labels: tuple[str, ...]
    sample: Sample | None  # of its finished runs
    asked: int  # runs
    test_accuracy: float | None  # the mean; no verdict depends on it
    missing: int  # runs still to do; a run that failed or diverged is done
    behind: float | None  # of the best one's validation accuracy
    p: float | None  # against the best, Holm-corrected
    verdict: str
    at_chance: bool  # the 95 % interval of its validation accuracy reaches 1 / classes

    @property
    def is_whole(self) -> bool:
        """Whether all of its runs are finished."""
        return self.sample is not None and len(self.sample.accuracies) == self.asked


def rank(trained: Sequence[Trained]) -> list[Place]:
    """The settings by their seeds' mean validation accuracy; those that lack runs come last.

    Each is compared with the best by `samples_p_value`, corrected for all pairs of settings, since
    any of them could have come out best (Holm 1979).
    One that lacks runs has no such verdict, but says why: runs that diverged are a result, too.
    """
    settings: dict[tuple[str, ...], list[Trained]] = {}
    for run in trained:
        settings.setdefault(run.labels, []).append(run)
    places = [_place(labels, group) for labels, group in settings.items()]
    places.sort(key=lambda place: (not place.is_whole, -_mean(place)))
    if not places or not places[0].is_whole:
        return places
    best, *others = [place for place in places if place.is_whole]
    samples = tuple(place.sample for place in (best, *others) if place.sample is not None)
    judged = {best.labels: best._replace(verdict=BEST, behind=0.0)}
    for place, p in zip(others, _p_values(samples), strict=True):
        verdict = TIED if p >= SIGNIFICANCE else WORSE
        behind = _mean(best) - _mean(place)
        judged[place.labels] = place._replace(verdict=verdict, behind=behind, p=p)
    return [judged.get(place.labels, place) for place in places]


@lru_cache(8)  # a table, a page and figures ask for the same; of 666 settings it takes a second
def _p_values(samples: tuple[Sample, ...]) -> list[float]:
    """Of each sample but the first against the first, Holm-corrected for all pairs of them."""
    seeds = pooled_variance(samples)
    pairs = [samples_p_value(*pair, seeds) for pair in combinations(samples, 2)]
    return holm(pairs)[: len(samples) - 1]  # the first pairs are those with the first


def _mean(place: Place) -> float:
    return -1.0 if place.sample is None else place.sample.mean


def _place(labels: tuple[str, ...], group: Sequence[Trained]) -> Place:
    finished = [(run, run.row) for run in group if isinstance(run.row, Row)]
    sample = test = None
    at_chance = False
    if finished:
        accuracies = tuple(row.val_accuracy or 0.0 for _, row in finished)
        sample = Sample(accuracies, sum(run.val_images for run, _ in finished))
        test = statistics.fmean(row.test_accuracy for _, row in finished)
        classes = max(len(row.per_class_accuracy or ()) for _, row in finished)
        low, _ = wilson_interval(sample.mean, sample.images)
        at_chance = classes > 0 and low <= 1 / classes
    missing = sum(run.row is None for run in group)
    return Place(labels, sample, len(group), test, missing, None, None, _why(group), at_chance)


def _why(group: Sequence[Trained]) -> str:
    """What became of the runs of a setting that are not finished."""
    reasons: dict[str, list[str]] = {}
    for run in group:
        if run.row is None:
            reasons.setdefault("missing", []).append("")
        elif isinstance(run.row, Failure):
            reasons.setdefault(run.row.state, []).append(run.row.error)
    parts = []
    for state, texts in reasons.items():
        count = "" if len(texts) == len(group) else f"{len(texts)} of {len(group)} "
        parts.append(texts[0] if state == "pruned" else f"{count}{state}")
        if state in ("failed", "damaged"):
            parts[-1] += f": {texts[0]}"
    return "; ".join(parts)
