"""Settings as a user gives them -> a complete RunConfig, and the weights it starts from.

torch takes seconds to import: only the rule for the precision, which asks the device, imports it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stl10bench.config import (
    DEFAULT_RECIPE,
    SELF_SUPERVISED,
    RunConfig,
    make_config,
    recipe_settings,
)
from stl10bench.core.errors import UsageError
from stl10bench.core.launcher import asked_precision
from stl10bench.models import registry
from stl10bench.models.factory import changed_options, check_freeze, check_options, get_builder
from stl10bench.models.methods import (
    DEFAULTS,
    FEW_LABELS,
    FIXMATCH,
    SUPERVISED,
    changed_method_options,
    check_effect,
)
from stl10bench.models.pretrained import Weights, choose_weights

if TYPE_CHECKING:
    from stl10bench.data.stl10 import Dataset


def check_settings(
    model: str,
    *,
    recipe: str = DEFAULT_RECIPE,
    weights: Path | None = None,
    pretrained: bool = True,
    pretraining: bool = False,
    settings: Mapping[str, Any],
) -> tuple[RunConfig, Weights]:
    """The config of a run, so far as it is known before torch is imported, and its weights.

    Raises UsageError for names and values that cannot be, CheckpointError for unreadable weights.
    """
    registry.check_name(model)
    if not pretraining and settings.get("method") == SELF_SUPERVISED:
        raise UsageError(
            f"method = {SELF_SUPERVISED} trains no classifier: use 'stl10bench pretrain "
            f"{SELF_SUPERVISED} --backbone {model}', then 'train {model} --weights RUN'"
        )
    fields = {key: value for key, value in settings.items() if key in RunConfig.model_fields}
    options = {key: value for key, value in settings.items() if key not in RunConfig.model_fields}
    options = {**fields.pop("model_options", {}), **options}
    frozen = None
    if registry.backbone_name(model) is not None:
        frozen = check_freeze(options.get("freeze", True))
    base = base_settings(model, recipe, fields, frozen=frozen)
    options = {**base.get("model_options", {}), **options}
    config = make_config({**base, **fields, "model": model, "model_options": options})
    changed = changed_method_options(config.method, config.method_options)
    config = config.model_copy(update={"method_options": changed})
    if config.unlabeled is None:
        config = config.without_unlabelled()
    check_effect(config)
    if config.cache_views and not frozen and not config.freeze_stages:
        raise UsageError(
            f"cache_views = {config.cache_views}: only the features of a frozen backbone, or of "
            "frozen stages, can be cached; use --freeze or --freeze-stages with a backbone, or "
            "leave out --cache-views"
        )
    for name, off in (("layer_decay", 1.0), ("freeze_stages", 0)):
        if getattr(config, name) != off and frozen is not False:
            raise UsageError(
                f"{name} = {getattr(config, name)} needs a fine-tuned backbone: use --no-freeze "
                f"with a backbone, or leave out {name}"
            )
    if frozen and not pretrained:
        get_builder(model)  # an unknown timm model is said before what is missing for it
    return config, choose_weights(model, file=weights, pretrained=pretrained, frozen=frozen)


def base_settings(
    model: str, recipe: str, settings: Mapping[str, Any], *, frozen: bool | None
) -> dict[str, Any]:
    """What a run has where `settings` say nothing else: its recipe's, fitted to them.

    `frozen` is None for a model without a backbone. Raises UsageError for an unknown recipe.
    """
    base = recipe_settings(recipe, model, frozen=frozen)
    of_recipe = base.get("method", SUPERVISED)
    method = settings.get("method", of_recipe)
    if method != of_recipe and (of_recipe, method) != (SUPERVISED, FIXMATCH):
        # Its other settings are of another method; a pretrained backbone is that of the recipe.
        kept = {"image_size"} | ({"model_options"} if method == SELF_SUPERVISED else set())
        base = {key: value for key, value in base.items() if key in kept}
    base = {**base, **DEFAULTS.get(str(method), {})}
    if settings.get("mixup") or settings.get("cutmix"):  # which mix images, not cached features
        base = {key: value for key, value in base.items() if key != "cache_views"}
    # Ten percent of a fold's 1,000 images, or of a few labels a class, decide little: all train.
    labels = {"labels_per_class": settings.get("labels_per_class")}  # anything, from a file
    few = make_config({"model": model, **labels}).labels_per_class
    if settings.get("fold") is not None or (few is not None and few < FEW_LABELS):
        base = {**base, "val_fraction": 0.0}
    return base


def resolve_config(config: RunConfig, dataset: "Dataset", start: Weights, device: str) -> RunConfig:
    """The config with everything filled in that its name is made of: data, weights, precision."""
    return make_config(
        {
            **config.model_dump(),
            "model_options": changed_options(config.model, config.model_options),
            "data": dataset.fingerprint,
            "data_size": dataset.image_size,
            "unlabeled_data": unlabelled_fingerprint(config, dataset),
            "weights": start.source,
            "precision": choose_precision(config, device),
        }
    )


def fit_batch(config: RunConfig, settings: Mapping[str, Any], images: int) -> RunConfig:
    """The config with a batch that the training images fill: a recipe's is halved until they do.

    One of the `settings` stays as it is: too large a one is an error when the run starts.
    """
    if "batch_size" in settings or not config.takes_steps:
        return config
    size = config.batch_size
    while size > images > 0:
        size //= 2
    return config.model_copy(update={"batch_size": size})


def unlabelled_fingerprint(config: RunConfig, dataset: "Dataset") -> str:
    """What unlabeled_X.bin contains, for a run that uses it; empty for others."""
    if config.unlabeled in (None, "rest"):
        return ""
    from stl10bench.data.unlabelled import scan_file  # NumPy, as everything of the data

    return scan_file(dataset).fingerprint


def is_frozen(config: RunConfig) -> bool | None:
    """Whether the run's backbone is frozen; None for a model without a backbone."""
    if registry.backbone_name(config.model) is None:
        return None
    return bool(check_options(config.model, config.model_options)["freeze"])


def choose_precision(config: RunConfig, device: str) -> str:
    """What `auto` means: what a launcher asks for, else a rule from what the device can do.

    The rule is no timing. CUDA: bf16 where the GPU has it (Ampere and later). CPU with bf16
    instructions (AVX512-BF16, AMX): bf16 for the mlp, the cnn, resnet9, a frozen backbone, and any
    backbone from 96 px on, or 48 px with a stem of stride 1, where the products outweigh the
    conversions (measured; a fine-tuned MobileNetV2 at 64 px is else faster in fp32). Everything
    else is fp32. Raises UsageError for fp16 on a CPU.
    """
    precision: str = config.precision
    if precision == "auto":
        precision = asked_precision() or "auto"
    if precision == "fp16" and device == "cpu":
        raise UsageError("fp16 does not work on a CPU: use --precision bf16 or no")
    if precision != "auto":
        return precision
    if device == "cuda":
        import torch

        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    heavy = config.model in ("mlp", "cnn", "resnet9")
    if registry.backbone_name(config.model) is not None:
        options = check_options(config.model, config.model_options)
        smallest = 48 if options["stem_stride"] == 1 else 96  # its maps have then twice the side
        heavy = options["freeze"] or config.image_size >= smallest
    return "bf16" if device == "cpu" and heavy and _cpu_has_bf16() else "no"


def _cpu_has_bf16() -> bool:
    import torch

    return any(
        getattr(torch.cpu, name, bool)()
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
