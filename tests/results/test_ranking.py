"""Where a row stands: at chance, tied with the best, beside what needs no image."""

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.finished import scores
from helpers.rows import row_of, shown, store
from scipy.stats import binomtest
from sklearn.dummy import DummyClassifier
from sklearn.metrics import brier_score_loss, f1_score, log_loss

from stl10bench.cli.main import main
from stl10bench.results import ranking
from stl10bench.results.predictions import Predictions
from stl10bench.results.rows import Failure, Row

LABELS = np.arange(1000) % 10


def measured(model: str, hits: Any, labels: Any = LABELS, **other: Any) -> Row:
    """The row of a run that is correct where `hits` (N,) says, else one class off."""
    classes = labels.max() + 1
    logits = 3 * np.eye(classes, dtype=np.float32)[np.where(hits, labels, (labels + 1) % classes)]
    predicted = Predictions(logits, labels, None, None)
    computed = {"confusion": predicted.confusion(), "test_hits": predicted.hits()}
    return row_of(model, **{**scores(logits, labels), "test_loss": 1.25, **computed, **other})


def first(count: int, images: int = 1000) -> Any:
    """The first `count` images are correct."""
    return np.arange(images) < count


def test_a_run_whose_interval_holds_chance_is_marked() -> None:
    constant = measured("constant", LABELS == 3)
    assert constant.test_accuracy == 0.1
    above, below = measured("above", first(200)), measured("below", first(20))
    rows = ranking.annotate([constant, above, below])
    assert [row.at_chance for row in rows] == [True, False, False]
    for style in ("table", "markdown", "html", "latex"):
        text = shown([constant, above], style)
        assert text.count("at chance") == 2, "the row, and the note that explains it"
    assert re.search(r"constant .*0\.100 \[0\.083, 0\.120\] at chance", shown([constant], "table"))
    assert "at chance" not in shown([above, below], "table")


def test_chance_is_a_constant_class_where_classes_are_uneven() -> None:
    labels = np.repeat([0, 1], [700, 300])
    constant = measured("constant", labels == 0, labels)
    better = measured("better", first(800), labels)
    guess = measured("guess", first(500), labels)
    rows = ranking.annotate([constant, better, guess])
    assert [row.at_chance for row in rows] == [True, False, True]


def test_the_baselines_are_those_of_scikit_learns_dummies() -> None:
    labels = np.repeat([0, 1, 2], [500, 300, 200])
    rows = [measured("a", first(600, 1000), labels)]
    chance, constant = ranking.baselines(rows)
    uniform = np.full((1000, 3), 1 / 3)
    assert chance.test_accuracy == pytest.approx(1 / 3)
    assert chance.test_loss == pytest.approx(log_loss(labels, uniform))
    brier = brier_score_loss(labels, uniform, scale_by_half=False, labels=range(3))
    assert chance.test_brier == pytest.approx(brier)
    dummy = DummyClassifier(strategy="prior").fit(np.zeros((1000, 1)), labels)
    shares = dummy.predict_proba(np.zeros((1000, 1)))
    guesses = dummy.predict(np.zeros((1000, 1)))
    assert constant.test_accuracy == dummy.score(np.zeros((1000, 1)), labels)
    assert constant.test_loss == pytest.approx(log_loss(labels, shares))
    brier = brier_score_loss(labels, shares, scale_by_half=False, labels=range(3))
    assert constant.test_brier == pytest.approx(brier)
    f1 = f1_score(labels, guesses, average="macro", zero_division=0)
    assert constant.test_macro_f1 == pytest.approx(f1)
    assert ranking.baselines([row_of()]) == [], "an older row does not know its classes"


def test_a_row_is_tied_with_the_best_where_the_corrected_test_says_so() -> None:
    best = measured("best", first(700))
    close = measured("close", first(690))  # 10 only of the best: p = 2 / 2^10
    noise = measured("noise", np.roll(first(690), 150))
    far = measured("far", first(300))
    rows = {row.model: row for row in ranking.annotate([far, noise, best, close])}
    assert {name: row.vs_best for name, row in rows.items()} == {
        "far": "worse",
        "noise": "tied",
        "best": "best",
        "close": "worse",
    }
    alone = binomtest(10, 10).pvalue
    assert rows["close"]["p_vs_best"] == pytest.approx(2 * alone), "the second of three tests"
    assert rows["noise"]["p_vs_best"] == pytest.approx(binomtest(150, 290).pvalue, abs=1e-9)
    assert rows["best"]["p_vs_best"] is None


def test_of_equal_accuracies_the_lower_loss_is_the_best() -> None:
    rows = [measured("a", first(500), test_loss=2.0), measured("b", first(500), test_loss=1.0)]
    unknown = measured("c", first(500), test_loss=None)
    verdicts = [row.vs_best for row in ranking.annotate([unknown, *rows])]
    assert verdicts == ["tied", "tied", "best"]


def test_what_cannot_be_tested_is_not() -> None:
    best = measured("best", first(700))
    crop = {"data": "0123456789abcdef", "input": "crop"}
    others = [
        measured("older", first(600), test_hits=None),
        measured("cropped", first(600), config=crop),
        Failure(model="cnn", error="diverged"),
    ]
    *rows, failure = ranking.annotate([best, *others])
    assert [row.vs_best for row in rows] == ["best", None, None]
    assert failure == others[-1]
    assert [row.vs_best for row in ranking.annotate([best])] == [None]
    whole = measured("whole", first(600), config=crop, image_size=96)
    assert ranking.annotate([best, whole])[1]["vs_best"] == "worse", "a crop of 96 is the whole"


def test_the_mark_is_explained_only_where_it_is_shown() -> None:
    rows = [measured("a", first(500)), measured("b", first(500))]
    note = "tied: not significantly worse than the best"
    assert note in shown(rows, "table")
    assert note not in " ".join(shown(rows, "table", width=36).split())
    assert note not in shown([measured("a", first(500)), measured("b", first(400))], "table")
    assert "vs best" not in shown(rows[:1], "table")


def test_an_older_row_has_dashes_for_what_it_lacks() -> None:
    rows = [row_of("older", 0.3), measured("newer", first(500))]
    columns = ("test_accuracy", "test_macro_f1", "test_ece", "test_temperature", "vs_best")
    text = shown(rows, "markdown", columns=columns)
    assert "| older | 0.300 [0.287, 0.312] | - | - | - | - |" in text


@pytest.mark.filterwarnings("default::UserWarning")
def test_the_command_adds_baselines_and_can_leave_them_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path, measured("a", first(500)))
    store(tmp_path, row_of("b", 0.4, config={"data": "f00"}))  # without predictions

    def table(*arguments: str) -> str:
        command = ["stl10bench", "table", "--runs-dir", str(tmp_path), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit):
            main()
        return capsys.readouterr().out

    rows = json.loads(table("--format", "json", "--sort", "test_accuracy", "--descending"))
    assert {row["model"] for row in rows[1:3]} == {"chance", "constant class"}
    assert [rows[place]["model"] for place in (0, 3)] == ["a", "b"]
    assert [row["baseline"] for row in rows] == [False, True, True, False]
    assert all(math.isclose(row["test_loss"], math.log(10)) for row in rows[1:3])
    assert "constant class (baseline)" in table()
    assert "baseline" not in table("--no-baselines")
