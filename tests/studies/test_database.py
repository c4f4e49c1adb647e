"""A search whose memory is a real PostgreSQL: it outlives its drivers, its password is hidden."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from helpers.study import TINY, first_epochs, jobs_of, lines_of, start, wait_until
from optuna.storages import RDBStorage
from optuna.trial import TrialState

pytestmark = pytest.mark.faults
PASSWORD = "Canary7"
NAME = "mlp-by-lr-random"
SEARCH = [
    *("stl10bench", "study", "run", "--model", "mlp", "--hidden", "8", "--vary", "lr=1e-3..1e-2"),
    *("--sampler", "random", "--trials", "3", *TINY, "--epochs", "150", "--threads", "1"),
    *("--checkpoint-epochs", "20", "--workers", "2"),
]


class Server(NamedTuple):
    """A PostgreSQL that listens on a socket in its folder alone."""

    process: "subprocess.Popen[bytes]"
    url: str


@pytest.fixture
def server() -> Iterator[Server]:
    driver = pytest.importorskip("psycopg", reason="no psycopg to reach PostgreSQL with")
    found = shutil.which("initdb")
    places = [Path(found).resolve()] if found else Path("/usr/lib/postgresql").glob("*/bin/initdb")
    initdb = next(iter(places), None)
    if initdb is None:
        pytest.skip("no PostgreSQL")
    account = pwd.getpwuid(os.geteuid())
    if account.pw_uid == 0:  # whom PostgreSQL refuses
        account = next((a for a in pwd.getpwall() if a.pw_name in ("postgres", "nobody")), account)
    if account.pw_uid == 0:
        pytest.skip("PostgreSQL refuses root, and there is no user postgres or nobody")
    # pytest's own folders are closed to other users.
    with tempfile.TemporaryDirectory(prefix="stl10bench-") as text:
        folder = Path(text)
        (folder / "password").write_text(PASSWORD)
        os.chown(folder, account.pw_uid, account.pw_gid)
        user: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        words = ["--username", "me", "--auth", "scram-sha-256", "--pwfile", folder / "password"]
        command = [initdb, folder / "data", "--no-sync", "--no-locale", "-E", "UTF8", *words]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, **user)
        command = [initdb.with_name("postgres"), "-D", folder / "data", "-k", folder]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "-c", "listen_addresses=", "-c", "fsync=off"],
                cwd=folder,
                stderr=log,
                **user,
            )
        url = f"postgresql://me:{PASSWORD}@/postgres?host={folder}"
        try:
            wait_until(lambda: _answers(driver, url), seconds=30)
            yield Server(process, url.replace("://", "+psycopg://"))
        finally:
            process.send_signal(signal.SIGINT)  # not waiting for those who are connected
            process.wait(30)


def _answers(driver: Any, url: str) -> bool:
    try:
        driver.connect(url).close()
    except driver.OperationalError:
        return False
    return True


def commands() -> str:
    """What `ps` shows of all processes."""
    processes = psutil.process_iter(["cmdline"])
    return " ".join(word for process in processes for word in process.info["cmdline"] or [])


def test_a_search_in_postgresql_survives_its_driver_and_shows_no_password(
    server: Server, data_dir: Path, tmp_path: Path
) -> None:
    variables = {"STL10BENCH_STORAGE": server.url, "STL10BENCH_TALK": ""}  # as --verbose does
    runs = tmp_path / "runs"
    process = start(*SEARCH, "--runs-dir", runs, data_dir=data_dir, **variables)
    wait_until(lambda: sum(p.stat().st_size > 4000 for p in runs.glob("*/metrics.jsonl")) == 2)
    driver = psutil.Process(process.pid)
    family = driver.children(recursive=True)
    assert PASSWORD not in commands()
    for child in jobs_of(driver):
        assert PASSWORD not in str(child.environ())
    driver.kill()
    printed = "".join(process.communicate())
    process = start(*SEARCH, "--runs-dir", runs, data_dir=data_dir, **variables)
    printed += "".join(process.communicate(timeout=240))
    assert process.returncode == 0, printed
    assert not psutil.wait_procs(family, timeout=60)[1]
    assert [line["state"] for line in lines_of(runs, NAME)] == ["finished"] * 3
    assert first_epochs(runs, NAME) == [1, 1, 1]  # those of the killed driver were resumed
    storage = RDBStorage(server.url)
    (study,) = storage.get_all_studies()
    states = [TrialState.FAIL] * 2 + [TrialState.COMPLETE] * 3
    assert [trial.state for trial in storage.get_all_trials(study._study_id)] == states
    storage.remove_session()
    storage.engine.dispose()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if PASSWORD.encode() in path.read_bytes()]
    assert PASSWORD not in printed


def test_a_search_whose_database_is_gone_says_how_to_resume(
    server: Server, data_dir: Path, tmp_path: Path
) -> None:
    variables = {"STL10BENCH_STORAGE": server.url}
    process = start(*SEARCH, "--runs-dir", tmp_path, data_dir=data_dir, **variables)
    wait_until(lambda: any(tmp_path.glob("*/metrics.jsonl")))
    server.process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 7, err
    assert "Run the same command again to resume" in err
    assert PASSWORD not in err
    assert "Traceback" not in err
