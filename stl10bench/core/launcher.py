"""Environment variables -> who launched this process, and what of them a run obeys or refuses.

Accelerate, oneDNN and timm read variables that change a run's numbers. A run's name holds all that
decides its numbers, so each such variable is either in the name or refused.
"""

import os
import warnings
from collections.abc import Mapping
from itertools import pairwise
from pathlib import PurePath

from stl10bench.core.errors import UsageError

LAUNCHED = "STL10BENCH_LAUNCHED"  # the launcher's process: when it dies, a run saves and ends
_POSIX = os.name == "posix"
_PRECISION = "ACCELERATE_MIXED_PRECISION"
_FALSE = ("0", "false", "no", "off", "n", "f")
_PARALLEL = "every process holds the whole model; launch with torchrun"
# Variable -> the values that change nothing, and what to do instead of another.
_REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (("1",), "use --grad-accum N"),
    "ACCELERATE_DYNAMO_BACKEND": (("no",), "use --compile"),
    "ACCELERATE_DOWNCAST_BF16": (_FALSE, "use --precision bf16"),
    "ACCELERATE_FP8_BACKEND": (("no",), "use --precision bf16"),
    "ACCELERATE_TORCH_DEVICE": ((), "use --device"),
    "ACCELERATE_USE_DEEPSPEED": (_FALSE, _PARALLEL),
    "ACCELERATE_USE_FSDP": (_FALSE, _PARALLEL),
    "ACCELERATE_USE_MEGATRON_LM": (_FALSE, _PARALLEL),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (_FALSE, _PARALLEL),
    "ACCELERATE_USE_SAGEMAKER": (_FALSE, _PARALLEL),
    # fp32 products in bf16, on CPUs that have them
    "ONEDNN_DEFAULT_FPMATH_MODE": (("strict",), "use --precision bf16"),
    "DNNL_DEFAULT_FPMATH_MODE": (("strict",), "use --precision bf16"),
    # other models under the same names
    "TIMM_USE_NAFLEXVIT": (_FALSE, "name a naflexvit model"),
    "TIMM_USE_NAFLEX": (_FALSE, "name a naflexvit model"),
}
# What the launchers set for their processes, and no run of a study may inherit.
_VARIABLES = {
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"),
    *("ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
}
_PREFIXES = ("TORCHELASTIC_", "ACCELERATE_", "OMPI_COMM_WORLD_", "PMI_", "MV2_COMM_WORLD_")


def warn_of_one_process() -> None:
    """Warn where `accelerate launch --num_processes N` started one process: so it does on a CPU.

    That launcher sets MASTER_ADDR for more than one, and WORLD_SIZE when it starts them.
    """
    if "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ and launcher_pid():
        warnings.warn(
            "accelerate launch was asked for several processes and started one, as it does on a "
            "CPU; one uses all cores. For N launch the same command by torchrun --nproc_per_node N",
            stacklevel=1,
        )


def check_environment() -> None:
    """Raise UsageError for a variable that would change a run's numbers but not its name."""
    for name, (harmless, remedy) in _REFUSED.items():
        value = os.environ.get(name)
        if value is not None and value.lower() not in harmless:
            raise UsageError(
                f"{name}={value} in the environment changes a run's numbers but not its name: "
                f"unset it; {remedy}"
            )
    if (value := os.environ.get(_PRECISION, "no").lower()) not in ("no", "bf16", "fp16"):
        raise UsageError(f"{_PRECISION}={value} in the environment: use --precision bf16")


def asked_precision() -> str | None:
    """bf16 or fp16, where a launcher asks for it: what `--precision auto` then is.

    `no` is what `accelerate launch` sets when nobody asked for anything.
    """
    value = os.environ.get(_PRECISION, "no").lower()
    return None if value == "no" else value


def asked_cpu() -> bool:
    """Whether a launcher asks for the CPU: what `--device auto` then is."""
    return os.environ.get("ACCELERATE_USE_CPU", "no").lower() not in ("", *_FALSE)


def count_of(name: str) -> int:
    """How many processes a launcher's variable counts, 1 without it; raises UsageError."""
    value = os.environ.get(name, "1")
    if not value.isdecimal() or int(value) == 0:
        raise UsageError(f"{name}={value} in the environment: must count processes; unset it")
    return int(value)


def without_launcher(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables without any trace of a launcher: for a process that computes alone."""
    return {
        name: value
        for name, value in variables.items()
        if name not in _VARIABLES and not name.startswith(_PREFIXES)
    }


def launcher_pid() -> int | None:
    """The process that launched this one, or None: then no launcher did.

    Only what nobody but a launcher leaves counts. ACCELERATE_* may stand in anybody's shell, so
    Accelerate's one-process launcher is known by the command line of our parent.
    """
    if (pid := os.environ.get(LAUNCHED, "")).isdecimal():
        return int(pid)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return os.getppid()
    return os.getppid() if _PRECISION in os.environ and _is_accelerate(os.getppid()) else None


def has_died(pid: int) -> bool:
    """Whether the process that launched this one has ended.

    Windows tells no process that its parent has ended, and the Python of a virtual environment is
    there a child of the one that was called: the launcher is not our parent.
    """
    if _POSIX:
        return os.getppid() != pid
    import psutil  # not for `--help`

    return not psutil.pid_exists(pid)


def _is_accelerate(pid: int) -> bool:
    """Whether a process is `accelerate launch`, by its command line."""
    import psutil  # not for `--help`

    try:
        words = [PurePath(word).name.removesuffix(".exe") for word in psutil.Process(pid).cmdline()]
    except psutil.Error:  # gone, or another user's: then it is none that we can watch
        return False
    called = any(
        command in ("accelerate", "accelerate.commands.accelerate_cli") and task == "launch"
        for command, task in pairwise(words)
    )
    return called or not {"accelerate-launch", "accelerate.commands.launch"}.isdisjoint(words)


def note_launcher() -> None:
    """Store the launcher's process while it lives: later it may be dead, its number another's."""
    if (pid := launcher_pid()) is not None:
        os.environ[LAUNCHED] = str(pid)
