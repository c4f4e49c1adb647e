"""The machine -> device, threads, process group and memory layout, each by a stated rule."""

import ctypes
import os
import platform
import shutil
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from torch import nn

from stl10bench.core.errors import UsageError, unknown

DEVICES = ("auto", "cpu", "cuda", "mps")
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


def choose_device(name: str) -> str:
    """`auto` is CUDA where there is a GPU, then Apple's MPS, then the CPU."""
    if name not in DEVICES:
        raise unknown("device", name, DEVICES)
    found = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return next(device for device, there in found.items() if there)
    if not found[name]:
        raise UsageError(f"--device {name}: torch {torch.__version__} finds none; use --device cpu")
    return name


def set_threads(threads: int | None) -> int:
    """Set and return torch's CPU threads: by default the cores we may use per local process.

    `accelerate launch` sets one thread, and without a limit processes on one machine starve each
    other, so neither the environment nor torch's own default is followed.
    """
    if threads is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        threads = max(1, (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(threads)
    return threads


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors instead of giving it back to the kernel.

    Else each training step gets its large activations as new pages, to be zeroed first. For the
    whole process; another C library is left as it is.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 64 << 20)


def be_deterministic() -> None:
    """Let torch take no kernel whose bits differ from run to run, or fail where it has no other.

    On a CPU they do not differ; on a GPU it costs speed (untested). For the whole process.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first use of cuBLAS
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def check_compiler(device: str) -> None:
    """Raise UsageError when torch.compile would find no C++ compiler for the CPU's code."""
    compilers = (os.environ.get("CXX"), "g++", "clang++", "cl")
    if device == "cpu" and not any(name and shutil.which(name) for name in compilers):
        raise UsageError(
            "--compile: no C++ compiler found for the CPU; install g++ or clang++, or leave it out"
        )


def memory_format(model: nn.Module) -> torch.memory_format:
    """channels_last for a model with 2-d convolutions, where it is faster (measured), else NCHW."""
    convolves = any(isinstance(module, nn.Conv2d) for module in model.modules())
    return torch.channels_last if convolves else torch.contiguous_format


def make_accelerator(
    device: str,
    precision: str,
    tracker: str,
    folder: Path | None,
    *,
    timeout_minutes: float = 10.0,
) -> Accelerator:
    """Accelerate's state for one run: device, process group, mixed precision and tracker.

    Processes wait `timeout_minutes` for one that hangs, then the run fails. A second run in the
    same Python process starts from a fresh state. Raises UsageError when a launcher started more
    processes than found each other.
    """
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what stays in fp32; untested
    world = int(os.environ.get("WORLD_SIZE", "1"))
    AcceleratorState._reset_state(reset_partial_state=world == 1)
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision=precision,
        log_with=None if tracker == "none" else tracker,
        project_dir=folder,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(minutes=timeout_minutes))],
    )
    if accelerator.num_processes != world:
        raise UsageError(
            f"{world} processes were launched, {accelerator.num_processes} found each other: "
            "launch CPU processes with torchrun --nproc_per_node N -m stl10bench ..."
        )
    return accelerator


def describe_machine(accelerator: Accelerator, precision: str) -> str:
    """One line on where and how a run computes."""
    arithmetic = "fp32" if precision == "no" else precision
    return (
        f"{accelerator.device.type}, {accelerator.num_processes} process(es) x "
        f"{torch.get_num_threads()} threads, {arithmetic}"
    )
