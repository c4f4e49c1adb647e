"""Several processes at one folder, clocks that go back, secrets: nothing lost, mixed or told."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from helpers.forks import Forks
from helpers.killer import contents

import stl10bench
from stl10bench.core import files
from stl10bench.results.benchmark_table import stored_rows
from stl10bench.results.run_folder import RunFolder

TINY = [
    *("--image-size", "8", "--epochs", "3", "--batch-size", "8", "--optimizer", "adam"),
    *("--precision", "no", "--tracker", "none", "--threads", "1"),
]
WAITS = """
import time, stl10bench.training.epoch
steps, original = [], stl10bench.training.epoch.nan_if_infinite
def waits(losses):
    steps.append(1)
    time.sleep(600 if len(steps) == 6 else 0)
    return original(losses)
stl10bench.training.epoch.nan_if_infinite = waits
"""  # in its sixth step


def train(data_dir: Path, runs_dir: Path, *more: str) -> list[str]:
    return [
        *("train", "logistic", *TINY, *more),
        *("--data-dir", str(data_dir), "--runs-dir", str(runs_dir)),
    ]


def folder_of(runs_dir: Path) -> Path:
    (folder,) = (path for path in runs_dir.iterdir() if path.is_dir())
    return folder


def test_a_second_process_is_told_who_owns_the_run_and_a_third_goes_on_when_that_one_is_killed(
    forks: Forks, data_dir: Path, tmp_path: Path
) -> None:
    assert forks.run(*train(data_dir, tmp_path / "straight")).code == 0
    command = train(data_dir, tmp_path / "runs", "--checkpoint-minutes", "0")
    first = forks.start(*command, before=WAITS)
    first.says("epoch 1/3")
    kept = folder_of(tmp_path / "runs") / ".half.ab12cd34.part"
    kept.write_text("being written")
    second = forks.run(*command)
    assert (second.code, "Traceback" in second.err) == (6, False)
    host = __import__("platform").node()
    owner = f"is being written by process {first.pid} on {host}, for "
    assert owner in second.err
    assert second.err.strip().endswith(" s: wait for it, or stop it")
    assert kept.exists()  # what is not ours is not swept
    first.signal(signal.SIGKILL)
    assert first.wait().code == -9
    third = forks.run(*command)
    assert (third.code, "Resuming at epoch" in third.err) == (0, True)
    assert contents(tmp_path / "runs") == contents(tmp_path / "straight")


def test_processes_that_find_a_finished_run_agree_on_who_tidies_it(
    forks: Forks, data_dir: Path, tmp_path: Path
) -> None:
    """It was killed after its row was written and before it said so."""
    assert forks.run(*train(data_dir, tmp_path)).code == 0
    folder = folder_of(tmp_path)
    for _ in range(3):
        (folder / "checkpoints" / "step-00000011").mkdir(parents=True)
        (folder / "status.json").write_text('{"state": "running", "reason": ""}')
        ended = forks.run(*train(data_dir, tmp_path), processes=2)
        assert ended.code == 0, ended.err
        assert "is finished. Pass --overwrite" in ended.err
        assert RunFolder(folder).status()["state"] == "finished"
        assert not (folder / "checkpoints").exists()


TABLE = ("table", "--no-combine", "--no-baselines", "--format", "json")


def test_processes_that_end_their_runs_and_print_tables_at_once_lose_no_row(
    forks: Forks, data_dir: Path, tmp_path: Path
) -> None:
    trainings = [forks.start(*train(data_dir, tmp_path, "--seed", str(seed))) for seed in range(8)]
    tables = []
    while len(list(tmp_path.glob("*/result.json"))) < 8:
        ended = forks.run(*TABLE, "--runs-dir", tmp_path)
        if "no finished run" not in ended.err:
            assert ended.code == 0, ended.err
            tables.append(json.loads(ended.out))
    assert [child.wait().code for child in trainings] == [0] * 8
    tables.append(json.loads(forks.run(*TABLE, "--runs-dir", tmp_path).out))
    assert sorted(row["seed"] for row in tables[-1]) == [*range(8)]
    rows = {row["seed"]: row for row in tables[-1]}
    for table in tables:
        assert all(row["test_loss"] == rows[row["seed"]]["test_loss"] for row in table)


def test_readers_find_whole_files_while_a_run_writes_after_each_step(
    forks: Forks, data_dir: Path, tmp_path: Path
) -> None:
    command = train(data_dir, tmp_path, "--epochs", "100000", "--checkpoint-minutes", "0")
    writer = forks.start(*command)
    writer.says("epoch      2/100000")
    folder = folder_of(tmp_path)
    seen = []
    for _ in range(4):
        row = stl10bench.evaluate(folder / "best.safetensors", data_dir=data_dir, threads=1)
        seen.append(row["best_epoch"])
        assert stored_rows(tmp_path) == ([], [])
    writer.signal(signal.SIGTERM)
    assert writer.wait().code == 143
    assert seen == sorted(seen)
    assert seen[0] > 0


@pytest.mark.parametrize("reader", ["list", "show"])
def test_runs_are_listed_and_shown_while_one_writes_after_each_step(
    forks: Forks, data_dir: Path, tmp_path: Path, reader: str
) -> None:
    command = train(data_dir, tmp_path, "--epochs", "100000", "--checkpoint-minutes", "0")
    writer = forks.start(*command)
    writer.says("epoch      2/100000")
    more = [folder_of(tmp_path).name] if reader == "show" else []
    for _ in range(2):
        ended = forks.run("runs", reader, *more, "--runs-dir", tmp_path, "--json")
        assert (ended.code, ended.err) == (0, "")
    for _ in range(1000):
        assert files.sizes(folder_of(tmp_path))["config.json"] > 0
    writer.signal(signal.SIGTERM)
    assert writer.wait().code == 143


def test_a_clock_that_goes_back_leaves_durations_and_order_as_they_are(
    forks: Forks, data_dir: Path, tmp_path: Path
) -> None:
    """An hour back at each look at it, in both sessions of a run."""
    back = """
