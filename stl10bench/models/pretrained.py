"""Where a model's first weights come from: named by content, not by path."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stl10bench.config import SELF_SUPERVISED, RunConfig, make_config
from stl10bench.core import files
from stl10bench.core.errors import CheckpointError, UsageError
from stl10bench.core.safetensors import read_safetensors_metadata
from stl10bench.models import hub_files, registry
from stl10bench.results.pretraining import pretraining_seconds

NO_WEIGHTS = "none"
IMAGENET, UNKNOWN = "ImageNet", "unknown"
UNLABELLED_IMAGES, TEST_IMAGES = "unlabelled images", "test images"
_KEY = "stl10bench"  # of the header in a checkpoint's metadata


@dataclass(frozen=True)
class Weights:
    """Initial weights of a model; `source` goes into the config, `file` does not."""

    source: str = NO_WEIGHTS  # or sha256:<checksum of the file>, or hub:<repository>
    file: Path | None = None
    sha256: str | None = None
    seen: tuple[str, ...] = ()  # what they learned from, before the run whose checkpoint they are
    # Of that run, of the one from whose checkpoint it started, and so on; none: another program's.
    configs: tuple[RunConfig, ...] = ()
    is_backbone: bool = False  # of a run of pretraining
    seconds: float | None = None  # that its pretraining took, where the file beside it says so


def choose_weights(
    model: str, *, file: Path | None, pretrained: bool, frozen: bool | None
) -> Weights:
    """What `model` starts from: a file, timm's weights on the hub (`pretrained`), or nothing.

    `frozen` is None for a model without a backbone. Raises UsageError for a frozen backbone with
    random weights and for a file of another model, CheckpointError for an unreadable file.
    """
    backbone = registry.backbone_name(model)
    if file is not None:
        if not pretrained:
            raise UsageError("--weights and --no-pretrained contradict each other: give only one")
        return _of_file(model, file)
    if backbone is None:
        return Weights()
    if not pretrained:
        if frozen:
            raise UsageError(
                "A frozen backbone with random weights cannot learn. Pass --weights FILE, or use "
                "--no-freeze."
            )
        return Weights()
    import timm  # slow: not for a model without a backbone, nor for weights in a file

    if not timm.is_model(backbone):
        return Weights()  # building the model will name the nearest
    settings = timm.get_pretrained_cfg(backbone)
    repository = settings.hf_hub_id if settings else None
    if not repository:
        raise UsageError(
            f"timm has no pretrained weights for {backbone}: pass --weights FILE, or train from "
            "scratch with --no-pretrained --no-freeze"
        )
    return Weights(f"hub:{repository}", seen=_seen_by(f"hub:{repository}"))


def _of_file(model: str, file: Path) -> Weights:
    """The weights in a file; raises as `choose_weights` does."""
    if file.exists() and not file.is_file():  # reading a pipe would wait for a writer
        raise CheckpointError(f"cannot read the weights {file}: not a regular file")
    try:
        digest = files.digests(file, "sha256")[0]
    except OSError as error:
        raise CheckpointError(f"cannot read the weights {file}: {error.strerror}") from error
    header = _header(file)
    backbone = registry.backbone_name(model)
    if header is None:
        if backbone is None:
            raise UsageError(
                f"--weights {file}: model {model!r} has no backbone, and the file is not a "
                "stl10bench checkpoint: pass a run of the same model"
            )
        return Weights(f"sha256:{digest}", file, digest, (UNKNOWN,))
    (config, *_), seen = header
    theirs = registry.backbone_name(config.model)
    if (theirs or config.model) != (backbone or model):
        raise UsageError(
            f"--weights {file}: a checkpoint of model {config.model!r}; {model!r} cannot start "
            f"from it: pass one of {model!r}"
        )
    weights = Weights(f"sha256:{digest}", file, digest, seen, header[0])
    if config.method != SELF_SUPERVISED:
        return weights
    return replace(weights, is_backbone=True, seconds=pretraining_seconds(file, digest))


def _header(file: Path) -> tuple[tuple[RunConfig, ...], tuple[str, ...]] | None:
    """The configs of the run whose checkpoint a file is and of those before it, and what they saw.

    None for a file of another program. What it says is proven when the tensors are read.
    """
    metadata = read_safetensors_metadata(file)
    if _KEY not in metadata:
        return None
    try:
        content: Any = json.loads(metadata[_KEY])
        stored = [content["config"], *content.get("before", [])]
        configs, seen = tuple(map(make_config, stored)), content.get("seen")
        if seen is None:  # until 0.1.0 only their source was stored
            return configs, _seen_by(configs[0].weights)
        return configs, tuple(str(each) for each in seen)
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # UsageError among them
        raise CheckpointError(f"{file}: the header is damaged: {str(error)[:100]}") from None


def is_checkpoint(file: Path) -> bool:
    """Whether a file of safetensors is a checkpoint of ours; raises CheckpointError for no such."""
    return _header(file) is not None


def find_weights(weights: str | Path, runs_dir: Path) -> Path:
    """The file that --weights names: a file, a run (its tested checkpoint, or the backbone that it
    pretrained), hf-hub:OWNER/NAME.

    A folder of an export to the hub is taken as well. A run is a folder, a name in `runs_dir`, or
    the beginning of one. Raises UsageError for a name
    of nothing, and CheckpointError for a run without a tested checkpoint, and when there is no
    download.
    """
    text = Path(weights).as_posix()
    if text.startswith(hub_files.HUB):
        return hub_files.download(text.removeprefix(hub_files.HUB))
    path = Path(weights)
    if path.exists() and not path.is_dir():
        return path
    if (exported := path / hub_files.MODEL).is_file():
        return exported
    if not path.exists() and path.suffix:  # a run's name has none
        raise CheckpointError(f"cannot read the weights {path}: No such file or directory")
    from stl10bench.results.run_folder import find_run  # NumPy, for which a typo does not wait

    return find_run(runs_dir, str(path)).weights()


def contamination(source: str, seen: tuple[str, ...] | None) -> str:
    """What a model had seen before its run: "none", or names joined by " + ".

    "ImageNet", from which STL-10's images were taken, of timm's weights on the hub; "unknown" of a
    file that does not say; "data <fingerprint>" of other data that a checkpoint of ours was trained
    on; "validation images" where it was trained on those that now choose; "unlabelled images" of a
    backbone that was pretrained on them; "test images" where copies of them were not dropped.
    `seen` is None in checkpoints of 0.1.0, which know the `source` alone.
    """
    return " + ".join(_seen_by(source) if seen is None else seen) or "none"


def _seen_by(source: str) -> tuple[str, ...]:
    if source == NO_WEIGHTS:
        return ()
    return (IMAGENET,) if source.startswith("hub:timm/") else (UNKNOWN,)


def fetch_weights(weights: Weights) -> Weights:
    """The same weights with their file, downloaded if it is not in the hub's cache, and its sha256.

    Raises CheckpointError, with the alternatives, when they cannot be downloaded.
    """
    if weights.source == NO_WEIGHTS or weights.file is not None:
        return weights
    file = hub_files.download(weights.source.removeprefix("hub:"), cached=True)
    return replace(weights, file=file, sha256=files.digests(file, "sha256")[0])
