"""Config -> optimizer and learning-rate schedule, from torch and timm."""

import warnings
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

from stl10bench.config import RunConfig
from stl10bench.core.errors import UsageError, unknown
from stl10bench.models.registry import backbone_name
from stl10bench.models.timm_backbone import layer_scales

_TORCH = ("sgd", "adam", "adamw")


def make_optimizer(config: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer over the parameters that learn; weight decay only on matrices and kernels.

    torch's own are fused: one pass over the parameters instead of a dozen. A model's `backbone`, if
    it has one, learns at `config.backbone_lr` times the rate, its layers below the last at
    `config.layer_decay` times that of the next. Raises UsageError for a name that neither torch nor
    timm knows.
    """
    scales: dict[str, float] = {}
    backbone = backbone_name(config.model)
    if config.layer_decay < 1 and backbone is not None:
        scales = layer_scales(backbone, config.image_size, config.layer_decay)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            inner = name.removeprefix("backbone.")
            share = config.backbone_lr * scales.get(inner, 1.0) if inner != name else 1.0
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((config.lr * share, decay), []).append(parameter)
    parameters: list[dict[str, Any]] = [
        {"params": members, "lr": lr, "weight_decay": decay}
        for (lr, decay), members in groups.items()
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=config.momentum, fused=True)
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, fused=True)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, fused=True)
    from timm import optim

    names = {str(name) for name in optim.list_optimizers()}  # type: ignore[attr-defined]
    if config.optimizer not in names:
        raise unknown("optimizer", config.optimizer, names.union(_TORCH))
    try:
        optimizer: torch.optim.Optimizer = optim.create_optimizer_v2(  # type: ignore[attr-defined]
            parameters, opt=config.optimizer, lr=config.lr
        )
    except (TypeError, ValueError, AssertionError, ImportError) as error:
        raise UsageError(f"cannot create optimizer {config.optimizer!r}: {error}") from error
    if getattr(optimizer, "is_second_order", False):
        raise UsageError(f"optimizer {config.optimizer!r} needs second derivatives: use another")
    return optimizer


def make_schedule(
    config: RunConfig, optimizer: torch.optim.Optimizer, steps_per_epoch: int, taken: int = 0
) -> lr_scheduler.LRScheduler:
    """The schedule after `taken` steps, to be stepped after each optimizer step.

    The warm-up is linear. One-cycle is torch's own (Smith and Topin 2018) and its rise is the
    warm-up, or 0.3 of the steps where that is 0.
    """
    schedule = _first(config, optimizer, steps_per_epoch)
    with warnings.catch_warnings():  # the optimizer took its steps in an earlier session
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        for _ in range(taken):
            schedule.step()
    return schedule


def _first(
    config: RunConfig, optimizer: torch.optim.Optimizer, steps_per_epoch: int
) -> lr_scheduler.LRScheduler:
    """The schedule before the first step."""
    steps = config.epochs * steps_per_epoch
    warmup = round(config.warmup * steps)
    if config.schedule == "one-cycle":
        return lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=max(steps, 2) + 1,
            pct_start=config.warmup or 0.3,
            cycle_momentum=False,
        )
    main: lr_scheduler.LRScheduler
    if config.schedule == "cosine":
        main = lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, steps - warmup))
    elif config.schedule == "step":
        main = lr_scheduler.StepLR(
            optimizer, step_size=config.step_epochs * steps_per_epoch, gamma=config.step_gamma
        )
    else:
        main = lr_scheduler.ConstantLR(optimizer, factor=1.0)
    if not warmup:
        return main
    rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return lr_scheduler.SequentialLR(optimizer, [rise, main], milestones=[warmup])
