"""`stl10bench lr-find`: steps of training at rising rates, their losses, and what they suggest."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.forks import Forks
from helpers.layout import write_layout
from helpers.pictures import written

import stl10bench
from stl10bench.core.errors import UsageError
from stl10bench.training.lr_finder import RangeTest, smooth, suggest_rate
from stl10bench.training.run import find_rate

TINY: dict[str, Any] = {
    **{"image_size": 8, "hidden": (16,), "dropout": 0.3, "batch_size": 8, "optimizer": "sgd"},
    **{"lr": 0.05, "precision": "no", "threads": 1},
}
WORDS = [
    *("lr-find", "mlp", "--image-size", "8", "--hidden", "16", "--batch-size", "8"),
    *("--optimizer", "sgd", "--precision", "no", "--threads", "1", "--steps", "30"),
]


def find(data_dir: Path, runs_dir: Path, **options: Any) -> RangeTest:
    where = {"data_dir": data_dir, "runs_dir": runs_dir}
    return find_rate("mlp", **{**TINY, **where, **options})


def test_the_steps_are_those_of_training(data_dir: Path, tmp_path: Path) -> None:
    """At a rate that hardly rises: the losses of the epochs are the logged ones of a run."""
    test = find(data_dir, tmp_path, steps=8, lowest=0.05, highest=0.05 * (1 + 1e-9))
    constant = {"schedule": "constant", "warmup": 0, "epochs": 2, "tracker": "none"}
    options = {**TINY, **constant, "data_dir": data_dir, "runs_dir": tmp_path}
    row = stl10bench.train("mlp", **options)
    lines = (tmp_path / row["run"] / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line)["train/loss"] for line in lines[:2]]
    assert np.reshape(test.losses, (2, 4)).mean(1) == pytest.approx(logged, rel=1e-6)


def test_rates_rise_by_one_factor_until_the_loss_explodes_and_no_run_is_left(
    data_dir: Path, tmp_path: Path
) -> None:
    test = find(
        data_dir, tmp_path / "runs", steps=60, highest=1e6, schedule="one-cycle", warmup=0.3
    )
    factors = np.divide(test.rates[1:], test.rates[:-1])
    assert factors == pytest.approx([10 ** (13 / 59)] * len(factors))
    assert test.rates[0] == pytest.approx(1e-7)
    assert test.ended in ("loss exploded", "diverged")
    assert len(test.losses) == len(test.rates) < 60
    assert test.suggestion is not None
    assert 1e-4 < test.suggestion < 10
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("optimizer", ["sgd", "lamb"])
def test_a_rate_that_overflows_ends_the_test_and_is_no_error(
    data_dir: Path, tmp_path: Path, optimizer: str
) -> None:
    test = find(data_dir, tmp_path, optimizer=optimizer, steps=6, lowest=1e-6, highest=1e38)
    assert (test.ended == "diverged", np.isfinite(test.losses).all()) == (True, True)


def test_a_backbone_keeps_its_share_of_the_rate(data_dir: Path, tmp_path: Path) -> None:
    seen = []
    original = torch.optim.SGD.step

    def step(self: Any, *arguments: Any) -> Any:
        seen.append({group["lr"] for group in self.param_groups})
        return original(self, *arguments)

    options = {"freeze": False, "pretrained": False, "image_size": 32, "backbone_lr": 0.1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", step)
        where = {"data_dir": data_dir, "runs_dir": tmp_path, **TINY, **options}
        find_rate("timm:test_vit", steps=3, lowest=0.001, highest=0.1, **where)
    for rates, rate in zip(seen, (0.001, 0.01, 0.1), strict=True):
        assert sorted(rates) == pytest.approx([rate / 10, rate])


def test_the_test_split_plays_no_part(data_dir: Path, tmp_path: Path) -> None:
    other = write_layout(tmp_path / "other", test=8)
    assert find(data_dir, tmp_path, steps=5) == find(other, tmp_path, steps=5)


def test_two_processes_find_what_one_finds(forks: Forks, data_dir: Path, tmp_path: Path) -> None:
    found = []
    for processes in (1, 2):
        words = [*WORDS, "--dropout", "0", "--data-dir", data_dir, "--json"]
        words += ["--output", tmp_path / f"{processes}.png"]
        ended = forks.run(*words, processes=processes)
        assert ended.code == 0, ended.err
        found.append(json.loads(ended.out))
    assert found[1]["losses"] == pytest.approx(found[0]["losses"], rel=1e-4)
    assert found[1]["suggestion"] == pytest.approx(found[0]["suggestion"])


def test_the_command_names_a_rate_and_draws_the_curve(
    cli: Any, data_dir: Path, tmp_path: Path
) -> None:
    words = [*WORDS, "--data-dir", str(data_dir)]
    code, out, err = cli(*words)
    assert code == 0, err
    rate, picture = out.splitlines()
    assert 1e-7 < float(rate.removeprefix("--lr ")) < 10
    assert written(tmp_path / picture).std() > 0
    assert not (tmp_path / "runs").exists()
    code, _, err = cli(*words, "--lowest", "1", "--highest", "0.1")
    assert (code, "lowest = 1, highest = 0.1: must be 0 < --lowest" in err) == (2, True)


# The rule.


def test_the_suggestion_is_the_steepest_fall_before_the_minimum() -> None:
    rates = np.logspace(-6, 1, 71)
    fall = 2.3 - 1.5 / (1 + np.exp(-4 * (np.log10(rates) + 3)))  # steepest at 0.001
    losses = fall + np.where(rates > 0.1, 20 * (rates - 0.1), 0)
    assert suggest_rate(rates, losses) == pytest.approx(1e-3)
    noise = np.random.default_rng(0).normal(0, 0.05, 71)
    found = suggest_rate(rates, smooth((losses + noise).tolist()))
    assert found is not None
    assert 3e-4 < found < 3e-3


@pytest.mark.parametrize("losses", [[], [2.3], [2.3, 2.3, 2.3], [1.0, 2.0, 3.0]])
def test_a_loss_that_never_falls_suggests_nothing(losses: list[float]) -> None:
    assert suggest_rate([0.1 * 2**n for n in range(len(losses))], losses) is None


def test_smoothing_is_the_mean_of_the_neighbours() -> None:
    losses = np.random.default_rng(0).random(30).tolist()
    expected = [np.mean(losses[max(0, n - 5) : n + 6]) for n in range(30)]
    assert smooth(losses) == pytest.approx(expected)
    assert smooth([1.0, 3.0]) == pytest.approx([2.0, 2.0])


def test_rates_that_do_not_rise_are_refused(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lowest = 0, highest = 1: must be 0 < --lowest"):
        find(data_dir, tmp_path, lowest=0, highest=1)
