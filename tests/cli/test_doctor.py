"""The doctor: what it says is what a run would meet, and it leaves everything as it was."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers.layout import write_layout
from huggingface_hub import constants
from rich.console import Console
from typer.testing import CliRunner

from stl10bench.cli import doctor
from stl10bench.cli.doctor import app, show_findings
from stl10bench.models.factory import build_model
from stl10bench.models.pretrained import choose_weights
from stl10bench.training.resume import room_needed

SOURCE = Path(__file__).parents[2]
CANARY = "c0ffee" * 6 + "cafe"


def examine(*options: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and the findings by subject."""
    ended = CliRunner().invoke(app, ["--json", *options], catch_exceptions=False)
    answer = json.loads(ended.stdout)
    assert answer["exit_code"] == ended.exit_code
    assert answer["works"] == (ended.exit_code == 0)
    return ended.exit_code, {finding.pop("subject"): finding for finding in answer["findings"]}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with small data of four classes."""
    write_layout(tmp_path / "data", train=8, test=4)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_where_a_run_would_work_the_doctor_says_so_and_writes_nothing(here: Path) -> None:
    before = tree(here)
    code, found = examine()
    assert code == 0
    assert {finding["state"] for finding in found.values()} <= {"ok", "warning"}
    assert (
        "data/stl10_binary: STL-10 layout: 8 train and 4 test images, 4 classes"
        in found["data"]["text"]
    )
    assert tree(here) == before  # not even the checksums


def test_every_finding_is_one_line_when_piped(here: Path) -> None:
    lines = CliRunner().invoke(app, []).stdout.splitlines()
    assert [line.split()[0] in ("ok", "warning") for line in lines[:-1]] == [True] * 7
    assert lines[-1] == "training will work"


def test_missing_data_come_with_the_command_that_gets_them(here: Path) -> None:
    code, found = examine("--data-dir", "else where")
    assert code == 3
    assert "stl10bench data download --data-dir 'else where'" in found["data"]["text"]
    assert not (here / "else where").exists()


def test_damaged_data_are_named(here: Path) -> None:
    os.truncate(here / "data" / "stl10_binary" / "test_X.bin", 4 * 27648 - 5)
    code, found = examine()
    assert (code, found["data"]["state"], found["runs"]["state"]) == (3, "problem", "ok")
    assert "test_X.bin: a multiple of 27648 bytes" in found["data"]["text"]
    assert found["data"]["remedy"]


def test_the_demo_data_are_not_drawn_but_announced(here: Path) -> None:
    code, found = examine("--dataset", "demo")
    assert (code, found["data"]["state"]) == (0, "ok")
    assert "the first run draws" in found["data"]["text"]
    assert not (here / "data" / "demo").exists()


def test_other_data_in_the_demos_place_are_a_problem(here: Path) -> None:
    write_layout(here / "data" / "demo", train=8, test=4)
    code, found = examine("--dataset", "demo")
    assert code == 3
    assert "data/demo does not hold the demo data: move it away" in found["data"]["text"]


def test_a_runs_folder_that_cannot_be_written_is_a_problem(here: Path) -> None:
    (here / "file").touch()
    code, found = examine("--runs-dir", "file/runs")
    assert (code, found["runs"]["state"]) == (7, "problem")
    assert "file/runs cannot be written: Not a directory" in found["runs"]["text"]


def test_a_disk_with_less_room_than_a_run_needs_is_a_problem(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, found = examine()
    assert "the cnn writes up to 500.0 MB" in found["runs"]["text"]
    monkeypatch.setattr(doctor, "_CNN_DISK", 10**18)
    code, found = examine()
    assert (code, found["runs"]["state"]) == (7, "problem")
    assert "--runs-dir on another disk" in found["runs"]["remedy"]


def test_the_room_that_the_doctor_asks_for_is_what_a_run_of_the_cnn_needs() -> None:
    needed = room_needed(build_model("cnn", 10, 64, {}))
    assert pytest.approx(needed, rel=0.02) == doctor._CNN_DISK


def test_the_first_problem_gives_the_exit_code(here: Path) -> None:
    (here / "file").touch()
    code, found = examine("--runs-dir", "file", "--data-dir", "none")
    assert code == 3
    assert [name for name, finding in found.items() if finding["exit_code"]] == ["data", "runs"]


@pytest.mark.parametrize(
    ("environment", "state", "text"),
    [
        ({}, "ok", "offline: no key"),
        ({"WANDB_API_KEY": CANARY}, "ok", "online if the server answers within 2 s"),
        ({"WANDB_API_KEY": CANARY, "WANDB_MODE": "offline"}, "ok", "offline (WANDB_MODE)"),
        ({"WANDB_MODE": "disabled"}, "ok", "disabled (WANDB_MODE)"),
        ({"WANDB_MODE": "of"}, "warning", "of (WANDB_MODE)"),
        (
            {"WANDB_API_KEY": CANARY, "WANDB_BASE_URL": f"https://u:{CANARY}@host.test"},
            *("ok", "online if the server answers"),
        ),
    ],
)
def test_the_tracker_is_told_with_its_reason_without_network_and_without_the_key(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    state: str,
    text: str,
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    _, found = examine()
    assert found["wandb"]["state"] == state
    assert text in found["wandb"]["text"]
    assert CANARY not in json.dumps(found)


@pytest.mark.parametrize("content", [f"machine api.wandb.ai login user passwrd {CANARY}", CANARY])
def test_a_netrc_that_cannot_be_read_is_a_warning_that_tells_nothing_of_it(
    here: Path, content: str
) -> None:
    (here / ".netrc").write_text(f"{content}\n")
    (here / ".netrc").chmod(0o600)
    _, found = examine()
    assert (found["wandb"]["state"], CANARY in json.dumps(found)) == ("warning", False)


def test_the_repository_asked_for_is_the_one_that_a_run_fetches() -> None:
    chosen = choose_weights("mobilenetv2", file=None, pretrained=True, frozen=True)
    assert chosen.source == f"hub:{doctor.HUB}"


@pytest.mark.parametrize(
    ("content", "state", "text"),
    [
        (safetensors.torch.save({"a": torch.zeros(2)}), "ok", "are in the Hugging Face cache"),
        (b"half a file", "warning", "is not a safetensors file; delete it"),
        (None, "warning", "not in the Hugging Face cache, and HF_HUB_OFFLINE forbids"),
    ],
    ids=["whole", "damaged", "absent"],
)
def test_weights_in_the_hubs_cache_are_found_and_checked(
    here: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, state: str, text: str
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(here / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if content is not None:
        cache = here / "hub" / f"models--{doctor.HUB.replace('/', '--')}"
        (cache / "snapshots" / "abc").mkdir(parents=True)
        (cache / "refs").mkdir()
        (cache / "refs" / "main").write_text("abc")
        (cache / "snapshots" / "abc" / "model.safetensors").write_bytes(content)
    finding = examine()[1]["weights"]
    assert finding["state"] == state
    assert text in f"{finding['text']}; {finding['remedy']}"


def test_too_little_memory_to_load_torch_is_a_problem(here: Path) -> None:
    resource = pytest.importorskip("resource")
    most = 1 << 30  # bytes of address space; torch takes three times that
    ended = subprocess.run(
        [sys.executable, "-m", "stl10bench", "doctor", "--json"],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (most, most)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (7, "")
    assert "cannot be loaded" in json.loads(ended.stdout)["findings"][-1]["text"]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_folder_of_any_name_is_shown_on_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    name = os.fsdecode(b"[red]\xff\x1b[2J") + "ü🐒"
    finding = doctor.Finding("data", name, "--data-dir")
    show_findings([finding], Console(force_terminal=terminal, color_system=None, width=80))
    assert "[red]  [2Jü🐒; --data-dir" in capsys.readouterr().out


def test_a_missing_package_ends_the_examination(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_PACKAGES", ("torch", "no-such-package"))
    code, found = examine()
    assert (code, list(found)) == (2, ["packages"])
    assert "no-such-package" in found["packages"]["text"]
