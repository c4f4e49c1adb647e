"""Figures that were written, models to draw, and what the figures show."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from helpers.layout import NAMES
from stl10bench.config import RunConfig
from stl10bench.models import checkpoint
from stl10bench.models.factory import build_model

HOSTILE = ("[red]x[/red]", "<script>alert(1)</script>", "$\\frac{$", "_hidden")


def written(path: Path) -> NDArray[np.uint8]:
    """The pixels of a figure, uint8 (H, W, 3)."""
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


def painted(figure: Figure) -> NDArray[np.uint8]:
    """The images of a sheet, uint8 (H, W, 3), without its text."""
    pixels: Any = figure.axes[0].images[0].get_array()
    return np.asarray(pixels)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def save_model(path: Path, name: str, size: int = 8, **options: Any) -> torch.nn.Module:
    """A checkpoint of a model with random weights, and the model."""
    torch.manual_seed(0)
    model = build_model(name, len(NAMES), size, options)
    config = RunConfig(model=name, model_options=options, image_size=size)
    header = checkpoint.Header(
        config=config, class_names=NAMES, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
    )
    checkpoint.save(path, model, header)
    return model
