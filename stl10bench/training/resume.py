"""All that a run is between two steps <-> a folder that proves itself; never a pickle.

`checkpoints/step-00001234/` holds `state.safetensors`, every tensor, and `manifest.json`,
everything else, the sum of the tensors' file and a sum of itself. It is written beside its place
and renamed.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from stl10bench.config import SELF_SUPERVISED, RunConfig
from stl10bench.core import files
from stl10bench.core.errors import CheckpointError, StorageError, UsageError, first_problem
from stl10bench.models import checkpoint
from stl10bench.results.run_folder import RunFolder

FORMAT = 1
_KEPT = 2  # the newest, and the one before it in case the newest is found damaged
_MANIFEST_LIMIT = 16 << 20  # bytes
_ADAM = {"step", "exp_avg", "exp_avg_sq"}  # of each parameter
_NAME = re.compile(r"step-\d{8}")
_TENSORS, _MANIFEST = "state.safetensors", "manifest.json"


class Position(BaseModel):
    """How far a run is: between two steps; after an epoch's last step, before its validation."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    epoch: int = Field(default=0, ge=0)  # epochs that are done and logged
    batch: int = Field(default=0, ge=0)  # steps of the epoch after them
    sums: list[list[float]] = []  # of those steps, per process: loss, hits, images
    seconds: float = Field(default=0.0, ge=0)  # of those steps
    lr: float = 0.0  # at the first of them
    trained_seconds: float = Field(default=0.0, ge=0)  # of the steps of all epochs that are done
    total_seconds: float = Field(default=0.0, ge=0)  # of training and validation, all sessions

    def step(self, steps_per_epoch: int) -> int:
        """The steps that were taken."""
        return self.epoch * steps_per_epoch + self.batch

    def next_epoch(self) -> "Position":
        """The position when the epoch is done and logged."""
        trained = self.trained_seconds + self.seconds
        return Position(epoch=self.epoch + 1, trained_seconds=trained)


class LogMark(BaseModel):
    """How much of metrics.jsonl was written, and the sum of that part."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    size: int = Field(ge=0)
    sha256: str


class Best(NamedTuple):
    """The epoch that counts, so far: its checkpoint's header, its weights, and when it was."""

    header: checkpoint.Header
    weights: dict[str, Tensor]
    seconds: float | None  # of the run up to its validation; None: of a checkpoint of 0.1.0


class State(NamedTuple):
    """What a run needs to go on as if it had never stopped.

    All randomness is a function of (seed, epoch, batch or step, process) and the schedule one of
    the step, so neither generators nor schedule are part of it.
    """

    position: Position
    mark: LogMark
    processes: int
    threads: int | None  # of each process; None in checkpoints of 0.1.0
    model: dict[str, Tensor]
    optimizer: dict[str, Any]  # a torch state_dict
    scaler: dict[str, Any]  # of fp16's loss scaling; empty without
    header: checkpoint.Header  # of the last epoch that is done
    best: Best | None
    ema: dict[str, Tensor]  # the moving average of the weights; empty without


