"""Workers, children and drivers that are killed or on other machines: every run is there once."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from helpers.killer import contents
from helpers.study import (
    TINY,
    first_epochs,
    jobs_of,
    lines_of,
    listening,
    start,
    wait_until,
    workers_of,
)

pytestmark = pytest.mark.faults
EPOCHS = 150
NAME = "mlp-by-lr"
STUDY = [
    *("stl10bench", "study", "run", "--model", "mlp", "--hidden", "8"),
    *("--vary", "lr=0.01,0.003,0.001", *TINY, "--epochs", EPOCHS, "--threads", "1"),
    *("--checkpoint-epochs", "20"),
]


@pytest.fixture(scope="module")
def straight(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of a study that nobody disturbed."""
    runs_dir = tmp_path_factory.mktemp("straight")
    finish(start(*STUDY, "--runs-dir", runs_dir, data_dir=data_dir))
    return runs_dir


def finish(process: "subprocess.Popen[str]", code: int = 0) -> str:
    _, err = process.communicate(timeout=240)
    assert process.returncode == code, err
    return err


def logged(runs_dir: Path) -> list[int]:
    """How many epochs each run has logged."""
    return [path.read_text().count('"epoch"') for path in sorted(runs_dir.glob("*/metrics.jsonl"))]


def running(process: "subprocess.Popen[str]", runs_dir: Path, workers: int = 2) -> psutil.Process:
    """The driver, when each worker has a run that has written a checkpoint."""
    wait_until(lambda: len(logged(runs_dir)) >= workers and min(logged(runs_dir)) > 21)
    assert max(logged(runs_dir)) < EPOCHS
    return psutil.Process(process.pid)


def check(runs_dir: Path, straight: Path, *, begun: int = 3) -> None:
    """Every run is there once, with the bits of one that nobody disturbed."""
    assert [line["state"] for line in lines_of(runs_dir, NAME)] == ["finished"] * 3
    for path in runs_dir.glob("*/metrics.jsonl"):
        epochs = [json.loads(line).get("epoch") for line in path.read_text().splitlines()]
        assert epochs == [*range(1, EPOCHS + 1), None]  # each once, and the test split
    assert sum(first_epochs(runs_dir, NAME)) == begun
    for folder in straight.glob("mlp-*"):
        assert without_version(runs_dir / folder.name) == without_version(folder)


def without_version(folder: Path) -> dict[str, Any]:
    """What a run left, whatever was committed meanwhile."""
    found = contents(folder)
    for key in ("version", "commit", "dirty"):
        found["result.json"].pop(key)
    return found


def kill(*processes: psutil.Process) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_killed_child_is_a_failure_and_resumes_when_the_study_is_begun_again(
    data_dir: Path, tmp_path: Path, straight: Path, workers: str
) -> None:
    options = [*STUDY, "--runs-dir", tmp_path, "--workers", workers]
    process = start(*options, data_dir=data_dir)
    kill(jobs_of(running(process, tmp_path, int(workers)))[0])
    err = finish(process)
    assert "killed by SIGKILL" in err
    finish(start(*options, data_dir=data_dir))
    check(tmp_path, straight)


def test_the_job_of_a_killed_worker_goes_to_another(
    data_dir: Path, tmp_path: Path, straight: Path
) -> None:
    process = start(*STUDY, "--runs-dir", tmp_path, "--workers", "2", data_dir=data_dir)
    driver = running(process, tmp_path)
    orphans = jobs_of(driver)
    assert listening(driver) == {"127.0.0.1"}
    kill(workers_of(driver)[0])
    finish(process)
    assert not psutil.wait_procs(orphans, timeout=60)[1]
    check(tmp_path, straight)


@pytest.mark.parametrize("all_at_once", [False, True])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_killed_driver_is_begun_again_and_its_runs_resume(
    data_dir: Path, tmp_path: Path, straight: Path, workers: str, all_at_once: bool
) -> None:
    options = [*STUDY, "--runs-dir", tmp_path, "--workers", workers]
    process = start(*options, data_dir=data_dir)
    driver = running(process, tmp_path, int(workers))
    family = driver.children(recursive=True)
    kill(driver, *(family if all_at_once else []))
    process.communicate()
    finish(start(*options, data_dir=data_dir))
    assert not psutil.wait_procs(family, timeout=60)[1]
    check(tmp_path, straight)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_interrupted_driver_saves_its_runs_and_says_how_to_resume(
    data_dir: Path, tmp_path: Path, straight: Path, workers: str, number: int
) -> None:
    options = [*STUDY, "--runs-dir", tmp_path, "--workers", workers]
    process = start(*options, data_dir=data_dir)
    running(process, tmp_path, int(workers))
    process.send_signal(number)
    err = finish(process, 128 + number)
    assert "Interrupted. Run the same command again to resume." in err
    states = [json.loads(path.read_text())["state"] for path in tmp_path.glob("*/status.json")]
    assert "running" not in states
    assert "interrupted" in states
    finish(start(*options, data_dir=data_dir))
    check(tmp_path, straight)


