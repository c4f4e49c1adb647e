"""A model -> its layers, shapes, parameters, multiply-accumulates (MACs) and memory."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from stl10bench.models.check import device_of, evaluating

_TERMS = 12  # layers with parameters; nobody reads a longer sum


@dataclass(frozen=True)
class Layer:
    """A module that computes something; its numbers are its own, without those of its parts.

    A module with parts is a layer for what it does or holds beside them, such as the products of
    an attention or a class token.
    """

    name: str
    kind: str  # the module's class
    shape: tuple[int, ...]  # of its output, without the batch; () for a module with parts
    parameters: int
    macs: int  # for one image
    formula: str = ""  # how its sizes give the parameters; "" for a kind that `_formula` lacks
    is_function: bool = False  # called as a function, by no module of its own


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step in fp32, by the convention that the function `memory` states."""

    input: int
    forward_backward: int
    parameters: int

    @property
    def total(self) -> int:
        """All three."""
        return self.input + self.forward_backward + self.parameters


@dataclass
class _Call:
    """A module's call that has not ended."""

    row: int
    flops_before: int
    leaf: bool  # without parts
    flops_of_parts: int = 0


_ACTIVATIONS = {
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.softplus),
    *(F.hardtanh, F.hardswish, F.hardsigmoid, F.softmax, F.log_softmax, F.sigmoid, F.tanh),
    *(torch.relu, torch.sigmoid, torch.tanh, torch.softmax, Tensor.relu, Tensor.sigmoid),
}


class _Activations(TorchFunctionMode):
    """Adds a row for each activation that is called as a function, not by a module of its own."""

    def __init__(self, rows: list["Layer | None"], calls: list["_Call"]) -> None:
        super().__init__()
        self.rows, self.calls = rows, calls

    def __torch_function__(
        self, function: Any, _: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        output = function(*arguments, **(keywords or {}))
        if function in _ACTIVATIONS and not (self.calls and self.calls[-1].leaf):
            shape = tuple(output.shape[1:])
            self.rows.append(Layer("", f"{function.__name__}()", shape, 0, 0, is_function=True))
        return output


def parameters(model: nn.Module) -> tuple[int, int]:
    """The number of parameters, and of trainable ones."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trainable in sizes if trainable)


def macs(model: nn.Module, image_size: int) -> int:
    """MACs of one image's forward pass: convolutions and matrix products, nothing else.

    Half of what torch's FlopCounterMode counts, which takes a MAC as two operations.
    """
    with FlopCounterMode(display=False) as counter:
        _forward(model, image_size)
    return int(counter.get_total_flops()) // 2


def layers(model: nn.Module, image_size: int) -> list[Layer]:
    """The layers of a forward pass of one image, in the order in which their calls begin.

    Their parameters and MACs add up to the model's. Modules without parts are listed (except
    nn.Identity), and modules with parts for what they have of their own. Of what is called as a
    function, activations (the ReLU between linear layers, say) are listed; the MACs of others
    belong to their module. A module that is called twice has its parameters once.
    """
    rows: list[Layer | None] = []
    counted: set[int] = set()  # ids of the parameters that are in a row already
    open_calls: list[_Call] = []
    hooks = []
    with FlopCounterMode(display=False) as counter, _Activations(rows, open_calls):

        def called(module: nn.Module, _: Any) -> None:
            leaf = not list(module.children())
            open_calls.append(_Call(len(rows), counter.get_total_flops(), leaf))
            rows.append(None)

        for name, module in model.named_modules():

            def returned(module: nn.Module, _: Any, output: Any, name: str = name) -> None:
                call = open_calls.pop()
                flops = counter.get_total_flops() - call.flops_before
                if open_calls:
                    open_calls[-1].flops_of_parts += flops
                shape = tuple(output.shape[1:]) if call.leaf and hasattr(output, "shape") else ()
                macs = (flops - call.flops_of_parts) // 2
                layer = _layer(name, module, shape, macs, image_size, counted)
                listed = call.leaf and not isinstance(module, nn.Identity)
                if listed or layer.parameters or layer.macs:
                    rows[call.row] = layer

            hooks.append(module.register_forward_pre_hook(called))
            hooks.append(module.register_forward_hook(returned))
        try:
            _forward(model, image_size)
        finally:
            for hook in hooks:
                hook.remove()
    # Parameters of modules that no forward pass calls as modules.
    uncalled = (_layer(name, m, (), 0, image_size, counted) for name, m in model.named_modules())
    called_layers = [layer for layer in rows if layer is not None]
    return called_layers + [layer for layer in uncalled if layer.parameters]


def memory(listed: Sequence[Layer], *, batch_size: int, image_size: int) -> Memory:
    """The memory of a training step at `batch_size`, by the convention of torchsummary.

    fp32: the input, twice the outputs of the listed layers (once forward, once their gradients),
    and the parameters; neither the gradients of these nor the optimizer's state. Functions are
    left out, as they are there.
    """
    modules = [layer for layer in listed if layer.shape and not layer.is_function]
    outputs = sum(math.prod(layer.shape) for layer in modules)
    return Memory(
        input=4 * batch_size * 3 * image_size**2,
        forward_backward=2 * 4 * batch_size * outputs,
        parameters=4 * sum(layer.parameters for layer in listed),
    )


def blocks(listed: Sequence[Layer]) -> list[list[Layer]]:
    """Consecutive layers: a stage of a backbone, else from a convolution or linear layer on."""
    groups: list[list[Layer]] = []
    for layer in listed:
        stage = re.search(r"blocks\.\d+", layer.name)
        starts = layer.kind in ("Conv2d", "Linear")
        if stage is not None and groups:
            before = re.search(r"blocks\.\d+", groups[-1][-1].name)
            starts = before is None or before[0] != stage[0]
        if starts or not groups:
            groups.append([])
        groups[-1].append(layer)
    return groups


def formula(listed: Sequence[Layer]) -> str:
    """The sum that gives a small model's parameters; "" for over 12 terms or unknown layers."""
    terms = [layer.formula for layer in listed if layer.parameters]
    return " + ".join(terms) if all(terms) and len(terms) <= _TERMS else ""


