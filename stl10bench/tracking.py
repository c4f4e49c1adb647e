"""Metrics -> metrics.jsonl, which is the truth, and a tracker, which is a mirror."""

import json
import os
import warnings
from collections.abc import Callable, Mapping
from netrc import NetrcParseError, netrc
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from accelerate import Accelerator

from stl10bench.config import RunConfig
from stl10bench.errors import StorageError, UsageError, unknown
from stl10bench.network import reachable

PROJECT = "stl10bench"
TRACKERS = ("wandb", "tensorboard", "none")
_PACKAGE = {"wandb": "wandb", "tensorboard": "tensorboard"}


def check_tracker(name: str) -> None:
    """Raise UsageError for a tracker that is unknown or not installed."""
    from importlib.util import find_spec

    if name not in TRACKERS:
        raise unknown("tracker", name, TRACKERS)
    if name != "none" and find_spec(_PACKAGE[name]) is None:
        raise UsageError(f"--tracker {name} needs: pip install 'stl10bench[{name}]'")


class Log:
    """The open log of one run; only the main process writes.

    Every row goes to `metrics.jsonl` first (a failure there is a StorageError) and then to the
    tracker, which can fail without harm: it is then dropped with one warning.
    """

    def __init__(
        self, folder: Path, config: RunConfig, accelerator: Accelerator, tracker: str
    ) -> None:
        self._accelerator = accelerator
        self._tracker: str | None = None
        self._path = folder / "metrics.jsonl"
        if accelerator.is_main_process:
            self._file = self._path.open("w", encoding="utf-8")
        if tracker != "none":
            self._tracker = tracker
            accelerator.project_configuration.set_directories(str(folder))
            settings = _wandb(folder, config) if tracker == "wandb" else {}
            self._mirror(
                lambda: accelerator.init_trackers(
                    PROJECT, _flat(config), {tracker: settings} if settings else {}
                )
            )

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._accelerator.is_main_process:
            self._file.close()
        self._mirror(self._accelerator.end_training)

    def write(self, values: Mapping[str, float | None], *, step: int) -> None:
        """One row: metric paths (`train/loss`) -> numbers, None where there is none."""
        if self._accelerator.is_main_process:
            try:
                self._file.write(json.dumps({"step": step, **values}) + "\n")
                self._file.flush()
            except OSError as error:
                raise StorageError(f"cannot write {self._path}: {error}") from error
        numbers = {key: value for key, value in values.items() if value is not None}
        self._mirror(lambda: self._accelerator.log(numbers, step=step))

    def summary(self, values: Mapping[str, Any]) -> None:
        """The row's figures and words, where the tracker has a place for them."""
        simple = {k: v for k, v in values.items() if isinstance(v, int | float | str)}
        if self._tracker == "wandb" and self._accelerator.is_main_process:
            self._mirror(
                lambda: self._accelerator.get_tracker("wandb", unwrap=True).summary.update(simple)
            )

    def _mirror(self, call: Callable[[], Any]) -> None:
        if self._tracker is None:
            return
        try:
            call()
        except Exception as error:  # a tracker may fail, a run may not
            warnings.warn(
                f"tracker {self._tracker} failed and is left out from here on: {error!r}; "
                "metrics.jsonl goes on",
                stacklevel=3,
            )
            self._tracker = None


def _wandb(folder: Path, config: RunConfig) -> dict[str, Any]:
    """Settings of a run that never asks, never prints and never waits long.

    Online with a key and a server that answers, else offline; WANDB_MODE decides where it is set.
    """
    import wandb

    mode = os.environ.get("WANDB_MODE")
    if mode is None:
        server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
        mode = "offline"
        if _has_key(server):
            if reachable(server):
                mode = "online"
            else:
                warnings.warn(
                    f"no connection to {server}: logging to W&B offline; later: "
                    f"wandb sync {folder / 'wandb'}/offline-run-*",
                    stacklevel=4,
                )
    return {
        "dir": str(folder),
        "name": folder.name,
        "group": config.model,
        "mode": mode,
        "settings": wandb.Settings(silent=True, console="off", init_timeout=6),
    }


def _has_key(server: str) -> bool:
    """Whether wandb has a key for `server`: in the environment, or from `wandb login`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc().authenticators(urlsplit(server).hostname or "") is not None
    except FileNotFoundError:
        return False
    except (NetrcParseError, OSError) as error:
        warnings.warn(f"cannot read the W&B key from .netrc: {error}", stacklevel=5)
        return False


def _flat(config: RunConfig) -> dict[str, Any]:
    """The config as scalars: trackers know no lists and no None."""
    values = config.model_dump(mode="json")
    options = values.pop("model_options")
    return {
        key: ",".join(map(str, value)) if isinstance(value, list) else value
        for key, value in {**values, **{f"model.{k}": v for k, v in options.items()}}.items()
    }
