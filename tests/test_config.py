"""Settings: what a run's name is made of, what is refused, and that every recipe can be trained."""

import json
from typing import Any

import pytest
from helpers.layout import heavy_after
from hypothesis import given
from hypothesis import strategies as st

from stl10bench.config import RECIPES, RunConfig, make_config
from stl10bench.core.errors import UsageError
from stl10bench.models import registry
from stl10bench.models.factory import check_options
from stl10bench.training import resolve
from stl10bench.training.resolve import check_settings

NUMBERS: dict[str, Any] = {  # a valid value other than the default for each field
    "model": "cnn",
    "model_options": {"dropout": 0.5},
    "data": "a" * 64,
    "weights": "hub:timm/x",
    "image_size": 32,
    "input": "crop",
    "val_fraction": 0.2,
    "seed": 1,
    "epochs": 3,
    "batch_size": 7,
    "optimizer": "sgd",
    "lr": 0.5,
    "backbone_lr": 0.1,
    "momentum": 0.5,
    "weight_decay": 0.5,
    "schedule": "step",
    "warmup": 0.5,
    "step_epochs": 3,
    "step_gamma": 0.5,
    "label_smoothing": 0.5,
    "brightness": 0.5,
    "contrast": 0.5,
    "saturation": 0.5,
    "hue": 0.5,
    "flip": 0.25,
    "rotation": (0.0, 20.0),
    "cache_views": 2,
    "precision": "bf16",
}

# Settings that need others, and those that came later, which the golden name does not hold.
OTHERS: dict[str, dict[str, Any]] = {
    "class_weights": {"class_weights": "balanced"},
    "fold": {"fold": 3, "val_fraction": 0},
    "labels_per_class": {"labels_per_class": 5},
    "k_fold": {"k_fold": 3},
    "k_fold_part": {"k_fold": 3, "k_fold_part": 2},
    "layer_decay": {"layer_decay": 0.75},
    "freeze_stages": {"freeze_stages": 2},
    "random_resized_crop": {"random_resized_crop": (0.5, 1.0)},
    "grayscale": {"grayscale": 0.2},
    "blur": {"blur": 0.5},
    "cutout": {"cutout": 0.5},
    "mixup": {"mixup": 0.2},
    "cutmix": {"cutmix": 1.0},
    "patience": {"patience": 3},
    "tta": {"tta": "flip"},
    "clip_grad": {"clip_grad": 1.0},
    "ema": {"ema": 0.999},
    "grad_accum": {"grad_accum": 2},
    "data_size": {"data_size": 128},
    "unlabeled": {"unlabeled": "rest"},
    "unlabeled_data": {"unlabeled_data": "a" * 64},
    "keep_copies": {"unlabeled": "rest", "keep_copies": True},
    "method": {"method": "probe"},
    "method_options": {"method_options": {"views": 2}},
}


def test_a_name_is_the_same_on_every_machine_and_in_every_version() -> None:
    """If this fails, stored runs are no longer found: raise FORMAT only if their numbers change."""
    assert make_config({"model": "logistic"}).name == "logistic-cad62f55"
    assert make_config(NUMBERS).name == "cnn-2495e81b"


@pytest.mark.parametrize("field", RunConfig.model_fields)
def test_every_setting_changes_the_name(field: str) -> None:
    base = make_config({"model": "mlp"})
    settings = OTHERS.get(field) or {field: NUMBERS[field]}
    changed = make_config({"model": "mlp", **settings})
    assert changed.name != base.name
    assert set(changed.changed()) == {"model", *settings}


def test_a_default_that_is_given_does_not_change_the_name() -> None:
    base = make_config({"model": "mlp"})
    assert make_config(base.model_dump()).name == base.name


@given(st.text())
def test_a_name_is_one_safe_folder(model: str) -> None:
    name = make_config({"model": model}).name
    assert len(name) < 80
    assert all(c.isascii() and (c.isalnum() or c in "-_") for c in name)


