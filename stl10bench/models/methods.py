"""What `--method` names: the options of each, and the settings that have an effect with it.

Light: a mistyped option is answered before torch is imported.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from stl10bench.config import SELF_SUPERVISED, RunConfig, Scalar, checked
from stl10bench.core.errors import UsageError, suggest

SUPERVISED = "supervised"
FIXMATCH = "fixmatch"
SEMI_SUPERVISED = ("pseudo-label", "label-spreading", FIXMATCH)  # learn from unlabelled images
NEIGHBOURS = ("knn", "label-spreading")  # whose head is a bank of images
FEW_LABELS = 25  # per class; with fewer nothing is chosen: a validation split would be noise

_STRICT = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class NoOptions(BaseModel):
    """Of `supervised`, whose settings are those of RunConfig."""

    model_config = _STRICT


class ProbeOptions(BaseModel):
    """Of `probe`: multinomial logistic regression on frozen features."""

    model_config = _STRICT

    views: int = Field(default=1, ge=1, le=2)
    """Views per training image: 2 adds the mirrored image."""
    power: float = Field(default=0.5, gt=0, le=1)
    """Power to which features are raised (keeping their sign) before L2 normalisation."""
    penalty: float | None = Field(default=None, gt=0, le=1e6)
    """Strength of the L2 penalty (1/C in scikit-learn); chosen automatically if unset."""


class KnnOptions(BaseModel):
    """Of `knn`: a vote of the nearest training images."""

    model_config = _STRICT

    k: int = Field(default=20, ge=1, le=10_000)
    """Number of neighbours that vote."""
    temperature: float = Field(default=0.1, gt=0, le=100)
    """A neighbour's vote weighs exp(cosine similarity / temperature)."""


class PseudoLabelOptions(BaseModel):
    """Of `pseudo-label`: a probe that is fitted to its own confident predictions as well."""

    model_config = _STRICT

    rounds: int = Field(default=5, ge=1, le=100)
    """Number of fits to predicted labels, each to more images."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Share of the unlabelled images whose predictions the last round learns from."""
    power: float = Field(default=0.5, gt=0, le=1)
    """Power to which features are raised (keeping their sign) before L2 normalisation."""
    penalty: float | None = Field(default=None, gt=0, le=1e6)
    """Strength of the L2 penalty (1/C in scikit-learn); chosen automatically if unset."""


class LabelSpreadingOptions(BaseModel):
    """Of `label-spreading`: labels spread over a graph of nearest images, labelled or not."""

    model_config = _STRICT

    k: int = Field(default=10, ge=1, le=10_000)
    """Number of neighbours of each image, in the graph and in the vote on a new image."""
    alpha: float = Field(default=0.99, gt=0, lt=1)
    """Share of an image's label that it takes from its neighbours in each step."""
    temperature: float = Field(default=0.1, gt=0, le=100)
    """An edge weighs exp(cosine similarity / temperature)."""


class FixmatchOptions(BaseModel):
    """Of `fixmatch`: strong views of unlabelled images learn what weak views predict.

    The names and defaults are USB's.
    """

    model_config = _STRICT

    p_cutoff: float = Field(default=0.95, ge=0, le=1)
    """Confidence from which on a prediction becomes a label."""
    uratio: int = Field(default=7, ge=1, le=100)
    """Unlabelled images per labelled one in each batch."""
    ulb_loss_ratio: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Weight of the unlabelled images' loss."""


class SimclrOptions(BaseModel):
    """Of `simclr`: two views of an image are more alike than those of different images."""

    model_config = _STRICT

    temperature: float = Field(default=0.5, gt=0, le=100)
    """Temperature of the similarities."""
    projection: int = Field(default=128, ge=1, le=65_536)
    """Outputs of the projection head, whose hidden layer is as wide as the features."""
    knn_every: int = Field(default=5, ge=1)
    """Epochs between two lines of kNN accuracy on the validation images."""


