"""A study's runs -> pictures: curves for each value, what they reach, and a heat map of two."""

import io
import math
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from stl10bench import epochs, files, findings, noise, ranking
from stl10bench.errors import BenchError
from stl10bench.escaping import clean
from stl10bench.ranking import Place, Trained
from stl10bench.record import Record

DPI = 100
GREY, BAND = "#555555", "#dddddd"
# Petroff 2021, "Accessible color sequences for data visualization"
COLOURS = matplotlib.color_sequences["petroff10"]
_LONGEST = 28  # characters of a label
_MOST_POINTS = 40  # settings in one panel
Labels = tuple[str, ...]
Histories = dict[Labels, list[list[dict[str, Any]]]]  # of each setting, each run, each epoch


@contextmanager
def look() -> Iterator[None]:
    """Draw with matplotlib's own defaults and these settings, then restore the user's."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "font.size": 9,
                "text.parse_math": False,
                "svg.hashsalt": "stl10bench",  # else ids are random
                "axes.prop_cycle": cycler(color=COLOURS),
                "axes.spines.top": False,
                "axes.spines.right": False,
                "legend.frameon": False,
            }
        )
        yield


def write(folder: Path, record: Record, trained: Sequence[Trained], runs_dir: Path) -> list[Path]:
    """Draw a study as PNG and SVG into `folder`; returns the files.

    One factor: curves of accuracy and loss and what each value reaches. Two: a panel of curves for
    each value of the second, and a heat map. More: what each setting reaches. Raises StorageError.
    """
    name, factors = record.study.name, list(record.study.vary)
    title = findings.title(record, trained)
    places = ranking.rank(trained)
    histories = _histories(trained, runs_dir)
    base = next((tuple(e.labels) for e in record.runs if e.run and e.run == record.base), None)
    band = _band(places, base)
    written = []
    with look():
        figures: dict[str, Figure] = {}
        if len(factors) == 2:
            figures[name] = _panels(title, factors, histories, band)
            figures[f"{name}-map"] = _heat_map(title, factors, trained, places)
        else:
            figures[name] = _overview(title, histories, places, band)
        for stem, figure in figures.items():
            for suffix in ("png", "svg"):
                written.append(folder / f"{stem}.{suffix}")
                files.write(written[-1], _drawn(figure, suffix))
    return written


def _drawn(figure: Figure, suffix: str) -> bytes:
    """The same figure, the same bytes."""
    buffer = io.BytesIO()
    metadata: Any = {"Date": None} if suffix == "svg" else None
    figure.savefig(buffer, format=suffix, dpi=DPI, metadata=metadata)
    return buffer.getvalue()


def _histories(trained: Sequence[Trained], runs_dir: Path) -> Histories:
    """The epochs of each setting's runs, those that diverged included, in the study's order."""
    found: Histories = {}
    for one in trained:
        group = found.setdefault(one.labels, [])
        if one.run is None or one.row is None:
            continue
        try:
            group.append(epochs.read(runs_dir / one.run))
        except BenchError as error:
            warnings.warn(f"no curve of {one.run}: {error}", stacklevel=2)
    return found


def _band(places: Sequence[Place], base: Labels | None) -> tuple[float, float, str] | None:
    """Between which accuracies a setting cannot be told from the base, or else from the best."""
    whole = [place for place in places if place.is_whole]
    chosen = next((place for place in whole if place.labels == base), None)
    what = "base"
    if chosen is None and whole:
        chosen, what = whole[0], "best"
    if chosen is None or chosen.sample is None:
        return None
    mean, least = chosen.sample.mean, noise.least(chosen.sample)
    return mean - least, mean + least, f"noise around the {what} ({_short(chosen.labels)})"


def _short(labels: Sequence[str]) -> str:
    text = clean(", ".join(labels))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _curves(
    axes: Axes,
    metric: str,
    colours: Mapping[Labels, Any],
    histories: Histories,
) -> None:
    """A line for each setting, hold-out solid and training dashed, from lowest to highest seed."""
    for labels, colour in colours.items():
        for split in ("train", "val"):
            logged = [history for history in histories[labels] if history]
            longest = max(map(len, logged), default=0)
            columns = [
                [epochs.number(h[at], f"{split}/{metric}") for h in logged if at < len(h)]
                for at in range(longest)
            ]
            finite = [[value for value in column if math.isfinite(value)] for column in columns]
            points = [(at, values) for at, values in enumerate(finite, 1) if values]
            if not points:
                continue
            xs = [at for at, _ in points]
            style = {"val": "-", "train": "--"}[split]
            marker = "o" if len(xs) == 1 else ""
            means = [statistics.fmean(values) for _, values in points]
            axes.plot(
                xs,
                means,
                style,
                color=colour,
                linewidth=1.6 if split == "val" else 1,
                marker=marker,
                markersize=3,
            )
            if split == "val" and len(logged) > 1:
                low, high = [min(v) for _, v in points], [max(v) for _, v in points]
                axes.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="#eeeeee", linewidth=0.6)
    axes.set_axisbelow(True)
    if metric == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1))


def _shade(axes: Axes, band: tuple[float, float, str] | None, *, upright: bool = False) -> None:
    if band is not None:
        (axes.axvspan if upright else axes.axhspan)(*band[:2], color=BAND, zorder=0)


def _overview(
    title: str,
    histories: Histories,
    places: Sequence[Place],
    band: tuple[float, float, str] | None,
) -> Figure:
    curves = len(histories) <= len(COLOURS)
    shown = min(len(places), _MOST_POINTS)
    figure = Figure(
        figsize=(11 if curves else 6, max(3.6, 1.2 + 0.28 * shown)), layout="constrained"
    )
    figure.suptitle(clean(title), size=10)
    colours: Mapping[Labels, Any] = dict.fromkeys(histories, GREY)
    if curves:
        colours = dict(zip(histories, COLOURS, strict=False))
        accuracy, loss, reached = figure.subplots(1, 3, width_ratios=(1, 1, 1.1))
        _curves(accuracy, "accuracy", colours, histories)
        _shade(accuracy, band)
        accuracy.set_title("accuracy", size=9)
        _curves(loss, "loss", colours, histories)
        loss.set_title("loss", size=9)
        _limit_loss(loss)
    else:
        reached = figure.subplots()
    _reached(reached, places[:shown], colours)
    _shade(reached, band, upright=True)
    _legend(figure, band, curves=curves)
    return figure


def _limit_loss(axes: Axes) -> None:
    """Logarithmic where the losses of a setting explode, else all others lie on one line."""
    low, high = axes.dataLim.y0, axes.dataLim.y1
    if low > 0 and high > 10 * low:
        axes.set_yscale("log")


def _reached(axes: Axes, places: Sequence[Place], colours: Mapping[Labels, Any]) -> None:
    """The hold-out accuracy of each setting's best epochs: a dot for each seed, a bar the mean."""
    for at, place in enumerate(places):
        if place.sample is None:
            continue
        colour = colours[place.labels]
        axes.plot(
            place.sample.accuracies,
            [at] * len(place.sample.accuracies),
            "o",
            color=colour,
            alpha=0.6,
            markersize=4,
        )
        axes.plot([place.sample.mean], [at], "|", color=colour, markersize=16, markeredgewidth=2)
    names = []
    for place in places:
        mark = {ranking.TIED: " ≈", ranking.BEST: " *"}.get(place.verdict, "")
        names.append(
            _short(place.labels) + (mark if place.is_whole else f" ({place.verdict[:18]})")
        )
    axes.set_yticks(range(len(places)), ["?"] * len(places))
    for tick, name in zip(axes.get_yticklabels(), names, strict=True):
        tick.set_text(name)
    axes.set_yticks(range(len(places)), names)
    axes.set_ylim(len(places) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_title("best epoch, hold-out (* best, ≈ not distinguishable)", size=9)
    axes.grid(axis="x", color="#eeeeee", linewidth=0.6)
    axes.set_axisbelow(True)


def _panels(
    title: str,
    factors: Sequence[str],
    histories: Histories,
    band: tuple[float, float, str] | None,
) -> Figure:
    """A panel for each value of the second factor, a line for each of the first."""
    lines, values = (list(dict.fromkeys(labels[at] for labels in histories)) for at in (0, 1))
    columns = min(3, len(values))
    rows = -(-len(values) // columns)
    figure = Figure(figsize=(3.4 * columns, 0.9 + 2.3 * rows), layout="constrained")
    figure.suptitle(clean(title), size=10)
    axes = figure.subplots(rows, columns, sharey=True, sharex=True, squeeze=False).flat
    colours = dict(zip(lines, [*COLOURS] * (1 + len(lines) // len(COLOURS)), strict=False))
    for value, panel in zip(values, axes, strict=False):
        chosen = {labels: colours[labels[0]] for labels in histories if labels[1] == value}
        _curves(panel, "accuracy", chosen, histories)
        _shade(panel, band)
        panel.set_title(f"{clean(factors[1])} = {_short([value])}", size=9)
    for panel in list(axes)[len(values) :]:
        panel.set_axis_off()
    handles = [Line2D([], [], color=colours[line], linewidth=3) for line in lines]
    made = figure.legend(
        handles, ["?"] * len(lines), loc="outside right upper", title=clean(factors[0])
    )
    for text, line in zip(made.get_texts(), lines, strict=True):
        text.set_text(_short([line]))
    _legend(figure, band, curves=True)
    return figure


def _legend(figure: Figure, band: tuple[float, float, str] | None, *, curves: bool) -> None:
    handles: list[Line2D | Patch] = []
    names = []
    if curves:
        handles = [
            Line2D([], [], color=GREY, linewidth=1.6),
            Line2D([], [], color=GREY, linestyle="--", linewidth=1),
        ]
        names = ["hold-out (band: lowest to highest seed)", "training, augmented"]
    if band is not None:
        handles.append(Patch(color=BAND))
        names.append(band[2])
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8)


def _heat_map(
    title: str, factors: Sequence[str], trained: Sequence[Trained], places: Sequence[Place]
) -> Figure:
    """The mean hold-out accuracy of each pair; * marks the best, ≈ what cannot be told from it."""
    lines, values = (list(dict.fromkeys(one.labels[at] for one in trained)) for at in (0, 1))
    by_labels = {place.labels: place for place in places}
    means = [
        [
            place.sample.mean
            if (place := by_labels.get((line, value))) is not None and place.sample is not None
            else math.nan
            for value in values
        ]
        for line in lines
    ]
    figure = Figure(
        figsize=(1.9 + 0.75 * len(values), 1.5 + 0.42 * len(lines)), layout="constrained"
    )
    axes = figure.subplots()
    image = axes.imshow(means, cmap="cividis", aspect="auto")
    for y, line in enumerate(lines):
        for x, value in enumerate(values):
            place = by_labels.get((line, value))
            if place is None:
                continue
            axes.text(
                x,
                y,
                _cell(place),
                ha="center",
                va="center",
                size=8,
                color=_ink(means[y][x], *image.get_clim()),
            )
    axes.set_xticks(range(len(values)), [_short([v]) for v in values])
    axes.set_yticks(range(len(lines)), [_short([v]) for v in lines])
    axes.set_xlabel(clean(factors[1]))
    axes.set_ylabel(clean(factors[0]))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title(f"{clean(title)}\nhold-out accuracy (* best, ≈ not distinguishable)", size=9)
    return figure


def _cell(place: Place) -> str:
    if not place.is_whole:
        return "diverged" if "diverged" in place.verdict else "-"
    assert place.sample is not None
    mark = {ranking.TIED: "≈", ranking.BEST: "*"}.get(place.verdict, "")
    return f"{100 * place.sample.mean:.1f}{mark}"


def _ink(value: float, low: float, high: float) -> str:
    """Black or white, whichever can be read on a cell of the colour map."""
    return "white" if value < low + 0.55 * (high - low) else "black"
