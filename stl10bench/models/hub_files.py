"""hf-hub:OWNER/NAME[@REVISION] -> files from the Hugging Face Hub, and the model they are of."""

import re
import reprlib
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stl10bench.config import Scalar
from stl10bench.core import files
from stl10bench.core.errors import CheckpointError, UsageError, first_problem
from stl10bench.core.network import reachable
from stl10bench.models import registry

HUB = "hf-hub:"
MODEL, HEAD, CONFIG = "model.safetensors", "head.safetensors", "config.json"
_INSTEAD = "pass --weights FILE, or train from scratch with --no-pretrained --no-freeze"
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Of timm's arguments, those that a run sets by itself, and those that timm stores in any case.
_OWN_ARGUMENTS = {"img_size", "num_classes"}
_STORED_ARGUMENTS = {"global_pool", "in_chans"}


_NAME = Field(pattern=r"^[\w.:-]{1,100}$")


class _Part(BaseModel):
    """A part of a config.json, which anybody can write; what else it says is not read."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class _Settings(_Part):
    model: str = _NAME
    model_options: dict[str, Scalar | tuple[Scalar, ...]] = {}


class _Header(_Part):
    config: _Settings


class _Pretrained(_Part):
    tag: str | None = Field(default=None, max_length=100)
    mean: list[float] | None = Field(default=None, max_length=8)
    std: list[float] | None = Field(default=None, max_length=8)


class _Config(_Pretrained):
    architecture: str = _NAME
    model_args: dict[str, Any] = {}
    pretrained_cfg: _Pretrained | None = None  # in timm's older files all is on one level
    stl10bench: _Header | None = None


class HubModel(NamedTuple):
    """What `train hf-hub:OWNER/NAME` trains."""

    model: str  # as the registry knows it
    options: dict[str, Any]  # the model's, where a run of ours stored them
    weights: Path | None  # None: timm's own, as for any timm model


def download(
    repository: str, file: str = MODEL, *, cached: bool = False, instead: str = _INSTEAD
) -> Path:
    """A file of OWNER/NAME[@REVISION], from the hub or its cache here.

    With `cached` the hub is not asked for a newer one. Raises UsageError for a name that cannot be
    one, and CheckpointError, with what to do `instead`, where there is no download or a damaged
    one, which is then removed.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    name, _, revision = repository.partition("@")
    place: dict[str, Any] = {"repo_id": name, "filename": file, "revision": revision or None}
    try:
        if cached:
            try:
                return Path(hf_hub_download(**place, local_files_only=True))
            except LocalEntryNotFoundError:
                pass
        offline = constants.HF_HUB_OFFLINE or not reachable(constants.ENDPOINT)
        # Without a server the hub's own retries would take half a minute.
        path = Path(hf_hub_download(**place, local_files_only=offline))
    except HFValidationError as error:
        raise UsageError(f"{HUB}{repository}: {str(error)[:160]}") from None
    except Exception as error:  # whatever the network, the hub or its cache raises
        raise CheckpointError(
            f"cannot download {repository}/{file} from {constants.ENDPOINT} ({_reason(error)}): "
            f"{instead}"
        ) from error
    _check_sum(path, repository)
    return path


