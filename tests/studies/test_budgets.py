"""Studies over numbers of labels: what shares a table, what unlabelled images gained, a figure."""

from pathlib import Path
from typing import Any

import pytest
from helpers.finished import make_run

from stl10bench.plots.budgets import over_labels
from stl10bench.results.rows import Row
from stl10bench.studies import budgets, parse, record, summary
from stl10bench.studies.ranking import Trained
from stl10bench.studies.record import Entry, Record
from stl10bench.studies.study import Study

LEARNERS: dict[str, dict[str, Any]] = {  # -> config, contamination
    "kmeans": {"model": "kmeans", "method": "probe"},
    "mlp": {"model": "mlp"},
    "rest": {"model": "kmeans", "method": "probe", "unlabeled": "rest"},
    "probe": {"model": "mobilenetv2", "method": "probe"},
    "pseudo": {"model": "mobilenetv2", "method": "pseudo-label", "unlabeled": "rest"},
}
STRENGTHS = {"kmeans": 0.8, "mlp": 0.8, "rest": 2.0, "probe": 1.5, "pseudo": 1.5}
STUDY = Study(
    name="mine",
    model="mlp",
    vary={"labels_per_class": [4, 10], "learner": {name: {} for name in LEARNERS}},
    seeds=(0, 1),
)


@pytest.fixture
def stored(tmp_path: Path) -> Record:
    """Two seeds of each learner with 4 and 10 labels per class; no validation images."""
    entries = []
    for seed in STUDY.seeds:
        for budget in (4, 10):
            for name, learner in LEARNERS.items():
                elsewhere = {"weights": "hub:timm/x"} if name in ("probe", "pseudo") else {}
                config = {"data": "0" * 64, "labels_per_class": budget, "seed": seed, **elsewhere}
                make_run(
                    tmp_path, f"{name}-{budget}-{seed}", STRENGTHS[name] + budget / 20,
                    model=learner["model"], method=learner.get("method", "supervised"), seed=seed,
                    config={**config, **learner, "val_fraction": 0}, val_accuracy=None,
                    contamination="ImageNet" if elsewhere else "none", selection="last epoch",
                )  # fmt: skip
                run = f"{name}-{budget}-{seed}"
                entries.append(Entry(labels=[str(budget), name], seed=seed, run=run, val_images=0))
    facts = {"data": "0" * 64, "dataset": "STL-10", "base": None}
    return Record(format=record.FORMAT, study=STUDY, runs=entries, **facts)


@pytest.fixture
def trained(stored: Record, tmp_path: Path) -> list[Trained]:
    return record.trained(stored, tmp_path)


def test_what_knows_different_things_never_shares_a_table(
    stored: Record, trained: list[Trained]
) -> None:
    tables = summary.study_to_tables(stored, trained)
    found = {table.title.partition(":")[0]: [line[0] for line in table.lines] for table in tables}
    assert {title: len(lines) for title, lines in found.items()} == {
        f"{name}, {budget} per class": 1 if name == budgets.UNLABELLED else 2
        for name in budgets.KINDS
        for budget in (4, 10)
    }
    assert all("2" in line for table in tables for line in table.lines)  # seeds are combined


def test_a_caption_says_nothing_that_is_true_of_some_rows_alone(
    stored: Record, trained: list[Trained]
) -> None:
    titles = [table.title for table in summary.study_to_tables(stored, trained)]
    assert all(title.endswith("per class: STL-10, 600 test images") for title in titles)


def test_a_study_whose_runs_do_not_all_set_a_number_of_labels_is_ranked_as_any_other() -> None:
    bundles = {"few": {"labels_per_class": 4}, "all": {}}  # of which tables had lost the second
    assert STUDY.over_labels
    assert not Study(name="mine", model="mlp", vary={"labels_per_class": bundles}).over_labels


def test_a_gain_is_said_for_each_number_of_labels_against_the_same_without_them(
    stored: Record, trained: list[Trained]
) -> None:
    lines = summary.findings(stored, trained)
    assert len(lines) == 4
    for budget in (4, 10):
        of = [line for line in lines if f", {budget} labels per class: " in line]
        assert "helped by" in next(line for line in of if line.startswith("kmeans"))
        assert "no gain" in next(line for line in of if line.startswith("mobilenetv2"))
    assert all(line.endswith("(2 seeds)") for line in lines)


def test_the_page_has_all_tables_and_no_validation_accuracy(
    stored: Record, trained: list[Trained]
) -> None:
    page = summary.study_to_markdown(stored, trained)
    assert page.count("| model |") == 6
    assert "validation accuracy" not in page


def test_the_figure_has_a_panel_for_each_kind_and_the_means(
    stored: Record, trained: list[Trained]
) -> None:
    title = summary.title(stored, trained)
    assert (title.startswith("mine"), "labelled images" in title) == (
        True,
        False,
    )  # of no budget
    figure = over_labels(title, STUDY, trained)
    axes = figure.axes
    assert [each.get_title() for each in axes] == [name.capitalize() for name in budgets.KINDS]
    assert [len(each.lines) for each in axes] == [2, 1, 2]
    accuracies = [
        run.row.test_accuracy
        for run in trained
        if run.labels == ("4", "rest") and isinstance(run.row, Row)
    ]
    assert axes[1].lines[0].get_ydata()[0] == pytest.approx(sum(accuracies) / 2)
    assert list(axes[1].lines[0].get_xdata()) == [4, 10]


def test_the_built_in_study_has_the_twin_of_each_run_with_unlabelled_images() -> None:
    (learners,) = (f for f in parse.preset("label-efficiency").vary.values() if isinstance(f, dict))
    plain = [settings for settings in learners.values() if "unlabeled" not in settings]
    for settings in learners.values():
        if settings.get("unlabeled"):
            method = settings.get("method")
            twin = {"model": settings["model"]}
            if method:
                twin["method"] = "probe" if method == "pseudo-label" else method
            assert twin in plain
