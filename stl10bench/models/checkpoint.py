"""Weights <-> one .safetensors file that proves itself; never a pickle."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from stl10bench.config import RunConfig
from stl10bench.core import __version__, files
from stl10bench.core.errors import CheckpointError, first_problem
from stl10bench.core.safetensors import read_safetensors
from stl10bench.models.classifier import head_name

FORMAT = 1
_KEY = "stl10bench"  # one key: safetensors does not keep the order of several
_JSON_LIMIT = 1 << 20  # characters of our header in it

Share = Annotated[float, Field(ge=0, le=1)]


class Header(BaseModel):
    """What a checkpoint says of itself: no time, host or path, so equal runs give equal bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: int = FORMAT
    config: RunConfig
    class_names: tuple[str, ...] = Field(min_length=2, max_length=255)
    mean: tuple[Share, ...] = Field(min_length=3, max_length=3)  # per channel, 0..1
    std: tuple[Annotated[Share, Field(gt=0)], ...] = Field(min_length=3, max_length=3)
    epoch: int = 0
    step: int = 0
    metrics: dict[str, float | None] = {}  # test/... and val/..., without the speed, which varies
    version: str = __version__
    seen: tuple[str, ...] | None = None  # what the first weights had learned from; None: 0.1.0
    before: tuple[RunConfig, ...] = ()  # of the runs that the first weights come from, newest first

    def at(self, epoch: int, step: int, metrics: Mapping[str, float | None]) -> "Header":
        """The same run's header at another epoch and step; metrics without `/` are left out."""
        quality = {key: value for key, value in metrics.items() if "/" in key}
        return self.model_copy(update={"epoch": epoch, "step": step, "metrics": quality})


def save(path: Path, model: nn.Module, header: Header, *, headless: bool = False) -> None:
    """Write a model's weights and their header, whole or not at all; `headless`: but its head's.

    The header ends in a sha256 over itself and every tensor. Raises StorageError.
    """
    left_out = tensors_of_head(model) if headless else {}
    tensors = {  # copies: safetensors refuses two names for one storage (shared weights)
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in model.state_dict().items()
        if key not in left_out
    }
    content = header.model_dump(mode="json")
    content["sha256"] = _sum(content, tensors)
    files.write(path, safetensors.torch.save(tensors, {_KEY: json.dumps(content, allow_nan=False)}))


def load(path: Path) -> tuple[dict[str, Tensor], Header]:
    """Tensors and header of a file that `save` wrote.

    Raises CheckpointError for a file that is missing, a pickle, damaged anywhere, of another
    program or of a newer format, and for weights that are not finite.
    """
    tensors, metadata = read_tensors(path)
    return tensors, verified(tensors, metadata, path)


def verified(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> Header:
    """The header in a file's metadata, once its checksum fits the header and `tensors`.

    Raises CheckpointError as `load` does.
    """
    content, header = parse_header(metadata, path)
    checksum = content.pop("sha256")
    if checksum != _sum(content, tensors):
        raise CheckpointError(f"{path} is damaged: its contents do not match its checksum")
    check_finite(tensors, path)
    return header


def parse_header(metadata: Mapping[str, str], path: Path) -> tuple[dict[str, Any], Header]:
    """The header in a file's metadata, as it stands there and typed; no tensor proves it.

    Raises CheckpointError for a header that is missing, damaged or of another format.
    """
    if _KEY not in metadata:
        raise CheckpointError(
            f"{path} is not a stl10bench checkpoint: pass a run's best.safetensors or "
            "last.safetensors (pass pretrained weights of a backbone with --weights)"
        )
    if len(metadata[_KEY]) > _JSON_LIMIT:
        raise CheckpointError(f"{path}: the header is damaged: over {_JSON_LIMIT:,} characters")
    try:
        content = json.loads(metadata[_KEY])
        # A changed byte can leave the values equal: 1E-05 is read as 1e-05, but never written.
        same = json.dumps(content, allow_nan=False) == metadata[_KEY]
        fields = {key: value for key, value in content.items() if key != "sha256"}
        content["sha256"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is damaged: {str(error)[:100]}") from None
    if content.get("format") != FORMAT:
        shown = repr(content.get("format"))[:20]
        raise CheckpointError(f"{path} has format {shown}, this version reads {FORMAT}")
    if not same:
        raise CheckpointError(f"{path} is damaged: its contents do not match its checksum")
    try:
        return content, Header.model_validate(fields)
    except ValidationError as error:
        raise CheckpointError(f"{path}: header: {first_problem(error)}") from None


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise CheckpointError, with one name, for tensors with NaN or infinite values."""
    for key, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value.float()).all():
            raise CheckpointError(f"{path} contains numbers that are not finite, e.g. in {key}")


def fill(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load `tensors` into `model`; raises CheckpointError as `check_fit` does."""
    check_fit(model, tensors, path)
    model.load_state_dict(dict(tensors))


def check_fit(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise CheckpointError, with at most 5 names, unless `tensors` fit `model`.

    They need its names, shapes and dtypes; the model may be on the meta device.
    """
    wanted = {key: (value.shape, value.dtype) for key, value in model.state_dict().items()}
    stored = {key: (value.shape, value.dtype) for key, value in tensors.items()}
    if wrong := sorted({key for key, _ in wanted.items() ^ stored.items()}):
        raise CheckpointError(
            f"{path} does not fit the model that its header names: {len(wrong)} tensors differ "
            f"({', '.join(wrong[:5])})"
        )


def fill_where_fitting(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> list[str]:
    """Load `tensors` into `model`, all but those of its classifier that do not fit.

    Returns the names that were left out. Raises CheckpointError, with at most 5 names, when others
    differ or nothing fits.
    """
    wanted = model.state_dict()
    unfit = [
        key
        for key in wanted.keys() | tensors.keys()
        if key not in wanted
        or key not in tensors
        or (wanted[key].shape, wanted[key].dtype) != (tensors[key].shape, tensors[key].dtype)
    ]
    wrong = sorted(key for key in unfit if not in_classifier(model, key))
    if wrong or len(unfit) >= len(wanted):
        raise CheckpointError(
            f"{path} does not fit the model: {len(unfit)} of {len(wanted)} tensors differ "
            f"({', '.join((wrong or sorted(unfit))[:5])})"
        )
    fitting = {key: value for key, value in tensors.items() if key not in unfit}
    model.load_state_dict(fitting, strict=False)
    return sorted(key for key in unfit if key in wanted)


def in_classifier(model: nn.Module, key: str) -> bool:
    """Whether a tensor is of a model's classifier: its `head`, or what has the last parameters."""
    last = list(model.state_dict())[-1].rpartition(".")[0]
    return key.startswith("head." if hasattr(model, "head") else f"{last}.")


def tensors_of_head(model: nn.Module) -> dict[str, Tensor]:
    """Those of a model's whole head, see `head_name`; none where it has no such part."""
    prefix = f"{head_name(model)}."
    return {key: value for key, value in model.state_dict().items() if key.startswith(prefix)}


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of any safetensors file; raises as `read_safetensors` does."""
    content, metadata = read_safetensors(path)
    try:
        tensors = safetensors.torch.load(content)
    except (SafetensorError, ValueError, MemoryError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None
    return tensors, metadata


def _sum(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """The sha256 over a header without its checksum and over names, dtypes, shapes and bytes."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode())
    for key in sorted(tensors):
        value = tensors[key]
        digest.update(f"{key} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
