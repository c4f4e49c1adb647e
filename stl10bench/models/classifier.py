"""A backbone, frozen or fine-tuned, under a head; a frozen one runs with fused batch norms."""

import copy
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from stl10bench.core.errors import UsageError


@torch.no_grad()
def fuse_batch_norms(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy of `model` for evaluation whose convolutions do the work of their batch norms.

    A batch norm in evaluation mode is linear per channel, so it goes into the weights of the
    convolution whose output it takes (Jacob et al. 2018, "Quantization and training of neural
    networks", section 3.2). A forward pass of `images`, float (N, 3, H, W), shows which those are,
    and the copy must then give the same output within rounding. Where it does not (a convolution's
    output is used twice, say), the copy is returned unfused.
    """
    expected = model.eval()(images)
    fused = copy.deepcopy(model)
    for convolution, norm in _pairs(fused, images):
        _fuse_pair(fused, convolution, norm)
    largest = expected.abs().max()
    same = largest.isfinite() and torch.allclose(
        fused(images), expected, rtol=1e-3, atol=1e-3 * largest
    )
    return fused if same else copy.deepcopy(model)


def _pairs(model: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    """The names of each convolution and the batch norm that takes its output."""
    outputs: dict[int, tuple[str, Tensor]] = {}  # the tensor is kept: the id of a freed one returns
    pairs = []

    def after_convolution(name: str, _: nn.Module, __: tuple[Tensor], output: Tensor) -> None:
        outputs[id(output)] = name, output

    def before_norm(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if id(inputs[0]) in outputs:
            pairs.append((outputs[id(inputs[0])][0], name))

    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(partial(after_convolution, name)))
        elif isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            hooks.append(module.register_forward_pre_hook(partial(before_norm, name)))
    model(images)
    for hook in hooks:
        hook.remove()
    return pairs


def _fuse_pair(model: nn.Module, convolution: str, norm: str) -> None:
    """Fuse one pair in place; what timm's norms do after normalising stays."""
    before, after = model.get_submodule(convolution), model.get_submodule(norm)
    assert isinstance(before, nn.Conv2d)
    assert isinstance(after, nn.BatchNorm2d)
    rest = [part for key in ("drop", "act") if (part := getattr(after, key, None)) is not None]
    model.set_submodule(convolution, fuse_conv_bn_eval(before, after))
    model.set_submodule(norm, nn.Sequential(*rest))


def head_name(model: nn.Module) -> str | None:
    """The name of what makes logits of a model's features: its `head`, or a sequence's last part.

    None where there is no such part with weights, or nothing learns in front of it.
    """
    name = "head" if isinstance(getattr(model, "head", None), nn.Module) else ""
    if not name and isinstance(model, nn.Sequential) and len(model):
        name = list(dict(model.named_children()))[-1]
    inside = {key for key, _ in model.named_parameters() if key.startswith(f"{name}.")}
    return name if name and inside and len(inside) < len(list(model.parameters())) else None


class _Reached(BaseException):  # no Exception, which a model might catch
    """The output at which a forward pass ends."""

    def __init__(self, output: Tensor) -> None:
        self.output = output


def _output_of(model: nn.Module, part: str, images: Tensor) -> Tensor:
    """What a part of a model gives for images; what comes behind it is not computed."""

    def stop(_: nn.Module, __: tuple[Tensor], output: Tensor) -> None:
        raise _Reached(output)

    hook = model.get_submodule(part).register_forward_hook(stop)
    try:
        output: Tensor = model(images)
    except _Reached as reached:
        output = reached.output
    finally:
        hook.remove()
    return output


def _behind(model: nn.Module, part: str) -> nn.Module:
    """A model without what is registered up to `part`: it takes that part's output.

    It shares all else with `model`, its parameters and buffers too.
    """
    behind = copy.copy(model)
    behind._modules = dict(model._modules)
    first, _, inner = part.partition(".")
    for name, module in model.named_children():
        behind._modules[name] = nn.Identity()
        if name == first:
            if inner:
                behind._modules[name] = _behind(module, inner)
            break
    return behind


def joined_features(backbone: nn.Module, images: Tensor, intermediates: int) -> Tensor:
    """Features (N, F) of a timm backbone, and the means of its last `intermediates` levels."""
    timm_model: Any = backbone
    if not intermediates:
        features: Tensor = timm_model(images)
        return features
    last, levels = timm_model.forward_intermediates(images, indices=intermediates)
    pooled = [level.mean((2, 3)) for level in levels]
    return torch.cat([timm_model.forward_head(last), *pooled], 1)


class Classifier(nn.Module):
    """A backbone and a head: float images (N, 3, H, W) -> logits (N, C).

    Frozen, not one tensor of the backbone changes: it has no gradients and stays in evaluation
    mode, for in training mode the batch-norm statistics would still move.
    """

    def __init__(
        self, backbone: nn.Module, head: nn.Module, *, freeze: bool, intermediates: int = 0
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.frozen = freeze
        self.intermediates = intermediates  # see `joined_features`
        # In a list and a dictionary: neither submodules of this one nor saved.
        self._fused: list[nn.Module] = []
        self._still: dict[str, nn.Module] = {}  # frozen parts of the backbone, the largest
        if freeze:
            backbone.requires_grad_(False).eval()

    def freeze_parameters(self, names: Collection[str]) -> None:
        """Freeze these of the backbone's parameters, and each part of it that holds no others.

        Such a part stays in evaluation mode, as a frozen backbone does.
        """
        for name in names:
            self.backbone.get_parameter(name).requires_grad_(False)
        for name, part in self.backbone.named_modules():
            learns = [parameter.requires_grad for parameter in part.parameters()]
            is_inside = any(name.startswith(f"{larger}.") for larger in self._still)
            if learns and not any(learns) and not is_inside:
                self._still[name] = part.eval()

    def front_and_rest(self, images: Tensor) -> tuple[Callable[[Tensor], Tensor], nn.Module]:
        """What the frozen part makes of float images, and the rest, which makes logits of that.

        The front is a frozen backbone, whose features are (N, F), or its frozen stages. `images`
        are any input: raises UsageError where they show that the two are not one after the other.
        """
        if self.frozen:
            return lambda images: self.features(images).flatten(1), self.head
        self.eval()
        last = list(self._still)[-1]
        front = partial(_output_of, self.backbone, last)
        rest = nn.Sequential(_behind(self.backbone, last), self.head)
        try:
            with torch.no_grad():
                same = torch.allclose(rest(front(images)), self(images), rtol=1e-3, atol=1e-4)
        except Exception:  # of any model's own code
            same = False
        if not same:
            raise UsageError(
                "cache_views: this backbone does not run stage by stage (e.g. a transformer, or "
                "with intermediates), so the frozen stages cannot run alone; leave out "
                "--cache-views"
            )
        return front, rest

    def fuse(self, images: Tensor, dtype: torch.dtype) -> None:
        """From now on run a frozen backbone as a copy in `dtype` with fused batch norms.

        The weights that are saved stay as they are. `images` are any input (N, 3, H, W) on the
        model's device, for `fuse_batch_norms`. Call this when the weights and the device are
        final. A backbone that is fine-tuned is left alone.
        """
        if self.frozen:
            self._fused = [fuse_batch_norms(self.backbone, images).to(dtype)]

    def train(self, mode: bool = True) -> "Classifier":
        """Like nn.Module's, but what is frozen of the backbone stays in evaluation mode."""
        super().train(mode)
        for part in [self.backbone] if self.frozen else self._still.values():
            part.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """The backbone's features (N, F) of float images (N, 3, H, W)."""
        backbone = self._fused[0] if self._fused else self.backbone
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return joined_features(backbone, images, self.intermediates)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C) of float images (N, 3, H, W)."""
        logits: Tensor = self.head(self.features(images))
        return logits