def save_state(folder: RunFolder, config: RunConfig, step: int, state: State) -> None:
    """Write a checkpoint of a run folder, then remove all but the two newest.

    Raises StorageError; what was there is then still there, and UsageError for an optimizer whose
    state holds more than tensors, numbers, text, lists and dictionaries.
    """
    target = folder.checkpoints / _name(step)
    if target.exists():  # written before this epoch was validated: as good
        return
    header, weights, seconds = state.best or (None, {}, None)
    tensors: dict[str, Tensor] = {}
    content = {
        "format": FORMAT,
        "config": config.model_dump(mode="json"),
        "position": state.position.model_dump(),
        "mark": state.mark.model_dump(),
        "processes": state.processes,
        "threads": state.threads,
        "model": _pack(state.model, "model", tensors),
        "optimizer": _pack(state.optimizer, "optimizer", tensors),
        "scaler": _pack(state.scaler, "scaler", tensors),
        "header": state.header.model_dump(mode="json"),
        "best": header and header.model_dump(mode="json"),
        "best_model": _pack(weights, "best", tensors),
        "best_seconds": seconds,
        "ema": _pack(state.ema, "ema", tensors),
    }
    data = safetensors.torch.save(tensors)
    content["tensors"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    try:
        with files.new_folder(target) as part:
            files.write(part / _TENSORS, data)
            files.write(part / _MANIFEST, _signed(content))
        for old in _stored_checkpoints(folder)[_KEPT:]:
            files.remove_folder(old)
    except OSError as error:
        raise files.cannot_write(target, len(data), error) from error


def newest(folder: RunFolder, config: RunConfig) -> State | None:
    """The newest checkpoint of a run folder that proves whole, or None where there is none.

    One that is damaged is left out with a warning, and the one before it taken. Raises
    CheckpointError when there are checkpoints and none is whole.
    """
    damaged: list[str] = []
    for path in _stored_checkpoints(folder):
        try:
            state = load_state(path, config)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        for reason in damaged:
            warnings.warn(f"{reason}; resuming from {path.name}", stacklevel=2)
        return state
    if damaged:
        raise CheckpointError(f"{damaged[0]}; pass --overwrite to train from the start")
    return None


def load_state(path: Path, config: RunConfig) -> State:
    """The checkpoint in the folder `path`.

    Raises CheckpointError unless every byte is what `save` wrote, for a run of `config`.
    """
    content = _checked(files.read(path / _MANIFEST, _MANIFEST_LIMIT, CheckpointError), path)
    try:
        facts = _Manifest.model_validate(content)
    except ValidationError as error:
        raise CheckpointError(f"{path}: manifest: {first_problem(error)}") from None
    if facts.config != config:
        raise CheckpointError(f"{path} belongs to another run: its config differs")
    if (fault := _fault(facts, config)) is not None:
        raise CheckpointError(f"{path}: manifest: {fault}")
    data = files.read(path / _TENSORS, facts.tensors.size, CheckpointError)
    if hashlib.sha256(data).hexdigest() != facts.tensors.sha256:
        raise CheckpointError(f"{path / _TENSORS} is damaged: it does not match its checksum")
    try:
        tensors = safetensors.torch.load(data)
        trees = (facts.model, facts.best_model, facts.ema)
        model, weights, ema = (_weights(_unpack(tree, tensors)) for tree in trees)
        optimizer, scaler = (_unpack(tree, tensors) for tree in (facts.optimizer, facts.scaler))
    except (
        *(SafetensorError, KeyError, TypeError, ValueError, AttributeError),
        *(RuntimeError, RecursionError, OverflowError),
    ) as error:
        raise CheckpointError(f"{path} does not contain the state of a run: {error!r}") from None
    return State(
        position=facts.position,
        mark=facts.mark,
        processes=facts.processes,
        threads=facts.threads,
        model=model,
        optimizer=optimizer,
        scaler=scaler,
        header=facts.header,
        best=None if facts.best is None else Best(facts.best, weights, facts.best_seconds),
        ema=ema,
    )


def forget_after(folder: RunFolder, step: int) -> None:
    """Remove the checkpoints of a run folder that are newer than `step`: they were damaged."""
    with files.storage_errors(f"cannot remove checkpoints of {folder.path}"):
        for path in _stored_checkpoints(folder):
            if path.name > _name(step):
                files.remove_folder(path)


def restore_optimizer(optimizer: torch.optim.Optimizer, stored: Mapping[str, Any]) -> None:
    """Give an optimizer of the same parameters and settings its state back, in their layout.

    Raises CheckpointError for a state that is not one of such an optimizer.
    """
    fresh = optimizer.state_dict()["param_groups"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        groups, states = stored["param_groups"], stored["state"]
        if len(groups) != len(fresh) or not all(map(_same_settings, groups, fresh)):
            raise ValueError("its parameter groups differ")
        for index, state in states.items():
            _check_fused(optimizer, state, parameters[index])
        laid_out = {
            index: {key: _like(value, parameters[index]) for key, value in state.items()}
            for index, state in states.items()
        }
        optimizer.load_state_dict({"param_groups": groups, "state": laid_out})
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"the state does not fit the optimizer: {error!r}") from None


def room_needed(model: nn.Module, *, averaged: bool = False) -> int:
    """Bytes that a run of `model` writes at most: two checkpoints and a third being made.

    A checkpoint: the weights, the best ones, their moving average where there is one, and two
    moments of each parameter that learns.
    """
    weights: int = sum(v.numel() * v.element_size() for v in model.state_dict().values())
    learning: int = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    return (_KEPT + 1) * ((2 + averaged) * weights + 2 * learning) + 2 * weights


def check_room(folder: RunFolder, model: nn.Module, *, averaged: bool) -> None:
    """Raise StorageError when the disk has less free than `room_needed`."""
    needed, free = room_needed(model, averaged=averaged), files.free_space(folder.path)
    if free < needed:
        raise StorageError(
            f"no room for {folder.path}: its checkpoints need {needed:,} bytes, {free:,} are free; "
            "make room, or pass --runs-dir on another disk"
        )


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    size: int = Field(ge=0)
    sha256: str


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid", defer_build=True)

    format: int = Field(ge=FORMAT, le=FORMAT)
    config: RunConfig  # completed with the defaults, where an older version had fewer settings
    position: Position
    mark: LogMark
    processes: int = Field(ge=1)
    threads: int | None = Field(default=None, ge=1)
    model: Any
    optimizer: Any
    scaler: Any
    header: checkpoint.Header
    best: checkpoint.Header | None
    best_model: Any
    best_seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    ema: Any = {"dict": []}  # as in checkpoints of 0.1.0
    tensors: _File


def _fault(facts: _Manifest, config: RunConfig) -> str | None:
    """What in a manifest contradicts the rest of it, if anything does."""
    at, headers = facts.position, [facts.header, *([facts.best] if facts.best else [])]
    if any(header.config != facts.config for header in headers):
        return "a header belongs to another run"
    if at.epoch > config.epochs or facts.header.epoch != at.epoch:
        return f"epoch {at.epoch} of {config.epochs}, but its header says {facts.header.epoch}"
    chooses = config.method != SELF_SUPERVISED  # whose last epoch counts
    if (facts.best is None) != (at.epoch == 0 or not chooses):
        return f"{'no' if facts.best is None else 'a'} best epoch after {at.epoch} epochs"
    processes = facts.processes if at.batch else 0
    if len(at.sums) != processes or any(len(row) != 3 for row in at.sums):
        return f"sums of {len(at.sums)} processes, but {facts.processes} processes trained"
    return None


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _stored_checkpoints(folder: RunFolder) -> list[Path]:
    """The checkpoints of a run folder, the newest first."""
    paths = folder.checkpoints.glob("step-*")
    return sorted((path for path in paths if _NAME.fullmatch(path.name)), reverse=True)


def _signed(content: dict[str, Any]) -> bytes:
    digest = hashlib.sha256(_canonical(content)).hexdigest()
    return _canonical({**content, "sha256": digest})


def _checked(data: bytes, path: Path) -> dict[str, Any]:
    """The content of a manifest; raises CheckpointError unless it is, byte by byte, its own."""
    try:
        content = json.loads(data)
        digest = content.pop("sha256")
        whole = data == _signed(content) and hashlib.sha256(_canonical(content)).hexdigest()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole or whole != digest:
        raise CheckpointError(f"{path / _MANIFEST} is damaged: it does not match its checksum")
    return dict(content)


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A tree of Python values as JSON: tensors go to `tensors` and leave their name."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, Mapping):
        pairs = [[key, _pack(item, f"{name}.{key}", tensors)] for key, item in value.items()]
        return {"dict": pairs}
    if isinstance(value, list | tuple):
        parts = [_pack(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": parts}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    raise UsageError(
        f"{name} is a {type(value).__name__}: a checkpoint cannot store it; use another optimizer"
    )


def _unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    ((kind, value),) = tree.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in value}
    if kind in ("list", "tuple"):
        parts = [_unpack(item, tensors) for item in value]
        return tuple(parts) if kind == "tuple" else parts
    if kind == "value" and (value is None or isinstance(value, bool | int | float | str)):
        return value
    if kind == "dtype" and isinstance(dtype := getattr(torch, value), torch.dtype):
        return dtype
    raise ValueError(f"unknown kind {kind!r}")


def _weights(value: Any) -> dict[str, Tensor]:
    for key, tensor in value.items():
        if not isinstance(key, str):
            raise ValueError(f"{key!r} is not the name of a tensor")
        if not isinstance(tensor, Tensor) or not torch.isfinite(tensor).all():
            raise ValueError(f"{key} is not a tensor of finite numbers")
    return dict(value)


def _same_settings(group: Mapping[str, Any], fresh: Mapping[str, Any]) -> bool:
    """Whether a stored parameter group is `fresh` but for numbers; steps may have added some."""
    added = {key: value for key, value in group.items() if key not in fresh}
    return (
        group["params"] == fresh["params"]
        and all(isinstance(value, int | float | Tensor) for value in added.values())
        and all(_switches(group[key]) == _switches(fresh[key]) for key in fresh)
    )


def _switches(value: Any) -> Any:
    """`value` with every number in it the same."""
    if isinstance(value, tuple | list):
        return type(value)(map(_switches, value))
    return 0 if isinstance(value, int | float) and not isinstance(value, bool) else value


def _check_fused(
    optimizer: torch.optim.Optimizer, state: Mapping[str, Any], parameter: Tensor
) -> None:
    """Raise ValueError for a parameter's state that a fused kernel would read beyond its end."""
    if not optimizer.defaults.get("fused"):
        return
    keys = {"momentum_buffer"} if isinstance(optimizer, torch.optim.SGD) else _ADAM
    if state and state.keys() != keys:
        raise ValueError(f"it has {sorted(state)}, not {sorted(keys)}")
    for key, value in state.items():
        shape = torch.Size() if key == "step" else parameter.shape
        if value.shape != shape:
            raise ValueError(f"{key} has the shape {tuple(value.shape)}, not {tuple(shape)}")


def _like(value: Any, parameter: Tensor) -> Any:
    """`value` in the parameter's memory layout, where it has its shape: fused kernels assume it."""
    if isinstance(value, Tensor) and value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    return value
