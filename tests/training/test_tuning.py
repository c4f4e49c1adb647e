"""scripts/tune.py chooses settings on validation images: the test split is out of its reach."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.layout import write_layout

SCRIPTS = Path(__file__).parents[2] / "scripts"
SETTINGS = {"epochs": 2, "batch_size": 8, "image_size": 8, "precision": "no"}


@pytest.fixture
def tune(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import tune

    return tune


def attempt(tune: Any, data_dir: Path) -> dict[str, Any]:
    where = {"model": "logistic", "data_dir": data_dir, "weights": None, "recipe": "tuned"}
    arguments = argparse.Namespace(**where, threads=1, verbose=False)
    result: dict[str, Any] = tune.attempt(arguments, SETTINGS)
    return result


def test_other_test_images_and_labels_change_nothing_that_it_prints(
    tune: Any, tmp_path: Path
) -> None:
    results = []
    for name in ("one", "other"):
        data_dir = write_layout(tmp_path / name, size=8)
        if name == "other":
            folder = data_dir / "stl10_binary"
            for file in ("test_X.bin", "test_y.bin"):
                values = np.fromfile(folder / file, np.uint8)
                np.random.default_rng(3).permutation(values).tofile(folder / file)
        results.append(attempt(tune, data_dir))
    one, other = results
    assert len(one["val_accuracy"]) == 2
    for key in ("val_accuracy", "val_loss", "train_accuracy"):
        assert one[key] == other[key]


@pytest.mark.parametrize("part", ["images", "labels", "anything"])
def test_the_hidden_test_split_cannot_be_read(tune: Any, part: str) -> None:
    with pytest.raises(tune.TestSplitHidden):
        getattr(tune.Hidden(), part)


def test_settings_that_read_the_test_split_before_they_train_are_no_result(
    tune: Any, tmp_path: Path
) -> None:
    where = {"data_dir": write_layout(tmp_path, size=12), "weights": None, "recipe": "tuned"}
    arguments = argparse.Namespace(model="kmeans", **where, threads=1, verbose=False)
    settings = {"labels_per_class": 4, "unlabeled": "rest", "image_size": 12, "patch": 4}
    with pytest.raises(SystemExit, match="test split before its first epoch"):
        tune.attempt(arguments, settings)


def test_a_figure_needs_a_log(
    tune: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["tune.py", "--figure", "curves.png"])
    with pytest.raises(SystemExit):
        tune.main()
    assert "--figure needs --log" in capsys.readouterr().err


def test_a_log_becomes_a_figure_of_each_models_settings(
    tune: Any, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, words = tmp_path / "log.jsonl", "epochs=1 batch_size=8 image_size=8 precision=no"
    command = ["tune.py", "logistic", words, f"{words} lr=1e-3", "--data-dir", str(data_dir)]
    monkeypatch.setattr("sys.argv", [*command, "--threads", "1", "--log", str(log)])
    tune.main()
    results = [json.loads(line) for line in log.read_text().splitlines()]
    (axes,) = tune.curves(results).axes
    assert axes.get_title() == "logistic"
    assert len(axes.lines) == 2
    assert any("lr 0.001" in text.get_text() for text in axes.get_legend().get_texts())


def test_settings_are_words_of_key_and_json(tune: Any) -> None:
    text = "lr=1e-3 rotation=[0,0] optimizer=sgd freeze=false"
    expected = {"lr": 1e-3, "rotation": [0, 0], "optimizer": "sgd", "freeze": False}
    assert tune.parse(text) == expected
