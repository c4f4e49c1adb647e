"""A model in evaluation mode -> a faster copy: its batch norms folded into its convolutions."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


@torch.no_grad()
def folded(model: nn.Module, images: Tensor) -> nn.Module:
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
