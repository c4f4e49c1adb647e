"""What a run would find on this machine -> findings, each with its remedy."""

import json
import os
import platform
import shutil
import tempfile
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import psutil
import typer
from huggingface_hub import constants, try_to_load_from_cache
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape

from stl10bench.cli.options import JSON, TRAINING, with_options
from stl10bench.core import __version__, files
from stl10bench.core.console import clean, stderr, stdout
from stl10bench.core.errors import BenchError
from stl10bench.core.safetensors import read_safetensors
from stl10bench.data.load import data_folder, open_data
from stl10bench.data.stl10 import FOLDER

HUB = "timm/mobilenetv2_100.ra_in1k"  # mobilenetv2's weights; timm knows, but imports slowly
_PACKAGES = ("torch", "torchvision", "timm", "accelerate", "safetensors", "numpy", "wandb")
# Of the largest of the report's models, in bytes: measured at 64 px and batch 128 in fp32 (4.7 GB;
# 3.6 in bf16), and `room_needed` for its checkpoints.
_CNN_MEMORY, _CNN_DISK = 5_000_000_000, 500_000_000
_COLOURS = {"ok": "green", "warning": "yellow", "problem": "bold red"}

app = typer.Typer()


class Finding(NamedTuple):
    """What was checked, and what to do about it, if anything."""

    subject: str
    text: str
    remedy: str = ""
    exit_code: int = 0  # of the error that a run would end with

    @property
    def state(self) -> str:
        """Whether a run can live with it: ok, warning or problem."""
        return "problem" if self.exit_code else "warning" if self.remedy else "ok"


@app.command()
@with_options({name: TRAINING[name] for name in ("dataset", "data_dir", "runs_dir")}, JSON)
def doctor(*, dataset: str, data_dir: Path, runs_dir: Path, as_json: bool) -> None:
    """Says what to do about each problem. The exit code is that of
    the first one: 3 for data, 7 for the disk. Writes nothing and
    uses no network.

    Examples:
    stl10bench doctor
    stl10bench doctor --dataset demo --json
    """
    findings = [_packages()]
    if findings[0].state == "ok":  # the other checks need torch
        findings += [_data(dataset, data_dir), _weights(), _runs(runs_dir)]
        findings += [_memory(), _tracker(), _gpu()]
    code = next((finding.exit_code for finding in findings if finding.exit_code), 0)
    if as_json:
        shown = [{**finding._asdict(), "state": finding.state} for finding in findings]
        typer.echo(json.dumps({"works": code == 0, "exit_code": code, "findings": shown}))
    else:
        show_findings(findings, stdout())
    raise typer.Exit(code)


def show_findings(findings: list[Finding], console: Console) -> None:
    """Print a line for each finding, and what they mean."""
    for finding in findings:
        text = escape(clean(f"{finding.text}; {finding.remedy}".rstrip("; ")))
        line = f"[{_COLOURS[finding.state]}]{finding.state:7}[/]  {finding.subject:8}  {text}"
        console.print(line, highlight=False, emoji=False, soft_wrap=True)
    count = sum(finding.state == "problem" for finding in findings)
    verdicts = {0: "training will work", 1: "1 problem: training will fail until it is fixed"}
    typer.echo(verdicts.get(count, f"{count} problems: training will fail until they are fixed"))


def _packages() -> Finding:
    try:
        versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
        import torch  # noqa: F401  what is installed may still fail to load
    except (ImportError, OSError) as error:
        code = 2 if isinstance(error, PackageNotFoundError) else 7
        remedy = "install it again, or raise the memory limit (ulimit -v)"
        return Finding("packages", f"a package cannot be loaded: {error}", remedy, code)
    system = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding("packages", f"{system}, stl10bench {__version__}, {versions}")


