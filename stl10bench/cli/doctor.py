"""What a run would find on this machine -> findings, each with its remedy."""

import json
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.markup import escape

from stl10bench.cli.options import DATA, JSON, TRAINING, with_options
from stl10bench.core import __version__, files
from stl10bench.core.console import stdout
from stl10bench.core.errors import CheckpointError, DataError, StorageError, unknown
from stl10bench.data.load import DATASETS, data_folder
from stl10bench.data.stl10 import FOLDER, open_dataset

HUB = "timm/mobilenetv2_100.ra_in1k"  # mobilenetv2's weights; timm knows, but imports slowly
_PACKAGES = (
    *("torch", "torchvision", "timm", "accelerate", "safetensors", "numpy"),
    *("pillow", "pydantic", "wandb", "huggingface_hub"),
)
_LARGEST = "cnn"  # of the report's models, in weights and in memory
_CNN_MEMORY = 5.0  # GB; `train cnn` at 64 px and batch 128 took 4.7 in fp32, 3.6 in bf16
_COLOURS = {"ok": "green", "warning": "yellow", "problem": "bold red"}

app = typer.Typer()


class Finding(NamedTuple):
    """What was checked, whether a run can live with it, and what to do if not."""

    subject: str
    state: Literal["ok", "warning", "problem"]
    text: str
    remedy: str = ""
    exit_code: int = 0  # of the error that a run would end with, for a problem


@app.command()
@with_options(
    {"dataset": DATA["dataset"], "data_dir": DATA["data_dir"], "runs_dir": TRAINING["runs_dir"]},
    JSON,
)
def doctor(*, dataset: str, data_dir: Path, runs_dir: Path, as_json: bool) -> None:
    """It prints what to do about each problem. The exit code is
    that of the first one: 3 for data, 7 for the disk.

    Examples:
    stl10bench doctor
    stl10bench doctor --dataset demo --json
    """
    findings = list(examine(dataset, data_dir, runs_dir))
    code = next((finding.exit_code for finding in findings if finding.state == "problem"), 0)
    if as_json:
        shown = [finding._asdict() for finding in findings]
        typer.echo(json.dumps({"works": code == 0, "exit_code": code, "findings": shown}))
    else:
        show_findings(findings, stdout())
    raise typer.Exit(code)


def show_findings(findings: list[Finding], console: Console) -> None:
    """Print a line for each finding, and what they mean."""
    for subject, state, text, remedy, _ in findings:
        text = "".join(c if c.isprintable() else "?" for c in f"{text}; {remedy}".rstrip("; "))
        line = f"[{_COLOURS[state]}]{state:7}[/]  {subject:8}  {escape(text)}"
        console.print(line, highlight=False, emoji=False, soft_wrap=True)
    states = [finding.state for finding in findings]
    if count := states.count("problem"):
        noun, verb = ("problem", "it is") if count == 1 else ("problems", "they are")
        typer.echo(f"{count} {noun}: training will fail until {verb} fixed")
    elif count := states.count("warning"):
        typer.echo(f"training will work, with {count} warning{'s' * (count > 1)}")
    else:
        typer.echo("training will work")


def examine(dataset: str, data_dir: Path | None, runs_dir: Path) -> Iterator[Finding]:
    """The findings, in the order in which a run would meet them.

    Reads the data as a run does, writes nothing but the data's stamp of checksums, and uses no
    network. Raises UsageError for an unknown dataset.
    """
    if dataset not in DATASETS:
        raise unknown("dataset", dataset, DATASETS)
    system = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding("python", "ok", f"{system}, stl10bench {__version__}")
    try:
        versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
        import torch  # noqa: F401  what the checks below need
    except PackageNotFoundError as error:
        remedy = "install the package again: pip install -e ."
        yield Finding("packages", "problem", f"missing: {error.name}", remedy, 2)
        return
    except (ImportError, OSError) as error:
        remedy = "give it memory (ulimit -v), or install it again"
        yield Finding("packages", "problem", f"torch cannot be loaded: {error}", remedy, 7)
        return
    yield Finding("packages", "ok", versions)
    yield data(dataset, data_dir)
    yield weights()
    yield disk(runs_dir)
    yield write_access("runs", runs_dir)
    yield tracker()
    yield gpu()
    yield memory()


def data(dataset: str, data_dir: Path | None) -> Finding:
    """Where the data are, what they are, and whether they are whole."""
    home = data_folder(data_dir)
    if dataset == "demo":
        home /= "demo"
        if not (home / FOLDER).exists():
            access = write_access("data", home)
            text = f"not in {home} yet: the first run draws the demo images (20 s)"
            return access._replace(text=text) if access.state == "ok" else access
    try:
        with warnings.catch_warnings(action="ignore"):  # of a stamp that cannot be written
            stored = open_dataset(home)
    except (DataError, StorageError) as error:
        remedy = "" if "stl10bench " in str(error) else "move it away, or give another --data-dir"
        return Finding("data", "problem", str(error), remedy, error.exit_code)
    if dataset == "demo" and stored.name != "demo":
        text = f"{home} does not hold the demo data"
        return Finding("data", "problem", text, "move it away, or use --data-dir", 3)
    checks = {"STL-10": "MD5 checksums verified", "demo": "as drawn"}
    check = checks.get(stored.name, "sizes and labels fit, but the images are not STL-10's")
    counts = f"{len(stored.train.labels):,} train, {len(stored.test.labels):,} test"
    text = f"{stored.name} in {stored.folder}: {counts}, {len(stored.class_names)} classes; {check}"
    return Finding("data", "ok", text)


