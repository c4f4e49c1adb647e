"""Any timm model as a backbone under the same head, frozen or fine-tuned."""

from typing import Annotated, Any

import timm
import torch
from pydantic import Field
from torch import nn

from stl10bench.core.errors import CheckpointError, UsageError, unknown
from stl10bench.models.classifier import Classifier
from stl10bench.models.mlp import Head
from stl10bench.models.registry import register


def timm_model(
    name: str,
    num_classes: int,
    image_size: int,
    *,
    freeze: bool = True,
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (512, 256),
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2,
) -> nn.Module:
    """timm's `name` without its classifier, then linear layers with ReLU and dropout.

    Raises UsageError for an unknown name and for a size that the backbone cannot take.
    """
    if not timm.is_model(name):
        raise unknown("timm model", name, timm.list_models())
    try:
        backbone = timm.create_model(name, **_settings(name, image_size))
        with torch.no_grad():
            features = backbone.eval()(torch.zeros(1, 3, image_size, image_size)).shape[1]
    except (RuntimeError, AssertionError, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise UsageError(
            f"image_size = {image_size}: timm:{name} cannot take it ({first}); "
            "try a larger --image-size"
        ) from None
    head = Head(features, num_classes, hidden=hidden, dropout=dropout)
    return Classifier(backbone, head, freeze=freeze)


@register
def mobilenetv2(
    num_classes: int,
    image_size: int,
    *,
    freeze: bool = True,
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (512, 256),
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2,
) -> nn.Module:
    """MobileNetV2 1.0 (Sandler et al. 2018) with a head of two hidden layers."""
    return timm_model(
        "mobilenetv2_100",
        num_classes,
        image_size,
        freeze=freeze,
        hidden=hidden,
        dropout=dropout,
    )


def load_pretrained(
    backbone: nn.Module, name: str, image_size: int, state: dict[str, Any]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Copy a timm state dict into a backbone; returns the mean and std that it was trained with.

    The file's classifier, if any, is left out; timm adapts what depends on the input size. Raises
    CheckpointError when tensors are missing or have other shapes: nothing is left random in
    silence.
    """
    ours = backbone.state_dict()
    missing = [key for key in ours if key not in state and not key.endswith("num_batches_tracked")]
    if missing:
        raise CheckpointError(
            f"the weights lack {len(missing)} of {len(ours)} tensors of {name} "
            f"({', '.join(missing[:5])} ...): are they of another model?"
        )
    kept = {key: value for key, value in state.items() if key in ours}
    for key, value in kept.items():
        if value.is_floating_point() != ours[key].is_floating_point():
            raise CheckpointError(f"the weights do not fit {name}: {key} is {value.dtype}")
    try:
        filled = timm.create_model(
            name,
            pretrained=True,
            pretrained_cfg_overlay={"state_dict": kept, "hf_hub_id": None, "url": None},
            **_settings(name, image_size),
        )
    except (
        RuntimeError,
        ValueError,
        TypeError,
        IndexError,
        KeyError,
    ) as error:  # of timm's adapting
        lines = [line.strip()[:200] for line in str(error).splitlines()[-3:]]
        raise CheckpointError(f"the weights do not fit {name}: {' '.join(lines)}") from None
    backbone.load_state_dict(filled.state_dict())
    own: dict[str, Any] = filled.pretrained_cfg  # type: ignore[assignment]
    return tuple(own["mean"]), tuple(own["std"])


def _settings(name: str, image_size: int) -> dict[str, Any]:
    """How the backbone is made: features only, and the size where the architecture fixes it."""
    settings = timm.get_pretrained_cfg(name)
    fixed = settings is not None and settings.fixed_input_size
    return {"num_classes": 0, **({"img_size": image_size} if fixed else {})}
