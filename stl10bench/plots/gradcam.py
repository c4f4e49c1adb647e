"""A model and images -> heat maps of where its evidence for a class lies (Grad-CAM)."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from stl10bench.core.errors import UsageError, unknown
from stl10bench.inference.predictor import Predictor
from stl10bench.models.classifier import Classifier
from stl10bench.plots.inspection import hooked

# Values, the side of a map from which on it shows where something is. Not more: the maps of layers
# within a network's earlier blocks are finer, and light up corners (looked at on MobileNetV2).
_FINE = 4


class Explanation(NamedTuple):
    """Images, the classes that a model predicts, and where its evidence for them lies."""

    images: NDArray[np.uint8]  # (N, 3, S, S), as they reach the model
    classes: NDArray[np.int64]  # (N,), whose evidence is shown
    confidences: NDArray[np.float32]  # (N,), their softmax probabilities
    heat: NDArray[np.float32]  # (N, S, S), 0..1


def feature_maps(predictor: Predictor) -> dict[str, tuple[int, int]]:
    """The layers that give maps (N, C, h, w) of more than one pixel, as called -> (h, w)."""
    modules = predictor.model.named_modules()
    leaves = {module: name for name, module in modules if not list(module.children())}
    layers = {m: name for m, name in leaves.items() if not isinstance(m, nn.Identity)}
    sizes: dict[str, tuple[int, int]] = {}

    def note(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output[0, 0].numel() > 1:
            sizes.pop(layers[module], None)  # a layer that is called again counts as the later one
            sizes[layers[module]] = (output.shape[2], output.shape[3])

    with hooked(layers, note), torch.no_grad():
        predictor(torch.zeros(1, 3, 96, 96, dtype=torch.uint8))
    return sizes


def choose_layer(predictor: Predictor, name: str | None) -> tuple[str, str]:
    """A layer, and a note that says which and why; `name`, if that layer has feature maps.

    Without one, the last whose maps have at least 4x4 values, or as many as any has, and which does
    not pool: the last layers of all are often 3x3 or 2x2, enlarged a blur. Raises UsageError, with
    the nearest name, for an unknown layer, and for a model without feature maps.
    """
    layers = feature_maps(predictor)
    if name is not None and layers:
        if name not in layers:
            raise unknown("layer with feature maps", name, layers)
        return name, f"Layer {name}, {_size(layers[name])}."
    modules = {layer: predictor.model.get_submodule(layer) for layer in layers}
    unpooled = [layer for layer, module in modules.items() if "Pool" not in type(module).__name__]
    if not unpooled:
        raise UsageError(
            f"model {predictor.header.config.model!r} has no layer with feature maps, which "
            "Grad-CAM needs ('stl10bench visualize filters' shows the weights of a linear model)"
        )
    least = min(_FINE, max(min(layers[layer]) for layer in unpooled))
    chosen, last = [layer for layer in unpooled if min(layers[layer]) >= least][-1], unpooled[-1]
    note = f"Layer {chosen}, {_size(layers[chosen])}"
    if chosen != last:
        note += f": finer than the last one, {last}, {_size(layers[last])}"
    return chosen, f"{note}."


def _size(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def grad_cam(model: nn.Module, layer: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Heat maps float32 (N, h, w), >= 0, for the class, int64 (N,), of each image.

    Selvaraju et al. 2017, "Grad-CAM: Visual explanations from deep networks via gradient-based
    localization", section 3. With A^k the maps (N, K, h, w) that `layer` of `model` gives and y^c
    the logit of the class, alpha_k is the mean of dy^c/dA^k over the map (equation 1) and the heat
    map is ReLU(sum_k alpha_k A^k) (equation 2). `images` are what `model` takes; it is in
    evaluation mode and stays as it is.
    """
    maps: list[Tensor] = []

    def cut(_: nn.Module, __: object, output: Tensor) -> Tensor:
        # The graph begins at the maps, so that frozen layers before them need no gradients.
        maps[:] = [output.detach().requires_grad_()]
        return maps[0].clone()  # the next layer may change its input in place

    frozen = [m for m in model.modules() if isinstance(m, Classifier) and m.frozen]
    try:
        for classifier in frozen:  # its backbone would run without gradients
            classifier.frozen = False
        with hooked([layer], cut), torch.enable_grad():
            logits = model(images)
            chosen = logits.gather(1, classes.view(-1, 1)).sum()
            (gradients,) = torch.autograd.grad(chosen, maps)
    finally:
        for classifier in frozen:
            classifier.frozen = True
    alphas = gradients.mean((2, 3), keepdim=True)
    return F.relu((alphas * maps[0].detach()).sum(1))


def explain(
    predictor: Predictor, layer: str, images: NDArray[np.uint8], label: int | None
) -> Explanation:
    """Heat maps of uint8 images (N, 3, H, W) for the class `label`, or for each one's likeliest."""
    inputs: list[Tensor] = []
    pixels = torch.from_numpy(images)
    with hooked([predictor.model], lambda _, args, __: inputs.append(args[0])), torch.no_grad():
        probabilities = predictor(pixels).softmax(1)
    likeliest = probabilities.argmax(1)
    classes = likeliest if label is None else torch.full_like(likeliest, label)
    heat = grad_cam(predictor, predictor.model.get_submodule(layer), pixels, classes)
    views = inputs[0] * predictor.std + predictor.mean
    return Explanation(
        images=views.mul(255).round().clamp(0, 255).to(torch.uint8).numpy(),
        classes=classes.numpy(),
        confidences=probabilities.gather(1, classes.view(-1, 1))[:, 0].numpy(),
        heat=enlarged(heat, views.shape[-1]).numpy(),
    )


def enlarged(heat: Tensor, size: int) -> Tensor:
    """Heat maps (N, h, w) -> (N, size, size) in 0..1: bilinear, each over its own maximum.

    A map that is 0 everywhere (no evidence for the class) stays 0.
    """
    large = F.interpolate(heat.unsqueeze(1), (size, size), mode="bilinear")[:, 0]
    highest = large.amax((1, 2), keepdim=True)
    return large / torch.where(highest == 0, 1, highest)
