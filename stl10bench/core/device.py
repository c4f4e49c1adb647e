"""The machine -> device, threads, process group and memory layout, each by a stated rule."""

import ctypes
import os
import platform
import shutil
import warnings
from datetime import timedelta

import accelerate.utils
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from torch import nn

from stl10bench.core import cores
from stl10bench.core.errors import UsageError, unknown
from stl10bench.core.launcher import asked_cpu, check_environment, count_of

DEVICES = ("auto", "cpu", "cuda", "mps")
UNUSED_DEVICES = ("xpu", "npu", "mlu", "sdaa", "musa", "hpu", "neuron")  # of Accelerate
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


def choose_device(name: str) -> str:
    """The device for `name`, one of DEVICES; `auto` is CUDA, else Apple's MPS, else the CPU.

    A launcher that asks for the CPU (`accelerate launch --cpu`) gets it from `auto`. Raises
    UsageError for another name, and for a device that torch does not find.
    """
    if name not in DEVICES:
        raise unknown("device", name, DEVICES)
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        if not (cuda or mps or asked_cpu()) and (unused := _unused_device()):
            warnings.warn(
                f"Accelerate finds a device of kind {unused}, which stl10bench does not use: "
                "computing on the CPU; --device cpu says so without this warning",
                stacklevel=1,
            )
        return "cpu" if asked_cpu() else "cuda" if cuda else "mps" if mps else "cpu"
    if not {"cuda": cuda, "mps": mps, "cpu": True}[name]:
        raise UsageError(
            f"--device {name}: torch {torch.__version__} finds no such device; use --device cpu"
        )
    return name


def _unused_device() -> str | None:
    """A device that Accelerate would take and we do not, or None."""
    for name in UNUSED_DEVICES:
        # No version of Accelerate has them all.
        if getattr(accelerate.utils, f"is_{name}_available", bool)():
            return name
    return None


