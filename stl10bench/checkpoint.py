"""Weights <-> one .safetensors file that proves itself; never a pickle."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

import stl10bench
from stl10bench import files
from stl10bench.config import RunConfig
from stl10bench.errors import CheckpointError

FORMAT = 1
_KEY = "stl10bench"  # one key: safetensors does not keep the order of several
_HEADER_LIMIT = 10 << 20  # bytes
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class Header(BaseModel):
    """What a checkpoint says of itself; no time, host or path, so equal runs give equal bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: int = FORMAT
    config: RunConfig
    class_names: tuple[str, ...]
    mean: tuple[float, ...] = Field(min_length=3, max_length=3)  # per channel, of 0..1
    std: tuple[float, ...] = Field(min_length=3, max_length=3)
    epoch: int = 0
    step: int = 0
    metrics: dict[str, float | None] = {}  # test/... and val/..., not the speed: that would vary
    version: str = stl10bench.__version__

    def at(self, epoch: int, step: int, metrics: Mapping[str, float | None]) -> "Header":
        """The header of the same run at another time, with the metrics that tell its quality."""
        kept = {key: value for key, value in metrics.items() if "/" in key}
        return self.model_copy(update={"epoch": epoch, "step": step, "metrics": kept})


def save(path: Path, model: nn.Module, header: Header) -> None:
    """Write a model's weights and their header, whole or not at all.

    The header ends in a sha256 over itself and every tensor. Raises StorageError.
    """
    tensors = {  # copies, for safetensors refuses two names of one storage (shared weights)
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in model.state_dict().items()
    }
    content = header.model_dump(mode="json")
    content["sha256"] = _sum(content, tensors)
    metadata = {_KEY: json.dumps(content, allow_nan=False)}
    files.write(path, safetensors.torch.save(tensors, metadata))


def save_predictions(path: Path, logits: Tensor, labels: Tensor) -> None:
    """Write float32 logits (N, C) and int64 labels (N,), in the order of the test split."""
    tensors = {"logits": logits.cpu().contiguous(), "labels": labels.cpu().contiguous()}
    files.write(path, safetensors.torch.save(tensors))


def load(path: Path) -> tuple[dict[str, Tensor], Header]:
    """Tensors and header of a file that `save` wrote.

    Raises CheckpointError for a file that is missing, a pickle, damaged anywhere, of another
    program or of a newer format, and for weights that are not finite.
    """
    tensors, metadata = read_tensors(path)
    return tensors, verified(tensors, metadata, path)


def verified(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> Header:
    """The header in a file's metadata, once its sum is that of itself and `tensors`.

    Raises CheckpointError as `load` does.
    """
    if _KEY not in metadata:
        raise CheckpointError(
            f"{path} was not written by stl10bench: give a best.safetensors or last.safetensors "
            "of a run (a backbone's weights go to --weights)"
        )
    try:
        content = json.loads(metadata[_KEY])
        found = content.pop("sha256")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is damaged: {error}") from None
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {content.get('format')!r}, this version reads {FORMAT}"
        )
    if found != _sum(content, tensors):
        raise CheckpointError(f"{path} is damaged: its contents do not have the sum in its header")
    try:
        header = Header.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise CheckpointError(f"{path}: header: {first['loc']}: {first['msg']}") from None
    broken = [key for key, value in tensors.items() if not torch.isfinite(value).all()]
    if broken:
        raise CheckpointError(f"{path} holds numbers that are not finite, e.g. in {broken[0]}")
    return header


def fill(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load `tensors` into `model`; CheckpointError, with at most 5 names, when they do not fit."""
    ours = model.state_dict()
    wrong = [
        key
        for key in sorted(ours.keys() | tensors.keys())
        if key not in ours or key not in tensors or ours[key].shape != tensors[key].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{path} does not fit the model that its header names: {len(wrong)} tensors differ "
            f"({', '.join(wrong[:5])})"
        )
    model.load_state_dict(dict(tensors))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of any safetensors file, read as bytes (a mapped one can be cut).

    Raises CheckpointError with the path and what the file is instead.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            if start.startswith(_PICKLES):
                raise CheckpointError(
                    f"{path} is a pickle (.pt, .pth): pickles can run code and are never read; "
                    "convert it to safetensors where you trust it"
                )
            length = int.from_bytes(start, "little")
            if len(start) < 8 or not 2 <= length <= _HEADER_LIMIT:
                raise CheckpointError(f"{path} is not a safetensors file")
            content = start + file.read()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    try:
        tensors = safetensors.torch.load(content)
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None
    return tensors, metadata


def _sum(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """The sha256 over a header without its sum and over names, dtypes, shapes and bytes."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode())
    for key in sorted(tensors):
        value = tensors[key]
        digest.update(f"{key} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
