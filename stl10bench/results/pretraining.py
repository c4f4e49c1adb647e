"""What a run of pretraining leaves beside its backbone: pretraining.json."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stl10bench.config import RunConfig
from stl10bench.core import files
from stl10bench.core.errors import CheckpointError, first_problem

BACKBONE, RESULT = "backbone.safetensors", "pretraining.json"

_Share = Annotated[float, Field(ge=0, le=1)]


class Pretraining(BaseModel):
    """The cost of a backbone, where it comes from, and how alike images of a class are in it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    run: str
    config: RunConfig
    dataset: str
    """STL-10, STL-10 layout or demo."""
    unlabeled_used: int
    """Number of images that were learned from."""
    copies_dropped: int
    """Copies of test images that were left out of them."""
    seconds: float = Field(ge=0)
    """Of all sessions, the kNN lines included."""
    images_per_second: float = Field(ge=0)
    """Images a second, each of which gives two views."""
    knn_accuracy: _Share | None = None
    """kNN accuracy on the validation images, which chose nothing; null: there are none."""
    knn_interval: tuple[_Share, _Share] | None = None
    """Wilson interval of it, 95 %."""
    sha256: str
    """Of backbone.safetensors."""
    machine: dict[str, Any] = {}
    """Device, versions and commit."""


def no_classifier(path: Path, weights: str) -> str:
    """Why a run of pretraining, or its file, has no row and classifies nothing."""
    return f"{path} is pretraining and has no classifier: train one with --weights {weights}"


def read_pretraining(path: Path) -> Pretraining:
    """The content of a pretraining.json; raises CheckpointError for any other file."""
    values = files.read_json(path, CheckpointError)
    try:
        return Pretraining.model_validate(values)
    except ValidationError as error:
        raise CheckpointError(f"{path}: {first_problem(error)}") from None


def pretraining_seconds(backbone: Path, sha256: str) -> float | None:
    """The seconds that a backbone took, from the file beside it; None where there is no such one.

    Raises CheckpointError for a file that is damaged.
    """
    path = backbone.with_name(RESULT)
    if not path.is_file():
        return None
    pretraining = read_pretraining(path)
    return pretraining.seconds if pretraining.sha256 == sha256 else None