def _layer(
    name: str,
    module: nn.Module,
    shape: tuple[int, ...],
    macs: int,
    image_size: int,
    counted: set[int],
) -> Layer:
    """A module's row with its parameters that are not `counted` yet; from then on they are."""
    fresh = [p for p in module.parameters(recurse=False) if id(p) not in counted]
    counted.update(map(id, fresh))
    size = sum(p.numel() for p in fresh)
    formula = _formula(module, image_size) if fresh else ""
    return Layer(name, type(module).__name__, shape, size, macs, formula)


def _formula(module: nn.Module, image_size: int) -> str:
    """A layer's parameters as the product of its sizes, e.g. `3*3*16*32 weights + 32 biases`."""
    match module:
        case nn.Linear():
            pixels = module.in_features == 3 * image_size**2
            inputs = f"{image_size}*{image_size}*3" if pixels else f"{module.in_features}"
            weights, biases = f"{inputs}*{module.out_features} weights", module.out_features
        case nn.Conv2d():
            sizes = (*module.kernel_size, module.in_channels // module.groups, module.out_channels)
            weights, biases = f"{'*'.join(map(str, sizes))} weights", module.out_channels
        case nn.BatchNorm2d() if module.affine:
            return f"{module.num_features} scales + {module.num_features} shifts"
        case _:
            return ""
    return weights if module.bias is None else f"{weights} + {biases} biases"


def _forward(model: nn.Module, image_size: int) -> None:
    """One image through the model in evaluation mode, without gradients; nothing of it changes.

    torch's counter wants a gradient function of views of parameters that need a gradient, which
    has none under `no_grad`: so no parameter needs one meanwhile.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        with evaluating(model), torch.no_grad():
            model(torch.zeros(1, 3, image_size, image_size, device=device_of(model)))
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
