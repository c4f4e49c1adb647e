"""Fully connected networks on the pixels."""

from typing import Annotated

from pydantic import Field
from torch import nn

from stl10bench.models.head import Head
from stl10bench.models.registry import register


@register
def mlp(
    num_classes: int,
    image_size: int,
    *,
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (512, 256, 128),
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> nn.Module:
    """Hidden layers of the given widths, each with ReLU and dropout, then the class layer."""
    return Head(3 * image_size * image_size, num_classes, hidden=hidden, dropout=dropout)
