"""A study's rows and its runs' histories -> its figures: curves, a heat map, a search."""

import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import accumulate, cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from stl10bench.core.console import clean
from stl10bench.core.errors import BenchError
from stl10bench.metrics.significance import least_significant_difference, pooled_variance
from stl10bench.plots import style
from stl10bench.plots.budgets import over_labels
from stl10bench.plots.curves import draw_mean_curves
from stl10bench.plots.style import Look, Wording
from stl10bench.results import history
from stl10bench.results.columns import plain
from stl10bench.results.history import History
from stl10bench.results.rows import Row
from stl10bench.results.run_folder import RunFolder
from stl10bench.studies import ranking, summary
from stl10bench.studies.ranking import Place, Trained
from stl10bench.studies.record import Record
from stl10bench.studies.study import Range, Study

_MAX_RANKED = 40  # settings in one panel
_LABEL = 1.9  # inches, of a setting's name
_COLUMN = 0.7, 1.5  # inches, the narrowest and the widest column of a heat map
_MARKS = {ranking.BEST: " *", ranking.TIED: " ≈"}
_MARKS_EXPLAINED = "* best, ≈ tied with it."
_NAMES = {"lr": "learning rate", "hidden": "hidden layers", "freeze": "frozen backbone"}

Labels = tuple[str, ...]  # a setting: the value of each factor, as text


class Band(NamedTuple):
    """The validation accuracies, 0..1, that differ from one setting's by no more than noise."""

    low: float
    high: float
    name: str


class Results(NamedTuple):
    """What the figures of a study show."""

    title: str
    factors: tuple[str, ...]
    histories: Mapping[Labels, Sequence[History]]  # of each setting's runs, in the study's order
    ranking: Sequence[Place]  # best first
    band: Band | None
    note: str = ""  # on the noise: what the band is, or why there is none

    def values(self, factor: int) -> list[str]:
        """The values of a factor, in the study's order."""
        return list(dict.fromkeys(labels[factor] for labels in self.histories))


def factor_name(setting: str) -> str:
    """A setting as a reader calls it: lr is the learning rate."""
    return clean(_NAMES.get(setting, setting.replace("_", " ")))


def shown(label: str) -> str:
    """The value of a factor as tables show numbers: 1e-4, for 0.0001 as for 1e-04."""
    try:
        number = float(label)
    except ValueError:
        return clean(label)
    return plain(number) if 0 < abs(number) < 1e-3 else clean(label)


@style.figure_style()
def write(
    folder: Path,
    record: Record,
    trained: Sequence[Trained],
    runs_dir: Path,
    look: Look = style.PLAIN_LOOK,
) -> list[Path]:
    """Draw a study as PNG and SVG into `folder`; returns the files.

    One factor: curves of accuracy and loss and what each value reaches. Two: a panel of curves for
    each value of the second, and a heat map. More: what each setting reaches. A search: its course,
    and what it reached over each factor. Raises StorageError.
    """
    study, title, words = record.study, summary.title(record, trained), look.wording
    if study.over_labels:
        return _save(folder, {study.name: over_labels(title, study, trained, words)}, look.dpi)
    results = read_results(record, trained, runs_dir)
    if not study.is_grid:
        figures = {study.name: search(results, study, trained, words)}
    elif len(results.factors) == 2:
        curves, cells = panels(results, words), heat_map(results, words)
        figures = {study.name: curves, f"{study.name}-map": cells}
    else:
        figures = {study.name: overview(results, words)}
    return _save(folder, figures, look.dpi)


def read_results(record: Record, trained: Sequence[Trained], runs_dir: Path) -> Results:
    """What the figures of a study show; a run whose log cannot be read gives a warning."""
    places = ranking.rank(trained)
    base = next((tuple(e.labels) for e in record.runs if e.run and e.run == record.base), None)
    histories, noise = _read_histories(trained, runs_dir), _noise_band(places, base)
    title, factors = summary.title(record, trained), tuple(map(factor_name, record.study.vary))
    return Results(title, factors, histories, places, *noise)


