"""NaN, inf and rates that are too high: never applied, said with the step, the same on all."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.forks import Ended, Forks
from safetensors.torch import load_file

import stl10bench
from stl10bench.core.errors import DivergedError
from stl10bench.models import checkpoint
from stl10bench.results.run_folder import RunFolder
from stl10bench.training import resume

# A plug-in whose forward pass breaks in one training step; at its end it leaves its weights.
PLUGIN = """
import atexit, os, torch
from safetensors.torch import save_file
from stl10bench import register


class Breaks(torch.nn.Module):
    def __init__(self, classes, pixels, step, what, rank):
        super().__init__()
        self.linear = torch.nn.Linear(3 * pixels, classes)
        self.at = (step, what, rank)
        self.steps = 0
        atexit.register(lambda: save_file(self.state_dict(), "weights.safetensors"))

    def forward(self, images):
        logits = self.linear(images.flatten(1))
        self.steps += self.training
        step, what, rank = self.at
        if self.steps == step and self.training and os.environ.get("RANK", str(rank)) == str(rank):
            if what == "gradients":  # the loss is finite: sqrt's slope at 0 is not
                return logits + (0 * logits).sqrt()
            return logits * float(what)
        return logits


@register
def breaks(num_classes: int, image_size: int, *, step: int = 0, what: str = "nan", rank: int = 0):
    return Breaks(num_classes, image_size**2, step, what, rank)
"""
TINY = [
    *("--image-size", "8", "--epochs", "3", "--batch-size", "8", "--tracker", "none"),
    *("--precision", "no", "--threads", "1", "--lr", "0.01", "--schedule", "constant"),
]


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "breaking.py").write_text(PLUGIN)
    return folder


def train(
    forks: Forks,
    plugins: Path,
    data_dir: Path,
    runs_dir: Path,
    *more: str,
    step: int,
    what: str = "nan",
    rank: int = 0,
    before: str = "",
    processes: int = 1,
) -> Ended:
    """Train the plug-in, 4 steps an epoch, with its weights left in `runs_dir`."""
    runs_dir.mkdir(exist_ok=True)
    there = f"import sys, os; sys.path.insert(0, {str(plugins)!r}); os.chdir({str(runs_dir)!r})\n"
    return forks.run(
        *("train", "breaks", "--plugin", "breaking", *TINY, *more),
        *("--model-option", f"step={step}", "--model-option", f"what={what}"),
        *("--model-option", f"rank={rank}", "--data-dir", data_dir, "--runs-dir", runs_dir),
        before=there + before,
        processes=processes,
    )


def folder_of(runs_dir: Path) -> Path:
    (folder,) = (path.parent for path in runs_dir.glob("*/config.json"))
    return folder


def status(runs_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder_of(runs_dir) / "status.json").read_text())
    return found


def stored(runs_dir: Path) -> resume.State:
    """The newest checkpoint of the run."""
    folder = folder_of(runs_dir)
    found = resume.newest(RunFolder(folder), RunFolder(folder).config())
    assert found is not None
    return found


def assert_diverged(ended: Ended, runs_dir: Path, step: int) -> dict[str, Any]:
    assert (ended.code, "Traceback" in ended.err) == (5, False), ended.err
    found = status(runs_dir)
    assert (found["state"], found["step"], found["lr"]) == ("diverged", step, 0.01)
    assert f"of step {step} are not finite at learning rate 0.01" in ended.err
    return found


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "lamb"])
@pytest.mark.parametrize("what", ["nan", "inf", "gradients"])
def test_a_step_that_is_not_finite_is_never_applied(
    forks: Forks, plugins: Path, data_dir: Path, tmp_path: Path, optimizer: str, what: str
) -> None:
    """The weights at the end are those of the step before, as another run's checkpoint has them."""
    options = {"step": 6, "what": what}
    each = ("--optimizer", optimizer, "--checkpoint-minutes", "0")
    ended = train(forks, plugins, data_dir, tmp_path / "each", *each, **options)
    found = assert_diverged(ended, tmp_path / "each", 6)
    last = stored(tmp_path / "each")
    assert last.position.step(4) == 5
    assert math.isclose(found["last_finite_loss"], last_loss(last), rel_tol=1e-5)
    ended = train(forks, plugins, data_dir, tmp_path / "a", "--optimizer", optimizer, **options)
    assert_diverged(ended, tmp_path / "a", 6)
    for name in ("each", "a"):
        left = load_file(tmp_path / name / "weights.safetensors")
        assert left.keys() == last.model.keys()
        assert all(torch.equal(left[key], last.model[key]) for key in left), name