def weights() -> Finding:
    """Whether MobileNetV2's weights are in the hub's cache, and whole."""
    from huggingface_hub import constants, try_to_load_from_cache

    from stl10bench.models.checkpoint import read_tensors

    cached = try_to_load_from_cache(HUB, "model.safetensors")
    if isinstance(cached, str):
        try:
            tensors, _ = read_tensors(Path(cached))
        except CheckpointError as error:
            return Finding("weights", "warning", str(error), "delete it and download it again")
        return Finding("weights", "ok", f"mobilenetv2's are in the cache: {len(tensors)} tensors")
    text = "mobilenetv2's are not in the Hugging Face cache"
    offline = constants.HF_HUB_OFFLINE
    text += ", and HF_HUB_OFFLINE forbids a download" if offline else ": a run downloads 14 MB"
    remedy = "without network pass --weights FILE, or --no-pretrained --no-freeze"
    return Finding("weights", "warning", text, remedy)


def disk(runs_dir: Path) -> Finding:
    """Free space where the runs lie, against what the largest of the report's models writes."""
    import torch

    from stl10bench.models.factory import build_model
    from stl10bench.training.resume import room_needed

    with torch.device("meta"):
        needed = room_needed(build_model(_LARGEST, 10, 64, {}))
    free = files.free_space(runs_dir.absolute())
    text = f"{_gb(free)} free for {runs_dir}; a run of the {_LARGEST} writes up to {_gb(needed)}"
    if free < needed:
        return Finding("disk", "problem", text, "make room, or give --runs-dir on another disk", 7)
    return Finding("disk", "ok", text)


def write_access(subject: str, folder: Path) -> Finding:
    """Whether files can be made in `folder`, or where it would be made; none is left there."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place, buffering=0) as file:
            file.write(b"\0")
    except OSError as error:
        text = f"{folder} cannot be written: {error.strerror} ({place})"
        return Finding(subject, "problem", text, f"give a --{subject}-dir that you can write to", 7)
    return Finding(subject, "ok", f"{folder} can be written")


def tracker() -> Finding:
    """How a run would log to W&B, and why; asks neither the network nor for a key."""
    from stl10bench.training.tracking import has_key

    mode = os.environ.get("WANDB_MODE")
    if mode in ("online", "offline", "disabled", "shared"):
        return Finding("wandb", "ok", f"{mode} (WANDB_MODE)")
    if mode is not None:
        text = f"WANDB_MODE = {mode!r}: wandb refuses it, runs will not be logged there"
        return Finding("wandb", "warning", text, "use online, offline or disabled")
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    with warnings.catch_warnings(record=True) as unreadable:
        warnings.simplefilter("always")
        key = has_key(server)
    if unreadable:
        return Finding("wandb", "warning", "offline: .netrc cannot be read", "wandb login")
    if key:
        host = urlsplit(server).hostname
        return Finding("wandb", "ok", f"online if {host} answers within 2 s, else offline")
    return Finding("wandb", "ok", "offline, in the run folder: no key ('wandb login' stores one)")


def gpu() -> Finding:
    """The device of `--device auto`."""
    import torch

    from stl10bench.core.device import choose_device

    kind = choose_device("auto")
    if kind == "cuda":
        free, total = torch.cuda.mem_get_info()
        name = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
        return Finding("gpu", "ok", f"{name}; {_gb(free)} of {_gb(total)} free")
    if kind == "mps":
        return Finding("gpu", "ok", "Apple's MPS; not tested by us")
    if shutil.which("nvidia-smi"):
        text = f"there is nvidia-smi, but torch {torch.__version__} finds no GPU: runs on the CPU"
        remedy = "install torch for your CUDA: https://pytorch.org/get-started/locally/"
        return Finding("gpu", "warning", text, remedy)
    return Finding("gpu", "ok", f"none: runs on the CPU ({os.cpu_count()} cores)")


def memory() -> Finding:
    """Free memory, against what the hungriest of the report's models takes."""
    import psutil

    ram = psutil.virtual_memory()
    text = f"{_gb(ram.available)} of {_gb(ram.total)} free"
    if ram.available < _CNN_MEMORY * 1e9:
        text += f"; the {_LARGEST} takes about {_CNN_MEMORY:g} GB at batch 128"
        return Finding("memory", "warning", text, "lower its --batch-size (another experiment)")
    return Finding("memory", "ok", text)


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
