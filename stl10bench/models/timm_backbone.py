"""Any timm model as a backbone under the same head, frozen or fine-tuned."""

from contextlib import suppress
from difflib import get_close_matches
from typing import Annotated, Any

import timm
import torch
from pydantic import Field
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from torch import nn

from stl10bench.core.device import is_out_of_memory
from stl10bench.core.errors import CheckpointError, UsageError, cause
from stl10bench.models.classifier import Classifier, joined_features
from stl10bench.models.mlp import Dropout, Head, Widths

# Pixels: among them are multiples of 7, 8, 12, 14 and 32, of which architectures are fond.
_SIZES = (32, 56, 64, 84, 96, 112, 128, 160, 192, 224, 240, 256, 288, 320, 336, 384, 448, 512, 896)


def timm_model(
    name: str,
    num_classes: int,
    image_size: int,
    *,
    freeze: bool = True,
    hidden: Widths = (512, 256),
    dropout: Dropout = 0.2,
    intermediates: Annotated[int, Field(ge=0)] = 0,
    stem_stride: Annotated[int, Field(ge=1, le=2)] = 2,
) -> nn.Module:
    """timm's `name` without its classifier, under a `Head`.

    `intermediates` adds the pooled outputs of so many of the last feature levels to the features.
    `stem_stride` 1 lets a stem convolution of stride 2 move by one pixel, as CIFAR's variants of
    these networks do: all behind it sees maps of twice the side, at four times the MACs.

    Raises UsageError for a size that the backbone cannot take, with the nearest that it can, and
    for options that it does not have.
    """
    try:
        backbone, features = _build(name, image_size)
    except Exception as error:  # timm's models raise of all kinds
        if is_out_of_memory(error):
            raise
        size = _nearest_size(name, image_size)
        remedy = f"use --image-size {size}" if size else "choose another model or --image-size"
        raise UsageError(
            f"image_size = {image_size}: timm:{name} does not accept it ({cause(error)}); {remedy}"
        ) from error
    if stem_stride == 1:
        _widen_stem(backbone, name)
    if intermediates:
        features = _count_features(backbone, name, image_size, intermediates)
    head = Head(features, num_classes, hidden=hidden, dropout=dropout)
    return Classifier(backbone, head, freeze=freeze, intermediates=intermediates)


def _widen_stem(backbone: nn.Module, name: str) -> None:
    """Make the first convolution's stride 1; raises UsageError where it is not 2."""
    stem = next((part for part in backbone.modules() if isinstance(part, nn.Conv2d)), None)
    if stem is None or stem.stride != (2, 2):
        stride = None if stem is None else stem.stride[0]
        raise UsageError(
            f"stem_stride = 1: the first convolution of timm:{name} has stride {stride}, not 2; "
            "leave it out"
        )
    stem.stride = (1, 1)


def _count_features(backbone: nn.Module, name: str, image_size: int, intermediates: int) -> int:
    """The number of features with intermediate ones; raises UsageError where there are none."""
    images = torch.zeros(1, 3, image_size, image_size)
    try:
        with torch.no_grad():
            return joined_features(backbone, images, intermediates).shape[1]
    except Exception as error:  # of any model's own code
        if is_out_of_memory(error):
            raise
        raise UsageError(
            f"intermediates = {intermediates}: timm:{name} does not give so many ({cause(error)}); "
            "lower it, or leave it out"
        ) from error


def check_timm_name(name: str) -> None:
    """Raise UsageError, with the nearest names, for a model or a tag that timm does not have."""
    architecture, _, tag = name.partition(".")
    names = timm.list_models()
    if architecture in names and tag:
        names = timm.list_models(f"{architecture}.*", include_tags=True)
    if name in names:
        return
    nearest = get_close_matches(name.lower(), names, n=3) or (names if tag else [])[:3]
    hint = f"did you mean {' or '.join(map(repr, nearest))}?"
    if not nearest:
        hint = f"timm.list_models() lists all {len(names):,}"
    raise UsageError(f"unknown timm model {name!r}: {hint}")