def last_loss(last: resume.State) -> float:
    """The mean loss of the first step of the second epoch: the only one that its sums hold."""
    loss, _, images = last.position.sums[0]
    return loss / images


def test_a_run_that_diverged_keeps_its_best_epoch_and_its_checkpoints(
    forks: Forks, plugins: Path, data_dir: Path, tmp_path: Path
) -> None:
    each = ("--checkpoint-minutes", "0")
    ended = train(forks, plugins, data_dir, tmp_path, *each, step=8, what="nan")
    assert_diverged(ended, tmp_path, 8)
    tensors, header = checkpoint.load(folder_of(tmp_path) / "best.safetensors")
    assert (header.epoch, header.step) == (1, 4)
    assert all(value.isfinite().all() for value in tensors.values())
    assert stored(tmp_path).position.step(4) == 7
    assert not (folder_of(tmp_path) / "result.json").exists()
    again = train(forks, plugins, data_dir, tmp_path, *each, step=8, what="nan")
    assert again.code == 5
    assert "is on record: pass --overwrite to retrain" in again.err


@pytest.mark.parametrize("what", ["nan", "inf", "gradients"])
def test_all_processes_stop_at_the_step_that_broke_on_one_of_them(
    forks: Forks, plugins: Path, data_dir: Path, tmp_path: Path, what: str
) -> None:
    ended = train(forks, plugins, data_dir, tmp_path, step=6, what=what, rank=1, processes=2)
    assert ended.code == 1  # torchrun's, which ends the second as soon as the first has ended
    lines = {
        line.split(", after a loss")[0]
        for line in ended.err.splitlines()
        if line.startswith("error: ")
    }
    text = "error: diverged: loss or gradients of step 6 are not finite at learning rate 0.01"
    assert lines == {text}
    found = status(tmp_path)
    assert (found["state"], found["step"]) == ("diverged", 6)


SIGNALLED = """
import signal
from stl10bench.results.run_folder import RunFolder
original = RunFolder._write_status
def write(folder, state, *args, **facts):
    if state == "diverged":
        os.kill(os.getpid(), signal.SIGTERM)
    original(folder, state, *args, **facts)
RunFolder._write_status = write
"""


def test_a_signal_while_a_divergence_is_recorded_changes_nothing(
    forks: Forks, plugins: Path, data_dir: Path, tmp_path: Path
) -> None:
    """So torchrun ends the main process, if another has ended before it."""
    ended = train(forks, plugins, data_dir, tmp_path, step=6, before=SIGNALLED)
    assert_diverged(ended, tmp_path, 6)


# Finite gradients times a rate that leaves no number to hold the product.
OVERFLOW: dict[str, Any] = {
    "image_size": 8, "batch_size": 8, "epochs": 1, "optimizer": "sgd", "lr": 3e38, "threads": 1,
    "schedule": "constant", "warmup": 0.0, "tracker": "none", "precision": "no",
}  # fmt: skip


@pytest.mark.parametrize("minutes", [0, 5])
@pytest.mark.parametrize("batch_size", [8, 36])
def test_weights_that_overflow_are_neither_stored_nor_measured(
    data_dir: Path, tmp_path: Path, batch_size: int, minutes: float
) -> None:
    """Also by the last step of all (36 is one step), of which no later one would tell."""
    options = {**OVERFLOW, "batch_size": batch_size, "checkpoint_minutes": minutes}
    with pytest.raises(DivergedError, match=r"step \d+ are not finite"):
        stl10bench.train("logistic", data_dir=data_dir, runs_dir=tmp_path, **options)
    assert not list(tmp_path.glob("*/*.safetensors"))
    for path in tmp_path.rglob("state.safetensors"):
        assert all(value.isfinite().all() for value in load_file(path).values())


def test_a_hold_out_loss_that_is_not_finite_is_a_divergence_and_no_best_epoch(
    data_dir: Path, tmp_path: Path
) -> None:
    """Weights are finite, logits are not."""
    options = {**OVERFLOW, "lr": 1e37, "batch_size": 36, "image_size": 64}
    with pytest.raises(
        DivergedError, match="logits of the validation images after step 1 are not finite"
    ):
        stl10bench.train("logistic", data_dir=data_dir, runs_dir=tmp_path, **options)
    assert status(tmp_path)["last_finite_loss"] > 0
    assert not list(tmp_path.rglob("best.safetensors"))
