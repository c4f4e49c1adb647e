"""What stands in the environment never changes a run's numbers without changing its name."""

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState

import stl10bench
from stl10bench.core import launcher
from stl10bench.core.device import (
    DEVICES,
    UNUSED_DEVICES,
    check_compiler,
    choose_device,
    make_accelerator,
)
from stl10bench.core.errors import UsageError

TINY: dict[str, Any] = {
    **{"image_size": 8, "epochs": 1, "batch_size": 8, "threads": 1, "tracker": "none"},
    **{"optimizer": "sgd", "lr": 0.01},
}
REFUSED = {  # -> what to use instead
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4": "use --grad-accum N",
    "ACCELERATE_DYNAMO_BACKEND=INDUCTOR": "use --compile",
    "ACCELERATE_MIXED_PRECISION=fp8": "use --precision bf16",
    "ACCELERATE_DOWNCAST_BF16=true": "use --precision bf16",
    "ACCELERATE_FP8_BACKEND=MSAMP": "use --precision bf16",
    "ACCELERATE_TORCH_DEVICE=meta": "use --device",
    "ACCELERATE_USE_FSDP=true": "launch with torchrun",
    "ACCELERATE_USE_DEEPSPEED=true": "launch with torchrun",
    "ACCELERATE_USE_MEGATRON_LM=true": "launch with torchrun",
    "ACCELERATE_USE_PARALLELISM_CONFIG=true": "launch with torchrun",
    "ONEDNN_DEFAULT_FPMATH_MODE=BF16": "use --precision bf16",
    "TIMM_USE_NAFLEXVIT=true": "name a naflexvit model",
}
# What `accelerate launch` sets for its child where nobody asked for anything.
DEFAULTS = {
    **{"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "False"},
    **{"ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_DYNAMO_MODE": "default"},
    **{"ACCELERATE_DYNAMO_USE_FULLGRAPH": "False", "ACCELERATE_DYNAMO_USE_DYNAMIC": "False"},
}


def train(data_dir: Path, runs_dir: Path, **options: Any) -> Any:
    settings = {**TINY, "data_dir": data_dir, "runs_dir": runs_dir, **options}
    return stl10bench.train("logistic", **settings)


def set_variable(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    name, _, value = variable.partition("=")
    monkeypatch.setenv(name, value)


@pytest.mark.parametrize("variable", REFUSED)
def test_a_variable_that_would_change_the_numbers_is_refused_with_what_to_use_instead(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    set_variable(monkeypatch, variable)
    name = variable.partition("=")[0]
    with pytest.raises(UsageError, match=f"^{name}=.*{re.escape(REFUSED[variable])}"):
        train(data_dir, tmp_path / "runs")
    with pytest.raises(UsageError, match=name):
        make_accelerator("cpu", "no")  # the door of all that computes
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "command", [("benchmark", "logistic"), ("study", "run", "logistic-lr"), ("train", "logistic")]
)
def test_what_a_run_refuses_its_study_and_its_benchmark_refuse(
    cli: Any, data_dir: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    """Their runs' own environment has no such variable: without the rule it would be ignored."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    code, _, err = cli(*command, "--data-dir", str(data_dir))
    assert (code, err.count("\n")) == (2, 1)
    assert "use --grad-accum N" in err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "variable",
    [
        *("WORLD_SIZE=abc", "LOCAL_WORLD_SIZE=0", "LOCAL_RANK=0", "PMI_SIZE=2"),
        *("ACCELERATE_DEBUG_MODE=maybe", "ACCELERATE_USE_CPU=maybe"),
    ],
)
def test_what_no_launcher_sets_is_refused_in_one_line(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    set_variable(monkeypatch, variable)
    with pytest.raises(UsageError, match=r"in th(e|is) environment: .* unset ") as error:
        train(data_dir, tmp_path / "runs", threads=None)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def _torch_as_it_was() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("_torch_as_it_was")
def test_no_state_of_torch_changes_a_runs_numbers(data_dir: Path, tmp_path: Path) -> None:
    """A notebook's autocast, default dtype and device, no_grad: each is in no run's name."""
    plain = train(data_dir, tmp_path / "plain", precision="no")
    torch.set_float32_matmul_precision("medium")  # bf16 products, on CPUs that have them
    assert train(data_dir, tmp_path / "again", precision="no").test_loss == plain.test_loss
    assert torch.get_float32_matmul_precision() == "highest"
    with pytest.raises(UsageError, match=r"torch.autocast is on"), torch.autocast("cpu"):
        train(data_dir, tmp_path / "runs", precision="no")
    with pytest.raises(UsageError, match=r"torch.no_grad or inference_mode is on"), torch.no_grad():
        train(data_dir, tmp_path / "runs")
    torch.set_default_dtype(torch.float64)
    with pytest.raises(UsageError, match=r"default dtype is torch.float64: call torch.set_default"):
        train(data_dir, tmp_path / "runs")
    torch.set_default_dtype(torch.float32)
    torch.set_default_device("meta")
    with pytest.raises(UsageError, match=r"default device is meta: call torch.set_default_device"):
        train(data_dir, tmp_path / "runs")


def test_what_accelerate_launch_always_sets_changes_nothing(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(data_dir, tmp_path / "plain")
    for name, value in DEFAULTS.items():
        monkeypatch.setenv(name, value)
    launched = train(data_dir, tmp_path / "launched")
    assert (launched.run, launched.test_loss) == (plain.run, plain.test_loss)


def test_a_launchers_precision_is_that_of_auto_and_so_in_the_name(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    obeyed = train(data_dir, tmp_path)
    chosen = train(data_dir, tmp_path, precision="no")  # what is typed wins
    assert (obeyed.precision, chosen.precision) == ("bf16", "no")
    assert obeyed.run != chosen.run
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(UsageError, match="fp16 does not work on a CPU: use --precision bf16 or no"):
        train(data_dir, tmp_path, device="cpu")


def test_a_launcher_that_asks_for_the_cpu_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert choose_device("auto") == "cuda"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert choose_device("auto") == "cpu"
    with pytest.raises(UsageError, match=r"--device mps, but .* cpu"):
        make_accelerator("mps", "no")


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = torch.cuda.device_count()
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, str(cards + 2))
    with pytest.raises(UsageError, match=f"{cards + 2} processes on this machine, but {cards} GPU"):
        make_accelerator("cuda", "no")


def test_fewer_processes_than_asked_of_accelerate_are_told_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(launcher.LAUNCHED, str(os.getpid()))
    launcher.warn_of_one_process()  # one was asked for
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.warns(UserWarning, match="started one.*torchrun --nproc_per_node N"):
        launcher.warn_of_one_process()
    monkeypatch.setenv("WORLD_SIZE", "2")
    launcher.warn_of_one_process()


@pytest.mark.faults
def test_accelerates_own_launcher_is_told_of_its_one_process(tmp_path: Path) -> None:
    for processes, warnings in (("1", 0), ("2", 1)):
        command = ["accelerate.commands.launch", "--cpu", "--num_processes", processes]
        ended = subprocess.run(
            [sys.executable, "-m", *command, "-m", "stl10bench", "--version"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert ended.stderr.count("warning: accelerate launch was asked") == warnings


def test_a_device_that_only_accelerate_would_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch.cuda.is_available", "torch.backends.mps.is_available"):
        monkeypatch.setattr(name, lambda: False)
    monkeypatch.setattr("accelerate.utils.is_npu_available", lambda: True)
    with pytest.warns(UserWarning, match="device of kind npu, which stl10bench does not use"):
        assert choose_device("auto") == "cpu"
    assert choose_device("cpu") == "cpu"  # as asked
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert choose_device("auto") == "cpu"


def test_each_kind_of_device_that_accelerate_takes_is_used_or_told() -> None:
    source = inspect.getsource(PartialState.default_device.fget)
    kinds = set(re.findall(r'torch\.device\("(\w+)"\)', source))
    assert len(kinds) > 5
    assert kinds <= {*DEVICES, *UNUSED_DEVICES}


def test_neither_tf32_nor_the_compiler_is_switched_off_behind_a_rows_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    with pytest.raises(UsageError, match="computed in TF32"):
        make_accelerator("cuda", "no")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    with pytest.raises(UsageError, match=r"TORCHDYNAMO_DISABLE.*leave out --compile"):
        check_compiler("cuda")


HARMLESS = {  # variables that Accelerate reads -> why they change no number
    **dict.fromkeys(("MIXED_PRECISION", "USE_CPU"), "obeyed, and in the name or the row"),
    **dict.fromkeys(("DYNAMO_MODE", "DYNAMO_USE_"), "only with a DYNAMO_BACKEND"),
    **dict.fromkeys(("DEEPSPEED_", "CONFIG_DS_FIELDS", "GRADIENT_CLIPPING"), "of DeepSpeed"),
    **dict.fromkeys(("FP8_OPT_LEVEL", "ALLOW_CP_STANDALONE"), "of FP8, of context parallelism"),
    **dict.fromkeys(("SAGEMAKER_DISTRIBUTED_TYPE", "IN_TPU_POD"), "of SageMaker, of TPUs"),
    **dict.fromkeys(("DEBUG_MODE", "DEBUG_RDV_FILE", "ENABLE_RICH", "LOG_LEVEL"), "words"),
    **dict.fromkeys(("CPU_AFFINITY", "NUM_PROCESSES"), "where and how many"),
    **dict.fromkeys(("BYPASS_DEVICE_MAP", "INIT_INCLUDE_BUFFERS"), "of models too large to load"),
}


def test_each_variable_that_accelerate_reads_is_refused_or_known_to_change_nothing() -> None:
    """When this fails, a new version reads one more: decide, and put it here or there."""
    spec = find_spec("accelerate")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (folder,) = map(Path, spec.submodule_search_locations)
    text = "\n".join(path.read_text(encoding="utf-8") for path in folder.rglob("*.py"))
    names = set(re.findall(r"\bACCELERATE_[A-Z0-9_]+[A-Z0-9]\b", text))
    assert len(names) > 30
    known = tuple(f"ACCELERATE_{name}" for name in HARMLESS)
    assert {
        name for name in names - launcher._REFUSED.keys() if not name.startswith(known)
    } == set()


LAUNCHERS = [
    ("/venv/bin/accelerate", "launch", "sweep.py"),
    ("/venv/bin/accelerate-launch", "sweep.py"),
    ("-m", "accelerate.commands.launch", "sweep.py"),
]
OTHERS = [("sweep.py", "launch"), ("-lc", "accelerate launch sweep.py; stl10bench train cnn")]


@pytest.mark.skipif(sys.platform == "win32", reason="ends processes as POSIX does")
@pytest.mark.parametrize("words", LAUNCHERS + OTHERS)
def test_accelerates_one_process_launcher_is_known_by_its_command_line(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """Its variables may stand in anybody's shell: a run under nohup outlives that."""
    for name in ("TORCHELASTIC_RUN_ID", launcher.LAUNCHED):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    code = "import sys; print(flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-S", "-c", code, *words], stdin=pipe, stdout=pipe
    ) as parent:
        assert parent.stdout
        parent.stdout.readline()
        monkeypatch.setattr(os, "getppid", lambda: parent.pid)
        assert launcher.launcher_pid() == (parent.pid if words in LAUNCHERS else None)
        parent.communicate()
    assert launcher.launcher_pid() is None  # it is gone


@pytest.mark.parametrize("posix", [True, False], ids=["posix", "windows"])
def test_a_launcher_is_alive_until_it_has_died(
    monkeypatch: pytest.MonkeyPatch, posix: bool
) -> None:
    monkeypatch.setattr(launcher, "_POSIX", posix)
    assert not launcher.has_died(os.getppid())
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    assert launcher.has_died(ended.pid)


def test_on_windows_a_launcher_need_not_be_the_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        launcher, "_POSIX", False
    )  # a virtual environment's python.exe lies between
    assert not launcher.has_died(os.getpid())
