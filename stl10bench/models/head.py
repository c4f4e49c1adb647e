"""Features -> logits, on top of pixels or of a backbone that may be frozen."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stl10bench.models.folding import folded


class Head(nn.Module):
    """Features (N, F) -> logits (N, C): linear layers, ReLU and dropout after each hidden one."""

    def __init__(
        self, features: int, num_classes: int, *, hidden: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        sizes = pairwise([features, *hidden, num_classes])
        self.linears = nn.ModuleList(nn.Linear(before, after) for before, after in sizes)
        self.dropouts = nn.ModuleList(nn.Dropout(dropout) for _ in hidden)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, C) of features (N, ...), which are flattened."""
        features = features.flatten(1)
        *hidden, last = self.linears
        for linear, dropout in zip(hidden, self.dropouts, strict=True):
            features = dropout(F.relu(linear(features)))
        logits: Tensor = last(features)
        return logits


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
            self._folded = [folded(self.backbone, images).to(dtype)]

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
