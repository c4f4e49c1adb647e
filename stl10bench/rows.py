"""A result.json -> a row that a table can believe; light."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stl10bench import files
from stl10bench.errors import CheckpointError

Row = dict[str, Any]
Share = Annotated[float, Field(ge=0, le=1)]


class _RunSettings(BaseModel):
    model_config = ConfigDict(defer_build=True)

    data: str
    model_options: dict[str, Any]
    input: str = "resize"


class _Stored(BaseModel):
    """What a table needs of a stored row, and the type that it needs it in."""

    model_config = ConfigDict(strict=True, defer_build=True, allow_inf_nan=False)

    run: str
    model: str
    model_options: dict[str, Any]
    dataset: str
    test_loss: float | None
    test_accuracy: Share
    test_accuracy_interval: Annotated[list[float], Field(min_length=2, max_length=2)]
    test_images: Annotated[int, Field(ge=1, le=10**9)]
    parameters: int
    trainable_parameters: int
    macs: int
    image_size: int
    pretrained: bool
    precision: str
    train_seconds: float
    images_per_second: float
    stacked: int = 1
    config: _RunSettings
    # Rows of older versions lack these.
    test_macro_f1: Share | None = None
    test_ece: Share | None = None
    test_brier: float | None = None
    test_temperature: float | None = None
    test_loss_scaled: float | None = None
    test_ece_scaled: Share | None = None
    test_brier_scaled: float | None = None
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


def read(path: Path) -> Row:
    """The row in a result.json; raises CheckpointError for a file that holds none."""
    row = files.read_json(path, CheckpointError)
    try:
        _Stored.model_validate(row)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "row"
        raise CheckpointError(f"{path} holds no row of a run: {where}: {first['msg']}") from None
    return row