def _reason(error: Exception) -> str:
    """Why a request failed, in a few words."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    answer = getattr(error.__cause__ or error, "response", None)
    match status := getattr(answer, "status_code", None):
        case 401 | 403:
            return f"{status}: no such repository, or private: set HF_TOKEN to a token that may"
        case 404:
            return "404: no such file, repository or revision"
    if isinstance(error, LocalEntryNotFoundError) and status is None:
        return "no connection, and no copy in the cache"
    return " ".join(str(error.__cause__ or error).split())[:160]


def _check_sum(path: Path, repository: str) -> None:
    """Raise CheckpointError for a file whose content is not what the hub says.

    The hub names large files by their sha256, and so does its cache.
    """
    blob = path.resolve()
    if _SHA256.fullmatch(blob.name) and files.digests(blob, "sha256")[0] != blob.name:
        blob.unlink()
        path.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path.name} of {repository} came with another checksum than the hub's, and was "
            "removed: try again"
        )


def find_model(name: str) -> HubModel:
    """The model of hf-hub:OWNER/NAME[@REVISION]: a timm model's, or an export of ours.

    Its architecture, and the weights in its file. Raises UsageError for another program's model
    and for one that timm's architecture alone does not describe, and what `download` raises.
    """
    repository = name.removeprefix(HUB)
    instead = "train a model that is here ('stl10bench models' lists them)"
    config = _read_config(repository, instead)
    if config.stl10bench is not None:
        ours = config.stl10bench.config
        return HubModel(ours.model, ours.model_options, download(repository, instead=instead))
    model = _timm_name(repository, config)
    import timm

    settings = timm.get_pretrained_cfg(model.removeprefix(registry.TIMM))
    if settings is not None and settings.hf_hub_id == repository:
        return HubModel(model, {}, None)
    return HubModel(model, {}, download(repository, instead=instead))


def _read_config(repository: str, instead: str) -> _Config:
    path = download(repository, CONFIG, instead=instead)
    config = files.read_json(path, CheckpointError)
    if not isinstance(config.get("architecture"), str):
        raise UsageError(
            f"{HUB}{repository} is no timm model: its {CONFIG} has no architecture; {instead}"
        )
    try:
        return _Config.model_validate(config)
    except ValidationError as error:
        raise CheckpointError(
            f"{HUB}{repository}: its {CONFIG} is damaged: {first_problem(error)}; {instead}"
        ) from None


def _timm_name(repository: str, config: _Config) -> str:
    """timm:ARCHITECTURE[.TAG] with the mean and std of a hub model's config, which then names it.

    So a run's name tells all, and its checkpoint needs neither the config nor the hub.
    """
    import timm

    architecture, own = config.architecture, config.pretrained_cfg or config
    arguments = {k: v for k, v in config.model_args.items() if k not in _OWN_ARGUMENTS}
    if timm.is_model(architecture) and not _changes_nothing(architecture, arguments):
        raise UsageError(
            f"{HUB}{repository} changes its architecture by {reprlib.repr(arguments)}: load it in "
            "a plugin (--plugin), with timm.create_model"
        )
    tagged = timm.list_models(f"{architecture}.*", include_tags=True)
    first = f"{architecture}.{own.tag}"
    for name in (first, architecture, *tagged):
        if name not in (*tagged, architecture):
            continue
        settings = timm.get_pretrained_cfg(name)
        stated = {"mean": own.mean, "std": own.std}
        if settings is None or all(
            value is None or value == list(getattr(settings, key)) for key, value in stated.items()
        ):
            return f"{registry.TIMM}{name}"
    raise UsageError(
        f"{HUB}{repository} normalises by mean {own.mean} and std {own.std}, as no "
        f"timm:{architecture} does: load it in a plugin (--plugin), with timm.create_model"
    )


def _changes_nothing(architecture: str, arguments: dict[str, Any]) -> bool:
    """Whether timm builds the same model with these arguments as without."""
    import timm
    import torch

    if not arguments or not arguments.keys() <= _STORED_ARGUMENTS:
        return not arguments
    try:
        with torch.device("meta"):  # no memory taken
            models = [timm.create_model(architecture, **each) for each in ({}, arguments)]
    except Exception:  # timm's models raise of all kinds; with these arguments there is none
        return False
    return repr(models[0]) == repr(models[1])


def download_export(repository: str) -> Path:
    """The folder of what `export --to hub --push` put there; raises what `download` raises."""
    instead = "pass a checkpoint that is here"
    config = _read_config(repository, instead)
    if config.stl10bench is None:
        raise CheckpointError(
            f"{HUB}{repository} is a model of timm, whose classes are not ours: train it first "
            f"(stl10bench train {HUB}{repository})"
        )
    if config.pretrained_cfg is not None:  # then model.safetensors is the backbone alone
        download(repository, HEAD, instead=instead)
    return download(repository, MODEL, instead=instead).parent
