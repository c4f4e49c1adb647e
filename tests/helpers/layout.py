"""Small data in STL-10's layout, checkpoints of untrained models, and what a new Python imports."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

SHARED = Path(__file__).parents[3] / "shared"


NAMES = ("ant", "bee", "cow", "dog")


def write_layout(
    data_dir: Path,
    *,
    train: int = 40,
    test: int = 20,
    names: tuple[str, ...] = NAMES,
    size: int = 96,
) -> Path:
    """Write noisy images, each class with its own colour, as `data_dir`/stl10_binary."""
    folder = data_dir / "stl10_binary"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        labels = np.arange(count) % len(names)
        tint = np.random.default_rng(1).integers(40, 215, (len(names), 3, 1, 1))
        images = tint[labels] + rng.integers(-40, 41, (count, 3, size, size))
        images.astype(np.uint8).tofile(folder / f"{split}_X.bin")
        (labels + 1).astype(np.uint8).tofile(folder / f"{split}_y.bin")
    (folder / "class_names.txt").write_text("".join(f"{name}\n" for name in names))
    if size != 96:
        (folder / "image_size.txt").write_text(f"{size}\n")
    return data_dir


def save(path: Path, model: str = "logistic", size: int = 8, **options: Any) -> Path:
    """Write a checkpoint of a model that was never trained."""
    import torch

    from stl10bench.config import make_config
    from stl10bench.models import checkpoint
    from stl10bench.models.factory import build_model, changed_options

    torch.manual_seed(0)
    made = build_model(model, len(NAMES), size, options)
    changed = changed_options(model, options)
    config = make_config({"model": model, "image_size": size, "model_options": changed})
    header = checkpoint.Header(
        config=config, class_names=NAMES, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)
    )
    checkpoint.save(path, made, header)
    return path


def heavy_after(code: str) -> str:
    """Which of the heavy packages a new Python has imported after `code`, as a printed list."""
    code += "; print([n for n in ('torch', 'timm', 'numpy') if n in __import__('sys').modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return out.stdout.strip()
