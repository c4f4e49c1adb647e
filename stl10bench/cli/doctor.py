"""What a run would find on this machine -> findings, each with its remedy."""

import json
import os
import platform
import shutil
import socket
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
from rich.table import Table

from stl10bench.cli.options import DATA, JSON, TRAINING, with_options
from stl10bench.core import __version__, files
from stl10bench.core.console import stdout
from stl10bench.core.errors import CheckpointError, DataError, StorageError, unknown
from stl10bench.data.load import DATASETS, data_folder

HUB = "timm/mobilenetv2_100.ra_in1k"  # whence mobilenetv2 starts; timm, which knows, imports slowly
_PACKAGES = (
    *("torch", "torchvision", "timm", "accelerate", "safetensors", "numpy"),
    *("pillow", "pydantic", "wandb", "huggingface_hub"),
)
_LARGEST = "cnn"  # of the report's models, in weights and in memory
_CNN_MEMORY = 5.0  # GB; `train cnn` at 64 px and batch 128 took 4.7 in fp32, 3.6 in bf16
_PORT = 29500  # of torchrun and accelerate launch, unless they are told another


class Finding(NamedTuple):
    """One line: what was looked at, whether a run can live with it, and what to do if not."""

    subject: str
    state: Literal["ok", "warning", "problem"]
    text: str
    remedy: str = ""
    exit_code: int = 0  # of the error that a run would end with, for a problem


def examine(dataset: str, data_dir: Path | None, runs_dir: Path) -> Iterator[Finding]:
    """The findings, in the order in which a run would meet them.

    Reads the data as a run does, writes nothing but the data's stamp of sums, asks no network and
    nobody. Raises UsageError for an unknown dataset.
    """
    if dataset not in DATASETS:
        raise unknown("dataset", dataset, DATASETS)
    yield Finding(
        "python",
        "ok",
        f"{platform.python_version()} on {platform.system()} {platform.machine()}, "
        f"stl10bench {__version__}",
    )
    missing = [name for name in _PACKAGES if not _version(name)]
    if missing:
        remedy = "install the package again: pip install -e ."
        yield Finding("packages", "problem", f"missing: {', '.join(missing)}", remedy, 2)
        return
    try:
        import torch  # noqa: F401  what the checks below need
    except (ImportError, OSError) as error:
        remedy = "give it memory (ulimit -v), or install it again"
        yield Finding("packages", "problem", f"torch cannot be loaded: {error}", remedy, 7)
        return
    yield Finding("packages", "ok", ", ".join(f"{name} {_version(name)}" for name in _PACKAGES))
    yield data(dataset, data_dir)
    yield weights()
    yield disk(runs_dir)
    yield write_access("runs", runs_dir)
    yield tracker()
    yield from machine()
    yield memory()
    yield ports()


def data(dataset: str, data_dir: Path | None) -> Finding:
    """Where the data are, whose they are, and whether they are whole."""
    from stl10bench.data.stl10 import FOLDER, open_dataset

    home = data_folder(data_dir)
    if dataset == "demo":
        home /= "demo"
        if not (home / FOLDER).exists():
            access = write_access("data", home)
            text = f"not in {home} yet: the first run draws the demo images (20 s)"
            return access._replace(text=text) if access.state == "ok" else access
    try:
        with warnings.catch_warnings(action="ignore"):  # on a stamp that cannot be written
            found = open_dataset(home)
    except (DataError, StorageError) as error:
        remedy = "" if "stl10bench " in str(error) else "move it away, or give another --data-dir"
        return Finding("data", "problem", str(error), remedy, error.exit_code)
    if dataset == "demo" and found.name != "demo":
        text = f"{home} does not hold the demo data"
        return Finding("data", "problem", text, "move it away, or use --data-dir", 3)
    whole = {"STL-10": "official sums", "demo": "as drawn"}.get(found.name, "sizes and labels fit")
    text = (
        f"{found.name} in {found.folder}: {len(found.train.labels):,} train, "
        f"{len(found.test.labels):,} test, {len(found.class_names)} classes; {whole}"
    )
    if found.name == "STL-10 layout":
        return Finding("data", "ok", f"{text}; not called STL-10, for it has other images")
    return Finding("data", "ok", text)


def weights() -> Finding:
    """Whether MobileNetV2's weights are in the hub's cache, and whole."""
    from huggingface_hub import constants, try_to_load_from_cache

    from stl10bench.models.checkpoint import read_tensors

    ways = "--weights FILE, or --no-pretrained --no-freeze"
    cached = try_to_load_from_cache(HUB, "model.safetensors")
    if isinstance(cached, str):
        try:
            tensors, _ = read_tensors(Path(cached))
        except CheckpointError as error:
            return Finding("weights", "warning", str(error), "delete it and fetch it again")
        return Finding("weights", "ok", f"mobilenetv2's are in the cache: {len(tensors)} tensors")
    text = "mobilenetv2's are not in the Hugging Face cache"
    if constants.HF_HUB_OFFLINE:
        return Finding("weights", "warning", f"{text}, and HF_HUB_OFFLINE forbids fetching", ways)
    return Finding(
        *("weights", "warning", f"{text}: the first run fetches them (14 MB)"),
        f"without network {ways}",
    )


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
    place = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"\0")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        remedy = f"give --{subject}-dir in a folder of yours"
        text = f"{folder} cannot be written: {error.strerror} ({place})"
        return Finding(subject, "problem", text, remedy, 7)
    verb = "written" if folder.absolute() == place else "made"
    return Finding(subject, "ok", f"{folder} can be {verb}")


