"""A result.json -> a row that a table can believe."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stl10bench.config import make_config
from stl10bench.core import files
from stl10bench.core.console import clean
from stl10bench.core.errors import CheckpointError, UsageError
from stl10bench.results import run_folder

Row = dict[str, Any]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[float, Field(ge=0, le=1e15)]  # of which means can be taken
Scalar = bool | int | float | str | None
Options = dict[str, Scalar | list[Scalar]]


class _RunSettings(BaseModel):
    model_config = ConfigDict(strict=True, defer_build=True)

    data: Annotated[str, Field(pattern=r"\A[0-9a-f]*\z")]
    model_options: Options
    input: str = "resize"
    seed: Count = 0
    fold: Count | None = None


class _Stored(BaseModel):
    """What a table needs of a stored row, and the type that it needs it in."""

    model_config = ConfigDict(strict=True, defer_build=True, allow_inf_nan=False)

    run: str
    model: str
    model_options: Options
    dataset: str
    test_loss: Positive | None
    test_accuracy: Share
    test_accuracy_interval: Annotated[list[Share], Field(min_length=2, max_length=2)]
    test_images: Annotated[int, Field(ge=1, le=10**9)]
    parameters: Count
    trainable_parameters: Count
    macs: Count
    image_size: Count
    pretrained: bool
    precision: Literal["no", "bf16", "fp16"]
    train_seconds: Positive
    images_per_second: Positive
    stacked: Count = 1
    config: _RunSettings
    error: None = None  # a failed run has no result.json
    # Rows of older versions lack these.
    test_macro_f1: Share | None = None
    test_ece: Share | None = None
    test_brier: Positive | None = None
    test_temperature: Positive | None = None
    test_loss_scaled: Positive | None = None
    test_ece_scaled: Share | None = None
    test_brier_scaled: Positive | None = None
    val_accuracy: Share | None = None
    val_loss: Positive | None = None
    best_epoch: Count | None = None
    peak_memory_mb: Positive | None = None
    latency_ms: Positive | None = None
    latency_p95_ms: Positive | None = None
    inference_images_per_second: Positive | None = None
    per_class_accuracy: list[Share | None] | None = None
    confusion: list[list[Annotated[int, Field(ge=0)]]] | None = None
    test_hits: Annotated[str, Field(pattern=r"\A([0-9a-f]{2})+\z")] | None = None

    @model_validator(mode="after")
    def _counts_agree(self) -> "_Stored":
        images, hits = self.test_images, round(self.test_accuracy * self.test_images)
        if self.confusion is not None:
            if {len(line) for line in self.confusion} != {len(self.confusion)}:
                raise ValueError("confusion: as many columns as rows are needed")
            right = sum(line[label] for label, line in enumerate(self.confusion))
            if (sum(map(sum, self.confusion)), right) != (images, hits):
                raise ValueError(f"confusion: {images} images, {hits} of them right, are needed")
        if self.test_hits is not None:
            bits = len(self.test_hits) * 4
            value = int(self.test_hits, 16)
            spare = bits - images
            if not 0 <= spare < 8 or value.bit_count() != hits or value % (1 << spare):
                raise ValueError(f"test_hits: {images} bits, {hits} of them set, are needed")
        return self


def read_row(path: Path) -> Row:
    """The row in a result.json; raises CheckpointError for a file that holds none."""
    row = files.read_json(path, CheckpointError)
    try:
        _Stored.model_validate(row)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = clean(".".join(map(str, first["loc"])))[:100] or "row"
        raise CheckpointError(f"{path} holds no row of a run: {where}: {first['msg']}") from None
    return row


def failed_rows(runs_dir: Path) -> list[Row]:
    """A row with an `error` for each run below `runs_dir` that diverged or failed.

    Raises CheckpointError for a status.json or config.json that cannot be believed.
    """
    found = []
    for path in sorted(runs_dir.glob("*/status.json")):
        folder = path.parent
        if run_folder.OLD in folder.name or (folder / "result.json").exists():
            continue
        status = run_folder.status(folder)
        if status["state"] not in ("diverged", "failed"):
            continue
        try:
            config = make_config(files.read_json(folder / "config.json", CheckpointError))
        except UsageError as error:
            raise CheckpointError(f"{folder}/config.json: {error}; remove that folder") from None
        found.append(
            {
                "run": folder.name,
                "model": config.model,
                "model_options": config.model_options,
                "error": status["reason"],
                "seed": config.seed,
                "config": config.model_dump(mode="json"),
            }
        )
    return found