def set_threads(threads: int | None) -> int:
    """Set and return torch's CPU threads: by default the free cores per local process."""
    # `accelerate launch` sets one thread, which leaves all cores but one idle, and torch's default
    # lets several processes starve each other: neither is followed.
    threads = threads or max(1, cores.free() // count_of("LOCAL_WORLD_SIZE"))
    torch.set_num_threads(threads)
    return threads


def share_threads(accelerator: Accelerator) -> None:
    """Compute with as many threads in all processes: the fewest that one of them has chosen."""
    own = torch.tensor([torch.get_num_threads()], device=accelerator.device)
    torch.set_num_threads(int(accelerator.gather(own).min()))


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors instead of giving it back to the kernel.

    For the whole process; any other C library is left as it is.
    """
    # Else each training step gets its large activations as new pages, which the kernel zeroes.
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 64 << 20)


def be_deterministic() -> None:
    """Let torch use deterministic kernels only; it fails where it has none.

    For the whole process. No change on a CPU; on a GPU it costs speed (how much is not measured).
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first use of cuBLAS
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def check_compiler(device: str) -> None:
    """Raise UsageError when torch.compile is switched off, or lacks the C++ compiler it needs."""
    for name in ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE"):
        if os.environ.get(name) == "1":
            raise UsageError(f"{name}=1 in the environment: unset it, or leave out --compile")
    compilers = (os.environ.get("CXX"), "g++", "clang++", "cl")
    if device == "cpu" and not any(name and shutil.which(name) for name in compilers):
        raise UsageError(
            "--compile needs a C++ compiler on the CPU: install g++ or clang++, or leave out "
            "--compile"
        )


def memory_format(model: nn.Module) -> torch.memory_format:
    """channels_last for a model with 2-d convolutions, else NCHW."""
    # Measured on two cores: MobileNetV2, 64 px, fp32 trains 374 images/s against 154 with NCHW.
    convolves = any(isinstance(module, nn.Conv2d) for module in model.modules())
    return torch.channels_last if convolves else torch.contiguous_format


def check_torch(device: str) -> None:
    """Raise UsageError for a state of torch, set in this process, that would change the numbers.

    A run's name holds its precision: neither a notebook's autocast nor its default dtype is in it.
    """
    default = torch.get_default_dtype()
    if default != torch.float32:
        raise UsageError(
            f"torch's default dtype is {default}: call torch.set_default_dtype(torch.float32)"
        )
    if torch.get_default_device().type not in ("cpu", device):
        raise UsageError(
            f"torch's default device is {torch.get_default_device()}: call "
            "torch.set_default_device(None), and pass device="
        )
    if torch.is_autocast_enabled(device):
        raise UsageError("torch.autocast is on around this call: leave it; use --precision bf16")


def make_accelerator(device: str, precision: str, *, timeout_minutes: float = 10.0) -> Accelerator:
    """Accelerate's state for one run: device, process group and mixed precision.

    Processes wait `timeout_minutes` for one that hangs, then the run fails. Raises UsageError when
    a launcher started more processes than found each other or than there are GPUs, and for an
    environment that would give the run another device or other numbers.
    """
    check_environment()
    check_torch(device)
    torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")  # TF32
    if device == "cuda" and os.environ.get("NVIDIA_TF32_OVERRIDE", "1") != "1":
        raise UsageError(  # a row's device tells of TF32
            "NVIDIA_TF32_OVERRIDE in the environment: fp32 on a GPU is computed in TF32; unset "
            "it, or use --device cpu"
        )
    for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"):
        if count_of(name) > 1:
            raise UsageError(
                f"{name}={os.environ[name]} in the environment: mpirun does not launch runs; unset "
                "it, or launch with torchrun"
            )
    world, here = count_of("WORLD_SIZE"), count_of("LOCAL_WORLD_SIZE")
    if device == "cuda" and world > 1 and here > (cards := torch.cuda.device_count()):
        raise UsageError(  # NCCL would fail at the first message, and not say why
            f"{here} processes on this machine, but {cards} GPU{'s' if cards != 1 else ''}: start "
            "one for each GPU (--nproc_per_node, --num_processes), or use --device cpu"
        )
    # A singleton: without a reset, a second run in this process could not have another precision.
    AcceleratorState._reset_state(reset_partial_state=world == 1)
    try:
        accelerator = Accelerator(
            cpu=device == "cpu",  # else the ranks of torchrun train alone where there is no GPU
            mixed_precision=precision,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(minutes=timeout_minutes))],
        )
    except ValueError as error:  # half of what a launcher sets, or a word that it does not know
        raise UsageError(
            f"Accelerate cannot start in this environment: {' '.join(str(error).split())}; unset "
            "the variables of launchers (RANK, LOCAL_RANK, ACCELERATE_*), or use torchrun"
        ) from error
    if accelerator.device.type != device:
        raise UsageError(
            f"--device {device}, but the environment makes Accelerate take {accelerator.device}: "
            "unset ACCELERATE_USE_CPU, or use --device auto"
        )
    if accelerator.num_processes != world:
        raise UsageError(
            f"only {accelerator.num_processes} of {world} launched processes found each other: "
            "launch CPU processes with torchrun --nproc_per_node N -m stl10bench ..."
        )
    return accelerator


def leave_process_group() -> None:
    """Leave the process group, if there is one: NCCL complains of processes that end in it."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def describe_machine(accelerator: Accelerator, precision: str) -> str:
    """One line on where and how a run computes, e.g. `cpu, 2 processes, 1 thread each, bf16`."""
    processes, threads = accelerator.num_processes, torch.get_num_threads()
    return (
        f"{accelerator.device.type}, {processes} process{'es' if processes > 1 else ''}, "
        f"{threads} thread{'s' if threads > 1 else ''}{' each' if processes > 1 else ''}, "
        f"{'fp32' if precision == 'no' else precision}"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is how torch says that there is no more memory, of a GPU or the host's."""
    text = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        sign in text for sign in ("can't allocate memory", "not enough memory", "bad_alloc")
    )
