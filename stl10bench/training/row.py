"""A tested model -> its row: quality, cost, and what made it."""

import platform
import resource
import statistics
import subprocess
import sys
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from stl10bench.core.device import memory_format
from stl10bench.data import augment
from stl10bench.data.loader import Images, Normalise
from stl10bench.metrics.significance import wilson_interval
from stl10bench.models import checkpoint, summary
from stl10bench.models.factory import check_options
from stl10bench.models.pretrained import NO_WEIGHTS, contamination
from stl10bench.results import predictions

MEASURED = ("latency_ms", "latency_p95_ms", "inference_images_per_second", "peak_memory_mb")
BATCH = 250  # images of the throughput, or all where there are fewer
_WARM_UP = 3  # forward passes that do not count
_MOST_SECONDS = 1.0  # after which no further pass is begun
_PASSES = 5, 200  # at least, at most


def measure_cost(
    model: nn.Module,
    test: Images,
    normalise: Normalise,
    image_size: int,
    accelerator: Accelerator,
) -> dict[str, float]:
    """What a row says of the cost of inference, uint8 images in and logits out, in one process.

    - `latency_ms`, `latency_p95_ms`: median and 95th percentile of single images, milliseconds
    - `inference_images_per_second`: the median of batches of BATCH
    - `peak_memory_mb`: the most that this process held until now, 10^6 bytes, of the GPU's memory
      where it uses one, else of the host's
    """
    model.eval()
    few = test.images[:BATCH].to(accelerator.device)

    @torch.no_grad()
    def seconds(images: Tensor) -> list[float]:
        times: list[float] = []
        while len(times) < _WARM_UP + _PASSES[0] or (
            sum(times) < _MOST_SECONDS and len(times) < _WARM_UP + _PASSES[1]
        ):
            started = time.perf_counter()
            with accelerator.autocast():
                model(normalise(augment.centre(images, image_size))).cpu()
            times.append(time.perf_counter() - started)
        return times[_WARM_UP:]

    alone = seconds(few[:1])
    return {
        "latency_ms": 1000 * statistics.median(alone),
        "latency_p95_ms": 1000 * statistics.quantiles(alone, n=20)[-1],
        "inference_images_per_second": len(few) / statistics.median(seconds(few)),
        "peak_memory_mb": _peak_bytes(accelerator.device) / 1e6,
    }


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


_PACKAGE = Path(__file__).parents[1]  # all of it, not this folder alone


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


def tested_row(
    header: checkpoint.Header,
    model: nn.Module,
    dataset: str,
    images: int,
    accelerator: Accelerator,
    *,
    split: str = "test",
) -> dict[str, Any]:
    """The part of a row that an evaluation knows; accuracies and intervals in 0..1."""
    config, values = header.config, header.metrics
    accuracy = values[f"{split}/accuracy"] or 0.0
    total, trainable = summary.parameters(model)
    with accelerator.autocast():  # a folded backbone has the run's precision
        macs = summary.macs(model, config.image_size)
    return {
        "model": config.model,
        "model_options": check_options(config.model, config.model_options),
        "dataset": dataset,
        "val_accuracy": values.get("val/accuracy"),
        "val_loss": values.get("val/loss"),
        f"{split}_accuracy": accuracy,
        f"{split}_accuracy_interval": list(wilson_interval(accuracy, images)),
        f"{split}_loss": values[f"{split}/loss"],
        f"{split}_images": images,
        "parameters": total,
        "trainable_parameters": trainable,
        "macs": macs,
        "image_size": config.image_size,
        "pretrained": config.weights != NO_WEIGHTS,
        "contamination": contamination(config.weights),
        "epochs": config.epochs,
        "best_epoch": header.epoch,
        "seed": config.seed,
        "precision": config.precision,
        "memory_format": str(memory_format(model)).removeprefix("torch."),
        "mean": list(header.mean),
        "std": list(header.std),
        "processes": accelerator.num_processes,
        "version": header.version,
        "config": config.model_dump(mode="json"),
        **provenance(accelerator.device),
    }


def save_predictions(
    path: Path,
    logits: Tensor,
    labels: Tensor,
    val_logits: Tensor | None = None,
    val_labels: Tensor | None = None,
) -> None:
    """Write float32 logits (N, C) and int64 labels (N,), in the order of the test split.

    Those of the hold-out, where there is one, are in the order of its sorted rows.
    """
    tensors = {"logits": logits, "labels": labels}
    if val_logits is not None and val_labels is not None and len(val_labels):
        tensors |= {"val_logits": val_logits, "val_labels": val_labels}
    predictions.save(path, {key: value.cpu().numpy() for key, value in tensors.items()})