METHODS: dict[str, type[BaseModel]] = {
    SUPERVISED: NoOptions,
    "probe": ProbeOptions,
    "knn": KnnOptions,
    "pseudo-label": PseudoLabelOptions,
    "label-spreading": LabelSpreadingOptions,
    FIXMATCH: FixmatchOptions,
    SELF_SUPERVISED: SimclrOptions,
}
# What a method has, whatever the recipe says, where the user does not say otherwise.
DEFAULTS: dict[str, dict[str, Any]] = {
    # A model that learns smoothed labels is hardly ever as confident as `p_cutoff`: with 0.1 and
    # ten classes its target is 0.91.
    FIXMATCH: {"ema": 0.999, "label_smoothing": 0.0, "cache_views": 0},
    SELF_SUPERVISED: {
        **{"unlabeled": "rest", "epochs": 100, "batch_size": 256},
        **{"optimizer": "adamw", "lr": 1e-3, "weight_decay": 1e-4, "warmup": 0.05},
        **{"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "grayscale": 0.2},
        **{"random_resized_crop": (0.2, 1.0), "rotation": (0.0, 0.0), "blur": 0.5},
    },
}
# What decides a run on frozen features; all other settings are of gradient steps.
_OF_FEATURES = {
    *("model", "model_options", "data", "weights", "method", "method_options"),
    *("image_size", "input", "val_fraction", "fold", "k_fold", "k_fold_part", "labels_per_class"),
    *("seed", "precision"),
    *("data_size", "tta", "unlabeled", "unlabeled_data", "keep_copies"),
}
# What decides pretraining, which has no classifier and whose loss is of a whole batch.
OF_PRETRAINING = {
    *("model", "model_options", "data", "weights", "method", "method_options", "data_size"),
    *("image_size", "input", "val_fraction", "k_fold", "k_fold_part", "seed", "precision"),
    *("unlabeled", "unlabeled_data", "keep_copies", "epochs", "batch_size", "optimizer", "lr"),
    *("backbone_lr", "layer_decay", "momentum", "weight_decay", "schedule", "warmup"),
    *("step_epochs", "step_gamma", "clip_grad", "brightness", "contrast", "saturation", "hue"),
    *("flip", "rotation", "random_resized_crop", "grayscale", "blur", "cutout"),
}


def method_options(config: RunConfig) -> Any:
    """The options of a config's method, defaults included: one of METHODS' values."""
    return METHODS[config.method].model_validate(config.method_options)


def changed_method_options(method: str, options: Mapping[str, Any]) -> dict[str, Scalar]:
    """The checked options that differ from the method's defaults: what a config stores.

    Raises UsageError for an option that the method does not have, or a value out of its range.
    """
    model = METHODS[method]
    for key in options:
        if key not in model.model_fields:
            choices = f"it has: {', '.join(model.model_fields) or 'none'}"
            hint = suggest(key, list(model.model_fields), otherwise=choices)
            raise UsageError(f"method {method!r} has no option {key!r}: {hint}")
    return checked(model, options).model_dump(exclude_defaults=True)


def check_effect(config: RunConfig) -> None:
    """Raise UsageError for settings that have no effect with the config's method."""
    if config.method == FIXMATCH and config.cache_views:
        raise UsageError(
            f"cache_views = {config.cache_views}: --method fixmatch sees new views of unlabelled "
            "images in each step: leave it out"
        )
    if config.method == SELF_SUPERVISED:
        idle = sorted(config.changed().keys() - OF_PRETRAINING)
        if idle:
            raise UsageError(f"{', '.join(idle)}: no effect on pretraining: leave it out")
        if config.unlabeled is None:
            raise UsageError("unlabeled = none: pretraining needs images: pass rest, all or N")
    if config.takes_steps:
        return
    idle = sorted(config.changed().keys() - _OF_FEATURES)
    idle += sorted(config.model_options.keys() & {"hidden", "dropout"})
    if not config.model_options.get("freeze", True):
        idle.append("no-freeze")
    if idle:
        raise UsageError(
            f"{', '.join(idle)}: no effect with --method {config.method}, which fits a classifier "
            "to the features of a frozen backbone: leave it out"
        )
