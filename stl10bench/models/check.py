"""A new model and two images -> an error of one line, before anything is trained or measured."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from stl10bench.core.device import is_out_of_memory
from stl10bench.core.errors import BenchError, UsageError, cause


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within, all of the model is in evaluation mode; then each module has its own again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def named_errors(failure: str) -> Iterator[None]:
    """Raise what a model's own code raises as a UsageError that begins with `failure`."""
    try:
        yield
    except BenchError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UsageError(f"{failure}: {cause(error)}") from error


def device_of(model: nn.Module) -> torch.device:
    """Where a model's weights are; the CPU for a model without any."""
    tensors = chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def materialise(model: nn.Module, image_size: int) -> None:
    """Give lazy layers, which take their sizes from the first images, their weights."""
    if any(is_lazy(tensor) for tensor in chain(model.parameters(), model.buffers())):
        with evaluating(model), torch.no_grad():
            model(torch.zeros(2, 3, image_size, image_size))


def check_state(name: str, model: nn.Module) -> None:
    """Raise UsageError unless a checkpoint can hold the state of `model`, and a step change it."""
    for key, value in model.state_dict().items():
        if problem := _problem(value):
            raise UsageError(f"model {name!r}: {key} {problem}")
    for key, parameter in model.named_parameters():
        if parameter.requires_grad and not (parameter.is_floating_point() and parameter.numel()):
            what = f"{str(parameter.dtype).removeprefix('torch.')} {tuple(parameter.shape)}"
            raise UsageError(
                f"model {name!r}: {key} is {what}: what is trained must be real numbers"
            )


def _problem(value: Any) -> str:
    """What is wrong with a part of a model's state; empty if nothing is."""
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}: a checkpoint holds tensors alone (quantize later)"
    if value.is_meta and torch.get_default_device().type != "meta":  # where a reader builds it
        return "is on the meta device, without values: build the model outside torch.device('meta')"
    if value.is_nested or value.layout is not torch.strided or value.is_quantized:
        return "is sparse, nested or quantized: a checkpoint holds plain tensors alone"
    # A step in place of such a tensor is undefined: torch 2.14's fused Adam kills the process.
    if any(step == 0 and size > 1 for size, step in zip(value.shape, value.stride(), strict=True)):
        return "has entries that share memory, as expand() gives: add .clone()"
    return ""


def check_logits(name: str, model: nn.Module, num_classes: int, image_size: int) -> None:
    """Raise UsageError unless `model` gives logits (2, num_classes) for two images when evaluated.

    `name` is for the error alone.
    """
    with evaluating(model), torch.no_grad():
        _logits(name, model, num_classes, _images(model, 2, image_size))


def check_training(
    name: str,
    model: nn.Module,
    num_classes: int,
    image_size: int,
    *,
    batch: int,
    autocast: AbstractContextManager[None],
) -> None:
    """Raise UsageError unless `model` can be evaluated, and trained in batches of `batch` images.

    A copy of it is tried on at most two images: the weights, statistics and counters that it
    trains with, and the random numbers after this, are the same as without it.
    """
    if not torch.is_grad_enabled():
        raise UsageError("torch.no_grad or inference_mode is on around the training: leave it")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(f"model {name!r} has no trainable parameters: unfreeze some")
    try:
        model = copy.deepcopy(model)
    except (RuntimeError, TypeError):  # some cannot be copied, e.g. with the old weight norm
        check_logits(name, model, num_classes, image_size)
        return
    images = _images(model, min(batch, 2), image_size)
    devices = [images.device] if images.device.type == "cuda" else []
    before = _shapes(model)
    with torch.random.fork_rng(devices), autocast:
        check_logits(name, model, num_classes, image_size)
        torch.clear_autocast_cache()  # of weights without gradients; torch 2.10 would use it
        logits = _logits(name, model.train(), num_classes, images)
        if not logits.isfinite().all():
            raise UsageError(
                f"model {name!r} returns logits that are not finite with its initial weights: "
                "check how it is initialised, or try --precision no"
            )
        if not logits.requires_grad:
            raise UsageError(
                f"the logits of model {name!r} do not depend on a trainable parameter: look for "
                "detach() or no_grad() in its forward"
            )
        with named_errors(f"model {name!r} has no gradients"):
            labels = torch.zeros(len(images), dtype=torch.long, device=logits.device)
            torch.autograd.backward(F.cross_entropy(logits, labels))
    if changed := sorted(key for key, _ in before.items() ^ _shapes(model).items()):
        raise UsageError(
            f"model {name!r} changes what its state holds when it is called: {changed[0]}; make "
            "all parameters and buffers when the model is built"
        )


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in model.state_dict().items()}


def _images(model: nn.Module, count: int, image_size: int) -> Tensor:
    """Normal noise (N, 3, S, S), as normalised images are, on the model's device."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, image_size, image_size, generator=generator, device="cpu")
    return images.to(device_of(model))


def _logits(name: str, model: nn.Module, num_classes: int, images: Tensor) -> Tensor:
    mode = "training" if model.training else "evaluation"
    shown = "1 image" if len(images) == 1 else f"{len(images)} images"
    hint = " (raise --batch-size, or lower --grad-accum)" if len(images) == 1 else ""
    with named_errors(f"model {name!r} fails on {shown} in {mode} mode{hint}"):
        logits = model(images)
    if not isinstance(logits, Tensor):
        what = f"a {type(logits).__name__}"
    elif logits.is_nested or logits.layout is not torch.strided:
        what = "a nested tensor" if logits.is_nested else "a sparse tensor"
    elif logits.shape != (len(images), num_classes) or not logits.is_floating_point():
        what = f"{str(logits.dtype).removeprefix('torch.')} {tuple(logits.shape)}"
    else:
        return logits
    raise UsageError(
        f"model {name!r} returns {what} for {shown} in {mode} mode: it must return logits "
        f"({len(images)}, {num_classes}), one per class"
    )
