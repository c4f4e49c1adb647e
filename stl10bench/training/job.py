"""One run to be: what it computes, where its files lie, how it computes; a file for a child."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from stl10bench.config import Limits, RunConfig, checked
from stl10bench.core import files
from stl10bench.core.errors import UsageError, first_problem, unknown
from stl10bench.models.registry import find_plugin
from stl10bench.results.run_folder import RunFolder

_BYTE_LIMIT = 1 << 20
# Accelerate's names, and none.
TRACKERS = (
    *("wandb", "tensorboard", "mlflow", "trackio", "aim", "clearml", "comet_ml", "dvclive"),
    *("swanlab", "none"),
)


class Job(BaseModel):
    """A run, and what does not change its numbers: the one list of `train`'s other keywords.

    A field's description is its option's help.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True
    )

    config: RunConfig

    dataset: str = "stl10"
    """stl10, or demo (drawn by code)."""
    data_dir: Path | None = None
    """Folder that contains stl10_binary/ (demo data: in its subfolder demo)."""
    download: bool = False
    """Download STL-10 when it is missing."""
    verify: bool = True
    """Verify the MD5 checksums of STL-10's files."""
    weights: Path | None = None
    """A file, a run or hf-hub:OWNER/NAME."""
    runs_dir: Path = Path("runs")
    """Folder that contains the runs."""

    device: str = "auto"
    """auto, cpu, cuda or mps."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads per process [default: the cores that are free at the start / processes]."""
    compile: bool = False
    """Compile the training step with torch.compile: a slow start, perhaps faster steps."""
    deterministic: bool = False
    """Use only deterministic kernels (matters on GPUs)."""
    tracker: str = "wandb"
    """wandb, mlflow, ...; or none."""
    wandb_images: bool = False
    """Upload pictures of mistakes on the test split to W&B."""
    wandb_artifact: bool = False
    """Upload the tested checkpoint to W&B, as an artifact."""
    note: str = Field("", max_length=1000)
    """Text to keep in the row, for example why the run was made."""
    recipe: str | None = None
    """Recipe that the settings began with, which trackers store."""
    plugin: str | None = None
    """Python file, package folder or module that registers models."""
    overwrite: bool = False
    """Train again and move the old run folder aside."""
    limits: Limits = Limits()
    """When the run writes checkpoints, and when it stops."""

    @field_validator("plugin")
    @classmethod
    def _from_any_folder(cls, plugin: str | None) -> str | None:
        return None if plugin is None else find_plugin(plugin)  # children may start elsewhere

    @field_validator("tracker")
    @classmethod
    def _is_known(cls, tracker: str) -> str:
        names = tracker.split(",")
        for name in names:
            if name not in TRACKERS:
                raise unknown("tracker", name, TRACKERS)
        if "none" in names and len(names) > 1:
            raise ValueError(f"--tracker {tracker}: none stands alone; leave it out")
        return tracker

    @property
    def trackers(self) -> tuple[str, ...]:
        """The trackers by name, each once; none of them for `none`."""
        return tuple(dict.fromkeys(self.tracker.split(","))) if self.tracker != "none" else ()

    @property
    def folder(self) -> RunFolder:
        """Where the run lies."""
        return RunFolder(self.runs_dir / self.config.name)


OPTIONS = frozenset(Job.model_fields) - {"config", "weights", "limits", "recipe"}


def make_job(config: RunConfig, **fields: Any) -> Job:
    """A checked Job; raises UsageError with the value and the rule."""
    return checked(Job, {"config": config, **fields})


def read_job(path: Path) -> Job:
    """The job in a file that `write_job` made; raises UsageError for anything else."""
    content = files.read(path, _BYTE_LIMIT, UsageError)
    try:
        return Job.model_validate_json(content)
    except ValidationError as error:
        raise UsageError(f"{path} is not a job file: {first_problem(error)}") from None


def write_job(path: Path, job: Job) -> None:
    """Write a job for a child process. Raises StorageError."""
    files.write(path, job.model_dump_json().encode())
