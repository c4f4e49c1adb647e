"""The study's convolutional network."""

from torch import nn

from stl10bench.core.errors import UsageError
from stl10bench.models.mlp import Dropout, Head, Widths
from stl10bench.models.registry import register


@register
def cnn(
    num_classes: int,
    image_size: int,
    *,
    channels: Widths = (256, 512, 512, 1000),
    hidden: Widths = (512, 256),
    dropout: Dropout = 0.2,
) -> nn.Module:
    """Blocks of 3x3 convolution (no padding), batch norm, ReLU and 3x3 max pooling of stride 2.

    At 64 px and four blocks the last feature map is 1x1; larger ones are averaged to 1x1.
    8,807,106 parameters with the defaults and ten classes. Raises UsageError for images that the
    blocks would shrink to nothing (four blocks need 61 px).
    """
    smallest, size = 1, image_size  # pixels: of an input that leaves 1, and of the feature map
    layers: list[nn.Module] = []
    for before, after in zip((3, *channels), channels, strict=False):
        smallest, size = 2 * smallest + 3, (size - 5) // 2 + 1
        layers += [
            nn.Conv2d(before, after, kernel_size=3),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
        ]
    if size < 1:
        raise UsageError(
            f"image_size = {image_size}: cnn with {len(channels)} convolutions needs at least "
            f"{smallest} px; raise --image-size or shorten --channels"
        )
    if size > 1:
        layers.append(nn.AdaptiveAvgPool2d(1))
    head = Head((3, *channels)[-1], num_classes, hidden=hidden, dropout=dropout)
    return nn.Sequential(*layers, head)
