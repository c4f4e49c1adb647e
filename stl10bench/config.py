"""RunConfig (decides a run's numbers), Limits (when it saves and stops) and the named recipes."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from stl10bench.core.errors import UsageError, rule_of, suggest, unknown

STEPPED = ("supervised", "fixmatch", "simclr")  # the methods of gradient steps
SELF_SUPERVISED = "simclr"  # the method whose runs end in a backbone, not in a row
FORMAT = 1  # raised when the same settings begin to give other numbers
# Fields that are worked out from other options, so no option or sweep sets them directly.
DERIVED = (
    *("model", "model_options", "method_options", "data", "data_size", "unlabeled_data", "weights"),
)
RANGES = ("rotation", "random_resized_crop")  # a command line writes them LOW,HIGH

Scalar = bool | int | float | str
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Model = TypeVar("_Model", bound=BaseModel)


_STRICT = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True)


class RunConfig(BaseModel):
    """One run. A field's docstring is its option's help; its bounds are the option's bounds.

    `data` and `weights` identify content, never a path, so that the same run has the same name on
    every machine.
    """

    model_config = _STRICT

    model: str
    """A registered name, or timm:<any timm model>."""
    model_options: dict[str, Scalar | tuple[Scalar, ...]] = {}
    """Model options that differ from their defaults."""
    data: str = ""
    """Fingerprint of the data."""
    data_size: int = Field(96, ge=8, le=1024)
    """Height and width of the data's images in pixels."""
    unlabeled_data: str = ""
    """Fingerprint of unlabeled_X.bin, where a run uses it."""
    weights: str = "none"
    """Initial weights of the backbone: none (random), sha256:<checksum>, or hub:<repository>."""

    method: Literal[
        "supervised", "probe", "knn", "pseudo-label", "label-spreading", "fixmatch", "simclr"
    ] = "supervised"
    """Method: supervised or, with --unlabeled, fixmatch (gradient steps), or a classifier fitted to
    a frozen backbone's features: probe, knn, and with --unlabeled pseudo-label, label-spreading."""
    method_options: dict[str, Scalar] = {}
    """Method options that differ from their defaults."""

    image_size: int = Field(64, ge=8, le=1024)
    """Side of the model's input in pixels."""
    input: Literal["resize", "crop"] = "resize"
    """Resize images to the input size, or crop them (randomly in training, else the centre)."""
    val_fraction: float = Field(0.1, ge=0, le=0.9)
    """Fraction of training images for validation (stratified), to choose the epoch; 0: none."""
    fold: int | None = Field(default=None, ge=0, lt=10)
    """Pre-defined fold (0 to 9, 1,000 images) to train on, without validation images."""
    k_fold: int | None = Field(default=None, ge=2, le=100)
    """Cut the training images into K stratified parts: one validates, the others train."""
    k_fold_part: int = Field(0, ge=0)
    """The part that validates, 0 to K-1; benchmark --protocol k-fold trains one run for each."""
    labels_per_class: int | None = Field(default=None, ge=1)
    """Labelled images per class, validation included (seeded; larger subsets contain smaller)."""
    unlabeled: str | None = None
    """Unlabelled images: rest (training images whose labels are left out), all, N or none."""
    keep_copies: bool = False
    """Keep unlabelled images that are copies of test images (marked in the row)."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of everything that is random."""

    epochs: int = Field(20, ge=1)
    """Passes over the training images."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many epochs without a better one; the schedule still spans --epochs."""
    batch_size: int = Field(128, ge=1)
    """Images per step, over all processes."""
    optimizer: str = Field("adamw", min_length=1)
    """Optimizer: sgd, adam, adamw, or any optimizer of timm."""
    lr: Positive = 0.001
    """Peak learning rate."""
    backbone_lr: float = Field(1.0, gt=0, le=1)
    """Learning rate of the backbone as a fraction of --lr."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Layer-wise learning-rate decay: factor from each backbone layer to the one below; 1: off."""
    freeze_stages: int = Field(0, ge=0)
    """Number of stages of a fine-tuned backbone to freeze, counted from its stem; 0: none."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD momentum."""
    weight_decay: Strength = 0.0
    """Weight decay of matrices and kernels; biases and norms have none."""
    schedule: Literal["constant", "step", "cosine", "one-cycle"] = "cosine"
    """Learning-rate schedule after the warm-up."""
    warmup: float = Field(0.0, ge=0, lt=1)
    """Warm-up: fraction of all steps over which the learning rate rises to --lr."""
    step_epochs: int = Field(10, ge=1)
    """Epochs between two drops of the learning rate (step schedule)."""
    step_gamma: float = Field(0.1, gt=0, lt=1)
    """Factor by which each drop multiplies the learning rate (step schedule)."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing: fraction of the target spread over all classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """Class weights in the training loss: balanced (inverse to a class's training images), none."""
    clip_grad: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Clip the total norm of the gradients to this value."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of a moving average of the weights, e.g. 0.999; the average is tested and saved."""
    grad_accum: int = Field(1, ge=1)
    """Split each batch into this many parts to save memory; each step still uses all of it."""

    brightness: Strength = 0.2
    """Brightness jitter: random factor within 1 +- this."""
    contrast: Strength = 0.2
    """Contrast jitter: random factor within 1 +- this."""
    saturation: Strength = 0.2
    """Saturation jitter: random factor within 1 +- this."""
    hue: float = Field(0.02, ge=0, le=0.5)
    """Hue jitter: random shift within +- this fraction of the colour circle."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    rotation: tuple[float, float] = (-10.0, 10.0)
    """Range of the random rotation in degrees: LOW,HIGH."""
    random_resized_crop: tuple[float, float] | None = None
    """Random resized crop: range of the box's area as a fraction of the image, LOW,HIGH."""
    grayscale: Fraction = 0.0
    """Probability of an image without colours."""
    blur: Fraction = 0.0
    """Probability of a Gaussian blur, of 0.1% to 2% of the image's side."""
    cutout: Fraction = 0.0
    """Cutout: largest side of a grey square as a fraction of the image's; 0: off."""
    mixup: Strength = 0.0
    """mixup: alpha of the Beta distribution that draws the weights of two images; 0: off."""
    cutmix: Strength = 0.0
    """CutMix: alpha for the area of the pasted box; with --mixup, each image gets one; 0: off."""

    cache_views: int = Field(0, ge=0, le=1000)
    """Augmented views per image: their frozen features are computed once and reused; 0: off."""
    tta: Literal["none", "flip"] = "none"
    """Test-time augmentation: flip averages over mirrored images, beside the plain result."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Precision: auto (chosen by device and model), no (fp32), bf16 or fp16."""

    @field_validator("unlabeled", mode="before")
    @classmethod
    def _number_as_text(cls, value: Any) -> Any:
        if value == "none":  # what leaves it out where a recipe or a file asks for some
            return None
        return str(value) if type(value) is int else value

    @model_validator(mode="after")
    def _fits_together(self) -> "RunConfig":
        low, high = self.rotation
        if not -180 <= low <= high <= 180:
            raise ValueError(f"rotation = {low},{high}: must be -180 <= LOW <= HIGH <= 180")
        if self.random_resized_crop is not None:
            low, high = self.random_resized_crop
            if not 0 < low <= high <= 1:
                raise ValueError(
                    f"random_resized_crop = {low},{high}: must be 0 < LOW <= HIGH <= 1"
                )
        if not re.fullmatch(r"all|rest|[1-9]\d{0,8}", self.unlabeled or "all"):
            raise ValueError(
                f"unlabeled = {self.unlabeled!r:.80}: must be rest, all or a number of images"
            )
        if self.keep_copies and self.unlabeled is None:
            raise ValueError("keep_copies has no effect without unlabelled images: add --unlabeled")
        for name in ("mixup", "cutmix"):
            if self.cache_views and getattr(self, name):
                raise ValueError(
                    f"{name} = {getattr(self, name)} mixes images, but cache_views = "
                    f"{self.cache_views} trains on stored features: leave out one of them"
                )
        if self.patience is not None and not self.val_fraction:
            raise ValueError(
                f"patience = {self.patience} needs validation images, but val_fraction = 0 leaves "
                "none: leave out patience, or raise val_fraction"
            )
        if self.fold is not None and (self.val_fraction or self.labels_per_class):
            raise ValueError(
                f"fold = {self.fold}: training uses the whole fold; set val_fraction = 0 and leave "
                "out labels_per_class"
            )
        if self.k_fold is not None:
            if self.fold is not None or self.labels_per_class:
                raise ValueError(
                    f"k_fold = {self.k_fold} cuts all training images: leave out fold and "
                    "labels_per_class"
                )
            if self.val_fraction != type(self).model_fields["val_fraction"].default:
                raise ValueError(
                    f"val_fraction = {self.val_fraction}: with k_fold = {self.k_fold} one part of "
                    "them validates; leave it out"
                )
        if self.k_fold_part >= (self.k_fold or 1):
            raise ValueError(
                f"k_fold_part = {self.k_fold_part}: must be less than k_fold = {self.k_fold}"
            )
        # Until the data are known, any crop may fit in their images.
        if self.input == "crop" and self.data and self.image_size > self.data_size:
            raise ValueError(
                f"image_size = {self.image_size}: a crop cannot be larger than the data's images "
                f"({self.data_size} px); lower --image-size, or use --input resize"
            )
        return self

    def changed(self) -> dict[str, Any]:
        """The fields that differ from their defaults, as JSON values."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def without_unlabelled(self) -> "RunConfig":
        """The same settings without unlabelled images.

        Then pseudo-label is a probe, and fixmatch supervised.
        """
        changes: dict[str, Any] = {"unlabeled": None, "unlabeled_data": "", "keep_copies": False}
        if self.method == "pseudo-label":
            options = self.method_options.items()
            shared = {key: value for key, value in options if key in ("power", "penalty")}
            changes |= {"method": "probe", "method_options": shared}
        if self.method == "fixmatch":
            changes |= {"method": "supervised", "method_options": {}}
        return self.model_copy(update=changes)

    @property
    def takes_steps(self) -> bool:
        """Whether its method trains in gradient steps, and so in epochs."""
        return self.method in STEPPED

    @property
    def selection(self) -> Literal["validation", "last epoch"]:
        """What chooses the epoch that is tested."""
        return "validation" if self.val_fraction else "last epoch"

    @property
    def name(self) -> str:
        """`<model>-<hash8>`: the hash of FORMAT and `changed()`, safe as a folder's name.

        Of pretraining `simclr-<model>-<hash8>`.
        """
        content = json.dumps([FORMAT, self.changed()], sort_keys=True)
        model = f"{self.method}-{self.model}" if self.method == SELF_SUPERVISED else self.model
        slug = re.sub(r"[^A-Za-z0-9_-]+", "-", model)[:60]
        return f"{slug}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


class Limits(BaseModel):
    """When a run writes checkpoints and when it stops; nothing here changes its numbers."""

    model_config = _STRICT

    checkpoint_minutes: float = Field(default=5.0, ge=0, allow_inf_nan=False)
    """Minutes between checkpoints during training; 0: after every step."""
    checkpoint_epochs: int | None = Field(default=None, ge=1)
    """Epochs between additional checkpoints."""
    max_minutes: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Save and stop after this many minutes; the same command resumes the run."""
    timeout_minutes: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """Minutes to wait for a hanging process before the run fails."""


def make_limits(settings: Mapping[str, Any]) -> Limits:
    """Checked Limits; raises UsageError with the value and the rule."""
    return checked(Limits, settings)


def make_config(settings: Mapping[str, Any]) -> RunConfig:
    """A checked RunConfig; raises UsageError with the value, the rule and the nearest name."""
    return checked(RunConfig, settings)


def checked(model: type[_Model], settings: Mapping[str, Any]) -> _Model:
    """A value of `model`; raises UsageError with each value that is wrong and its rule."""
    try:
        return model.model_validate(settings)
    except ValidationError as error:  # five are enough to begin with: a line, not a page
        problems = error.errors(include_url=False)[:5]
        raise UsageError("; ".join(_explain(problem, model) for problem in problems)) from None


def check_values(model: type[BaseModel], settings: Mapping[str, Any], source: str) -> None:
    """Raise UsageError, naming their `source`, for values that the fields cannot have.

    Fields that are missing, and whether the values fit together, are for `checked`.
    """
    try:
        model.model_validate(settings)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        reasons = [_explain(p, model) for p in problems if p["loc"] and p["loc"][0] in settings]
        if reasons:
            raise UsageError(f"{source}: {'; '.join(reasons[:5])}") from None


def _explain(problem: Any, model: type[BaseModel]) -> str:
    """One of pydantic's problems in our words; what it quotes from the user is cut."""
    name = ".".join(map(str, problem["loc"]))
    name = "".join(c if c.isprintable() else "?" for c in name[:80])
    match problem["type"]:
        case "extra_forbidden":
            hint = suggest(name, model.model_fields, otherwise="")
            return f"unknown setting {name!r}" + (f": {hint}" if hint else "")
        case "literal_error":
            expected = problem["ctx"]["expected"]  # "'a', 'b' or 'c'"
            choices = re.findall(r"'([^']+)'", expected)
            hint = suggest(str(problem["input"]), choices, otherwise=f"one of {expected}")
            return f"unknown {name} {problem['input']!r:.80}: {hint}"
        case "value_error":  # one of ours, from a validator
            return str(problem["ctx"]["error"])
    return f"{name} = {problem['input']!r:.80}: {rule_of(problem)}"


DEFAULT_RECIPE = "tuned"


# What the report states: learning rate 1e-4 and SGD for logistic regression, 1e-3 for the others;
# batch 128; jitter, flip and a rotation of 0 to 20 degrees; the CNN's dropout of 0.2.
# What it does not state, chosen here: 20 epochs (12 for the CNN and the fine-tuned MobileNetV2),
# jitter of 0.2 and hue 0.1, Adam for the others, momentum 0.9, no weight decay, a constant rate,
# MobileNetV2's head of 512-256 with dropout 0.2, the training images' mean and std (a pretrained
# backbone's own), validation on a tenth of the training images.
_REPORT: dict[str, Any] = {
    **{"epochs": 20, "batch_size": 128, "optimizer": "adam", "lr": 1e-3, "schedule": "constant"},
    **{"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1, "rotation": (0.0, 20.0)},
}

# Chosen on validation images of the real STL-10 at 64 px (docs/explanation/recipes.md): AdamW, or
# Muon (Jordan et al. 2024) where convolutions start from random weights; a cosine schedule; light
# jitter and rotation. MobileNetV2's stem moves by one pixel: else its maps would end at 2x2.
_TUNED: dict[str, Any] = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "warmup": 0.1}
_MUON: dict[str, Any] = _TUNED | {
    **{"optimizer": "muon", "lr": 3e-3, "batch_size": 64, "label_smoothing": 0.1},
}
_CACHED: dict[str, Any] = _TUNED | {
    **{"label_smoothing": 0.1, "epochs": 20},
    "model_options": {"stem_stride": 1, "intermediates": 3, "dropout": 0.5},
}
_FINE_TUNED: dict[str, Any] = _TUNED | {
    **{"label_smoothing": 0.1, "model_options": {"stem_stride": 1}},
}
_KMEANS: dict[str, Any] = {"method": "probe", "image_size": 48}
_KMEANS_32 = _KMEANS | {"image_size": 32}  # as in its paper

# Recipe -> model -> settings. `frozen` and `fine-tuned` stand for every backbone that has no recipe
# of its own, and `other` for every plug-in.
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "report": {
        "logistic": _REPORT | {"optimizer": "sgd", "lr": 1e-4},
        "mlp": _REPORT,
        "cnn": _REPORT | {"epochs": 12},
        "kmeans": _KMEANS_32,
        "frozen": _REPORT,
        "fine-tuned": _REPORT | {"epochs": 12},
        "other": _REPORT,
    },
    "tuned": {
        "logistic": _TUNED | {"epochs": 20, "lr": 1e-4},
        "mlp": _TUNED | {"epochs": 40, "lr": 3e-4, "model_options": {"dropout": 0.2}},
        "cnn": _MUON | {"epochs": 8},
        "resnet9": _MUON | {"epochs": 16},
        "kmeans": _KMEANS | {"method_options": {"views": 2}},
        "mobilenetv2 (frozen)": _CACHED | {"cache_views": 3},
        "mobilenetv2 (fine-tuned)": _FINE_TUNED | {"epochs": 6},
        "frozen": _TUNED | {"epochs": 12},
        "fine-tuned": _TUNED | {"epochs": 12, "label_smoothing": 0.1},
        "other": _TUNED,
    },
    "fast": {
        "logistic": _TUNED | {"epochs": 3, "lr": 3e-4},
        "mlp": _TUNED | {"epochs": 6},
        "cnn": _MUON | {"epochs": 4},
        "resnet9": _MUON | {"epochs": 6},
        "kmeans": _KMEANS,
        "mobilenetv2 (frozen)": _CACHED | {"cache_views": 1},
        "mobilenetv2 (fine-tuned)": _FINE_TUNED | {"epochs": 2},
        "frozen": _TUNED | {"epochs": 20, "cache_views": 1},
        "fine-tuned": _TUNED | {"epochs": 6, "label_smoothing": 0.1},
        "other": _TUNED | {"epochs": 5},
    },
    "quick": {
        "logistic": {"epochs": 20},
        "mlp": {"epochs": 20},
        "cnn": {"epochs": 8, "batch_size": 64, "model_options": {"channels": (64, 128, 128, 256)}},
        "kmeans": _KMEANS_32,
        "frozen": {"epochs": 5},
        "fine-tuned": {"epochs": 8, "batch_size": 64},
        "other": {"epochs": 5},
    },
}


def recipe_settings(recipe: str, model: str, *, frozen: bool | None) -> dict[str, Any]:
    """The recipe's settings for a model; `frozen` is None for a model without a backbone.

    Raises UsageError for an unknown recipe.
    """
    if recipe not in RECIPES:
        raise unknown("recipe", recipe, RECIPES)
    models = RECIPES[recipe]
    if frozen is None:
        return models.get(model, models["other"])
    key = "frozen" if frozen else "fine-tuned"
    return models.get(f"{model} ({key})", models[key])
