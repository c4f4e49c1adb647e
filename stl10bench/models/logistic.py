"""Multinomial logistic regression on the pixels."""

from torch import nn

from stl10bench.models.head import Head
from stl10bench.models.registry import register


@register
def logistic(num_classes: int, image_size: int) -> nn.Module:
    """One linear layer: 3 * size * size * C + C parameters (122,890 at 64 px, 10 classes)."""
    return Head(3 * image_size * image_size, num_classes, hidden=(), dropout=0)
