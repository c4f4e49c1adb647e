"""Where a backbone's weights come from: named by content, not by path."""

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
    """Initial weights of a backbone; `source` goes into the config, `file` does not."""

    source: str = NO_WEIGHTS  # or sha256:<checksum of the file>, or hub:<repository>
    file: Path | None = None
    sha256: str | None = None


def choose_weights(
    model: str, *, file: Path | None, pretrained: bool, frozen: bool | None
) -> Weights:
    """What `model` starts from: a file, timm's weights on the hub (`pretrained`), or nothing.

    `frozen` is None for a model without a backbone. Raises UsageError for a frozen backbone with
    random weights and for a file that no backbone takes, CheckpointError for an unreadable file.
    """
    backbone = registry.backbone_name(model)
    if backbone is None:
        if file is not None:
            raise UsageError(f"--weights {file}: model {model!r} has no backbone to load them into")
        return Weights()
    if file is not None:
        if not pretrained:
            raise UsageError("--weights and --no-pretrained contradict each other: give only one")
        if file.exists() and not file.is_file():  # reading a pipe would wait for a writer
            raise CheckpointError(f"cannot read the weights {file}: no regular file")
        try:
            digest = files.digests(file, "sha256")[0]
            return Weights(f"sha256:{digest}", file, digest)
        except OSError as error:
            raise CheckpointError(f"cannot read the weights {file}: {error.strerror}") from error
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
    return Weights(f"hub:{repository}")


def contamination(source: str) -> str:
    """What a model was trained on before this run: "none", "ImageNet", or "unknown" for a file.

    It matters because STL-10's images were taken from ImageNet, on which (or on more) timm's
    weights on the hub were trained.
    """
    if source == NO_WEIGHTS:
        return "none"
    return "ImageNet" if source.startswith("hub:timm/") else "unknown"


def fetch_weights(weights: Weights) -> Weights:
    """The same weights with their file, downloaded if it is not in the hub's cache, and its sha256.

    Raises CheckpointError, with the alternatives, when they cannot be downloaded.
    """
    if weights.source == NO_WEIGHTS or weights.file is not None:
        return weights
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, _, revision = weights.source.removeprefix("hub:").partition("@")
    download = partial(hf_hub_download, repository, "model.safetensors", revision=revision or None)
    try:
        file = Path(download(local_files_only=True))
    except LocalEntryNotFoundError:
        try:
            if not reachable(constants.ENDPOINT):  # the hub's own retries take half a minute
                raise ConnectionError(f"no connection to {constants.ENDPOINT}")
            file = Path(download())
        except Exception as error:  # whatever the network, the hub or its cache raises
            reason = str(error).partition("\n")[0][:160]
            raise CheckpointError(
                f"cannot download {repository} from the Hugging Face hub ({reason}): pass "
                "--weights FILE, or train from scratch with --no-pretrained --no-freeze"
            ) from error
    return replace(weights, file=file, sha256=files.digests(file, "sha256")[0])
