"""A checkpoint <-> a folder in the Hugging Face hub's layout.

The backbone's tensors are in `model.safetensors` under timm's names, so that timm loads them; the
head's are in `head.safetensors`. A model without a timm backbone is whole in `model.safetensors`.
The checkpoint's header goes with `model.safetensors` unchanged: its sum is over both files.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from stl10bench import checkpoint, files
from stl10bench.checkpoint import Header
from stl10bench.errors import CheckpointError
from stl10bench.exports.metadata import metadata
from stl10bench.models import registry
from stl10bench.models.head import Classifier

MODEL, HEAD, CONFIG, CARD = "model.safetensors", "head.safetensors", "config.json", "README.md"
FILES = {MODEL, HEAD, CONFIG, CARD}
_BACKBONE = "backbone."  # the prefix of its tensors in a checkpoint


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a checkpoint file or of a hub folder, unchecked."""
    if not path.is_dir():
        return checkpoint.read_tensors(path)
    if not (path / MODEL).is_file():
        raise CheckpointError(
            f"{path} is a folder without {MODEL}: give a run's best.safetensors, or a folder from "
            "'stl10bench export --to hub'"
        )
    tensors, found = checkpoint.read_tensors(path / MODEL)
    if (path / HEAD).is_file():
        tensors = {f"{_BACKBONE}{key}": value for key, value in tensors.items()}
        tensors |= checkpoint.read_tensors(path / HEAD)[0]
    return tensors, found


def load(path: Path) -> tuple[dict[str, Tensor], Header]:
    """Tensors and header of a hub folder; raises CheckpointError as `checkpoint.load` does."""
    tensors, found = read(path)
    return tensors, checkpoint.verified(tensors, found, path)


def write(source: Path, header: Header, card: str, folder: Path) -> None:
    """Write the checkpoint `source`, with `header`, as a hub folder with the model card `card`."""
    tensors, found = read(source)
    name = registry.backbone(header.config.model)
    if name is None:
        config: dict[str, Any] = {"architecture": header.config.model}
    else:
        config = _timm_config(name, header, tensors)
        head = {key: value for key, value in tensors.items() if not key.startswith(_BACKBONE)}
        files.write(folder / HEAD, safetensors.torch.save(head))
        tensors = {
            key.removeprefix(_BACKBONE): value
            for key, value in tensors.items()
            if key.startswith(_BACKBONE)
        }
    files.write(folder / MODEL, safetensors.torch.save(tensors, found))
    files.write_json(folder / CONFIG, config | metadata(header))
    files.write(folder / CARD, card.encode())


@torch.no_grad()
def check_backbone(folder: Path, model: nn.Module) -> None:
    """Raise CheckpointError unless timm loads from `folder` the very backbone of `model`."""
    if not isinstance(model, Classifier):
        return
    backbone = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    size = json.loads((folder / CONFIG).read_text())["image_size"]
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    if not torch.equal(backbone(images), model.features(images)):
        raise CheckpointError("timm loads another backbone from the exported folder; not written")


def _timm_config(name: str, header: Header, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What timm needs to build the backbone and load its weights: features, no classifier."""
    known = timm.get_pretrained_cfg(name)
    assert known is not None
    size = header.config.image_size
    arguments = {"num_classes": 0, **({"img_size": size} if known.fixed_input_size else {})}
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": tensors["head.linears.0.weight"].shape[1],
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "fixed_input_size": known.fixed_input_size,
            "mean": list(header.mean),
            "std": list(header.std),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "num_classes": 0,
            "first_conv": known.first_conv,
            "classifier": known.classifier,
        },
    }