import os, signal, time
looks = []
def now():
    looks.append(1)
    return 2e9 - 3600 * len(looks)
time.time = now
"""
    stop = """
import stl10bench.training.epoch
steps, original = [], stl10bench.training.epoch.nan_if_infinite
def poisoned(losses):
    steps.append(1)
    if len(steps) == 6:
        os.kill(os.getpid(), signal.SIGTERM)
    return original(losses)
stl10bench.training.epoch.nan_if_infinite = poisoned
"""
    command = train(data_dir, tmp_path, "--checkpoint-minutes", "0")
    assert forks.run(*command, before=back + stop).code == 143
    ended = forks.run(*command, "--json", before=back)
    assert ended.code == 0, ended.err
    row = json.loads(ended.out)
    lines = (folder_of(tmp_path) / "metrics.jsonl").read_text().splitlines()
    epochs = [line for line in map(json.loads, lines) if "epoch" in line]
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    assert all(0 < line["seconds"] < 60 for line in epochs)
    assert all(line["images_per_second"] > 0 for line in epochs)
    assert 0 < row["train_seconds"] < 60
    assert row["train_seconds"] >= sum(line["seconds"] for line in epochs)


SECRETS = {
    "WANDB_API_KEY": "ca11ab1e" * 5,
    "HF_TOKEN": "hf_ca11ab1eca11ab1e",
    "AWS_SECRET_ACCESS_KEY": "aws-ca11ab1e",
}


@pytest.mark.parametrize("tracker", ["none", "wandb"])
def test_no_file_of_a_run_tells_a_secret_a_home_or_a_command_line(
    forks: Forks, data_dir: Path, tmp_path: Path, tracker: str
) -> None:
    """Of a finished run, and of one that failed for its disk, whose reason is a path."""
    home = tmp_path / "home-of-canary"
    data = shutil.copytree(data_dir, home / "data-of-canary")
    env = {**SECRETS, "HOME": str(home), "WANDB_BASE_URL": "http://127.0.0.1:9"}
    full = """
import stl10bench.training.setup
def fail(*args, **more):
    raise OSError(28, "No space left on device", str(__import__("pathlib").Path.home() / "disk"))
stl10bench.training.setup.create_model = fail
"""
    options = ["--tracker", tracker, "--checkpoint-minutes", "0"]
    command = train(data, home / "runs", *options)
    assert forks.run(*command, env=env).code == 0
    assert forks.run(*command, "--seed", "1", env=env, before=full).code == 7
    found = [path for path in (home / "runs").rglob("*") if path.is_file()]
    assert len(found) > 8
    assert bool([path for path in found if path.suffix == ".wandb"]) == (tracker == "wandb")
    for path in found:
        content = path.read_bytes()
        for word in (*SECRETS.values(), "canary", "--data-dir"):
            assert word.encode() not in content, (path, word)
    reasons = [json.loads(p.read_text())["reason"] for p in found if p.name == "status.json"]
    assert any("~/disk" in reason for reason in reasons)
