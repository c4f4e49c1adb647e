"""The weights of each step -> their exponential moving average."""

import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from stl10bench.core.errors import CheckpointError


class Ema:
    """Moving average of what changes in a model: parameters that learn, and buffers.

    As timm's ModelEmaV3 with its warm-up: the decay rises from 0 to the given one, so that a short
    run's average is not that of its first steps. Batch-norm statistics are averaged as well and
    counters copied, as timm does.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        fixed = {name for name, p in model.named_parameters() if not p.requires_grad}
        state = model.state_dict()
        self.weights = {key: value.clone() for key, value in state.items() if key not in fixed}
        self._model = model
        self._decay = decay

    def update(self, step: int) -> None:
        """Move towards the model's weights after `step`, counted from 1."""
        state = self._model.state_dict()  # anew: DDP gives the parameters other storage
        pairs = [(average, state[key]) for key, average in self.weights.items()]
        averages, values = zip(*(p for p in pairs if p[0].is_floating_point()), strict=True)
        move = get_ema_multi_avg_fn(decay_at(step, self._decay))  # type: ignore[no-untyped-call]
        move(averages, values, step)
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)

    def load(self, weights: Mapping[str, Tensor], path: Path) -> None:
        """Take up a stored average; raises CheckpointError for one of another model."""
        shapes = {key: (value.shape, value.dtype) for key, value in self.weights.items()}
        if shapes != {key: (value.shape, value.dtype) for key, value in weights.items()}:
            raise CheckpointError(f"{path}: the stored moving average belongs to another model")
        for key, value in weights.items():
            self.weights[key].copy_(value)


def decay_at(step: int, decay: float) -> float:
    """The decay of a step, counted from 1: 1 - step^(-2/3), at most `decay`."""
    return min(1 - math.pow(step, -2 / 3), decay)
