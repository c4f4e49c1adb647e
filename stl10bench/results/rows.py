"""A result.json -> a typed row that a table can believe; a run without one -> a failure."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from stl10bench.config import RunConfig
from stl10bench.core import files
from stl10bench.core.errors import CheckpointError, first_problem

METRICS_VERSION = 1  # raised when the same logits begin to give other figures

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Amount = Annotated[float, Field(ge=0, le=1e100)]  # any loss of fp32 logits; squares can be summed
Scalar = bool | int | float | str | None
Options = dict[str, Scalar | tuple[Scalar, ...]]


def protocol_id(config: RunConfig, selection: str) -> str:
    """What rows must share to stand in one ranking: data, training images, selection, metrics."""
    images = "full" if config.fold is None else "fold"
    if config.labels_per_class is not None:
        images = f"{config.labels_per_class}-per-class"
    data = config.data[:12] or "unknown"
    return f"{data}-{images}-{selection.replace(' ', '-')}-m{METRICS_VERSION}"


class Row(BaseModel):
    """One result: what a run was made from, what it reached and what that cost.

    Shares are 0..1, losses nats, times seconds unless the name says milliseconds. What could not
    be measured is None, and `test_notes` says why. `row["test_accuracy"]` is `row.test_accuracy`.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, defer_build=True)

    run: str | None = None  # None for a row of no run: a baseline, a published result
    model: str
    model_options: Options = {}  # all of them, defaults included
    method: str = "supervised"
    method_options: Options = {}  # all of them, defaults included
    chosen: Options = {}  # what the method chose by itself, and on what
    config: RunConfig
    dataset: str  # STL-10, STL-10 layout or demo
    selection: Literal["validation", "last epoch", "not stated"] = "not stated"

    test_accuracy: Share
    test_accuracy_interval: tuple[Share, Share] | None = None  # Wilson, 95 %
    test_loss: Amount | None = None
    test_images: Annotated[int, Field(ge=1, le=10**9)]
    val_accuracy: Share | None = None
    val_loss: Amount | None = None
    best_epoch: Count | None = None
    test_macro_f1: Share | None = None
    test_ece: Share | None = None
    test_brier: Amount | None = None
    test_temperature: Amount | None = None
    test_loss_scaled: Amount | None = None
    test_ece_scaled: Share | None = None
    test_brier_scaled: Amount | None = None
    tta_accuracy: Share | None = None  # of the mean logits of each test image and its mirror image
    tta_loss: Amount | None = None
    test_notes: tuple[str, ...] = ()
    per_class_accuracy: tuple[Share | None, ...] | None = None

    parameters: Count | None = None
    trainable_parameters: Count | None = None
    macs: Count | None = None
    image_size: Count = 64
    epochs: Count | None = None  # asked for
    trained_epochs: Count | None = None  # fewer where patience ended
    seed: Count | None = None
    precision: Literal["no", "bf16", "fp16"] | None = None
    memory_format: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    pretrained: bool = False
    contamination: str = "none"
    weights: dict[str, str | None] | None = None
    fold_overlap: Share | None = None
    train_seconds: Amount | None = None
    seconds_to: Amount | None = None  # to the epoch that counts, validation and features in it
    images_per_second: Amount | None = None
    latency_ms: Amount | None = None
    latency_p95_ms: Amount | None = None
    inference_images_per_second: Amount | None = None
    peak_memory_mb: Amount | None = None
    checkpoint: str | None = None
    checkpoint_mb: Amount | None = None
    stacked: Count = 1  # of 0.1.0: settings trained together, which share their seconds

    device: str | None = None
    cpu: str | None = None
    threads: Count | None = None
    processes: Count | None = None
    compiled: bool | None = None
    deterministic: bool | None = None
    platform: str | None = None
    python: str | None = None
    libraries: dict[str, str] = {}
    version: str | None = None
    commit: str | None = None
    dirty: bool | None = None

    # Read from the predictions beside the row (0.1.0 and reference rows hold them themselves).
    confusion: tuple[tuple[Count, ...], ...] | None = None  # (C, C): true class, predicted class
    test_hits: Annotated[str, Field(pattern=r"\A([0-9a-f]{2})+\z")] | None = None

    # What tables add: aggregated over seeds or folds, and ranked; never stored.
    title: str = ""  # of the file that a reference row comes from
    baseline: bool = False
    runs: Count | None = None  # finished runs that the row combines
    runs_asked: Count | None = None  # the most that any setting beside it has
    repeats: tuple[str, ...] = ()  # their names
    repeated_hits: tuple[str, ...] = ()
    test_accuracy_sd: Amount | None = None
    failures: tuple[str, ...] = ()
    at_chance: bool | None = None
    vs_best: Literal["best", "tied", "worse"] | None = None
    p_vs_best: Share | None = None

    @field_validator("config")
    @classmethod
    def _has_a_fingerprint(cls, config: RunConfig) -> RunConfig:
        if set(config.data) - set("0123456789abcdef"):
            raise ValueError(f"data = {config.data[:40]!r}: must be a fingerprint, hexadecimal")
        return config

    @field_validator("test_notes")
    @classmethod
    def _says_validation(cls, notes: tuple[str, ...]) -> tuple[str, ...]:
        """In today's words: 0.1.0 called the validation images a hold-out."""
        return tuple(note.replace("there is no hold-out", "no validation images") for note in notes)

    @model_validator(mode="after")
    def _counts_agree(self) -> "Row":
        images, hits = self.test_images, round(self.test_accuracy * self.test_images)
        if self.confusion is not None:
            if {len(line) for line in self.confusion} != {len(self.confusion)}:
                raise ValueError("confusion: must have as many columns as rows")
            correct = sum(line[label] for label, line in enumerate(self.confusion))
            if (sum(map(sum, self.confusion)), correct) != (images, hits):
                raise ValueError(f"confusion: must count {images} images, {hits} of them correct")
        if self.test_hits is not None:
            bits, value = len(self.test_hits) * 4, int(self.test_hits, 16)
            spare = bits - images
            if not 0 <= spare < 8 or value.bit_count() != hits or value % (1 << spare):
                raise ValueError(f"test_hits: must be {images} bits, {hits} of them set")
        return self

    @property
    def protocol(self) -> str:
        """See `protocol_id`."""
        return protocol_id(self.config, self.selection)

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key)

    def stored(self) -> dict[str, Any]:
        """What result.json holds, as JSON values."""
        values = self.model_dump(mode="json", exclude=_NOT_STORED)
        return {"protocol": self.protocol, **values}