def test_two_drivers_on_one_runs_folder_train_each_run_once(
    data_dir: Path, tmp_path: Path, straight: Path
) -> None:
    options = [*STUDY, "--runs-dir", tmp_path, "--workers", "1"]
    drivers = [start(*options, data_dir=data_dir) for _ in range(2)]
    for driver in drivers:
        finish(driver)
    check(tmp_path, straight)


@pytest.mark.parametrize("store", ["--standalone", "--master_port=29617"])  # torchrun's, ours
@pytest.mark.parametrize("dies", [False, True])
def test_the_processes_of_torchrun_are_the_workers(
    data_dir: Path, tmp_path: Path, straight: Path, dies: bool, store: str
) -> None:
    launch = ("torch.distributed.run", store, "--nproc_per_node", "2")
    options = [*launch, "scripts/sweep.py", *STUDY[3:], "--runs-dir", tmp_path]
    process = start(*options, data_dir=data_dir)
    launcher = running(process, tmp_path)
    assert len(jobs_of(launcher)) == 2
    if dies:
        kill(launcher)
        process.communicate()
        process = start(*options, data_dir=data_dir)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert out.count("vs best") == 2  # one table of the first process, and a note
    check(tmp_path, straight)
    finish(start(*options, data_dir=data_dir))  # where nobody is needed, nobody waits


def test_accelerate_launch_starts_a_study(data_dir: Path, tmp_path: Path, straight: Path) -> None:
    launch = ("accelerate.commands.launch", "--cpu", "--num_processes", "1", "scripts/sweep.py")
    options = [*launch, *STUDY[3:], "--runs-dir", tmp_path, "--workers", "2"]
    err = finish(start(*options, data_dir=data_dir, HOME=str(tmp_path)))
    assert "[3/3]" in err
    check(tmp_path, straight)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Dask's options for a certificate that is its own authority."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout"
    command = ["openssl", *words.split(), str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return ["--tls-ca-file", str(cert), "--tls-cert", str(cert), "--tls-key", str(key)]


class Machine(NamedTuple):
    """An address, and the command under which programs run where it is theirs."""

    host: str
    under: tuple[str, ...] = ()


@pytest.fixture(params=["on loopback", "in network namespaces"])
def machines(request: pytest.FixtureRequest) -> Iterator[tuple[Machine, Machine]]:
    """Two machines that reach each other by network alone; on loopback they are one."""
    if request.param == "on loopback":
        yield Machine("127.0.0.1"), Machine("127.0.0.1")
        return
    if shutil.which("ip") is None:
        pytest.skip("no iproute2 to make network namespaces with")
    hosts = {f"stl10bench-{os.getpid()}-{n}": f"10.213.7.{n}" for n in (1, 2)}
    first, second = hosts
    commands = [f"netns add {name}" for name in hosts]
    commands += [f"link add eth0 netns {first} type veth peer name eth0 netns {second}"]
    for name, host in hosts.items():
        commands += [f"-n {name} address add {host}/24 dev eth0"]
        commands += [f"-n {name} link set {device} up" for device in ("lo", "eth0")]
    try:
        for command in commands:
            made = subprocess.run(["ip", *command.split()], capture_output=True, text=True)
            if made.returncode:
                pytest.skip(f"no network namespaces: ip {command}: {made.stderr.strip()}")
        yield tuple(Machine(host, ("ip", "netns", "exec", n)) for n, host in hosts.items())
    finally:
        for name in hosts:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def test_workers_of_a_scheduler_elsewhere_train_over_tls(
    data_dir: Path,
    tmp_path: Path,
    straight: Path,
    tls: list[str],
    machines: tuple[Machine, Machine],
) -> None:
    """Two workers in folders of their own, which have their own TMP, and a scheduler elsewhere."""
    file = tmp_path / "scheduler.json"
    programs = []
    here, there = machines
    driver = partial(start, data_dir=data_dir, under=here.under)
    try:
        words = ("distributed.cli.dask_scheduler", "--host", here.host, *tls, "--port", "0")
        words += ("--no-dashboard", "--scheduler-file", str(file))
        programs.append(driver(*words, cwd=tmp_path))
        wait_until(file.exists)
        address = json.loads(file.read_text())["address"]
        assert address.startswith(f"tls://{here.host}:")
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            words = ("distributed.cli.dask_worker", address, "--host", there.host, *tls)
            words += ("--nthreads", "1", "--no-dashboard", "--memory-limit", "0")
            place = {"cwd": tmp_path / name, "TMPDIR": str(tmp_path / name)}
            programs.append(start(*words, data_dir=data_dir, under=there.under, **place))
        options = [*STUDY, "--runs-dir", tmp_path / "runs", "--scheduler", address]
        cert, key = tls[3], tls[5]
        _, err = driver(*options).communicate(timeout=120)
        assert "TLS needs --tls-ca" in err  # without TLS
        options += ["--tls-ca", cert, "--tls-cert", cert, "--tls-key", key]
        err = finish(driver(*options))
        assert "[3/3]" in err
        assert "not loopback" not in err
        check(tmp_path / "runs", straight)
    finally:
        for program in reversed(programs):
            program.terminate()
            program.communicate(timeout=60)
