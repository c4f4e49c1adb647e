"""A tested model -> its row: quality, cost, and what made it."""

import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stl10bench.config import RunConfig
from stl10bench.core import __version__, files
from stl10bench.core.device import memory_format
from stl10bench.core.errors import cause
from stl10bench.data import augment
from stl10bench.data.splits import fold_overlap, training_rows
from stl10bench.metrics.classification import measures, none_if_not_finite
from stl10bench.metrics.significance import wilson_interval
from stl10bench.models import checkpoint, summary
from stl10bench.models.checkpoint import Header
from stl10bench.models.factory import check_options
from stl10bench.models.methods import method_options
from stl10bench.models.pretrained import NO_WEIGHTS, contamination
from stl10bench.results import predictions
from stl10bench.results.rows import Row
from stl10bench.training.evaluate import score
from stl10bench.training.setup import Run
from stl10bench.training.tracking import Log
from stl10bench.training.wandb_run import Result

T = TypeVar("T")
BATCH = 250  # images of the throughput, or all where there are fewer
_WARM_UP = 3  # forward passes that do not count
_MOST_SECONDS = 1.0  # after which no further pass is begun
_PASSES = 5, 200  # at least, at most


def measure_cost(run: Run, images: Tensor) -> dict[str, Any]:
    """What a row says of the cost of inference, uint8 images in and logits out, in one process.

    - `latency_ms`, `latency_p95_ms`: median and 95th percentile of single images, milliseconds
    - `inference_images_per_second`: the median of batches of BATCH
    """
    model, accelerator = run.model, run.accelerator
    model.eval()
    few = images[:BATCH].to(accelerator.device)

    @torch.no_grad()
    def seconds(images: Tensor) -> list[float]:
        times: list[float] = []
        while len(times) < _WARM_UP + _PASSES[0] or (
            sum(times) < _MOST_SECONDS and len(times) < _WARM_UP + _PASSES[1]
        ):
            started = time.perf_counter()
            with accelerator.autocast():
                model(run.normalise(augment.centre(images, run.config.image_size))).cpu()
            times.append(time.perf_counter() - started)
        return times[_WARM_UP:]

    alone = seconds(few[:1])
    return {
        "latency_ms": 1000 * statistics.median(alone),
        "latency_p95_ms": 1000 * statistics.quantiles(alone, n=20)[-1],
        "inference_images_per_second": len(few) / statistics.median(seconds(few)),
    }


def _peak_bytes(device: torch.device) -> int | None:
    """The most memory that this process held until now, of the GPU's or the host's; None: unknown.

    psutil has no such figure on Linux and macOS.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    system = platform.system()
    if system == "Linux":
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        peak = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
        return int(peak[1]) * 1024 if peak else None
    if system == "Darwin":
        import resource  # not there on Windows

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    memory = psutil.Process().memory_info()
    return getattr(memory, "peak_wset", None)


_PACKAGE = Path(__file__).parents[1]  # all of it, not this folder alone


@cache
def cpu_name() -> str:
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
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "platform": platform.system(),
        "python": platform.python_version(),
        "libraries": dict(_libraries()),
        **_code(),
    }


def made_by_this_code(row: Row) -> bool:
    """Whether the code and libraries here made the row; changes without a commit could be any."""
    here = {"version": __version__, "libraries": _libraries(), **_code()}
    here["python"] = platform.python_version()
    return not here["dirty"] and all(row[key] == value for key, value in here.items())


def describe_config(config: RunConfig) -> dict[str, Any]:
    """The part of a row that follows from its settings alone."""
    return {
        "model": config.model,
        "model_options": _options(config),
        "method": config.method,
        "method_options": method_options(config).model_dump(),
        "config": config,
        "selection": config.selection,
        "image_size": config.image_size,
        "pretrained": config.weights != NO_WEIGHTS,
        "epochs": config.epochs if config.takes_steps else None,
        "seed": config.seed,
        "precision": config.precision,
    }


def describe_model(header: Header, model: nn.Module) -> dict[str, Any]:
    """The part of a row that a checkpoint's header and its model know."""
    config = header.config
    total, trainable = summary.parameters(model)
    return {
        **describe_config(config),
        "parameters": total,
        "trainable_parameters": trainable,
        "contamination": contamination(config.weights, header.seen),
        "best_epoch": header.epoch if config.takes_steps else None,
        "memory_format": str(memory_format(model)).removeprefix("torch."),
        "mean": header.mean,
        "std": header.std,
        "version": header.version,
    }


class Effort(NamedTuple):
    """What learning took: its steps, seconds in all, and images of its passes a second."""

    steps: int
    seconds: float
    seconds_to: float | None  # up to the epoch that counts
    images_per_second: float
    epochs: int | None = None  # fewer than asked for where patience ended
    chosen: Mapping[str, Any] = MappingProxyType({})  # what the method itself chose, and on what