def _save(folder: Path, figures: Mapping[str, Figure], dpi: int) -> list[Path]:
    paths = {folder / f"{stem}.{suffix}": stem for stem in figures for suffix in ("png", "svg")}
    for path, stem in paths.items():
        style.save(figures[stem], path, dpi)
    return list(paths)


def _read_histories(trained: Sequence[Trained], runs_dir: Path) -> dict[Labels, list[History]]:
    """The epochs of each setting's runs, those that diverged included, in the study's order."""
    histories: dict[Labels, list[History]] = {}
    for run in trained:
        group = histories.setdefault(run.labels, [])
        if run.run is None or run.row is None:
            continue
        try:
            group.append(history.read(RunFolder(runs_dir / run.run)))
        except BenchError as error:
            warnings.warn(f"no curve for {run.run}: {error}", stacklevel=2)
    return histories


def _noise_band(places: Sequence[Place], base: Labels | None) -> tuple[Band | None, str]:
    """What cannot be told from the base, or from the best where the base lacks runs; and a note.

    There is no band where it would cover all settings, as with one seed it often does. Not
    corrected for several comparisons, as the ranking is: what is tied may lie outside.
    """
    samples = {place.labels: place.sample for place in places if place.is_whole and place.sample}
    if not samples:
        return None, ""
    labels, role = (base, "base") if base in samples else (next(iter(samples)), "best")
    assert labels is not None
    sample = samples[labels]
    least = least_significant_difference(sample, pooled_variance(list(samples.values())))
    note = ""
    if len(sample.accuracies) == 1:
        note = f" One seed: the noise is that of the {sample.images:,} validation images alone."
    if len(samples) > 1 and all(abs(x.mean - sample.mean) <= least for x in samples.values()):
        return None, f"No setting differs from the {role} by more than noise (±{least:.3f}).{note}"
    name = f"noise around the {role} ({', '.join(map(shown, labels))})"
    return Band(sample.mean - least, sample.mean + least, name), note.lstrip()


def overview(results: Results, wording: Wording = style.AS_IT_IS) -> Figure:
    """Curves of accuracy and loss, where the colours suffice, and what each setting reaches."""
    shown = results.ranking[:_MAX_RANKED]
    has_curves = len(results.histories) <= len(style.COLOURS)
    palette = style.COLOURS if has_curves else (style.GREY,) * len(results.histories)
    colours = dict(zip(results.histories, palette, strict=False))
    names = [_row_name(place) for place in shown]
    lines = sum(1 + name.count("\n") for name in names)
    figure = Figure(figsize=(11.5 if has_curves else 7, max(3.2, 1.2 + 0.2 * lines)))
    *curves, reached = figure.subplots(1, 3 if has_curves else 1, squeeze=False)[0]
    for axes, metric in zip(curves, ("accuracy", "loss"), strict=False):
        _draw_curves(axes, metric, colours, results)
    _draw_ranking(reached, shown, names, colours)
    reached.set_ylabel(", ".join(results.factors))
    if results.band is not None:
        reached.axvspan(results.band.low, results.band.high, color=style.LIGHT_GREY, zorder=0)
    _explain_lines(figure, results, has_curves=has_curves)
    more = len(results.ranking) - len(shown)
    left_out = f"The best {len(shown)} settings; {more} more are left out. " if more else ""
    explained = "Dots: seeds; bar: their mean. " if _seeds(results) > 1 else ""
    caption = f"{left_out}{explained}{_MARKS_EXPLAINED} {results.note}"
    style.frame(figure, results.title, caption, wording)
    return figure


