"""What can go wrong for a user -> one line and an exit code."""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

_LONGEST = 4000  # characters of an error
_LISTED = 10  # names in it


class BenchError(ValueError):
    """A mistake or a fault that the user can act on; its text is one line: value, rule, remedy.

    The text may quote anything from files and names, so it is cut after 4,000 characters, and
    control characters become spaces.
    """

    exit_code = 1

    def __init__(self, text: str) -> None:
        shown = "".join(c if c.isprintable() else " " for c in text[:_LONGEST])
        super().__init__(shown if len(text) <= _LONGEST else f"{shown} ...")


class UsageError(BenchError):
    """An option, a name or a setting that cannot be used (exit code 2)."""

    exit_code = 2


class DataError(BenchError):
    """Data files that are missing, damaged or not what they claim to be (exit code 3)."""

    exit_code = 3


class CheckpointError(BenchError):
    """A checkpoint or weights file that cannot be trusted or does not fit (exit code 4)."""

    exit_code = 4


class DivergedError(BenchError):
    """A loss or gradients that are no longer finite (exit code 5); `facts` say when, as numbers."""

    exit_code = 5

    def __init__(self, text: str, **facts: float | None) -> None:
        super().__init__(text)
        self.facts = facts


class BusyError(BenchError):
    """A run folder or data folder that another process is using (exit code 6)."""

    exit_code = 6


class StorageError(BenchError):
    """A disk, folder, network or memory that fails or has no room (exit code 7)."""

    exit_code = 7


class DifferentError(BenchError):
    """A reproduced run that differs from the original (exit code 8)."""

    exit_code = 8


class InterruptedRunError(BenchError):
    """A run that was asked to stop and can be resumed (exit code 130 or 143)."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[type, tuple[str, int]]:
        return type(self), (str(self), self.exit_code)  # pickle passes on only what `args` holds


def unknown(kind: str, name: str, names: Iterable[str], *, remedy: str = "") -> UsageError:
    """The error for a `name` that is not among `names`: suggests the nearest, else lists 20."""
    choices = sorted(names)
    hint = suggest(name, choices, otherwise=f"known: {', '.join(choices[:20])}")
    return UsageError(f"unknown {kind} {name!r}: {hint}{' ' + remedy if remedy else ''}")


def listed(names: Sequence[str]) -> str:
    """The first ten names, and how many more there are."""
    more = f", ... ({len(names)} in all)" if len(names) > _LISTED else ""
    return f"{', '.join(names[:_LISTED])}{more}"


# What other frameworks (Keras, Ultralytics, Lightning, timm, Hugging Face) call our settings.
_ALIASES = {
    "lr": ("learning_rate", "lr0", "init_lr", "base_lr", "alpha", "eta"),
    "batch_size": ("batch", "bs", "batchsize", "per_device_train_batch_size", "train_batch_size"),
    "epochs": ("n_epochs", "num_epochs", "max_epochs", "num_train_epochs", "nb_epochs"),
    "weight_decay": ("wd", "decay", "l2"),
    "image_size": ("img_size", "imgsz", "imsize", "input_size", "size", "resolution"),
    "optimizer": ("opt", "optim", "optimiser"),
    "schedule": ("scheduler", "sched", "lr_scheduler", "lr_schedule", "lr_scheduler_type"),
    "warmup": ("warmup_ratio", "warmup_epochs", "warmup_steps", "pct_start"),
    "class_weights": ("class_weight", "balanced"),
    "label_smoothing": ("smoothing", "label_smoothing_factor"),
    "val_fraction": ("validation_split", "val_split", "val_size", "validation_fraction"),
    "seed": ("random_state", "random_seed", "manual_seed", "rng"),
    "dropout": ("drop", "drop_rate", "dropout_rate", "p_dropout"),
    "hidden": ("hidden_size", "hidden_sizes", "hidden_dim", "hidden_layers", "units"),
    "device": ("gpu", "gpus", "accelerator", "cuda"),
    "threads": ("num_threads", "n_jobs", "num_workers"),
    "data_dir": ("data", "data_path", "root", "dataset_dir"),
    "runs_dir": ("output_dir", "out_dir", "save_dir", "log_dir", "project"),
    "precision": ("amp", "fp16", "bf16", "mixed_precision", "half", "dtype"),
}
_OURS = {alias: name for name, aliases in _ALIASES.items() for alias in aliases}


def suggest(name: str, names: Iterable[str], *, otherwise: str) -> str:
    """`did you mean 'NAME'?` with what is meant of `names`; `otherwise` where none is near.

    That is the setting which others call `name`, or else the nearest by its letters. Names of
    options keep their dashes: `--learning-rate` is `--lr`.
    """
    spellings = {choice.strip("-").replace("-", "_").lower(): choice for choice in names}
    word = name.strip("-").replace("-", "_").lower()
    nearest = get_close_matches(word, list(spellings), n=1, cutoff=0.5)
    if _OURS.get(word) in spellings and word not in spellings:
        nearest = [_OURS[word]]
    begun = [spelling for spelling in spellings if spelling.startswith(word)]
    nearest = nearest or begun[: len(begun) == 1]  # too short to be near
    return f"did you mean {spellings[nearest[0]]!r}?" if nearest else otherwise


def cause(error: BaseException) -> str:
    """What an error was raised from at first, as `KIND: first line`, without colour codes."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error)).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def first_problem(error: "ValidationError") -> str:
    """The first of pydantic's problems: where it is, and the rule; what it quotes is cut."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(map(str, problem["loc"]))[:100]
    return f"{where or 'all of it'}: {problem['msg'][:200]}"


_PARSED = re.compile(r"(int|float|bool)_(?:parsing|type|from_float)")
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}


def rule_of(problem: Mapping[str, Any]) -> str:
    """What a value must be, from one of pydantic's problems, in our words where we have some."""
    parsed = _PARSED.fullmatch(problem["type"])
    rule = problem["msg"].removeprefix("Input should be ")
    return f"must be {_KINDS[parsed[1]] if parsed else rule}"


def require(package: str, *, extra: str, purpose: str) -> None:
    """Raise UsageError, with the command that installs it, when `package` is not installed."""
    if find_spec(package) is None:
        raise UsageError(f"{purpose} needs {package}: pip install 'stl10bench[{extra}]'")
