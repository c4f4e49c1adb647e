"""A hub folder -> a repository on the Hugging Face Hub."""

from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from stl10bench import __version__
from stl10bench.core.errors import StorageError, UsageError
from stl10bench.core.network import reachable


def check_repository(name: str, *, dry: bool = False) -> None:
    """Raise UsageError for a name that is not OWNER/NAME, and without a token unless `dry`."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f"--push {name}: {str(error)[:160]}") from None
    if "/" not in name:
        raise UsageError(f"--push {name}: must be OWNER/NAME")
    if not dry and get_token() is None:
        raise UsageError("--push needs a token: set HF_TOKEN, or run 'hf auth login'")


def push(folder: Path, repository: str, *, private: bool | None) -> str:
    """Upload the files of `folder` in one commit, into a new or an older repository.

    Returns the commit's address. `private` is for a new repository; None: as the owner's default.
    Raises StorageError for whatever the hub answers or the network does.
    """
    if not reachable(constants.ENDPOINT):
        raise StorageError(f"no connection to {constants.ENDPOINT}: try --push again later")
    hub = HfApi(library_name="stl10bench", library_version=__version__)
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Export from stl10bench"
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedy = "try again later"
        if status in (401, 403):
            remedy = f"set HF_TOKEN to a token that may write to {repository}"
        text = f"the hub refused {repository} ({status}: {_first_line(error)}): {remedy}"
        raise StorageError(text) from error
    except Exception as error:  # of its HTTP client, and of a card that the hub does not accept
        reason = " ".join(str(error).split())[:300]
        raise StorageError(f"cannot push to {repository} ({reason}): try again") from error
    return str(commit.commit_url)


def _first_line(error: HfHubHTTPError) -> str:
    return (error.server_message or str(error)).partition("\n")[0][:160]
