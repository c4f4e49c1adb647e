"""Kill a run anywhere, start the same command again: the same bits, rows and files."""

import random
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.forks import Forks
from helpers.killer import Killer, contents
from safetensors.torch import save_file

MODELS: dict[str, dict[str, Any]] = {
    "logistic": {"image_size": 8},
    "mlp": {"image_size": 8, "hidden": "16,8", "precision": "bf16"},
    "cnn": {"image_size": 61, "channels": "4,4,4,8", "hidden": "8", "optimizer": "adamw"},
    "mobilenetv2": {"image_size": 32, "freeze": False, "pretrained": False, "hidden": "8"},
    "mobilenetv2 frozen": {"image_size": 32, "hidden": "8"},
    "mlp with all settings": {
        **{"image_size": 8, "hidden": "16,8", "clip_grad": 0.5, "ema": 0.9, "grad_accum": 2},
        **{"random_resized_crop": (0.3, 1.0), "mixup": 0.4, "cutmix": 1.0, "patience": 1},
        **{"tta": "flip"},
    },
    "mobilenetv2 cached": {"image_size": 32, "hidden": "8", "cache_views": 2},
    "timm:resnet10t": {"image_size": 32, "freeze": False, "pretrained": False, "hidden": "8"},
}


@pytest.fixture(scope="module")
def killer(forks: Forks, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Killer:
    killer = Killer(forks)
    once = tmp_path_factory.mktemp("once")  # computes the data's sums; other runs do not
    straight(killer, settings("logistic", data_dir, once))
    return killer


@pytest.fixture(scope="module", autouse=True)
def _weights(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A file of weights in timm's keys for the frozen backbones: any will do."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "mobilenetv2.safetensors"
    save_file(timm.create_model("mobilenetv2_100").state_dict(), path)
    for model in ("mobilenetv2 frozen", "mobilenetv2 cached"):
        MODELS[model]["weights"] = str(path)


def settings(model: str, data_dir: Path, runs_dir: Path, **options: Any) -> dict[str, Any]:
    return {
        **{"model": model.split()[0], "epochs": 2, "batch_size": 8, "tracker": "none"},
        **{"data_dir": data_dir, "runs_dir": runs_dir, "checkpoint_minutes": 0},
        **MODELS[model],
        **options,
    }


def straight(killer: Killer, asked: dict[str, Any]) -> dict[str, Any]:
    """The answer of a run that nobody kills."""
    answer = killer.train(asked)
    assert answer["code"] == 0, answer
    return answer


def kill_at_operations(
    killer: Killer, model: str, data_dir: Path, tmp_path: Path, numbers: list[int]
) -> int:
    """Kill runs before and after each of the operations; returns how many were killed."""
    expected = contents(tmp_path / "straight")
    kills = 0
    for number in numbers:
        for after in (False, True):
            runs_dir = tmp_path / f"{number}-{after}"
            asked = settings(model, data_dir, runs_dir)
            first = killer.train(asked, operation=number, after=after)
            assert first["code"] in (-9, 0)
            kills += first["code"] == -9
            straight(killer, asked)
            assert contents(runs_dir) == expected, (number, after)
    return kills


def kill_at_random(
    killer: Killer, model: str, data_dir: Path, tmp_path: Path, kills: int, seconds: float
) -> int:
    """Kill a run again and again, then let it end; returns how often it died."""
    rng = random.Random(model)
    died = 0
    for number in range(kills):
        asked = settings(model, data_dir, tmp_path / "random")
        answer = killer.train(asked, seconds=rng.uniform(0.1, 1.0) * seconds)
        died += answer["code"] == -9
        if answer["code"] == 0 or number == kills - 1:
            straight(killer, asked)
            assert contents(tmp_path / "random") == contents(tmp_path / "straight")
            (tmp_path / "random").rename(tmp_path / f"random-{number}")
    return died


@pytest.mark.parametrize(("model", "points"), [("mlp", 6), ("mobilenetv2 cached", 1)])
def test_a_run_killed_at_some_commit_points_ends_with_the_same_bits(
    killer: Killer, data_dir: Path, tmp_path: Path, model: str, points: int
) -> None:
    """What is on the disk at any moment is what is there before an operation or after one."""
    straight(killer, settings(model, data_dir, tmp_path / "straight"))  # imports what it needs
    answer = straight(killer, settings(model, data_dir, tmp_path / "again"))
    numbers = random.Random(0).sample(range(1, len(answer["operations"]) + 1), points)
    assert kill_at_operations(killer, model, data_dir, tmp_path, numbers) == 2 * points


@pytest.mark.faults
def test_a_run_killed_at_every_commit_point_ends_with_the_same_bits(
    killer: Killer, data_dir: Path, tmp_path: Path
) -> None:
    answer = straight(killer, settings("logistic", data_dir, tmp_path / "straight"))
    numbers = list(range(1, len(answer["operations"]) + 1))
    kills = kill_at_operations(killer, "logistic", data_dir, tmp_path, numbers)
    assert kills == 2 * len(numbers)
    print(f"\nlogistic: {kills} kills, before and after {len(numbers)} operations on files")


@pytest.mark.faults
@pytest.mark.parametrize("model", MODELS)
def test_a_run_killed_at_many_random_moments_ends_with_the_same_bits(
    killer: Killer, data_dir: Path, tmp_path: Path, model: str
) -> None:
    answer = straight(killer, settings(model, data_dir, tmp_path / "straight"))
    kills = kill_at_random(killer, model, data_dir, tmp_path, 50, answer["seconds"])
    assert kills >= 30
    print(f"\n{model}: {kills} kills at random moments")
