"""A model -> its layers, shapes, parameters and multiply-accumulates (MACs)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Layer:
    """One leaf module in the order of its call; `shape` is its output's, without the batch."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int


def parameters(model: nn.Module) -> tuple[int, int]:
    """All parameters, and those that learn."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)


def macs(model: nn.Module, image_size: int) -> int:
    """MACs of one image's forward pass: convolutions and matrix products, nothing else.

    Half of what torch's FlopCounterMode counts, which takes a MAC as two operations.
    """
    with FlopCounterMode(display=False) as counter:
        _forward(model, image_size)
    return int(counter.get_total_flops()) // 2


def layers(model: nn.Module, image_size: int) -> list[Layer]:
    """The leaf modules in the order in which a forward pass calls them.

    What a forward pass calls as a function (the ReLU between linear layers, say) is no layer.
    """
    found: list[Layer] = []
    hooks = []
    for name, module in model.named_modules():
        if not list(module.children()):

            def note(
                module: nn.Module, _: tuple[Tensor, ...], output: Tensor, name: str = name
            ) -> None:
                size = sum(p.numel() for p in module.parameters())
                found.append(Layer(name, type(module).__name__, tuple(output.shape[1:]), size))

            hooks.append(module.register_forward_hook(note))
    try:
        _forward(model, image_size)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _forward(model: nn.Module, image_size: int) -> None:
    """One image through the model in evaluation mode, its mode restored after."""
    training = model.training
    model.eval()
    with torch.no_grad():
        device = next(model.parameters()).device
        model(torch.zeros(1, 3, image_size, image_size, device=device))
    model.train(training)