def _build(name: str, image_size: int) -> tuple[nn.Module, int]:
    """A backbone in evaluation mode and the number of its features; raises what timm raises."""
    backbone = timm.create_model(name, **create_arguments(name, image_size))
    with torch.no_grad():
        return backbone, backbone.eval()(torch.zeros(1, 3, image_size, image_size)).shape[1]


def _nearest_size(name: str, image_size: int) -> int | None:
    """The size nearest to `image_size` that the backbone takes, found by trying; None: none."""
    for size in sorted(_SIZES, key=lambda size: abs(size - image_size)):
        with torch.device("meta"), suppress(Exception):  # no weights are made there
            _build(name, size)
            return size
    return None


def load_pretrained(
    backbone: nn.Module, name: str, image_size: int, state: dict[str, Any]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Copy a timm state dict into a backbone; returns its training's mean and std per channel.

    Both have three values in 0..1. The file's classifier, if any, is left out; timm adapts what
    depends on the input size. Raises CheckpointError when tensors are missing or do not fit:
    nothing is left random in silence.
    """
    wanted = backbone.state_dict()
    optional = "num_batches_tracked"  # a counter that no forward pass reads
    missing = [key for key in wanted if key not in state and not key.endswith(optional)]
    if missing:
        raise CheckpointError(
            f"the weights lack {len(missing)} of {len(wanted)} tensors of {name} "
            f"({', '.join(missing[:5])} ...): pass weights of this model"
        )
    weights = {key: value for key, value in state.items() if key in wanted}
    for key, value in weights.items():
        if value.is_floating_point() != wanted[key].is_floating_point():
            raise CheckpointError(f"the weights do not fit {name}: {key} is {value.dtype}")
    try:  # timm's own way to load: it resizes position embeddings and the like
        filled = timm.create_model(
            name,
            pretrained=True,
            pretrained_cfg_overlay={"state_dict": weights, "hf_hub_id": None, "url": None},
            **create_arguments(name, image_size),
        )
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
        lines = [line.strip()[:200] for line in str(error).splitlines()[-3:]]
        raise CheckpointError(f"the weights do not fit {name}: {' '.join(lines)}") from None
    backbone.load_state_dict(filled.state_dict())
    training: dict[str, Any] = filled.pretrained_cfg  # type: ignore[assignment]
    return tuple(training["mean"]), tuple(training["std"])


def layer_scales(name: str, image_size: int, decay: float) -> dict[str, float]:
    """The factor of the learning rate of each parameter of a backbone: `decay` ** its depth.

    timm's own (`param_groups_layer_decay`; Bao et al. 2021, "BEiT"), of the model with its
    classifier, whose factor is 1.
    """
    arguments = {**create_arguments(name, image_size), "num_classes": 2}
    with torch.device("meta"):  # no memory taken
        model = timm.create_model(name, **arguments)
    names = {parameter: key for key, parameter in model.named_parameters()}
    groups = param_groups_layer_decay(model, layer_decay=decay)
    return {names[p]: float(group["lr_scale"]) for group in groups for p in group["params"]}


def freeze_stages(model: nn.Module, count: int) -> None:
    """Freeze the first `count` stages of a Classifier's backbone; the first one is its stem.

    They are timm's coarse groups: the stages of a convolutional network, the blocks of a
    transformer. Raises UsageError where there are not more of them.
    """
    assert isinstance(model, Classifier)  # checked with the settings
    backbone: Any = model.backbone
    matcher = getattr(backbone, "group_matcher", dict)
    stages = list(group_parameters(backbone, matcher(coarse=True)).values())
    if count >= len(stages):
        raise UsageError(
            f"freeze_stages = {count}: the backbone has {len(stages)} stages including its stem; "
            "lower --freeze-stages, or use --freeze"
        )
    model.freeze_parameters({name for stage in stages[:count] for name in stage})


def create_arguments(name: str, image_size: int) -> dict[str, Any]:
    """Arguments of `create_model`: no classifier, and the size where the architecture fixes it."""
    settings = timm.get_pretrained_cfg(name)
    fixed = settings is not None and settings.fixed_input_size
    return {"num_classes": 0, **({"img_size": image_size} if fixed else {})}
