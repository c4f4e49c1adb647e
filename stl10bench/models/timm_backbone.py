"""Any timm model as a backbone under the same head, frozen or fine-tuned."""

from typing import Any

import timm
import torch
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from torch import nn

from stl10bench.core.errors import CheckpointError, UsageError, unknown
from stl10bench.models.classifier import Classifier
from stl10bench.models.mlp import Dropout, Head, Widths


def timm_model(
    name: str,
    num_classes: int,
    image_size: int,
    *,
    freeze: bool = True,
    hidden: Widths = (512, 256),
    dropout: Dropout = 0.2,
) -> nn.Module:
    """timm's `name` without its classifier, under a `Head`.

    Raises UsageError for an unknown name and for a size that the backbone cannot take.
    """
    if not timm.is_model(name):
        raise unknown("timm model", name, timm.list_models())
    try:
        backbone = timm.create_model(name, **create_arguments(name, image_size))
        with torch.no_grad():
            features = backbone.eval()(torch.zeros(1, 3, image_size, image_size)).shape[1]
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"image_size = {image_size}: timm:{name} cannot take it ({reason}); "
            "try a larger --image-size"
        ) from None
    head = Head(features, num_classes, hidden=hidden, dropout=dropout)
    return Classifier(backbone, head, freeze=freeze)


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
            f"({', '.join(missing[:5])} ...): are they of another model?"
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
            f"freeze_stages = {count}: the backbone has {len(stages)} stages, its stem included; "
            "lower --freeze-stages, or use --freeze"
        )
    model.freeze_parameters({name for stage in stages[:count] for name in stage})


def create_arguments(name: str, image_size: int) -> dict[str, Any]:
    """Arguments of `create_model`: no classifier, and the size where the architecture fixes it."""
    settings = timm.get_pretrained_cfg(name)
    fixed = settings is not None and settings.fixed_input_size
    return {"num_classes": 0, **({"img_size": image_size} if fixed else {})}
