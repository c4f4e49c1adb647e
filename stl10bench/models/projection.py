"""A model for pretraining: a projection head in the place of its classifier."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stl10bench.core.errors import UsageError
from stl10bench.models.classifier import head_name


class Projection(nn.Module):
    """Features (N, ...), flattened, -> projections (N, P): two linear layers, a ReLU between.

    SimCLR's head without its batch norm; the hidden layer is as wide as the features.
    """

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(features, features)
        self.last = nn.Linear(features, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Projections (N, P) of features (N, ...)."""
        projections: Tensor = self.last(F.relu(self.hidden(features.flatten(1))))
        return projections


def with_projection(name: str, model: nn.Module, image_size: int, outputs: int) -> nn.Module:
    """The model `name`, its head replaced by a Projection; raises UsageError where it has none."""
    head = head_name(model)
    if head is None:
        raise UsageError(
            f"model {name!r} has no backbone to pretrain: it needs a `head` behind other layers, "
            "or to be a sequence that ends in one; use cnn, resnet9, mobilenetv2 or timm:NAME"
        )
    training = model.training
    with headless(model), torch.no_grad():
        features = model.eval()(torch.zeros(2, 3, image_size, image_size))
    model.train(training).set_submodule(head, Projection(features.shape[1], outputs))
    return model


@contextmanager
def headless(model: nn.Module) -> Iterator[None]:
    """Within, the model gives its features (N, F) instead of what its head makes of them."""
    name = head_name(model)
    assert name is not None  # checked when the model was built
    head = model.get_submodule(name)
    model.set_submodule(name, nn.Flatten())
    try:
        yield
    finally:
        model.set_submodule(name, head)
