"""Settings of a step: exact on resume, the same for two processes, and what torch and timm do."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from helpers.forks import Forks
from helpers.killer import contents
from safetensors.torch import load_file, save_file
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.nn import functional as F

import stl10bench
from stl10bench.config import make_config
from stl10bench.core.errors import DivergedError, InterruptedRunError, UsageError
from stl10bench.data.stl10 import open_dataset
from stl10bench.results import columns
from stl10bench.training import epoch, trainer
from stl10bench.training.ema import Ema

TINY: dict[str, Any] = {
    **{"image_size": 8, "hidden": (16,), "dropout": 0.0, "epochs": 2, "batch_size": 8},
    **{"optimizer": "sgd", "lr": 0.05, "precision": "no", "tracker": "none", "threads": 1},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "clip_grad": {"clip_grad": 0.5},
    "ema": {"ema": 0.9},
    "grad_accum": {"grad_accum": 3},
    "a step's": {"clip_grad": 0.5, "ema": 0.9, "grad_accum": 2},
    "a backbone's": {
        **{"model": "timm:test_vit", "freeze": False, "pretrained": False, "image_size": 32},
        **{"layer_decay": 0.7, "freeze_stages": 2},
    },
    "mixup": {"mixup": 0.4, "label_smoothing": 0.1, "grad_accum": 3},
    "crop": {"image_size": 32, "input": "crop"},
    "a batch's": {"mixup": 0.4, "cutmix": 1.0, "random_resized_crop": (0.2, 0.9)},
}
SETTINGS["cached stages"] = {
    **{"model": "timm:test_resnet", "freeze": False, "pretrained": False, "image_size": 32},
    **{"freeze_stages": 2, "cache_views": 2, "ema": 0.9},
}
SETTINGS["an end's"] = {"patience": 1, "tta": "flip", "epochs": 6, "lr": 1e-9, "schedule": "step"}
TOGETHER = ["crop", "a step's", "a backbone's", "a batch's", "an end's"]


def train(data_dir: Path, runs_dir: Path, model: str = "mlp", **options: Any) -> Any:
    where = {"data_dir": data_dir, "runs_dir": runs_dir}
    return stl10bench.train(model, **{**TINY, **where, **options})


def weights(row: Any, runs_dir: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_file(runs_dir / row["run"] / f"{name}.safetensors")


def log_of(row: Any, runs_dir: Path) -> list[dict[str, Any]]:
    """What a run has logged of its epochs."""
    lines = (runs_dir / row["run"] / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "epoch" in line]


def stop_after(steps: int, *arguments: Any, **options: Any) -> None:
    """Take so many steps, with a checkpoint of each, and stop in the next one."""
    calls = []

    def stopping(losses: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) > steps * options.get("grad_accum", 1):
            raise KeyboardInterrupt
        return original(losses)

    original = epoch.nan_if_infinite
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch, "nan_if_infinite", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(*arguments, checkpoint_minutes=0, **options)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_that_was_stopped_ends_with_the_bits_of_a_straight_one(
    data_dir: Path, tmp_path: Path, name: str
) -> None:
    options = {"dropout": 0.5, "optimizer": "adam", **SETTINGS[name]}
    train(data_dir, tmp_path / "straight", **options)
    for steps in (2, 4):  # of 4 in an epoch, of 8 in all
        stop_after(steps, data_dir, tmp_path / "stopped", **options)
    train(data_dir, tmp_path / "stopped", **options)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "straight")


@pytest.mark.parametrize("name", TOGETHER)
def test_two_processes_train_like_one(
    forks: Forks, data_dir: Path, tmp_path: Path, name: str
) -> None:
    """Up to rounding."""
    options = {**TINY, **SETTINGS[name]}
    words = ["train", options.pop("model", "mlp"), "--data-dir", str(data_dir)]
    for key, value in options.items():
        option = key.replace("_", "-")
        if value is False:
            words.append(f"--no-{option}")
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [f"--{option}", text]
    logs = []
    for processes in (1, 2):
        runs_dir = tmp_path / str(processes)
        ended = forks.run(*words, "--runs-dir", runs_dir, processes=processes)
        assert ended.code == 0, ended.err
        (log,) = runs_dir.glob("*/metrics.jsonl")
        logs.append([json.loads(line) for line in log.read_text().splitlines()])
    for one, two in zip(*logs, strict=True):
        for key in one.keys() - {"time", "seconds", "images_per_second"}:
            assert two[key] == pytest.approx(one[key], rel=1e-4), key


# Clipping.


def test_a_gradient_is_clipped_to_its_norm_over_all_parameters(
    data_dir: Path, tmp_path: Path
) -> None:
    """One step of SGD moves by rate times norm, so two norms are that far apart."""
    once = {"epochs": 1, "batch_size": 36, "momentum": 0, "weight_decay": 0, "warmup": 0}
    small, large, huge, none = (
        weights(train(data_dir, tmp_path, **once, clip_grad=norm), tmp_path)
        for norm in (0.01, 0.03, 1e6, None)
    )
    moved = torch.cat([(small[key] - large[key]).flatten() for key in small])
    assert moved.norm().item() == pytest.approx(0.02 * TINY["lr"], rel=1e-3)
    assert all(torch.equal(huge[key], none[key]) for key in none)


@pytest.mark.parametrize("optimizer", ["sgd", "lamb"])
def test_clipping_hides_no_divergence(data_dir: Path, tmp_path: Path, optimizer: str) -> None:
    """A clipped gradient that was infinite would be NaN, one whose norm overflows 0."""
    options = {"optimizer": optimizer, "lr": 1e30, "schedule": "constant", "clip_grad": 1.0}
    with pytest.raises(DivergedError, match=r"step \d+ are not finite"):
        train(data_dir, tmp_path, **options)


def clipping(optimizer: torch.optim.Optimizer, unscale: Callable[..., None]) -> Any:
    """As much of a run as clips gradients to a norm of 1."""
    config = make_config({"model": "mlp", "clip_grad": 1.0})
    accelerator = SimpleNamespace(unscale_gradients=unscale)
    return SimpleNamespace(config=config, accelerator=accelerator, optimizer=optimizer)


def test_gradients_are_clipped_after_the_loss_scaling_is_undone() -> None:
    """As fp16 has it; an overflow is left for the scaler to find."""
    layer = nn.Linear(2, 1, bias=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    run = clipping(optimizer, scaler.unscale_)
    scaler.scale(layer(torch.tensor([[3.0, 4.0]])).sum()).backward()
    assert not epoch.clip_gradients(run)
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[0.6, 0.8]]))
    before = layer.weight.detach().clone()
    layer.weight.grad.fill_(torch.inf)
    scaler.step(optimizer)  # the norm that it found was finite
    scaler.update()
    scaler.scale(layer(torch.tensor([[torch.inf, 1.0]])).sum()).backward()
    after = layer.weight.detach().clone()
    assert epoch.clip_gradients(run)
    scaler.step(optimizer)
    assert not torch.equal(before, after)
    assert torch.equal(layer.weight, after)


def test_a_norm_too_large_for_its_type_is_a_divergence_and_no_step_of_zero() -> None:
    layer = nn.Linear(2, 1)
    layer.weight.grad = torch.full((1, 2), 1e30)  # finite, but not its square
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    assert epoch.clip_gradients(clipping(optimizer, lambda _: None))


# The moving average.


def test_the_average_is_timms_with_its_warm_up() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    model[3].weight.requires_grad_(False)
    ours, theirs = Ema(model, 0.7), ModelEmaV3(copy.deepcopy(model), decay=0.7, use_warmup=True)
    for step in range(1, 9):  # 0.7 is reached in the seventh
        with torch.no_grad():
            model(torch.randn(4, 3, 4, 4))
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter))
        ours.update(step)
        theirs.update(model, step=step)
        expected = theirs.module.state_dict()
        assert expected.keys() - ours.weights.keys() == {"3.weight"}
        assert all(torch.equal(value, expected[key]) for key, value in ours.weights.items())


def test_the_average_is_what_is_validated_saved_and_tested(data_dir: Path, tmp_path: Path) -> None:
    row = train(data_dir, tmp_path, ema=0.9)
    plain = train(data_dir, tmp_path)
    assert row["best_epoch"] == plain["best_epoch"] == 2, "the best weights must be the last ones"
    for name in ("best", "last"):
        ours, theirs = (weights(run, tmp_path, name)["linears.0.weight"] for run in (row, plain))
        assert not torch.equal(ours, theirs), name
    best = weights(row, tmp_path, "best")
    assert all(torch.equal(best[key], value) for key, value in weights(row, tmp_path).items())
    for split in ("val", "test"):
        again = stl10bench.evaluate(tmp_path / row["checkpoint"], data_dir=data_dir, split=split)
        assert again[f"{split}_loss"] == pytest.approx(row[f"{split}_loss"], rel=1e-6), split


def test_a_run_stopped_while_its_average_is_validated_keeps_its_own_weights(
    data_dir: Path, tmp_path: Path
) -> None:
    train(data_dir, tmp_path / "straight", ema=0.9)

    def stop(*_: Any, **__: Any) -> Any:
        raise InterruptedRunError("stopped", 143)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "compute_logits", stop)
        with pytest.raises(InterruptedRunError):
            train(data_dir, tmp_path / "stopped", ema=0.9)
    train(data_dir, tmp_path / "stopped", ema=0.9)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "straight")


def test_an_average_that_keeps_nothing_is_the_run_without_one(
    data_dir: Path, tmp_path: Path
) -> None:
    row = train(data_dir, tmp_path, ema=1e-30)
    plain = train(data_dir, tmp_path)
    assert row["test_loss"] == plain["test_loss"]
    expected = weights(plain, tmp_path)
    assert all(torch.equal(value, expected[key]) for key, value in weights(row, tmp_path).items())


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights for timm's smallest network."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "test_resnet.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    return path


def test_the_average_of_a_head_on_cached_features_resumes_too(
    data_dir: Path, tmp_path: Path, backbone: Path
) -> None:
    options = {"model": "timm:test_resnet", "weights": backbone, "cache_views": 2, "ema": 0.9}
    options |= {"image_size": 32}
    row = train(data_dir, tmp_path / "straight", **options)
    stop_after(6, data_dir, tmp_path / "stopped", **options)
    train(data_dir, tmp_path / "stopped", **options)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "straight")
    stored, kept = load_file(backbone), weights(row, tmp_path / "straight")
    assert all(torch.equal(kept[f"backbone.{key}"], stored[key]) for key in ("conv1.0.weight",))


# Accumulation.


@pytest.mark.parametrize("parts", [2, 3, 8, 100])
def test_a_batch_in_parts_is_the_whole_batch_up_to_rounding(
    data_dir: Path, tmp_path: Path, parts: int
) -> None:
    whole = train(data_dir, tmp_path, label_smoothing=0.1)
    row = train(data_dir, tmp_path, label_smoothing=0.1, grad_accum=parts)
    for key, value in weights(whole, tmp_path).items():
        torch.testing.assert_close(weights(row, tmp_path)[key], value, rtol=1e-4, atol=1e-6)
    assert row["test_loss"] == pytest.approx(whole["test_loss"], rel=1e-5)


# Mixed images.


def test_a_part_of_a_batch_that_is_too_small_for_the_model_is_refused(
    data_dir: Path, tmp_path: Path
) -> None:
    options = {"freeze": False, "pretrained": False, "image_size": 32, "batch_size": 3}
    with pytest.raises(UsageError, match=r"fails on 1 image.*lower --grad-accum"):
        train(data_dir, tmp_path, "timm:test_resnet", **options, grad_accum=2)


def test_a_mixed_batch_that_processes_cannot_share_in_pairs_is_refused(
    forks: Forks, data_dir: Path, tmp_path: Path
) -> None:
    words = ["train", "logistic", "--image-size", "8", "--batch-size", "6", "--mixup", "0.2"]
    ended = forks.run(*words, "--data-dir", data_dir, "--runs-dir", tmp_path, processes=2)
    assert "batch_size = 6: mixup and cutmix need an even number of images" in ended.err


def test_a_hit_on_a_mixed_image_is_its_larger_part(data_dir: Path, tmp_path: Path) -> None:
    """A model that knows the classes by their colours hits nearly all of them."""
    plain = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "optimizer": "adam"}
    row = train(data_dir, tmp_path, **plain, epochs=20, lr=0.01, mixup=0.2)
    assert log_of(row, tmp_path)[-1]["train/accuracy"] > 0.8
    assert row["test_accuracy"] > 0.9


# Patience and test-time augmentation.


@pytest.mark.parametrize("patience", [1, 2])
def test_training_ends_when_the_best_epoch_is_that_long_ago(
    data_dir: Path, tmp_path: Path, patience: int
) -> None:
    """What was trained is what a run without patience has trained so far: its rates stay."""
    options = {"epochs": 12, "lr": 0.3, "val_fraction": 0.3, "schedule": "cosine"}
    whole = train(data_dir, tmp_path, **options)
    row = train(data_dir, tmp_path, **options, patience=patience)
    logs = [log_of(run, tmp_path) for run in (whole, row)]
    ranks = [(line["val/accuracy"], -line["val/loss"]) for line in logs[0]]
    best = [max(range(n), key=ranks.__getitem__) for n in range(1, 13)]  # after n epochs
    ends = [n for n in range(1, 13) if n - 1 - best[n - 1] >= patience]
    assert ends[0] < 12, "another seed or rate: the test must see it end"
    assert (row["trained_epochs"], row["epochs"], row["best_epoch"]) == (
        *(ends[0], 12, best[ends[0] - 1] + 1),
    )
    assert whole["trained_epochs"] == 12
    for one, two in zip(*logs, strict=False):
        for key in ("train/loss", "val/loss", "lr"):
            assert one[key] == two[key]
    again = train(data_dir, tmp_path, **options, patience=patience)
    assert again == row, "it is finished"


def test_a_flipped_view_stands_beside_the_plain_result(data_dir: Path, tmp_path: Path) -> None:
    options = {"lr": 0.01, "val_fraction": 0.0}
    plain = train(data_dir, tmp_path, **options)
    row = train(data_dir, tmp_path, **options, tta="flip")
    assert (plain["tta_accuracy"], plain["tta_loss"]) == (None, None)
    for key in ("test_accuracy", "test_loss"):
        assert row[key] == plain[key]
    model = stl10bench.load(tmp_path / row["checkpoint"])
    test = open_dataset(data_dir).test
    images, labels = (torch.from_numpy(part.copy()) for part in (test.images, test.labels))
    with torch.no_grad():
        logits = (model(images) + model(images.flip(3))) / 2
    assert row["tta_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert row["tta_accuracy"] == (logits.argmax(1) == labels).float().mean().item()
    assert row["tta_loss"] != row["test_loss"]
    shown = [
        [column.key for column in columns.informative(columns.DEFAULT, rows)]
        for rows in ([row, plain], [plain])
    ]
    assert ["tta_accuracy" in keys for keys in shown] == [True, False]
