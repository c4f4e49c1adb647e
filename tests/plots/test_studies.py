"""A study's figures: their numbers are the runs', and no text is cut off or overlaps."""

import math
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from helpers.pictures import HOSTILE, check_texts
from matplotlib.figure import Figure

from stl10bench.config import make_config
from stl10bench.metrics.significance import Sample
from stl10bench.plots import studies, style
from stl10bench.plots.studies import Band, Results
from stl10bench.results.history import History
from stl10bench.results.rows import Failure, Row
from stl10bench.studies.ranking import Trained, rank
from stl10bench.studies.study import Study

BAND = Band(0.3, 0.5, "noise around the best (a)")
LONG = "a-study-of-many-factors (logistic, quick): drawn images, not STL-10, 1,000 test images"


def trained(*factors: tuple[str, ...], seeds: int = 2) -> list[Trained]:
    """A run for each setting and seed; the accuracy of each next setting is 2 points higher."""
    return [
        Trained(labels, seed, "run", 500, row(0.2 + 0.02 * number + 0.01 * seed))
        for number, labels in enumerate(product(*factors))
        for seed in range(seeds)
    ]


def row(accuracy: float) -> Row:
    config = make_config({"model": "mlp"})
    facts = {"dataset": "demo", "test_accuracy": 0.5, "test_images": 1000}
    return Row(model="mlp", config=config, val_accuracy=accuracy, **facts)


DIVERGED = Failure(model="mlp", error="loss is nan", state="diverged")


def results(*factors: tuple[str, ...], band: Band | None = BAND, seeds: int = 2) -> Results:
    histories = {
        labels: [history(number, seed) for seed in range(seeds)]
        for number, labels in enumerate(product(*factors))
    }
    names = tuple(f"factor {number}" for number in range(len(factors)))
    return Results(LONG, names, histories, rank(trained(*factors, seeds=seeds)), band)


def history(number: int, seed: int) -> History:
    values = {
        "val/accuracy": (0.1 * number, 0.1 * number + 0.1 * seed, 0.5),
        "train/accuracy": (0.25, 0.5, 0.75),
        "val/loss": (2.0, 1.0, 0.5),
        "train/loss": (2.0, 1.0, 0.25),
    }
    return History(f"run-{number}-{seed}", "finished", {}, (1, 2, 3), values)


def drawn(figure: Figure, path: Path) -> Figure:
    """The figure after it is laid out and written; fails where anything lies outside it."""
    style.save(figure, path)
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(box.x0, box.y0, width - box.x1, height - box.y1) > -0.02, "inches"
    return figure


@style.figure_style()
def test_curves_are_the_means_over_the_seeds_and_the_shade_their_extremes(tmp_path: Path) -> None:
    figure = drawn(studies.overview(results(("a", "b"))), tmp_path / "a.png")
    accuracy, loss, reached = figure.axes
    solid = [line for line in accuracy.lines if line.get_linestyle() == "-"]
    assert [np.round(line.get_ydata(), 3).tolist() for line in solid] == [
        *([0.0, 0.05, 0.5], [0.1, 0.15, 0.5])
    ]
    (first, second) = (shade.get_paths()[0].vertices[:, 1] for shade in accuracy.collections)
    assert (first.min(), second.max()) == (0.0, 0.5)
    assert loss.get_ylim()[0] == 0
    assert [text.get_text() for text in reached.get_yticklabels()] == ["b *", "a ≈"]
    dots = [line.get_xdata() for line in reached.lines if line.get_marker() == "o"]
    assert [list(np.round(xs, 3)) for xs in dots] == [[0.22, 0.23], [0.2, 0.21]]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["validation (shaded: lowest to highest seed)", *names[1:2], BAND.name]


@style.figure_style()
def test_a_run_that_diverged_leaves_its_epochs_to_the_others(tmp_path: Path) -> None:
    whole = results(("a",))
    runs = whole.histories[("a",)]
    broken = runs[1]._replace(values={"val/accuracy": (0.5, math.nan)}, epochs=(1, 2))
    shown = whole._replace(histories={("a",): [runs[0], broken]})
    axes = drawn(studies.overview(shown), tmp_path / "a.png").axes[0]
    (line,) = (line for line in axes.lines if line.get_linestyle() == "-")
    assert line.get_ydata() == pytest.approx([0.25, 0.0, 0.5])


@style.figure_style()
def test_more_settings_than_colours_have_a_ranking_alone(tmp_path: Path) -> None:
    settings = tuple(f"setting {number}" for number in range(11))
    (axes,) = drawn(studies.overview(results(settings)), tmp_path / "a.png").axes
    assert len(axes.get_yticklabels()) == 11


@style.figure_style()
def test_each_value_of_the_second_factor_has_a_panel_and_no_panel_is_empty(tmp_path: Path) -> None:
    figure = studies.panels(results(("a", "b"), ("1", "2", "3", "4")))
    shown = [axes for axes in drawn(figure, tmp_path / "a.png").axes if axes.axison]
    assert [axes.get_title() for axes in shown] == [f"factor 1 = {value}" for value in "1234"]
    lowest = [axes.xaxis.get_tick_params()["labelbottom"] for axes in shown]
    assert lowest == [False, True, True, True]
    names, lines = figure.legends
    assert [text.get_text() for text in names.get_texts()] == ["a", "b"]
    assert len(lines.get_texts()) == 3


