"""A study that ran -> its figures: curves, what each setting reaches, a map of two factors."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from stl10bench import history
from stl10bench.errors import BenchError
from stl10bench.plots import figures
from stl10bench.studies import findings, maps, noise, ranking
from stl10bench.studies.panels import Histories, Labels, overview, panels
from stl10bench.studies.plotstyle import Band, short
from stl10bench.studies.ranking import Place, Trained
from stl10bench.studies.record import Record


def write(folder: Path, record: Record, trained: Sequence[Trained], runs_dir: Path) -> list[Path]:
    """Draw a study as PNG and SVG into `folder`; returns the files.

    One factor: curves of accuracy and loss and what each value reaches. Two: a panel of curves for
    each value of the second, and a heat map. More: what each setting reaches. A search: its course,
    and what it reached over each factor. Raises StorageError.
    """
    name, factors = record.study.name, list(record.study.vary)
    title = findings.title(record, trained)
    places = ranking.rank(trained)
    histories = _histories(trained, runs_dir)
    base = next((tuple(e.labels) for e in record.runs if e.run and e.run == record.base), None)
    band = _band(places, base)
    written = []
    with figures.look():
        made: dict[str, Figure] = {}
        if not record.study.is_grid:
            made[name] = maps.search(title, record.study, trained, band)
        elif len(factors) == 2:
            made[name] = panels(title, factors, histories, band)
            made[f"{name}-map"] = maps.heat_map(title, factors, trained, places)
        else:
            made[name] = overview(title, histories, places, band)
        for stem, figure in made.items():
            for suffix in ("png", "svg"):
                written.append(folder / f"{stem}.{suffix}")
                figures.save(figure, written[-1])
    return written


def _histories(trained: Sequence[Trained], runs_dir: Path) -> Histories:
    """The epochs of each setting's runs, those that diverged included, in the study's order."""
    found: Histories = {}
    for one in trained:
        group = found.setdefault(one.labels, [])
        if one.run is None or one.row is None:
            continue
        try:
            group.append(history.read(runs_dir / one.run))
        except BenchError as error:
            warnings.warn(f"no curve of {one.run}: {error}", stacklevel=2)
    return found


def _band(places: Sequence[Place], base: Labels | None) -> Band | None:
    """Between which accuracies a setting cannot be told from the base, or else from the best."""
    whole = [place for place in places if place.is_whole]
    chosen = next((place for place in whole if place.labels == base), None)
    what = "base"
    if chosen is None and whole:
        chosen, what = whole[0], "best"
    if chosen is None or chosen.sample is None:
        return None
    mean, least = (
        chosen.sample.mean,
        noise.least(chosen.sample, noise.pooled([place.sample for place in whole if place.sample])),
    )
    return Band(mean - least, mean + least, f"noise around the {what} ({short(chosen.labels)})")