def _data(dataset: str, data_dir: Path) -> Finding:
    """Where the data are, what they are, and whether they are whole."""
    demo = data_folder(data_dir) / "demo"
    if dataset == "demo" and not (demo / FOLDER).exists():
        text = f"not in {demo} yet: the first run draws the demo images (20 s)"
        return _unwritable("data", demo) or Finding("data", text)
    try:
        data = open_data(dataset, data_dir, download=False, verify=True, console=stderr(), dry=True)
    except BenchError as error:
        remedy = "" if "stl10bench " in str(error) else "move it away, or pass another --data-dir"
        return Finding("data", str(error), remedy, error.exit_code)
    return Finding("data", f"{data.folder}: {data.summary()}")


def _weights() -> Finding:
    """Whether MobileNetV2's weights are in the hub's cache, and whole."""
    try:
        if isinstance(cached := try_to_load_from_cache(HUB, "model.safetensors"), str):
            read_safetensors(Path(cached))
            return Finding("weights", "those of mobilenetv2 are in the Hugging Face cache")
    except BenchError as error:
        return Finding("weights", str(error), "delete it and download it again")
    offline = ", and HF_HUB_OFFLINE forbids a download" if constants.HF_HUB_OFFLINE else ""
    text = f"those of mobilenetv2 (14 MB) are not in the Hugging Face cache{offline}"
    return Finding("weights", text, "offline, pass --weights FILE or --no-pretrained --no-freeze")


def _runs(runs_dir: Path) -> Finding:
    """Write access and free space, against what the largest of the report's models writes."""
    free = files.free_space(runs_dir.absolute())
    text = f"{decimal(free)} free for {runs_dir}; the cnn writes up to {decimal(_CNN_DISK)}"
    full = Finding("runs", text, "make room, or pass a --runs-dir on another disk", 7)
    return _unwritable("runs", runs_dir) or (full if free < _CNN_DISK else Finding("runs", text))


def _unwritable(subject: str, folder: Path) -> Finding | None:
    """The problem if no file can be made in `folder`, or where it would be made; leaves none."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place, buffering=0) as file:
            file.write(b"\0")
    except OSError as error:
        text = f"{folder} cannot be written: {error.strerror} ({place})"
        return Finding(subject, text, f"pass a --{subject}-dir that you can write to", 7)
    return None


def _memory() -> Finding:
    """Free memory, against what the hungriest of the report's models takes."""
    free = psutil.virtual_memory().available
    text = f"{decimal(free)} free; the cnn takes about {decimal(_CNN_MEMORY)} at batch 128"
    return Finding(
        "memory", text, "train it with a smaller --batch-size" if free < _CNN_MEMORY else ""
    )


def _tracker() -> Finding:
    """How a run would log to W&B, and why; asks neither the network nor for a key."""
    from stl10bench.training.wandb_run import has_key

    if mode := os.environ.get("WANDB_MODE"):
        valid = mode in ("online", "offline", "disabled", "shared")
        return Finding("wandb", f"{mode} (WANDB_MODE)", "" if valid else "use online or offline")
    with warnings.catch_warnings(record=True, action="always") as unreadable:
        key = has_key(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    if unreadable:
        return Finding("wandb", "offline: .netrc cannot be read", "run 'wandb login'")
    return Finding("wandb", "online if the server answers within 2 s" if key else "offline: no key")


def _gpu() -> Finding:
    """The device of `--device auto`."""
    import torch

    from stl10bench.core.device import choose_device

    kind = choose_device("auto")
    text, remedy = f"no CUDA device: runs use {kind} ({os.cpu_count()} cores)", ""
    if kind == "cuda":
        name, free = torch.cuda.get_device_name(), torch.cuda.mem_get_info()[0]
        text = f"{torch.cuda.device_count()} x {name}; {decimal(free)} free"
    elif kind == "cpu" and shutil.which("nvidia-smi"):
        remedy = "to use yours, install torch as https://pytorch.org/get-started/locally/ says"
    return Finding("gpu", text, remedy)
