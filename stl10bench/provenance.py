"""What made a row: the machine, the versions, and the state of this program's own code."""

import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

_PACKAGE = Path(__file__).parent


@cache
def _cpu_name() -> str:
    """The processor's own name on Linux, elsewhere what Python knows of it."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@cache
def _libraries() -> dict[str, str]:
    """The versions of the packages that decide a row's numbers."""
    names = ("torch", "torchvision", "timm", "accelerate", "safetensors", "numpy")
    return {name: version(name) for name in names}


@cache
def _code() -> dict[str, Any]:
    """The commit of the checkout that this package runs from, and whether its files were changed.

    Both are None for a package that was installed, or without git.
    """

    def git(*arguments: str) -> str | None:
        try:
            ended = subprocess.run(
                ["git", "-C", str(_PACKAGE), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return ended.stdout.strip() if ended.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return {"commit": None, "dirty": None}
    changed = git("status", "--porcelain", "--", ".")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changed is None else bool(changed)}


def provenance(device: torch.device) -> dict[str, Any]:
    """What a row says of the machine and the versions that made it; no host name, no path."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "platform": platform.system(),
        "python": platform.python_version(),
        "libraries": dict(_libraries()),
        **_code(),
    }
