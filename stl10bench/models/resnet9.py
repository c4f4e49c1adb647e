"""A small residual network for small images, behind a first layer that whitens its patches."""

from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from stl10bench.core.errors import UsageError
from stl10bench.models.mlp import Widths
from stl10bench.models.registry import register

Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_EPSILON = 5e-4  # added to the variances: directions below it are noise, and stay small
_IMAGES = 2_000  # at most, from which the patches' covariance is taken


class Whitening(nn.Module):
    """Images (N, 3, S, S) -> whitened patches and their negatives, (N, 6 * patch**2, S / 2, S / 2).

    Each patch of `patch` pixels, two pixels apart, is written in the eigenvectors of the training
    patches' covariance, each coordinate divided by its deviation (Jordan 2024, "94% on CIFAR-10 in
    3.29 seconds on a single GPU", section 3.2). A ReLU behind it keeps both signs. Learned
    by `fit`, never by gradients.
    """

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.kernels: Tensor
        kernels = torch.randn(3 * patch**2, 3, patch, patch) / (3 * patch**2) ** 0.5
        self.register_buffer("kernels", torch.cat([kernels, -kernels]))  # random until `fit`

    def fit(self, images: Iterable[Tensor], *, seed: int) -> None:
        """Take the eigenvectors from the first images; deterministic, so `seed` has no effect."""
        del seed
        total, count, seen = torch.zeros(()), 0, 0
        for batch in images:
            patches = F.unfold(batch.float(), self.patch, stride=2).transpose(1, 2).flatten(0, 1)
            patches = (patches.cpu() if patches.device.type == "mps" else patches).double()
            total = total.to(patches) + patches.T @ patches
            count, seen = count + len(patches), seen + len(batch)
            if seen >= _IMAGES:
                break
        variances, vectors = torch.linalg.eigh(total / count)
        whitening = (vectors / (variances + _EPSILON).sqrt()).T.flip(0)  # the largest first
        kernels = whitening.view(-1, 3, self.patch, self.patch)
        self.kernels.copy_(torch.cat([kernels, -kernels]))

    def forward(self, images: Tensor) -> Tensor:
        """Whitened patches of float images."""
        return F.conv2d(images, self.kernels, stride=2, padding=(self.patch - 1) // 2)


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """The sum, of the same shape."""
        change: Tensor = self.layers(features)
        return features + change


def _convolution(before: int, after: int) -> list[nn.Module]:
    return [
        nn.Conv2d(before, after, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    ]


class GlobalMax(nn.Module):
    """The largest of each channel: AdaptiveMaxPool2d(1), which has no deterministic CUDA kernel."""

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, pixels) -> (N, C)."""
        return features.max(dim=2).values


class ScaledLinear(nn.Linear):
    """A linear layer whose output is multiplied by a constant: softer logits at the start."""

    def __init__(self, features: int, num_classes: int, scale: float) -> None:
        super().__init__(features, num_classes)
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, C) of features (N, F)."""
        return super().forward(features) * self.scale


@register
def resnet9(
    num_classes: int,
    image_size: int,
    *,
    channels: Widths = (64, 128, 256),
    patch: Annotated[int, Field(ge=2, le=8)] = 4,
    scale: Scale = 0.125,
    whitening: bool = True,
) -> nn.Module:
    """Whitened patches, then groups of a convolution, 2x2 max pooling and a residual pair.

    After David Page's ResNet-9 ("How to train your ResNet", 2018) and Jordan (2024); here each
    group has its residual pair, the first layer halves the image, and the logits are the pooled
    features through a linear layer times `scale`. Without `whitening` the first layer is a
    convolution of the same shape that learns from gradients. Raises UsageError for images that the
    groups would shrink to nothing.
    """
    smallest = 2 ** (len(channels) + 1)
    if image_size < smallest:
        raise UsageError(
            f"image_size = {image_size}: resnet9 with {len(channels)} groups needs at least "
            f"{smallest} px; raise --image-size or shorten --channels"
        )
    before = 6 * patch**2
    padding = (patch - 1) // 2
    first_layer: nn.Module = (
        Whitening(patch)
        if whitening
        else nn.Conv2d(3, before, patch, stride=2, padding=padding, bias=False)
    )
    layers: list[nn.Module] = [first_layer, nn.ReLU(inplace=True)]
    for after in channels:
        first = _convolution(before, after)
        layers += [first[0], nn.MaxPool2d(2), *first[1:]]
        layers.append(Residual(*_convolution(after, after), *_convolution(after, after)))
        before = after
    logits = ScaledLinear(before, num_classes, scale)
    return nn.Sequential(*layers, nn.Flatten(2), GlobalMax(), logits)
