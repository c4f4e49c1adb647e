"""metrics.jsonl is the truth; W&B, TensorBoard and no tracker at all are mirrors of it."""

import json
import socket
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import accelerate
import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from helpers import wandb_file
from rich.console import Console

import stl10bench
from stl10bench.config import make_config
from stl10bench.core.errors import CheckpointError, UsageError
from stl10bench.data.load import open_data
from stl10bench.results.run_folder import RunFolder
from stl10bench.training import tracking, wandb_run
from stl10bench.training.job import TRACKERS, make_job
from stl10bench.training.resume import LogMark
from stl10bench.training.tracking import Log

TINY: dict[str, Any] = {"image_size": 8, "epochs": 2, "batch_size": 8, "threads": 1}


def train(data_dir: Path, runs_dir: Path, **options: Any) -> dict[str, Any]:
    settings = {**TINY, "data_dir": data_dir, "runs_dir": runs_dir, **options}
    row: dict[str, Any] = stl10bench.train("mlp", hidden=(8, 4), **settings)
    return row


def epochs_of(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "epoch" in line]


def test_two_runs_in_one_process_are_two_runs_of_the_tracker(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    names = [train(data_dir, tmp_path, tracker="wandb", seed=seed)["run"] for seed in range(2)]
    accelerator = Accelerator(cpu=True)
    console = Console(quiet=True)
    dataset = open_data("stl10", data_dir, download=False, verify=True, console=console)
    for seed in (2, 3):  # not even two logs of one Accelerator mix
        job = make_job(make_config({"model": "logistic", "seed": seed}), runs_dir=tmp_path)
        job.folder.path.mkdir()
        mirrors = tracking.make_mirrors(job, dataset, console)
        with Log(job.folder, accelerator, mirrors) as log:
            log.write({"train/loss": 1.0}, step=1)
        names.append(job.folder.name)
    ids = {}
    for name in names:
        logged = wandb_file.read(tmp_path / name)
        ids[logged.run.run_id] = logged.run.display_name
        epochs = [line for line in logged.history if "train/loss" in line]
        assert len(epochs) == (1 if name in names[2:] else 2)
    assert sorted(ids.values()) == sorted(names)


def test_without_a_tracker_only_the_metrics_are_written(data_dir: Path, tmp_path: Path) -> None:
    row = train(data_dir, tmp_path, tracker="none")
    folder = tmp_path / row["run"]
    assert not (folder / "wandb").exists()
    assert len(epochs_of(folder)) == 2


def test_a_key_without_a_server_warns_and_logs_offline(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as closed:  # bound, so nobody else's, but nobody listens
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.warns(UserWarning, match="no connection to .*: logging to W&B offline"):
            row = train(data_dir, tmp_path, tracker="wandb")
    folder = tmp_path / row["run"]
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))
    kept = [path for path in folder.rglob("*") if path.is_file() and "wandb" not in path.parts]
    assert not any(b"0123456789" * 4 in path.read_bytes() for path in kept)


def test_a_tracker_that_fails_is_one_warning_and_the_run_goes_on(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "no-such-mode")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        row = train(data_dir, tmp_path, tracker="wandb")
    failures = [w for w in caught if "tracker wandb failed" in str(w.message)]
    assert len(failures) == 1
    assert "metrics.jsonl has all metrics" in str(failures[0].message)
    assert len(epochs_of(tmp_path / row["run"])) == 2


CALLS = ("start", "log", "summary", "end")


class Faulty(GeneralTracker):
    """A tracker in wandb's place that fails in one of its calls."""

    name = "wandb"
    requires_logging_directory = False

    def fault(self, call: str) -> None:
        """What a test puts here."""

    def __init__(self, run_name: str, **settings: Any) -> None:
        super().__init__()
        self.summary, self.dir = self, settings.get("dir")
        self.fault("start")

    def start(self) -> None: ...

    @property
    def tracker(self) -> Any:
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None: ...

    def log(self, values: dict[str, Any], step: int | None = None, **more: Any) -> None:
        self.fault("log")

    def update(self, values: dict[str, Any]) -> None:
        self.fault("summary")

    def define_metric(self, name: str, summary: str) -> None: ...

    def _publish_file(self, name: str) -> None: ...

    def finish(self) -> None:
        self.fault("end")


