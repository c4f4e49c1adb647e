"""What several test modules need: small data in STL-10's layout, and runs without a tracker."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # two workers with two threads each would starve each other

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell's background job: so would
    signal.signal(signal.SIGINT, signal.default_int_handler)  # be every program that we start

import numpy as np
import pytest
from forks import Forks
from hypothesis import settings

from stl10bench.cli import main

settings.register_profile("untimed", deadline=None)  # machines differ
settings.load_profile("untimed")

SHARED = Path(__file__).parents[2] / "shared"
NAMES = ("ant", "bee", "cow", "dog")


def write_layout(
    data_dir: Path, *, train: int = 40, test: int = 20, names: tuple[str, ...] = NAMES
) -> Path:
    """Write noisy images, each class with its own colour, as `data_dir`/stl10_binary."""
    folder = data_dir / "stl10_binary"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        labels = np.arange(count) % len(names)
        tint = np.random.default_rng(1).integers(40, 215, (len(names), 3, 1, 1))
        images = tint[labels] + rng.integers(-40, 41, (count, 3, 96, 96))
        images.astype(np.uint8).tofile(folder / f"{split}_X.bin")
        (labels + 1).astype(np.uint8).tofile(folder / f"{split}_y.bin")
    (folder / "class_names.txt").write_text("".join(f"{name}\n" for name in names))
    return data_dir


def save(path: Path, model: str = "logistic", size: int = 8, **options: Any) -> Path:
    """Write a checkpoint of a model that was never trained."""
    import torch

    from stl10bench import checkpoint
    from stl10bench.config import make_config
    from stl10bench.models import registry

    torch.manual_seed(0)
    made = registry.build(model, len(NAMES), size, options)
    changed = registry.changed_options(model, options)
    config = make_config({"model": model, "image_size": size, "model_options": changed})
    header = checkpoint.Header(
        config=config, class_names=NAMES, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)
    )
    checkpoint.save(path, made, header)
    return path


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 40 training and 20 test images of four classes."""
    return write_layout(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Starts `stl10bench` commands in forked children of one process that has imported torch."""
    with Forks(tmp_path_factory.mktemp("forks")) as one:
        yield one


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No user's W&B key, data folder or launcher reaches a test; no test reaches a network."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "STL10BENCH_DATA"):
        monkeypatch.delenv(name, raising=False)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("NO_COLOR", "1")


def heavy_after(code: str) -> str:
    """Which of the heavy packages a new Python has imported after `code`, as a printed list."""
    code += "; print([n for n in ('torch', 'timm', 'numpy') if n in __import__('sys').modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return out.stdout.strip()


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run the entry point in an empty folder: no data, no runs. Returns code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")  # one thread each

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stl10bench", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The models that a test registers are forgotten after it."""
    from stl10bench.models import registry

    modules = set(sys.modules)
    for name in registry.names():
        registry.get(name)  # what is imported under the copy would be forgotten with it
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in set(sys.modules) - modules:
        if name.startswith("my_"):
            del sys.modules[name]


@pytest.fixture
def model(tmp_path: Path) -> str:
    return save(tmp_path / "model.safetensors").name
