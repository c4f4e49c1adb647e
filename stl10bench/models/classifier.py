"""A backbone, frozen or fine-tuned, under a head; a frozen one runs with fused batch norms."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from stl10bench.models.mlp import Head


@torch.no_grad()
def fuse_batch_norms(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy of `model` for evaluation whose convolutions do what their batch norm did.

    A batch norm in evaluation mode is linear per channel, so it goes into the weights of the
    convolution whose output it takes (Jacob et al. 2018, "Quantization and training of neural
    networks", section 3.2). Which those are is seen in a forward pass of `images` (N, 3, H, W), and
    the copy must then give the same for them within rounding; a model for which it does not (an
    output is used twice, say) comes back as a copy that is not folded.
    """
    expected = model.eval()(images)
    result = copy.deepcopy(model)
    for convolution, norm in _pairs(result, images):
        _replace(result, convolution, norm)
    same = torch.allclose(result(images), expected, rtol=1e-3, atol=1e-3 * expected.abs().max())
    return result if same else copy.deepcopy(model)


def _pairs(model: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    """The names of each convolution and the batch norm that takes its output."""
    outputs: dict[int, tuple[str, Tensor]] = {}  # the tensor is kept, so that its id stays its own
    pairs, hooks = [], []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):

            def made(_: nn.Module, __: tuple[Tensor], output: Tensor, name: str = name) -> None:
                outputs[id(output)] = (name, output)

            hooks.append(module.register_forward_hook(made))
        elif isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:

            def taken(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                if id(inputs[0]) in outputs:
                    pairs.append((outputs[id(inputs[0])][0], name))

            hooks.append(module.register_forward_pre_hook(taken))
    model(images)
    for hook in hooks:
        hook.remove()
    return pairs


def _replace(model: nn.Module, convolution: str, norm: str) -> None:
    """Fold one pair in place; what timm's norms do after normalising stays."""
    before, after = model.get_submodule(convolution), model.get_submodule(norm)
    assert isinstance(before, nn.Conv2d)
    assert isinstance(after, nn.BatchNorm2d)
    rest = [part for key in ("drop", "act") if (part := getattr(after, key, None)) is not None]
    model.set_submodule(convolution, fuse_conv_bn_eval(before, after))
    model.set_submodule(norm, nn.Sequential(*rest))


class Classifier(nn.Module):
    """A backbone and a head. Frozen, not one tensor of the backbone changes.

    `requires_grad_(False)` alone would leave the batch-norm statistics moving, so a frozen
    backbone also stays in evaluation mode and runs without gradients.
    """

    def __init__(self, backbone: nn.Module, head: Head, *, freeze: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.frozen = freeze
        self._folded: list[nn.Module] = []  # in a list: neither a submodule nor saved
        if freeze:
            backbone.requires_grad_(False).eval()

    def fold(self, images: Tensor, dtype: torch.dtype) -> None:
        """Run a frozen backbone through a folded copy of it, in `dtype`, from now on.

        The weights that are saved stay as they are. `images` (N, 3, H, W) are any input, on the
        model's device; they show which batch norm follows which convolution. To be called when the
        weights and the device are final; a backbone that learns is left alone.
        """
        if self.frozen:
            self._folded = [fuse_batch_norms(self.backbone, images).to(dtype)]

    def train(self, mode: bool = True) -> "Classifier":
        """As nn.Module's, but a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """What the backbone makes of float images (N, 3, H, W): (N, F)."""
        backbone = self._folded[0] if self._folded else self.backbone
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features: Tensor = backbone(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C) of float images (N, 3, H, W)."""
        logits: Tensor = self.head(self.features(images))
        return logits