@pytest.mark.parametrize(
    ("fault", "call"),
    [*((fault, call) for fault in ("raises", "blocks") for call in CALLS), ("exits", "log")],
)
def test_a_tracker_that_fails_anywhere_is_one_warning_and_changes_nothing(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, fault: str
) -> None:
    released = threading.Event()

    def fail(_: Faulty, name: str) -> None:
        if name == call and fault == "blocks":
            released.wait()
        elif name == call:
            raise SystemExit(3) if fault == "exits" else ConnectionError("gone")

    monkeypatch.setattr(Faulty, "fault", fail)
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "wandb", Faulty)
    monkeypatch.setattr(tracking, "PATIENCE", 0.2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        row = train(data_dir, tmp_path / "faulty", tracker="wandb")
    released.set()
    texts = [str(one.message) for one in caught if "tracker wandb" in str(one.message)]
    (text,) = texts
    assert "did not finish within" in text if fault == "blocks" else "failed and is now off" in text
    expected = train(data_dir, tmp_path / "none", tracker="none")
    for name in ("best.safetensors", "last.safetensors", "predictions.safetensors"):
        paths = [tmp_path / runs / row["run"] / name for runs in ("faulty", "none")]
        assert paths[0].read_bytes() == paths[1].read_bytes()
    assert row["test_loss"] == expected["test_loss"]
    assert len(epochs_of(tmp_path / "faulty" / row["run"])) == 2


@pytest.mark.faults
def test_a_tracker_that_hangs_takes_ten_seconds_at_most(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """wandb itself, with a key and a server that takes connections and never answers."""
    with socket.socket() as mute, warnings.catch_warnings():
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{mute.getsockname()[1]}")
        warnings.simplefilter("ignore")
        train(data_dir, tmp_path / "first", tracker="none")  # imports
        import wandb  # noqa: F401

        started = time.monotonic()
        row = train(data_dir, tmp_path, tracker="wandb")
        assert time.monotonic() - started < 10 + 2
    assert len(epochs_of(tmp_path / row["run"])) == 2


def marked(folder: Path, rows: int) -> LogMark:
    """What a checkpoint after some rows says of a new metrics.jsonl, which then gets another."""
    folder.mkdir()
    with Log(RunFolder(folder), Accelerator(cpu=True)) as log:
        for step in range(1, rows + 1):
            log.write({"train/loss": 1 / step, "lr": None}, step=step)
        mark = log.mark()
        log.write({"train/loss": 0.0}, step=rows + 1)
    return mark


def test_a_log_that_is_cut_anywhere_goes_on_from_its_mark_or_is_refused(tmp_path: Path) -> None:
    mark = marked(tmp_path / "run", 3)
    path, accelerator = tmp_path / "run" / "metrics.jsonl", Accelerator(cpu=True)
    content = path.read_bytes()
    assert content.count(b"\n") == 4
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        if length < mark.size:
            with pytest.raises(CheckpointError, match=r"metrics.jsonl is damaged.*--overwrite"):
                Log(RunFolder(path.parent), accelerator, mark=mark)
            assert path.read_bytes() == content[:length]
        else:
            with Log(RunFolder(path.parent), accelerator, mark=mark) as log:
                log.write({"train/loss": 0.0}, step=4)
            assert path.read_bytes() == content


@pytest.mark.parametrize("change", ["a flipped byte", "no file", "a folder"])
def test_a_log_that_is_not_the_checkpoints_is_refused(tmp_path: Path, change: str) -> None:
    mark = marked(tmp_path / "run", 3)
    path = tmp_path / "run" / "metrics.jsonl"
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.unlink()
    if change == "a flipped byte":
        path.write_bytes(content)
    elif change == "a folder":
        path.mkdir()
    with pytest.raises(CheckpointError, match=r"metrics.jsonl"):
        Log(RunFolder(path.parent), Accelerator(cpu=True), mark=mark)


def test_a_tracker_that_is_not_installed_names_the_extra(data_dir: Path, tmp_path: Path) -> None:
    from importlib.util import find_spec

    if find_spec("tensorboard"):
        row = train(data_dir, tmp_path, tracker="tensorboard")
        assert list((tmp_path / row["run"]).rglob("events.out.tfevents.*"))
    else:
        with pytest.raises(UsageError, match=r"pip install 'stl10bench\[tensorboard\]'"):
            train(data_dir, tmp_path, tracker="tensorboard")


def test_every_tracker_of_accelerate_has_its_name_here() -> None:
    assert set(TRACKERS) == {str(name) for name in LoggerType} - {"all"} | {"none"}


class Kept(Faulty):
    """A tracker that keeps what it is given."""

    calls: ClassVar[list[tuple[str, Any]]] = []

    def __init__(self, run_name: str, **settings: Any) -> None:
        super().__init__(run_name)
        self.calls.append(("start", (run_name, settings)))

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.calls.append(("config", values))

    def log(self, values: dict[str, Any], step: int | None = None, **more: Any) -> None:
        self.calls.append(("log", (step, values)))


def test_trackers_by_name_each_get_all_and_one_that_fails_stops_no_other(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Faulty, name: str) -> None:
        if name == "log" and not isinstance(_, Kept):
            raise ConnectionError("gone")

    monkeypatch.setattr(Faulty, "fault", fail)
    monkeypatch.setattr(Kept, "calls", [])
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["mlflow", "trackio"])
    for name, tracker in (("mlflow", Faulty), ("trackio", Kept)):
        monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, name, tracker)
    with pytest.warns(UserWarning, match="tracker mlflow failed and is now off") as said:
        row = train(data_dir, tmp_path, tracker="mlflow,trackio")
    assert len([one for one in said if "tracker" in str(one.message)]) == 1
    calls = Kept.calls
    assert calls[0] == ("start", ("stl10bench", {"name": row.run, "resume": "allow"}))
    assert calls[1][1]["dataset"] == "STL-10 layout"
    assert None not in calls[1][1].values()  # which no tracker can store
    logged = [values for _, (_, values) in calls[2:] if "train/loss" in values]
    assert [values["epoch"] for values in logged] == [1, 2]


