"""Settings as a user gives them -> a complete RunConfig, and the weights it starts from.

torch takes seconds to import: only `resolve`, which needs the device, imports it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stl10bench.config import DEFAULT_RECIPE, RunConfig, make_config, recipe_settings
from stl10bench.core.errors import UsageError
from stl10bench.models import registry
from stl10bench.models.factory import changed_options, check_freeze, check_options
from stl10bench.models.pretrained import Weights, choose_weights


def check_settings(
    model: str,
    *,
    recipe: str = DEFAULT_RECIPE,
    weights: str | Path | None = None,
    pretrained: bool = True,
    settings: Mapping[str, Any],
) -> tuple[RunConfig, Weights]:
    """The config of a run, so far as it is known before torch is imported, and its weights.

    Raises UsageError for names and values that cannot be, CheckpointError for unreadable weights.
    """
    registry.check_name(model)
    given = {key: value for key, value in settings.items() if key in RunConfig.model_fields}
    options = {key: value for key, value in settings.items() if key not in RunConfig.model_fields}
    options = {**given.pop("model_options", {}), **options}
    frozen = None
    if registry.backbone_name(model) is not None:
        frozen = check_freeze(options.get("freeze", True))
    base = recipe_settings(recipe, model, frozen=frozen)
    options = {**base.get("model_options", {}), **options}
    if given.get("fold") is not None:
        base = {**base, "val_fraction": 0.0}
    config = make_config({**base, **given, "model": model, "model_options": options})
    if config.cache_views and not frozen:
        raise UsageError(
            f"cache_views = {config.cache_views}: only the features of a frozen backbone stay the "
            "same; use --freeze with one, or leave it out"
        )
    file = None if weights is None else Path(weights)
    return config, choose_weights(model, file=file, pretrained=pretrained, frozen=frozen)


def resolve_config(config: RunConfig, fingerprint: str, start: Weights, device: str) -> RunConfig:
    """The config with everything filled in that its name is made of: data, weights, precision."""

    precision = choose_precision(
        config.precision,
        device,
        config.model,
        image_size=config.image_size,
        frozen=bool(check_options(config.model, config.model_options).get("freeze")),
    )
    return make_config(
        {
            **config.model_dump(),
            "model_options": changed_options(config.model, config.model_options),
            "data": fingerprint,
            "weights": start.source,
            "precision": precision,
        }
    )


def choose_precision(asked: str, device: str, model: str, *, image_size: int, frozen: bool) -> str:
    """What `auto` means: a rule from what the device can do, not a timing.

    CUDA: bf16 where the GPU has it (Ampere and later). CPU with bf16 instructions (AVX512-BF16,
    AMX): bf16 for the mlp, the cnn, a frozen backbone, and any backbone from 96 px on, where the
    products outweigh the conversions (measured; a trained MobileNetV2 at 64 px is faster in
    fp32). Everything else is fp32. Raises UsageError for fp16 on a CPU.
    """
    if asked == "fp16" and device == "cpu":
        raise UsageError("--precision fp16 does not work on a CPU: use bf16, no or auto")
    if asked != "auto":
        return asked
    if device == "cuda":
        import torch

        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    large = registry.backbone_name(model) is not None and image_size >= 96
    heavy = model in ("mlp", "cnn") or frozen or large
    return "bf16" if device == "cpu" and heavy and _cpu_has_bf16() else "no"


def _cpu_has_bf16() -> bool:
    import torch

    return any(
        getattr(torch.cpu, name, bool)()
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