def panels(results: Results, wording: Wording = style.AS_IT_IS) -> Figure:
    """A panel for each value of the second factor, a line for each of the first."""
    lines, values = results.values(0), results.values(1)
    columns = min(3, len(values))
    rows = math.ceil(len(values) / columns)
    figure = Figure(figsize=(2.9 * columns + 2, 0.6 + 2.3 * rows))
    axes = figure.subplots(rows, columns, sharey=True, sharex=True, squeeze=False).ravel()
    colours = dict(zip(lines, cycle(style.COLOURS), strict=False))
    for panel, value in zip(axes, values, strict=False):
        drawn = {labels: colours[labels[0]] for labels in results.histories if labels[1] == value}
        title = f"{results.factors[1]} = {shown(value)}"
        panel.set_title("\n".join(style.wrapped(title, 2.4)))
        _draw_curves(panel, "accuracy", drawn, results)
        panel.label_outer()
    for number in range(len(values), len(axes)):
        axes[number].set_axis_off()
        axes[number - columns].tick_params(labelbottom=True)  # the lowest of its column
        axes[number - columns].set_xlabel("epoch")
    handles = [Line2D([], [], color=colours[line], linewidth=3) for line in lines]
    style.legend(figure, handles, list(map(shown, lines)), "center right", title=results.factors[0])
    _explain_lines(figure, results, has_curves=True)
    style.frame(figure, results.title, results.note, wording)
    return figure


def heat_map(results: Results, wording: Wording = style.AS_IT_IS) -> Figure:
    """The mean validation accuracy of each pair of values; * marks the best, ≈ what is tied."""
    rows, columns = results.values(0), results.values(1)
    cells = {}
    means = np.full((len(rows), len(columns)), np.nan)
    for place in results.ranking:
        cell = rows.index(place.labels[0]), columns.index(place.labels[1])
        cells[cell] = place
        means[cell] = place.sample.mean if place.sample else np.nan
    row_names = ["\n".join(style.wrapped(shown(row), _LABEL)) for row in rows]
    lines = sum(1 + name.count("\n") for name in row_names)
    narrowest, widest = _COLUMN
    longest = max(style.text_width(clean(column)) for column in columns) + 0.15
    width = min(max(narrowest, longest), widest)
    height = 0.8 + max(0.3 * len(rows), 0.2 * lines)
    figure = Figure(figsize=(max(4.6, 2.6 + width * len(columns)), height))
    axes = figure.subplots()
    image = axes.imshow(means, cmap="cividis", aspect="auto")
    low, high = image.get_clim()
    for (y, x), place in cells.items():
        # Cividis is dark up to about half of its range.
        ink = "white" if means[y, x] < low + 0.55 * (high - low) else "black"
        axes.text(x, y, _cell_text(place), ha="center", va="center", size=8, color=ink)
    _name_columns(axes, list(map(shown, columns)), width - 0.1)
    axes.set_yticks(range(len(rows)), row_names)
    axes.set(xlabel=results.factors[1], ylabel=results.factors[0])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    mean = ", mean over the seeds" if _seeds(results) > 1 else ""
    caption = f"Validation accuracy{mean}. {_MARKS_EXPLAINED}"
    style.frame(figure, results.title, caption, wording)
    return figure


def _cell_text(place: Place) -> str:
    if not place.is_whole or place.sample is None:
        return "diverged" if "diverged" in place.verdict else "-"
    return f"{place.sample.mean:.3f}{_MARKS.get(place.verdict, '')}"


