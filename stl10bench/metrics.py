"""Logits and labels -> loss, accuracy and its interval."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

Z95 = 1.959963984540054  # the 97.5 % point of the normal distribution


def score(logits: Tensor, labels: Tensor, split: str) -> dict[str, float]:
    """`<split>/loss`, the mean NLL in nats, and `<split>/accuracy`, top-1 in 0..1.

    Of logits (N, C) and labels (N,), in float64 on the CPU; hits are counted as integers and of
    equal logits the first class counts.
    """
    logits, labels = logits.cpu().double(), labels.cpu()
    hits = int((logits.argmax(1) == labels).sum())
    return {
        f"{split}/loss": F.cross_entropy(logits, labels).item(),
        f"{split}/accuracy": hits / len(labels),
    }


def wilson(accuracy: float, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share `accuracy` of `count` independent trials.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    centre = accuracy + Z95**2 / (2 * count)
    spread = Z95 * math.sqrt(accuracy * (1 - accuracy) / count + Z95**2 / (4 * count**2))
    scale = 1 + Z95**2 / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """The values, with None where JSON has no number for one."""
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, in 0..1, of uint8 images (N, 3, H, W).

    Exact: from a histogram of the 256 values.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(3):
        share = torch.zeros(256, dtype=torch.float64)
        for chunk in torch.split(images[:, channel], 1000):
            share += torch.bincount(chunk.flatten().cpu(), minlength=256)
        share /= share.sum()
        mean = (share @ values).item()
        means.append(mean)
        stds.append(math.sqrt((share @ (values - mean) ** 2).item()))
    return tuple(means), tuple(stds)