def test_only_a_result_with_something_to_upload_is_waited_for_minutes(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "wandb", Faulty)
    monkeypatch.setattr(wandb_run, "log_result", lambda run, result: None)
    console = Console(quiet=True)
    data = open_data("stl10", data_dir, download=False, verify=True, console=console)
    config = make_config({"model": "logistic"})
    job = make_job(config, runs_dir=tmp_path, wandb_artifact=True)
    job.folder.path.mkdir()
    mirrors = tracking.make_mirrors(job, data, console)
    result: Any = SimpleNamespace(job=job)
    with Log(job.folder, Accelerator(cpu=True), mirrors) as log:
        assert mirrors[0].patience == tracking.PATIENCE  # a run that is stopped here
        log.write_result(result)
        assert mirrors[0].patience == wandb_run.UPLOAD_PATIENCE


@pytest.mark.parametrize(
    ("trackers", "message"),
    [
        ("wandb,mlfow", "unknown tracker 'mlfow': did you mean 'mlflow'"),
        ("wandb,none", "none stands alone"),
        ("wandb,comet_ml", "--tracker comet_ml needs comet-ml: pip install comet-ml"),
    ],
)
def test_a_tracker_that_cannot_be_is_refused_before_the_run(
    data_dir: Path, tmp_path: Path, trackers: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train(data_dir, tmp_path, tracker=trackers)
    assert not any(tmp_path.glob("mlp-*"))


def test_the_same_metrics_are_written_with_and_without_a_tracker(
    data_dir: Path, tmp_path: Path
) -> None:
    varying = {"time", "seconds", "images_per_second"}
    logs = []
    for name in ("none", "wandb"):
        row = train(data_dir, tmp_path / name, tracker=name)
        logs.append(
            [
                {key: value for key, value in line.items() if key not in varying}
                for line in epochs_of(tmp_path / name / row["run"])
            ]
        )
    assert logs[0] == logs[1]


def test_a_damaged_netrc_is_named_by_its_line_and_never_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    (tmp_path / ".netrc").write_text("\nsecret-of-a-user\n")
    (tmp_path / ".netrc").chmod(0o600)
    with pytest.warns(UserWarning, match=r"\.netrc, near line \d, is damaged") as said:
        assert not wandb_run.has_key("https://api.wandb.ai")
    assert not any("secret-of-a-user" in str(one.message) for one in said)
