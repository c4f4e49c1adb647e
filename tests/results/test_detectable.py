"""How small a difference a test split and a number of seeds can show, against draws."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.finished import make_run
from helpers.rows import row_of, with_hits
from scipy.stats import norm

from stl10bench.metrics.significance import letter_groups
from stl10bench.results.aggregate import aggregate, rows_p_value
from stl10bench.results.detectable import POWER, Noise, noise_between, settings_to_plan
from stl10bench.results.ranking import annotate
from stl10bench.results.rows import Row

IMAGES = 400


def pair(rng: np.random.Generator, seeds: int, gain: float) -> list[Row]:
    """Two settings, the second better by `gain` in skill; images differ in difficulty."""
    difficulty = rng.normal(0, 1, IMAGES)
    combined: list[Row] = []
    for model, skill in (("mlp", 0.5), ("cnn", 0.5 + gain)):
        skills = rng.normal(skill, 0.1, (seeds, 1))
        right = skills + rng.normal(0, 1, (seeds, IMAGES)) > difficulty
        rows = []
        for seed, hits in enumerate(right):
            config = {"data": "f" * 64, "seed": seed}
            facts: dict[str, Any] = {"run": f"{model}-{seed}", "test_images": IMAGES}
            facts |= {"test_accuracy_interval": None, "config": config}
            rows.append(with_hits(row_of(model, float(hits.mean()), **facts), hits))
        combined += [row for row in aggregate(rows) if isinstance(row, Row)]
    return combined


def true_difference(gain: float) -> float:
    skill_sd = np.sqrt(2 + 0.1**2)  # of skill, luck and difficulty
    return float(norm.cdf((0.5 + gain) / skill_sd) - norm.cdf(0.5 / skill_sd))


@pytest.mark.parametrize("seeds", [3, 8])
def test_the_smallest_detectable_difference_is_detected_as_often_as_it_says(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    noises = [noise_between(*pair(rng, 5, 0.2)) for _ in range(40)]
    planned = np.mean([noise.detectable(seeds) for noise in noises if noise])
    gains = np.linspace(0, 1, 2001)
    gain = gains[np.argmin([abs(true_difference(x) - planned) for x in gains[::10]]) * 10]
    found = sum(rows_p_value(*pair(rng, seeds, gain)) < 0.05 for _ in range(200))
    assert POWER - 0.1 <= found / 200 <= POWER + 0.15


def test_the_number_of_seeds_is_the_least_that_shows_the_difference() -> None:
    noise = Noise(images=1e-5, seeds=1e-3)
    needed = noise.seeds_for(0.02)
    assert needed is not None
    assert noise.detectable(needed) <= 0.02 < noise.detectable(needed - 1)
    assert noise.seeds_for(0.005) is None  # the test split alone hides it
    assert Noise(0.0, 0.0).seeds_for(0.01) == 2


def test_settings_that_saw_another_part_of_the_images_are_not_planned_for() -> None:
    best, other = pair(np.random.default_rng(0), 2, 0.0)
    assert [pair[:2] for pair in settings_to_plan([best, other])] == [(best, other)]
    config = other.config.model_copy(update={"input": "crop"})
    assert settings_to_plan([best, other.model_copy(update={"config": config})]) == []


def test_one_seed_of_each_says_nothing_of_their_noise() -> None:
    assert noise_between(*pair(np.random.default_rng(0), 1, 0.0)) is None


@pytest.mark.parametrize(
    ("count", "different", "letters"),
    [
        (3, [], ["a", "a", "a"]),
        (3, [(0, 1), (0, 2), (1, 2)], ["a", "b", "c"]),
        (3, [(0, 2)], ["a", "ab", "b"]),
        (4, [(0, 2), (0, 3), (1, 3)], ["a", "ab", "bc", "c"]),
        (4, [(0, 1), (2, 3)], ["ab", "cd", "ac", "bd"]),
    ],
)
def test_results_share_a_letter_unless_they_differ(
    count: int, different: list[tuple[int, int]], letters: list[str]
) -> None:
    assert letter_groups(count, different) == letters


def test_letters_say_of_every_pair_whether_it_differs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        pairs = [(i, j) for i in range(8) for j in range(i + 1, 8)]
        different = {pair for pair in pairs if rng.random() < 0.4}
        letters = letter_groups(8, different)
        for i, j in pairs:
            assert (set(letters[i]) & set(letters[j]) == set()) == ((i, j) in different)


def test_equal_settings_share_a_letter_95_times_in_100() -> None:
    rng = np.random.default_rng(1)
    split = 0
    for _ in range(100):
        rows = [row for row in annotate(pair(rng, 3, 0.0)) if isinstance(row, Row)]
        split += len({row.group for row in rows}) > 1
    assert split <= 10


def test_the_plan_says_how_many_seeds_are_needed(cli: Any, tmp_path: Path) -> None:
    for number in range(3):
        for model, strength in (("mlp", 1.0), ("cnn", 1.2)):
            config = {"data": "0f", "seed": number}
            make_run(tmp_path / "runs", f"{model}-{number}", strength, config=config)
    code, out, _ = cli("compare", "--plan", "--detect", "0.05", "--format", "csv")
    assert code == 0
    header, line = out.splitlines()
    assert header.startswith("settings,difference,detectable: 1 seed,detectable: 3 seeds")
    assert header.endswith("any number,seeds for 0.05,data")
    detectable = list(map(float, line.split(",")[2:7]))
    assert detectable == sorted(detectable, reverse=True)
    make_run(tmp_path / "one", "mlp-0", 1.0)
    make_run(tmp_path / "one", "cnn-0", 1.0)
    code, _, err = cli("compare", "--plan", "--runs-dir", "one")
    assert (code, "--seeds 3" in err) == (2, True)


def make_settings(runs_dir: Path, *models: str, **other: Any) -> None:
    """Two seeds of each model."""
    for strength, model in enumerate(models, 1):
        for seed in range(2):
            config = {"data": "0f", "seed": seed}
            make_run(runs_dir, f"{model}-{seed}", strength, config=config, **other)


def test_without_a_validation_accuracy_all_pairs_of_settings_are_planned(
    cli: Any, tmp_path: Path
) -> None:
    make_settings(tmp_path / "runs", "mlp", "cnn", "resnet9", val_accuracy=None)
    plans = json.loads(cli("compare", "--plan", "--json")[1])["plans"]
    assert len({frozenset(plan["settings"].split(" - ")) for plan in plans}) == 3


def test_eighty_columns_have_room_for_a_plan(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    make_settings(tmp_path / "runs", "mobilenetv2", "logistic")
    code, out, _ = cli("compare", "--plan", "--detect", "0.02")
    assert (code, "\N{HORIZONTAL ELLIPSIS}" in out) == (0, False)
    assert max(map(len, out.splitlines())) <= 80
    names = ["settings", "difference", "1 seed", "3", "5", "10", "limit", "needed"]
    assert re.split(r"\s{2,}", out.splitlines()[2].strip()) == names
    assert "mobilenetv2" in out
    assert "a difference of 0.02" in " ".join(out.split())


def test_a_plan_as_csv_is_one_table_that_says_the_data_of_each_line(
    cli: Any, tmp_path: Path
) -> None:
    make_settings(tmp_path / "runs", "mlp", "cnn")
    make_settings(tmp_path / "runs", "resnet9", "logistic", selection="last epoch")
    lines = list(csv.DictReader(io.StringIO(cli("compare", "--plan", "--format", "csv")[1])))
    assert len(lines) == 2
    assert all("test images" in line["data"] for line in lines)
