"""A checkpoint -> a model that takes images as they are."""

from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stl10bench import augment, checkpoint
from stl10bench.classify import Broken, Prediction, classify, find
from stl10bench.errors import CheckpointError
from stl10bench.exports import hub
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

    @property
    def side(self) -> int:
        """The height and width, pixels, to which images are resized first."""
        config = self.header.config
        return 96 if config.input == "crop" else config.image_size

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C) of uint8 RGB images (N, 3, H, W), 0..255.

        They are brought to the size of the run by its own rule: resized, or resized to 96 px and
        then cropped in the centre.
        """
        size = (self.side, self.side)  # an image of that size is left as it is
        images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        images = augment.centre(images, self.header.config.image_size)
        logits: Tensor = self.model((images - self.mean) / self.std)
        return logits

    def predict(self, *paths: str | Path, top: int = 1) -> list[Prediction | Broken]:
        """The `top` likeliest classes of each image file in `paths`, folders walked.

        Files are prepared as `stl10bench data import` does (upright, on white, the central square);
        one that is no image is in its place as `Broken`, with the reason.
        """
        return classify(self, find(map(Path, paths)), top=top)


def load(path: str | Path) -> Predictor:
    """The model in a checkpoint, in evaluation mode on the CPU, ready for uint8 images.

    `path` is a file, or a folder that was exported for the hub. Raises CheckpointError for anything
    but a whole, unchanged checkpoint of this program.
    """
    path = Path(path)
    tensors, header = hub.load(path) if path.is_dir() else checkpoint.load(path)
    with torch.device("meta"), suppress(RuntimeError):  # which a plug-in's model may raise there
        checkpoint.check_fit(_build(header, path), tensors, path)  # no memory taken yet
    try:
        model = _build(header, path)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its model cannot be built: {_first(error)}") from None
    checkpoint.fill(model, tensors, path)
    return Predictor(model, header).eval()


def _build(header: checkpoint.Header, path: Path) -> nn.Module:
    config, classes = header.config, len(header.class_names)
    try:
        return registry.build(config.model, classes, config.image_size, config.model_options)
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path}: its model cannot be built: {_first(error)}") from None


def _first(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
