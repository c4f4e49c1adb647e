"""A frozen backbone: folded while it runs, saved as it came, its features cached when asked."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import stl10bench
from stl10bench.core.errors import StorageError, UsageError
from stl10bench.data import augment
from stl10bench.models import checkpoint

TINY: dict[str, Any] = {
    "image_size": 32,
    "hidden": (8,),
    "epochs": 3,
    "batch_size": 8,
    "tracker": "none",
    "threads": 1,
}
PLAIN = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "flip": 0, "rotation": (0, 0)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights in timm's keys: any will do to see whether they stay."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "mobilenetv2.safetensors"
    save_file(timm.create_model("mobilenetv2_100").state_dict(), path)
    return path


def weights_of(row: dict[str, Any], runs_dir: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(runs_dir / row["checkpoint"])[0]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_frozen_run_saves_the_backbone_as_it_came_and_evaluates_to_its_row(
    data_dir: Path, tmp_path: Path, weights: Path, precision: str
) -> None:
    options = {**TINY, "precision": precision, "weights": weights, "dropout": 0.5}
    row = stl10bench.train("mobilenetv2", data_dir=data_dir, runs_dir=tmp_path, **options)
    stored = weights_of(row, tmp_path)
    for name, value in load_file(weights).items():
        if not name.startswith("classifier"):
            assert torch.equal(stored[f"backbone.{name}"], value), name
    again = stl10bench.evaluate(tmp_path / row["checkpoint"], data_dir=data_dir, threads=1)
    assert again["test_accuracy"] == row["test_accuracy"]
    assert again["test_loss"] == pytest.approx(row["test_loss"], rel=1e-6)


def test_without_augmentation_cached_features_train_the_same_head(
    data_dir: Path, tmp_path: Path, weights: Path
) -> None:
    options = {**TINY, **PLAIN, "weights": weights, "data_dir": data_dir, "precision": "no"}
    anew = stl10bench.train("mobilenetv2", runs_dir=tmp_path, **options)
    once = stl10bench.train("mobilenetv2", runs_dir=tmp_path, cache_views=1, **options)
    assert anew["run"] != once["run"]
    expected = weights_of(anew, tmp_path)
    for name, value in weights_of(once, tmp_path).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)
    assert once["test_loss"] == pytest.approx(anew["test_loss"], rel=1e-3)


def test_each_cached_view_is_another_draw(data_dir: Path, tmp_path: Path, weights: Path) -> None:
    rows = [
        stl10bench.train(
            *("mobilenetv2",),
            **{**TINY, "weights": weights, "data_dir": data_dir, "runs_dir": tmp_path},
            cache_views=views,
            val_fraction=0,  # the last epoch counts: the first has the same view in both
        )
        for views in (1, 2)
    ]
    assert len({row["test_loss"] for row in rows}) == 2


@pytest.mark.parametrize(
    ("model", "options"),
    [("logistic", {}), ("mobilenetv2", {"freeze": False, "pretrained": False})],
)
def test_only_a_frozen_backbone_has_features_to_cache(
    data_dir: Path, tmp_path: Path, model: str, options: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="cache_views = 2: only the features of a frozen backbone"):
        stl10bench.train(model, data_dir=data_dir, runs_dir=tmp_path, cache_views=2, **options)


@pytest.mark.parametrize(
    ("name", "count", "parts"),
    [
        ("test_resnet", 2, ["conv1", "bn1", "layer1"]),
        ("test_efficientnet", 1, ["conv_stem", "bn1"]),
        ("test_vit", 3, ["patch_embed", "cls_token", "pos_embed", "blocks.0", "blocks.1"]),
    ],
)
def test_the_first_stages_stay_as_they_came_and_the_rest_learns(
    data_dir: Path, tmp_path: Path, name: str, count: int, parts: list[str]
) -> None:
    """Batch-norm statistics too."""
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model(name).state_dict(), path)
    options = {**TINY, "freeze": False, "weights": path, "freeze_stages": count, "image_size": 160}
    options |= {"epochs": 1, "precision": "no", "ema": 0.5}
    row = stl10bench.train(f"timm:{name}", data_dir=data_dir, runs_dir=tmp_path, **options)
    stored = weights_of(row, tmp_path)
    still = [key for key, value in load_file(path).items() if _same(stored, key, value)]
    assert {key for key in still if not key.endswith("num_batches_tracked")} == {
        key
        for key in load_file(path)
        if key.startswith(tuple(parts)) and not key.endswith("num_batches_tracked")
    }
    frozen = sum(v.numel() for k, v in load_file(path).items() if _is_parameter(k) and k in still)
    assert row["parameters"] - row["trainable_parameters"] == frozen
    again = stl10bench.evaluate(tmp_path / row["checkpoint"], data_dir=data_dir, threads=1)
    assert again["trainable_parameters"] == row["trainable_parameters"]


def _same(stored: dict[str, torch.Tensor], key: str, value: torch.Tensor) -> bool:
    return f"backbone.{key}" in stored and torch.equal(stored[f"backbone.{key}"], value)


def _is_parameter(key: str) -> bool:
    return not key.endswith(("running_mean", "running_var", "num_batches_tracked"))


@pytest.mark.parametrize(
    ("model", "settings", "text"),
    [
        ("timm:test_resnet", {"freeze": False, "freeze_stages": 5}, "the backbone has 5 stages"),
        ("timm:test_resnet", {"freeze_stages": 1}, "freeze_stages = 1 needs .* --no-freeze"),
        ("timm:test_resnet", {"layer_decay": 0.5}, "layer_decay = 0.5 needs .* --no-freeze"),
        ("mlp", {"layer_decay": 0.5}, "layer_decay = 0.5 needs a fine-tuned backbone"),
    ],
)
def test_what_is_for_a_fine_tuned_backbone_is_refused_elsewhere(
    data_dir: Path, tmp_path: Path, weights: Path, model: str, settings: Any, text: str
) -> None:
    where = {"data_dir": data_dir, "runs_dir": tmp_path, "pretrained": False}
    if settings.get("freeze") is not False and model != "mlp":
        where |= {"weights": weights, "pretrained": True}
    with pytest.raises(UsageError, match=text):
        stl10bench.train(model, **{**TINY, **where, **settings})


PARTLY = {**TINY, "freeze": False, "pretrained": False, "freeze_stages": 2, "precision": "no"}


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_without_augmentation_cached_stages_train_the_same_rest(
    data_dir: Path, tmp_path: Path, name: str
) -> None:
    """And the frozen stages see each view of each image once: 5 batches of it."""
    options = {**PARTLY, **PLAIN, "data_dir": data_dir, "runs_dir": tmp_path, "lr": 1e-4}
    anew = stl10bench.train(f"timm:{name}", **options)
    calls = []
    original = augment.apply
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment, "apply", lambda *given: calls.append(1) or original(*given))
        once = stl10bench.train(f"timm:{name}", cache_views=1, **options)
    assert len(calls) == 5
    assert once["test_loss"] == pytest.approx(anew["test_loss"], rel=1e-4)
    expected = weights_of(anew, tmp_path)
    for key, value in weights_of(once, tmp_path).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-5)


def test_stages_that_do_not_follow_one_another_are_not_cached(
    data_dir: Path, tmp_path: Path
) -> None:
    options = {**PARTLY, "data_dir": data_dir, "runs_dir": tmp_path, "cache_views": 1}
    with pytest.raises(UsageError, match="does not run stage by stage"):
        stl10bench.train("timm:test_vit", **options)


def test_views_that_do_not_fit_the_memory_are_refused(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10_000_000))
    options = {**PARTLY, "data_dir": data_dir, "runs_dir": tmp_path, "cache_views": 1000}
    with pytest.raises(StorageError, match=r"cache_views = 1000: .* 0.0 GB are free; lower"):
        stl10bench.train("timm:test_resnet", **options)
