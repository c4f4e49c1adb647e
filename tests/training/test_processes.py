"""Two processes: the same order, draws, rates and counts as one, one table, one log, one row."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.forks import Forks

OPTIONS = [
    *("--image-size", "8", "--epochs", "2", "--batch-size", "8", "--optimizer", "sgd"),
    *("--lr", "0.05", "--tracker", "none", "--precision", "no", "--json"),
]


def metrics_of(row: dict[str, Any], runs_dir: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in (runs_dir / row["run"] / "metrics.jsonl").read_text().splitlines()
    ]


def test_two_processes_train_like_one(forks: Forks, data_dir: Path, tmp_path: Path) -> None:
    """To rounding; dropout alone is drawn by each process for itself."""
    words = ["train", "mlp", "--hidden", "16", "--dropout", "0", *OPTIONS]
    words += ["--data-dir", str(data_dir), "--runs-dir"]
    alone = forks.run(*words, tmp_path / "one")
    both = forks.run(*words, tmp_path / "two", processes=2)
    assert (alone.code, both.code) == (0, 0), alone.err + both.err
    one, two = json.loads(alone.out), json.loads(both.out)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["run"] == two["run"]
    assert two["test_images"] == 20
    assert both.err.count("epoch 1/2") == 1
    expected = metrics_of(one, tmp_path / "one")
    found = metrics_of(two, tmp_path / "two")
    for first, second in zip(expected, found, strict=True):
        for key in first.keys() - {"time", "seconds", "images_per_second"}:
            assert second[key] == pytest.approx(first[key], rel=1e-5), key
    assert (tmp_path / "two" / two["checkpoint"]).is_file()
    assert len(list((tmp_path / "two").glob("*/result.json"))) == 1


def test_a_batch_that_the_processes_cannot_share_is_refused(
    forks: Forks, data_dir: Path, tmp_path: Path
) -> None:
    words = ["train", "logistic", *OPTIONS[:-1], "--batch-size", "7", "--data-dir", str(data_dir)]
    ended = forks.run(*words, "--runs-dir", str(tmp_path), processes=2)
    assert ended.code != 0
    assert "batch_size = 7: must be divisible by the 2 processes" in ended.err
