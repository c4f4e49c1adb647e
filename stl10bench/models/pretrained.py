"""Where a backbone's weights come from, by content and not by path."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from stl10bench.core import files
from stl10bench.core.errors import CheckpointError, UsageError
from stl10bench.core.network import reachable
from stl10bench.models import registry

NO_WEIGHTS = "none"


@dataclass(frozen=True)
class Weights:
    """`source` goes into the config: none, sha256:<sum>, hub:<repository>; `file` does not."""

    source: str = NO_WEIGHTS
    file: Path | None = None
    sha256: str | None = None


def choose_weights(
    model: str, *, file: Path | None, pretrained: bool, frozen: bool | None
) -> Weights:
    """What `model` starts from; `frozen` is None for a model without a backbone.

    Light, but for the hub's name of a backbone, which timm knows. Raises UsageError when a frozen
    backbone would be random or a model has no backbone, CheckpointError for an unreadable file.
    """
    backbone = registry.backbone_name(model)
    if backbone is None:
        if file is not None:
            raise UsageError(f"--weights {file}: model {model!r} has no backbone to load them into")
        return Weights()
    if file is not None:
        if not pretrained:
            raise UsageError("--weights and --no-pretrained contradict each other: give one")
        if file.exists() and not file.is_file():  # a pipe would be waited for
            raise CheckpointError(f"cannot read the weights {file}: no regular file")
        try:
            digest = files.digests(file, "sha256")[0]
            return Weights(f"sha256:{digest}", file, digest)
        except OSError as error:
            raise CheckpointError(f"cannot read the weights {file}: {error.strerror}") from error
    if not pretrained:
        if frozen:
            raise UsageError(
                "needs weights: --weights FILE, for a frozen backbone that is random learns "
                "nothing (or train all of it: --no-freeze)"
            )
        return Weights()
    import timm

    if not timm.is_model(backbone):
        return Weights()  # building the model will name the nearest
    settings = timm.get_pretrained_cfg(backbone)
    repository = settings.hf_hub_id if settings else None
    if not repository:
        raise UsageError(
            f"timm has no pretrained weights for {backbone}: give --weights FILE, "
            "or --no-pretrained --no-freeze"
        )
    return Weights(f"hub:{repository}")


def contamination(source: str) -> str:
    """What a model saw before this run: none, ImageNet, or "unknown" for a file of someone's.

    timm's weights on the hub were trained on ImageNet, from which STL-10's images were taken, or
    on more.
    """
    if source == NO_WEIGHTS:
        return "none"
    return "ImageNet" if source.startswith("hub:timm/") else "unknown"


def fetch_weights(weights: Weights) -> Weights:
    """The same weights with their file, downloaded from the hub unless it is there, and its sum.

    Raises CheckpointError, with the ways out, when the hub does not give them.
    """
    if weights.source == NO_WEIGHTS or weights.file is not None:
        return weights
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, _, revision = weights.source.removeprefix("hub:").partition("@")
    get = partial(
        hf_hub_download, repository, filename="model.safetensors", revision=revision or None
    )
    try:
        file = Path(get(local_files_only=True))
    except LocalEntryNotFoundError:
        try:
            if not reachable(constants.ENDPOINT):  # else the hub's own retries take half a minute
                raise ConnectionError(f"no connection to {constants.ENDPOINT}")
            file = Path(get())
        except Exception as error:  # whatever the network, the hub or its cache raises
            reason = str(error).partition("\n")[0][:160]
            raise CheckpointError(
                f"needs weights: --weights FILE, for {repository} could not be fetched from the "
                f"Hugging Face hub ({reason}); or train from scratch: --no-pretrained --no-freeze"
            ) from error
    return replace(weights, file=file, sha256=files.digests(file, "sha256")[0])
