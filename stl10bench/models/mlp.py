"""Pixels or features -> logits: logistic regression and fully connected networks."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from stl10bench.models.registry import register

# The types of options, with the bounds that `check_options` holds a value to.
Widths = tuple[Annotated[int, Field(ge=1)], ...]
Dropout = Annotated[float, Field(ge=0, lt=1)]


class Head(nn.Module):
    """Features (N, ...), flattened, -> logits (N, C): linear layers with ReLU and dropout.

    `hidden` holds the widths of the layers between; each is followed by ReLU and dropout.
    """

    def __init__(
        self, features: int, num_classes: int, *, hidden: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        sizes = pairwise([features, *hidden, num_classes])
        self.linears = nn.ModuleList(nn.Linear(before, after) for before, after in sizes)
        self.dropouts = nn.ModuleList(nn.Dropout(dropout) for _ in hidden)

    @property
    def num_features(self) -> int:
        """F of the features that it takes."""
        return int(self.linears[0].in_features)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, C) of features (N, ...), which are flattened."""
        features = features.flatten(1)
        *hidden, last = self.linears
        for linear, dropout in zip(hidden, self.dropouts, strict=True):
            features = dropout(F.relu(linear(features)))
        logits: Tensor = last(features)
        return logits


@register
def logistic(num_classes: int, image_size: int) -> nn.Module:
    """One linear layer: 3 * size * size * C + C parameters (122,890 at 64 px, 10 classes)."""
    return Head(3 * image_size * image_size, num_classes, hidden=(), dropout=0)


@register
def mlp(
    num_classes: int, image_size: int, *, hidden: Widths = (512, 256, 128), dropout: Dropout = 0.0
) -> nn.Module:
    """Hidden layers of the given widths, each with ReLU and dropout, then the class layer."""
    return Head(3 * image_size * image_size, num_classes, hidden=hidden, dropout=dropout)
