"""A checkpoint -> a model that takes images as they are."""

from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stl10bench import augment, checkpoint
from stl10bench.errors import CheckpointError
from stl10bench.models import registry


class Predictor(nn.Module):
    """A trained model with its preprocessing; `header` tells its classes, config and metrics."""

    def __init__(self, model: nn.Module, header: checkpoint.Header) -> None:
        super().__init__()
        self.model = model
        self.header = header
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(header.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(header.std).view(1, 3, 1, 1))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class of each logit."""
        return self.header.class_names

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C) of uint8 RGB images (N, 3, H, W), 0..255.

        They are brought to the size of the run by its own rule: resized, or resized to 96 px and
        then cropped in the centre.
        """
        config = self.header.config
        side = 96 if config.input == "crop" else config.image_size
        if images.shape[-2:] != (side, side):
            images = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
        images = augment.centre(images, config.image_size)
        logits: Tensor = self.model((images - self.mean) / self.std)
        return logits


def load(path: str | Path) -> Predictor:
    """The model in a checkpoint, in evaluation mode on the CPU, ready for uint8 images.

    Raises CheckpointError for anything but a whole, unchanged checkpoint of this program.
    """
    tensors, header = checkpoint.load(Path(path))
    with torch.device("meta"), suppress(RuntimeError):  # which a plug-in's model may raise there
        checkpoint.check_fit(_build(header, Path(path)), tensors, Path(path))  # no memory taken yet
    try:
        model = _build(header, Path(path))
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its model cannot be built: {_first(error)}") from None
    checkpoint.fill(model, tensors, Path(path))
    return Predictor(model, header).eval()


def _build(header: checkpoint.Header, path: Path) -> nn.Module:
    config, classes = header.config, len(header.class_names)
    try:
        return registry.build(config.model, classes, config.image_size, config.model_options)
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path}: its model cannot be built: {_first(error)}") from None


def _first(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