_NOT_STORED = {
    *("confusion", "test_hits", "title", "baseline", "runs", "runs_asked", "repeats", "stacked"),
    *("repeated_hits", "test_accuracy_sd", "failures", "at_chance", "vs_best", "p_vs_best"),
}


class Failure(BaseModel):
    """A run without a row: it failed, diverged, was pruned, cannot be, or cannot be read."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    run: str | None = None
    model: str
    model_options: dict[str, Any] = {}
    config: RunConfig | None = None  # None for settings that are refused
    state: Literal["failed", "diverged", "pruned", "damaged"] = "failed"
    error: str

    @property
    def protocol(self) -> str | None:
        """That of the row which the run would have; None for settings that are refused."""
        if self.config is None:
            return None
        selection = "validation" if self.config.val_fraction else "last epoch"
        return protocol_id(self.config, selection)


def has_damage(rows: Iterable[object]) -> bool:
    """Whether the files of one of them cannot be believed: a command then ends with that code."""
    return any(isinstance(row, Failure) and row.state == "damaged" for row in rows)


def read_row(path: Path) -> Row:
    """The row in a result.json; raises CheckpointError for a file that holds none."""
    values = files.read_json(path, CheckpointError)
    try:
        return parse_row(values)
    except ValidationError as error:
        raise CheckpointError(f"{path} is not a run's result: {first_problem(error)}") from None


def parse_row(values: Mapping[str, Any]) -> Row:
    """A row from JSON values, of older versions too; raises ValidationError.

    Their config may lack settings, and 0.1.0 wrote "hold-out" for the validation images.
    """
    config = values.get("config")
    if isinstance(config, dict):
        values = {**values, "config": {"model": values.get("model"), **config}}
    if values.get("selection") == "hold-out":
        values = {**values, "selection": "validation"}
    # As text: in JSON a list may stand for a tuple, but nothing else for another type.
    return Row.model_validate_json(json.dumps(values), strict=True)
