"""A result.json -> a typed row that a table can believe; a run without one -> a failure."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from stl10bench.config import RunConfig
from stl10bench.core import files
from stl10bench.core.errors import CheckpointError, first_problem

METRICS_VERSION = 1  # raised when the same logits begin to give other figures

# How far somebody else's row was verified here, see inference/shared_rows.py.
Level = Literal["whole", "recomputed", "re-evaluated", "reproduced", "refused"]
LEVELS: tuple[Level, ...] = ("whole", "recomputed", "re-evaluated", "reproduced")

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Amount = Annotated[float, Field(ge=0, le=1e100)]  # any loss of fp32 logits; squares can be summed
Scalar = bool | int | float | str | None
Options = dict[str, Scalar | tuple[Scalar, ...]]


def protocol_parts(
    config: RunConfig, selection: str, metrics_version: int = METRICS_VERSION
) -> dict[str, str]:
    """What rows must share to stand in one ranking, by what it is called."""
    images = "full" if config.fold is None else "fold"
    if config.k_fold is not None:
        images = f"{config.k_fold}-fold"
    if config.labels_per_class is not None:
        images = f"{config.labels_per_class}-per-class"
    if config.unlabeled is not None:
        images += "-and-unlabelled"
    return {
        "data": config.data[:12] or "unknown",
        "training images": images,
        "selection": selection.replace(" ", "-"),
        "version of the metrics": f"m{metrics_version}",
    }


def expected_protocol(config: RunConfig) -> str:
    """The protocol of the row which a run with these settings will have."""
    return "-".join(protocol_parts(config, config.selection).values())


class Row(BaseModel):
    """One result: what a run was made from, what it reached and what that cost.

    Shares are 0..1, losses nats, times seconds unless the name says milliseconds. What could not
    be measured is None, and `test_notes` says why. `row["test_accuracy"]` is `row.test_accuracy`.
    """

    model_config = ConfigDict(
        frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, defer_build=True
    )

    run: str | None = None
    """Name of the run; null for a row of no run: a baseline, a published result."""
    model: str
    """Registered name, or timm:<any timm model>."""
    model_options: Options = {}
    """All of the model's options, defaults included."""
    method: str = "supervised"
    """supervised, probe, knn, pseudo-label, label-spreading or fixmatch."""
    method_options: Options = {}
    """All of the method's options, defaults included."""
    chosen: Options = {}
    """What the method chose by itself, and on what."""
    config: RunConfig
    """The settings, as in config.json."""
    dataset: str
    """STL-10, STL-10 layout or demo."""
    selection: Literal["validation", "last epoch", "not stated"] = "not stated"
    """What chose the epoch: validation images, or it was the last one."""
    labels_used: Count | None = None
    """Number of images whose labels were used, validation images included."""
    unlabeled_used: Count | None = None
    """Number of images that were learned from without their labels; null: none."""
    copies_dropped: Count | None = None
    """Copies of test images that were left out of the unlabelled ones."""

    test_accuracy: Share
    """Share of test images that are classified correctly."""
    test_accuracy_interval: tuple[Share, Share] | None = None
    """Wilson interval of it, 95 %: the noise of a finite test split."""
    test_loss: Amount | None = None
    """Mean cross-entropy of the test images."""
    test_images: Annotated[int, Field(ge=1, le=10**9)]
    """Number of test images."""
    val_accuracy: Share | None = None
    """Accuracy on the validation images, at the epoch that counts."""
    val_loss: Amount | None = None
    """Mean cross-entropy of the validation images, at the epoch that counts."""
    best_epoch: Count | None = None
    """The epoch that counts."""
    test_macro_f1: Share | None = None
    """Mean F1 score of the classes."""
    test_ece: Share | None = None
    """Expected calibration error: 15 bins of equally many test images."""
    test_brier: Amount | None = None
    """Brier score, summed over classes: 0 to 2."""
    test_temperature: Amount | None = None
    """Temperature that fits the validation images best."""
    test_loss_scaled: Amount | None = None
    """Test loss after dividing the logits by the temperature."""
    test_ece_scaled: Share | None = None
    """Expected calibration error after dividing the logits by the temperature."""
    test_brier_scaled: Amount | None = None
    """Brier score after dividing the logits by the temperature."""
    tta_accuracy: Share | None = None
    """Accuracy of the mean logits of each test image and its mirror image."""
    tta_loss: Amount | None = None
    """Cross-entropy of these mean logits."""
    test_notes: tuple[str, ...] = ()
    """What could not be measured, and why."""
    per_class_accuracy: tuple[Share | None, ...] | None = None
    """Accuracy of each class; null for a class without test images."""

    parameters: Count | None = None
    """Parameters of the model, frozen ones too; not its buffers: of kmeans, only the classifier
    counts, not the centroids."""
    trainable_parameters: Count | None = None
    """Parameters that training changes."""
    macs: Count | None = None
    """Multiply-accumulates of convolutions and matrix products for one image."""
    image_size: Count = 64
    """Height and width of the model's input in pixels."""
    epochs: Count | None = None
    """Epochs asked for."""
    trained_epochs: Count | None = None
    """Epochs trained: fewer where patience ended the run."""
    seed: Count | None = None
    """Seed of weights, validation split, image order, augmentation and dropout."""
    precision: Literal["no", "bf16", "fp16"] | None = None
    """no (fp32), bf16 or fp16."""
    memory_format: str | None = None
    """channels_last or contiguous."""
    mean: tuple[float, ...] | None = None
    """Mean that is subtracted from each channel."""
    std: tuple[float, ...] | None = None
    """Standard deviation that divides each channel."""
    pretrained: bool = False
    """Whether the backbone started from trained weights."""
    contamination: str = "none"
    """What the model saw beside its own training images: none, or, joined by " + ", ImageNet (which
    contains the test images), unknown, test images (copies of them were kept), validation images,
    unlabelled images (in pretraining), data FINGERPRINT (of an earlier run)."""
    weights: dict[str, str | None] | None = None
    """Source and checksum of the initial weights."""
    fold_overlap: Share | None = None
    """Mean share of a fold's images that another fold has too."""
    train_seconds: Amount | None = None
    """From the first step to the last, validation and checkpoints included, and pretraining."""
    seconds_to: Amount | None = None
    """Up to the epoch that counts, validation, features and pretraining included."""
    pretrain_seconds: Amount | None = None
    """Of these, what pretraining the initial weights took; null: there was none, or it is not
    known."""
    images_per_second: Amount | None = None
    """Training images a second, over the training steps alone."""
    latency_ms: Amount | None = None
    """Median latency of one image."""
    latency_p95_ms: Amount | None = None
    """95th percentile of the latency of one image."""
    inference_images_per_second: Amount | None = None
    """Images a second in batches, forward only."""
    peak_memory_mb: Amount | None = None
    """Peak memory."""
    checkpoint: str | None = None
    """The tested checkpoint, in the runs folder."""
    checkpoint_mb: Amount | None = None
    """Its size."""
    stacked: Count = 1
    """Of version 0.1.0: settings trained together, which share their seconds."""

    device: str | None = None
    """cpu, cuda or mps, or the name of the GPU."""
    cpu: str | None = None
    """Processor."""
    threads: Count | None = None
    """CPU threads per process."""
    processes: Count | None = None
    """Processes that trained together."""
    compiled: bool | None = None
    """Whether torch.compile was used."""
    deterministic: bool | None = None
    """Whether only deterministic kernels were used."""
    platform: str | None = None
    """Operating system."""
    python: str | None = None
    """Version of Python."""
    libraries: dict[str, str] = {}
    """Versions of the libraries that compute."""
    version: str | None = None
    """Version of stl10bench."""
    commit: str | None = None
    """Commit of the code, if it is a checkout."""
    dirty: bool | None = None
    """Whether the checkout had changes that are not in the commit."""

    note: str | None = None
    """Text that whoever trained the run gave it (`--note`)."""

    metrics_version: Count = METRICS_VERSION
    """Version of the formulas of the metrics; stored as the end of the protocol."""

    # Read from the predictions beside the row (0.1.0 and reference rows hold them themselves).
    confusion: tuple[tuple[Count, ...], ...] | None = None
    """(C, C) counts: true class, predicted class."""
    test_hits: Annotated[str, Field(pattern=r"\A([0-9a-f]{2})+\z")] | None = None
    """Which test images were right: a bit each, in hexadecimal."""

    # What tables add: aggregated over seeds or folds, and ranked; never stored.
    title: str = ""
    """Of the file that a reference row comes from."""
    source: str = ""
    """The archive that somebody else's row comes from."""
    verified: Level | None = None
    """How far that row was verified here; null for one's own."""
    baseline: bool = False
    """Whether the row is a uniform guess or a constant class."""
    runs: Count | None = None
    """Finished runs that the row combines."""
    runs_asked: Count | None = None
    """The most that any setting beside it has; a study's seeds count for its own settings."""
    repeats: tuple[str, ...] = ()
    """Names of the runs that the row combines."""
    repeated_hits: tuple[str, ...] = ()
    """`test_hits` of each of them."""
    test_accuracy_sd: Amount | None = None
    """Standard deviation of the test accuracy over these runs."""
    failures: tuple[str, ...] = ()
    """Runs of the setting that have no result."""
    at_chance: bool | None = None
    """Whether the interval includes a uniform guess or a constant class."""
    vs_best: Literal["best", "tied", "worse"] | None = None
    """best, tied or worse: the test against the best row, Holm-corrected."""
    p_vs_best: Share | None = None
    """Its p-value."""
    group: str | None = None
    """Letters: rows that share one do not differ significantly, Holm-corrected for all pairs."""

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
        """See `protocol_parts`."""
        return "-".join(self.protocol_parts.values())

    @property
    def protocol_parts(self) -> dict[str, str]:
        """See `protocol_parts`, the function."""
        return protocol_parts(self.config, self.selection, self.metrics_version)

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key)

    def stored(self) -> dict[str, Any]:
        """What result.json holds, as JSON values."""
        values = self.model_dump(mode="json", exclude=NOT_STORED)
        return {"protocol": self.protocol, **values}


NOT_STORED = {  # fields of a row that result.json never holds; of old versions `stacked` is
    *("confusion", "test_hits", "title", "baseline", "runs", "runs_asked", "repeats", "stacked"),
    *("metrics_version", "source", "verified", "group"),
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
        return expected_protocol(self.config)


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
    # Rows without a protocol, of 0.1.0 and published ones, are of the first version.
    version = re.search(r"-m(\d{1,9})\Z", str(values.get("protocol", "-m1")))
    values = {**values, "metrics_version": int(version[1]) if version else METRICS_VERSION}
    # As text: in JSON a list may stand for a tuple, but nothing else for another type.
    return Row.model_validate_json(json.dumps(values), strict=True)