@given(st.fixed_dictionaries({}, optional={k: st.just(v) for k, v in NUMBERS.items()}))
def test_a_config_survives_json(settings: dict[str, Any]) -> None:
    config = make_config({"model": "mlp", **settings})
    again = make_config(json.loads(json.dumps(config.model_dump(mode="json"))))
    assert again == config
    assert again.name == config.name


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"learning_rate": 1}, "unknown setting 'learning_rate'"),
        ({"batchsize": 1}, "unknown setting 'batchsize': did you mean 'batch_size'?"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin': did you mean 'cosine'?"),
        ({"schedule": "x"}, "one of 'constant', 'step', 'cosine' or 'one-cycle'"),
        (
            {"input": "crop", "image_size": 128, "data": "0" * 64},
            "image_size = 128: a crop cannot be larger",
        ),
        ({"rotation": (20, 0)}, "rotation = 20.0,0.0: must be -180 <= LOW"),
        ({"rotation": (0, 181)}, "rotation = 0.0,181.0"),
        ({"random_resized_crop": (0, 1)}, "random_resized_crop = 0.0,1.0: must be 0 < LOW"),
        ({"random_resized_crop": (0.5, 0.4)}, "random_resized_crop = 0.5,0.4"),
        ({"mixup": 0.2, "cache_views": 2}, "mixup = 0.2 mixes images, but cache_views = 2"),
        (
            {"patience": 3, "val_fraction": 0},
            "patience = 3 needs validation images",
        ),
        ({"image_size": 7}, "image_size = 7: must be greater than or equal to 8"),
        ({"val_fraction": 0.95}, "val_fraction = 0.95: must be less than or equal to 0.9"),
        ({"hue": 0.6}, "hue = 0.6: must be less than or equal to 0.5"),
        ({"flip": -0.1}, "flip = -0.1: must be greater than or equal to 0"),
        ({"warmup": 1.0}, "warmup = 1.0: must be less than 1"),
        ({"seed": -1}, "seed = -1: must be greater than or equal to 0"),
        ({"epochs": 1.5}, "epochs = 1.5: must be a whole number"),
        ({"lr": "fast"}, "lr = 'fast': must be a number"),
        ({"lr": 0, "epochs": 0}, "epochs = 0: must be greater than or equal to 1; lr = 0"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_rule(settings: Any, text: str) -> None:
    with pytest.raises(UsageError) as error:
        make_config({"model": "mlp", **settings})
    assert text in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "mlp", "lr": "y" * 100_000},
        {"model": "mlp", "y" * 100_000: 1},
        {"model": "mlp", "input": "y" * 100_000},
        {"model": "mlp"} | {f"no_{i}": i for i in range(1000)},
        {"model": "mlp", "\x1b[2J": 1, "model_options": {"\n\u202e": {}}},
    ],
    ids=["value", "name", "word", "many", "control characters"],
)
def test_what_is_wrong_is_quoted_briefly_and_printably(settings: Any) -> None:
    with pytest.raises(UsageError) as error:
        make_config(settings)
    assert len(str(error.value)) < 1000
    assert str(error.value).isprintable()


@pytest.mark.parametrize("field", ["lr", "weight_decay", "brightness", "warmup", "momentum"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_numbers_that_are_none_are_refused(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{field} = "):
        make_config({"model": "mlp", field: value})


# Recipes.


@pytest.mark.parametrize("freeze", [None, True, False])
@pytest.mark.parametrize("name", [*registry.names(), "timm:resnet18"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_has_valid_settings_for_every_model(
    recipe: str, name: str, freeze: bool | None
) -> None:
    options = {} if freeze is None or not registry.backbone_name(name) else {"freeze": freeze}
    pretrained = bool(registry.backbone_name(name)) and freeze is not False
    config, _ = check_settings(name, recipe=recipe, pretrained=pretrained, settings=options)
    check_options(name, config.model_options)
    assert config.val_fraction > 0, "a recipe never gives up its validation images"


def test_a_given_setting_beats_the_recipe_and_the_recipe_the_default() -> None:
    of_recipe, _ = check_settings("cnn", recipe="report", settings={})
    assert of_recipe.rotation == (0.0, 20.0) != RunConfig.model_fields["rotation"].default
    given_, _ = check_settings(
        "cnn", recipe="report", settings={"rotation": (0, 5), "dropout": 0.1}
    )
    assert given_.rotation == (0.0, 5.0)
    assert given_.model_options == {"dropout": 0.1}
    assert given_.lr == of_recipe.lr


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_a_recipes_cached_views_give_way_to_mixed_images(mixing: str) -> None:
    config, _ = check_settings("mobilenetv2", settings={})
    assert config.cache_views > 0
    config, _ = check_settings("mobilenetv2", settings={mixing: 0.2})
    assert config.cache_views == 0
    with pytest.raises(UsageError, match="leave out one of them"):
        check_settings("mobilenetv2", settings={mixing: 0.2, "cache_views": 2})


@pytest.mark.parametrize("method", ["probe", "pseudo-label", "knn"])
def test_another_method_keeps_the_size_of_a_recipe(method: str) -> None:
    settings = {"method": method, "unlabeled": "rest" if method == "pseudo-label" else "none"}
    assert check_settings("kmeans", settings=settings)[0].image_size == 48


@pytest.mark.parametrize(
    ("size", "stride", "precision"), [(64, "1", "bf16"), (32, "1", "no"), (64, "2", "no")]
)
def test_bf16_is_for_large_maps_however_an_option_is_written(
    size: int, stride: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "_cpu_has_bf16", lambda: True)
    for value in (stride, int(stride)):
        settings = {"freeze": False, "image_size": size, "stem_stride": value}
        config, _ = check_settings("mobilenetv2", recipe="report", settings=settings)
        assert resolve.choose_precision(config, "cpu") == precision


def test_the_reports_settings_are_those_of_the_report() -> None:
    rates = {"logistic": 1e-4, "mlp": 1e-3, "cnn": 1e-3}
    for model, lr in rates.items():
        config, _ = check_settings(model, recipe="report", settings={})
        assert (config.lr, config.batch_size, config.rotation) == (lr, 128, (0.0, 20.0))
        assert config.schedule == "constant"
    assert check_settings("logistic", recipe="report", settings={})[0].optimizer == "sgd"


def test_an_unknown_recipe_says_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown recipe 'repotr': did you mean 'report'"):
        check_settings("cnn", recipe="repotr", settings={})


def test_a_run_is_checked_before_torch_is_imported() -> None:
    code = (
        "from stl10bench.training.resolve import check_settings; "
        "check_settings('cnn', settings={'epochs': 2})"
    )
    assert heavy_after(code) == "[]"
