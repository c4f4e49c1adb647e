"""Figures that were written, models to draw, and what the figures show."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
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


def check_texts(figure: Figure) -> None:
    """Fail for a text that is cut, lies outside the figure, or on another text."""
    figure.draw_without_rendering()
    shown: list[Any] = [*figure.texts]
    for legend in figure.legends:
        shown += [*legend.get_texts(), legend.get_title()]
    for axes in figure.axes:
        shown += axes.texts
        if axes.axison:
            shown += [axes.title, axes.xaxis.label, axes.yaxis.label]
            axis_ticks = (
                tick for axis in (axes.xaxis, axes.yaxis) for tick in axis._update_ticks()
            )
            shown += [tick.label1 for tick in axis_ticks]
    boxes = []
    for text in shown:
        if text.get_visible() and text.get_text():
            assert not text.get_text().endswith("…"), text.get_text()
            boxes.append((text.get_text(), Text.get_window_extent(text)))  # without an arrow
    width, height = figure.get_size_inches() * figure.dpi
    for name, box in boxes:
        inside = min(box.x0, box.y0, width - box.x1, height - box.y1) > -1
        assert inside, f"{name!r} lies outside"
    for (name, box), (other, beside) in combinations(boxes, 2):
        across = min(box.x1, beside.x1) - max(box.x0, beside.x0)
        up = min(box.y1, beside.y1) - max(box.y0, beside.y0)
        assert min(across, up) <= 1, f"{name!r} lies on {other!r}"