def tracker() -> Finding:
    """How a run would log to W&B, and why; asks neither the network nor for a key."""
    from stl10bench.training.tracking import has_key

    mode = os.environ.get("WANDB_MODE")
    if mode is not None:
        if mode in ("online", "offline", "disabled", "shared"):
            return Finding("wandb", "ok", f"{mode}: WANDB_MODE says so")
        text = f"WANDB_MODE = {mode!r}: wandb will refuse it, and the run go on without"
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


def machine() -> Iterator[Finding]:
    """Cores and threads, the device of `--device auto`, and what `--precision auto` means there."""
    import torch

    from stl10bench.core.device import choose_device, set_threads
    from stl10bench.config import make_config
    from stl10bench.training.resolve import choose_precision

    threads = set_threads(None)
    yield Finding("threads", "ok", f"{threads} of {os.cpu_count()} cores, for one process")
    kind = choose_device("auto")
    if kind == "cuda":
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        free, total = torch.cuda.mem_get_info()
        yield Finding("gpu", "ok", f"{', '.join(names)}; {_gb(free)} of {_gb(total)} free")
    elif kind == "mps":
        yield Finding("gpu", "ok", "Apple's MPS; not tested by us")
    elif shutil.which("nvidia-smi"):
        yield Finding(
            "gpu",
            "warning",
            f"there is nvidia-smi, but torch {torch.__version__} finds no GPU: runs on the CPU",
            "install torch for your CUDA: https://pytorch.org/get-started/locally/",
        )
    else:
        yield Finding("gpu", "ok", "none found: runs on the CPU")
    chosen = choose_precision(make_config({"model": _LARGEST}), kind)
    name = {"cuda": "the GPU", "mps": "MPS"}.get(kind, "the CPU")
    bf16 = "has bf16: used where it is faster" if chosen == "bf16" else "has no fast bf16: fp32"
    yield Finding("precision", "ok", f"{name} {bf16} (--precision auto)")


def memory() -> Finding:
    """Free memory, against what the hungriest of the report's models takes."""
    import psutil

    found = psutil.virtual_memory()
    text = f"{_gb(found.available)} of {_gb(found.total)} free"
    if found.available < _CNN_MEMORY * 1e9:
        text += f"; the {_LARGEST} takes about {_CNN_MEMORY:g} GB at batch 128"
        return Finding("memory", "warning", text, "lower --batch-size (another experiment) for it")
    return Finding("memory", "ok", text)


def ports() -> Finding:
    """Whether processes of one run could meet on this machine."""
    try:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
    except OSError as error:
        text = f"no port of 127.0.0.1 can be had: {error.strerror}"
        return Finding("port", "warning", text, "runs of several processes will not work")
    try:
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", _PORT))
    except OSError:
        text = f"{_PORT} is in use: another launch would wait for it"
        return Finding("port", "warning", text, "torchrun --standalone takes a free one")
    return Finding("port", "ok", f"{_PORT} is free for runs of several processes")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


app = typer.Typer()

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


@app.command()
@with_options(
    {"dataset": DATA["dataset"], "data_dir": DATA["data_dir"], "runs_dir": TRAINING["runs_dir"]},
    JSON,
)
def doctor(*, dataset: str, data_dir: Path, runs_dir: Path, as_json: bool) -> None:
    """Say whether a run would work here, and what to do where it would not."""
    findings = list(examine(dataset, data_dir, runs_dir))
    problems = [one for one in findings if one.state == "problem"]
    code = problems[0].exit_code if problems else 0
    if as_json:
        shown = [one._asdict() for one in findings]
        typer.echo(json.dumps({"works": not problems, "exit_code": code, "findings": shown}))
    else:
        show_findings(findings, stdout())
    raise typer.Exit(code)


def show_findings(findings: list[Finding], console: Console) -> None:
    """Print a table to a terminal, a line for each finding to anything else."""
    grid = Table.grid(padding=(0, 2))
    for one in findings:
        text = f"{one.text}; {one.remedy}" if one.remedy else one.text
        text = "".join(c if c.isprintable() else "?" for c in text)
        if console.is_terminal:
            grid.add_row(f"[{_STYLES[one.state]}]{one.state}[/]", one.subject, escape(text))
        else:  # a line each, for grep
            typer.echo(f"{one.state:7}  {one.subject:9}  {text}")
    if console.is_terminal:
        console.print(grid, highlight=False)
    states = [one.state for one in findings]
    found = [f"{states.count(kind)} {kind}(s)" for kind in ("problem", "warning") if kind in states]
    works = "a run would not work" if "problem" in states else "a run would work"
    typer.echo(", ".join([works, *found]))