def write_result(
    run: Run,
    header: Header,
    arrays: dict[str, NDArray[Any]],
    images: Tensor,
    effort: Effort,
    log: Log,
) -> Row:
    """Write the tested checkpoint, the predictions and the row of a run; returns the row.

    The model holds the weights that were tested, `header` is theirs; `arrays` are those of the
    predictions file, with `mirrored_logits` of the mirrored test images where `tta` asks for them,
    and `images` some uint8 test images (N, 3, S, S) to time inference on.
    """
    mirrored = arrays.pop("mirrored_logits", None)
    logits, labels = (torch.from_numpy(arrays[key]) for key in ("logits", "labels"))
    tested = none_if_not_finite(score(logits, labels, "test"))
    log.write(tested, step=effort.steps)
    header = header.at(header.epoch, header.step, header.metrics | tested)
    if run.is_main:
        checkpoint.save(run.tested_file, run.model, header)
    row = make_row(run, header, arrays, images, effort)
    if mirrored is not None:
        both = score((logits + torch.from_numpy(mirrored)) / 2, labels, "tta")
        tta = {key.replace("/", "_"): value for key, value in none_if_not_finite(both).items()}
        row = row.model_copy(update=tta)
    if run.is_main:
        log.write_result(Result(run.job, run.dataset, row, arrays["logits"], arrays["labels"]))
        predictions.save(run.folder.predictions_file, arrays)
        files.write_json(run.folder.result_file, row.stored())
    return row


def _options(config: RunConfig) -> dict[str, Any]:
    """All options of a run's model, but those of a head that its method replaced."""
    options = check_options(config.model, config.model_options)
    replaced = () if config.takes_steps else ("hidden", "dropout")
    return {key: value for key, value in options.items() if key not in replaced}


def make_row(
    run: Run, header: Header, arrays: dict[str, NDArray[Any]], images: Tensor, effort: Effort
) -> Row:
    """The row of a finished run; its arguments are those of `write_result`.

    `header` has the metrics of the tested epoch and of the test. All else describes the
    result: what cannot be had (MACs, latency, the commit) is None, and a note says why.
    """
    config, values, accelerator = run.config, header.metrics, run.accelerator
    accuracy, tested = values["test/accuracy"] or 0.0, len(arrays["labels"])
    validated = "val_logits" in arrays
    validation = (arrays["val_logits"], arrays["val_labels"]) if validated else None
    notes: list[str] = []
    quality = attempt(
        "confusion and calibration",
        lambda: measures(arrays["logits"], arrays["labels"], validation),
        notes,
    )
    facts = {
        **describe_model(header, run.model),
        **(attempt("machine", lambda: provenance(accelerator.device), notes) or {}),
        **(quality or {}),
    }
    notes += facts.pop("test_notes", [])
    with accelerator.autocast():  # a fused backbone has the run's precision
        macs = attempt("macs", lambda: summary.macs(run.model, config.image_size), notes)
    peak = attempt("peak memory", lambda: _peak_bytes(accelerator.device), notes)
    costs = attempt("latency", lambda: measure_cost(run, images), notes) if run.is_main else None
    overlap = None
    if config.fold is not None:
        overlap = attempt("fold overlap", lambda: fold_overlap(run.dataset), notes)
    unlabelled, before = run.unlabelled, run.weights.seconds
    if run.weights.is_backbone and before is None:
        notes.append("seconds of pretraining: not known (pretraining.json is not beside it)")
    to_best = effort.seconds_to
    return Row(
        run=run.folder.name,
        labels_used=sum(map(len, training_rows(config, run.dataset))),
        unlabeled_used=None if unlabelled is None else len(unlabelled),
        copies_dropped=None if unlabelled is None else unlabelled.dropped,
        dataset=run.dataset.name,
        val_accuracy=values.get("val/accuracy"),
        val_loss=values.get("val/loss"),
        test_accuracy=accuracy,
        test_accuracy_interval=wilson_interval(accuracy, tested),
        test_loss=values["test/loss"],
        test_images=tested,
        test_notes=tuple(notes),
        macs=macs,
        weights={"source": config.weights, "sha256": run.weights.sha256},
        fold_overlap=overlap,
        trained_epochs=effort.epochs,
        train_seconds=effort.seconds + (before or 0.0),
        seconds_to=None if to_best is None else to_best + (before or 0.0),
        pretrain_seconds=before,
        images_per_second=effort.images_per_second,
        checkpoint=f"{run.folder.name}/{run.tested_file.name}",
        checkpoint_mb=run.tested_file.stat().st_size / 1e6 if run.is_main else None,
        processes=accelerator.num_processes,
        compiled=run.job.compile,
        peak_memory_mb=None if peak is None or not run.is_main else peak / 1e6,
        chosen=dict(effort.chosen),
        note=run.job.note or None,
        **(costs or {}),
        **facts,
    )


def attempt(name: str, measure: Callable[[], T], notes: list[str]) -> T | None:
    """What `measure` returns, or None with a note: no figure beside the result loses the result."""
    try:
        return measure()
    except Exception as error:  # of any model's own code
        notes.append(f"{name}: not known ({cause(error)})")
        return None
