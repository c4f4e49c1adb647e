"""scripts/tune.py chooses settings on validation images: the test split is out of its reach."""

import argparse
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


def test_settings_are_words_of_key_and_json(tune: Any) -> None:
    text = "lr=1e-3 rotation=[0,0] optimizer=sgd freeze=false"
    expected = {"lr": 1e-3, "rotation": [0, 0], "optimizer": "sgd", "freeze": False}
    assert tune.parse(text) == expected