@style.figure_style()
def test_a_cell_of_the_map_is_the_mean_of_its_setting(tmp_path: Path) -> None:
    figure = drawn(studies.heat_map(results(("a", "b"), ("1", "2", "3"))), tmp_path / "a.png")
    (axes,) = figure.axes
    means = np.asarray(axes.images[0].get_array())
    assert means == pytest.approx(0.205 + 0.02 * np.arange(6).reshape(2, 3))
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells[2, 1] == "0.305 *"
    assert cells[0, 0].startswith("0.205")


@style.figure_style()
def test_a_setting_that_lacks_runs_says_so_in_its_cell(tmp_path: Path) -> None:
    runs = trained(("a",), ("1", "2", "3"))
    runs[0] = runs[0]._replace(row=DIVERGED)
    runs[2] = runs[2]._replace(row=None)
    shown = results(("a",), ("1", "2", "3"))._replace(ranking=rank(runs))
    (axes,) = drawn(studies.heat_map(shown), tmp_path / "a.png").axes
    cells = {text.get_position()[0]: text.get_text() for text in axes.texts}
    assert cells == {0: "diverged", 1: "-", 2: "0.245 *"}


@style.figure_style()
def test_a_search_shows_each_trial_over_each_factor(tmp_path: Path) -> None:
    vary = {"lr": {"low": 1e-5, "high": 0.1, "log": True}, "optimizer": ["adam", "sgd"]}
    study = Study.model_validate({"name": "s", "model": "mlp", "vary": vary})
    runs = trained(("1e-05", "0.001", "0.1"), ("sgd", "adam"), seeds=1)
    runs[1] = runs[1]._replace(row=DIVERGED)
    figure = drawn(studies.search(results(("a",)), study, runs), tmp_path / "a.png")
    course, rate, optimizer = figure.axes
    assert list(course.lines[1].get_xdata()) == [1, 3, 4, 5, 6]
    assert rate.get_xscale() == "log"
    assert list(rate.lines[0].get_xdata()) == [1e-5, 0.001, 0.001, 0.1, 0.1]
    assert list(optimizer.lines[0].get_xdata()) == [0, 0, 1, 0, 1]
    assert [text.get_text() for text in optimizer.get_xticklabels()] == ["sgd", "adam"]
    labels = [text for text in rate.get_xticklabels() if text.get_text()]
    boxes = [text.get_window_extent() for text in labels]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes)), "numbers overlap"


@style.figure_style()
def test_hostile_and_long_values_are_text_that_fits(tmp_path: Path) -> None:
    shown = results(HOSTILE, ("W" * 100, *HOSTILE))
    for figure in (studies.panels(shown), studies.heat_map(shown), studies.overview(shown)):
        drawn(figure, tmp_path / "a.png")
        style.save(figure, tmp_path / "a.svg")
    columns = studies.heat_map(shown).axes[0].get_xticklabels()
    assert [text.get_text() for text in columns][3] == HOSTILE[2]
    assert columns[0].get_text().endswith("W…")


@style.figure_style()
@pytest.mark.parametrize("seeds", [1, 3])
def test_no_text_is_cut_or_lies_on_another_at_any_kind_of_study(seeds: int) -> None:
    names = ("512-256-128", "1024-1024-512-512-256-256-128", "english_springer_and_more")
    one = results((*names, *(f"{name}, again" for name in names)), seeds=seeds)
    two = results(names, (*names, "sgd"), seeds=seeds)
    three = results(names, ("sgd", "adam"), ("0.1", "0.01"), seeds=seeds)
    vary = {"lr": {"low": 1e-5, "high": 0.1, "log": True}, "optimizer": list(names)}
    study = Study.model_validate({"name": "s", "model": "mlp", "vary": vary})
    runs = trained(("1e-05", "0.001", "0.1"), names, seeds=1)
    figures = [studies.overview(one), studies.panels(two), studies.heat_map(two)]
    figures += [studies.overview(three), studies.search(two, study, runs)]
    for figure in figures:
        check_texts(figure)
        assert all(axes.get_ylabel() for axes in figure.axes[:1] if axes.axison)
    assert figures[0].axes[-1].get_ylabel() == "factor 0"
    assert figures[1].legends[0].get_title().get_text() == "factor 0"


def test_the_band_is_around_the_base_or_else_the_best() -> None:
    places = rank(trained(tuple("abcdefgh")))
    around_base, _ = studies._noise_band(places, ("a",))
    around_best, _ = studies._noise_band(places, ("none",))
    assert around_base is not None
    assert around_best is not None
    assert around_base.name == "noise around the base (a)"
    assert around_best.name == "noise around the best (h)"
    for band, mean in ((around_base, 0.205), (around_best, 0.345)):
        assert (band.low + band.high) / 2 == pytest.approx(mean)
    images = 1.96 * math.sqrt(2 * 0.205 * 0.795 / 1000)
    assert around_base.high - 0.205 >= images - 1e-4
    assert studies._noise_band([], None) == (None, "")
    note = "No setting differs from the best by more than noise (±0.051). One seed: the noise is "
    alike = rank(trained(("a", "b"), seeds=1))
    assert studies._noise_band(alike, None)[1].startswith(note), "a band would cover all of it"
    assert isinstance(places[0].sample, Sample)
