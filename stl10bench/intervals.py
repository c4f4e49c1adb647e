"""A share and a count -> its interval; light."""

import math

Z95 = 1.959963984540054  # the 97.5 % point of the normal distribution


def wilson(accuracy: float, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share `accuracy` of `count` independent trials.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    centre = accuracy + Z95**2 / (2 * count)
    spread = Z95 * math.sqrt(accuracy * (1 - accuracy) / count + Z95**2 / (4 * count**2))
    scale = 1 + Z95**2 / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