def search(
    results: Results, study: Study, trained: Sequence[Trained], wording: Wording = style.AS_IT_IS
) -> Figure:
    """The validation accuracy of each trial in their order, and over the values of each factor."""
    finished = [
        (number, trial.labels, trial.row.val_accuracy)
        for number, trial in enumerate(trained, 1)
        if isinstance(trial.row, Row) and trial.row.val_accuracy is not None
    ]
    numbers, accuracies = [trial[0] for trial in finished], [trial[2] for trial in finished]
    figure = Figure(figsize=(2.8 * (1 + len(study.vary)), 3.2))
    course, *others = figure.subplots(1, 1 + len(study.vary), sharey=True)
    best = list(accumulate(accuracies, max))
    course.step(numbers, best, where="post", color=style.COLOURS[0], linewidth=1.6)
    course.plot(numbers, accuracies, "o", color=style.GREY, markersize=4)
    course.set(xlabel="trial (line: best so far)", ylabel="validation accuracy")
    course.xaxis.set_major_locator(MaxNLocator(integer=True))
    for index, (axes, (name, factor)) in enumerate(zip(others, study.vary.items(), strict=True)):
        values = [labels[index] for _, labels, _ in finished]
        categories = list(dict.fromkeys(values))
        is_range = isinstance(factor, Range)
        xs = [float(value) if is_range else categories.index(value) for value in values]
        axes.plot(xs, accuracies, "o", color=style.COLOURS[0], markersize=4)
        if not is_range:
            _name_columns(axes, categories, 2.1 / max(1, len(categories)))
            axes.margins(x=0.2)
        axes.set_xlabel(factor_name(name))
        if isinstance(factor, Range) and factor.log and xs:
            style.logarithmic(axes, "x")
    for axes in (course, *others):
        _shade(axes, results.band)
    _explain_lines(figure, results, has_curves=False)
    style.frame(figure, results.title, results.note, wording)
    return figure


def _seeds(results: Results) -> int:
    return max((len(runs) for runs in results.histories.values()), default=0)


def _name_columns(axes: Axes, names: Sequence[str], width: float) -> None:
    """Other people's text below x = 0, 1, ..., each in `width` inches."""
    texts = ["\n".join(style.wrapped(name, width, most=5)) for name in names]
    axes.set_xticks(range(len(texts)), texts)


def _shade(axes: Axes, band: Band | None) -> None:
    if band is not None:
        axes.axhspan(band.low, band.high, color=style.LIGHT_GREY, zorder=0)


def _draw_curves(axes: Axes, metric: str, colours: Mapping[Labels, str], results: Results) -> None:
    """The mean over the seeds of each setting, validation shaded from lowest to highest seed."""
    for labels, colour in colours.items():
        draw_mean_curves(axes, results.histories[labels], metric, colour)
    axes.set_ylabel(metric)
    style.over_epochs(axes)
    if metric == "accuracy":
        _shade(axes, results.band)
    else:
        style.scale_values(axes)


def _row_name(place: Place) -> str:
    mark = _MARKS.get(place.verdict, "") if place.is_whole else f" ({place.verdict})"
    return "\n".join(style.wrapped(", ".join(map(shown, place.labels)), _LABEL)) + mark


def _draw_ranking(
    axes: Axes, places: Sequence[Place], names: Sequence[str], colours: Mapping[Labels, str]
) -> None:
    """The validation accuracy of each setting's best epochs: dots the seeds, a bar their mean."""
    for y, place in enumerate(places):
        if place.sample is not None:
            colour, accuracies = colours[place.labels], place.sample.accuracies
            axes.plot(accuracies, [y] * len(accuracies), "o", color=colour, alpha=0.6, markersize=4)
            axes.plot(place.sample.mean, y, "|", color=colour, markersize=16, markeredgewidth=2)
    axes.set_yticks(range(len(places)), names)
    axes.set_ylim(len(places) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("validation accuracy, best epoch")
    axes.grid(visible=False, axis="y")


def _explain_lines(figure: Figure, results: Results, *, has_curves: bool) -> None:
    """A legend below for what has no name of its own: the kinds of lines and the band of noise."""
    handles, names = style.split_handles() if has_curves else ([], [])
    if has_curves and _seeds(results) > 1:
        names[0] = "validation (shaded: lowest to highest seed)"
    if results.band is not None:
        handles, names = [*handles, Patch(color=style.LIGHT_GREY)], [*names, results.band.name]
    columns = 3 if figure.get_figwidth() > 8 else 1
    style.legend(figure, handles, names, "lower center", width=3, ncols=columns)
