"""metrics.jsonl is the truth; W&B, TensorBoard and no tracker at all are mirrors of it."""

import json
import socket
import struct
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerate
import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

import stl10bench
from stl10bench.config import RunConfig, make_config
from stl10bench.core.errors import CheckpointError, UsageError
from stl10bench.results.run_folder import RunFolder
from stl10bench.training import tracking
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


def records(path: Path) -> Iterator[Any]:
    """The records of an offline W&B run: LevelDB's log format around protobuf messages."""
    from wandb.proto import wandb_internal_pb2

    content, position, parts = path.read_bytes(), 7, b""  # after W&B's own 7-byte header
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
        _, length, kind = struct.unpack_from("<IHB", content, position)
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


def test_an_offline_wandb_run_holds_config_epochs_and_summary(
    data_dir: Path, tmp_path: Path
) -> None:
    row = train(data_dir, tmp_path, tracker="wandb")
    (path,) = (tmp_path / row["run"]).glob("wandb/offline-run-*/*.wandb")
    config: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    runs = []
    for record in records(path):
        if record.HasField("run"):
            runs.append(record.run)
        for update in [*record.run.config.update, *record.config.update]:
            config[update.key or "/".join(update.nested_key)] = json.loads(update.value_json)
        for update in record.summary.update:
            summary[update.key or "/".join(update.nested_key)] = json.loads(update.value_json)
        if record.HasField("history"):
            items = record.history.item
            history.append(
                {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            )
    assert {run.display_name for run in runs} == {row["run"]}
    assert {run.run_group for run in runs} == {"mlp"}
    assert (config["model"], config["epochs"], config["lr"]) == ("mlp", 2, row.config.lr)
    assert config["model.hidden"] == "8,4"
    logged = [line for line in history if "epoch" in line]
    for line, truth in zip(logged, epochs_of(tmp_path / row["run"]), strict=True):
        for key in ("epoch", "train/loss", "val/accuracy", "lr"):
            assert line[key] == pytest.approx(truth[key])
    assert summary["test_accuracy"] == row["test_accuracy"]
    assert summary["test_loss"] == pytest.approx(row["test_loss"])


def test_two_runs_in_one_process_are_two_runs_of_the_tracker(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    names = [train(data_dir, tmp_path, tracker="wandb", seed=seed)["run"] for seed in range(2)]
    accelerator = Accelerator(cpu=True, log_with="wandb")
    for name in ("third", "fourth"):  # not even two logs of one Accelerator mix
        (tmp_path / name).mkdir()
        with Log(RunFolder(tmp_path / name), config(), accelerator, "wandb") as log:
            log.write({"train/loss": 1.0}, step=1)
        names.append(name)
    ids = {}
    for name in names:
        (path,) = (tmp_path / name).glob("wandb/offline-run-*/*.wandb")
        until, written = time.monotonic() + 10, list(records(path))
        while not (written and written[-1].HasField("exit")) and time.monotonic() < until:
            written = list(records(path))  # W&B's own process writes it a moment later
        ids |= {r.run.run_id: r.run.display_name for r in written if r.HasField("run")}
        steps = sum(record.HasField("history") for record in written)
        assert steps == (1 if name in ("third", "fourth") else 2)
    assert sorted(ids.values()) == sorted(names)


def test_without_a_tracker_only_the_metrics_are_written(data_dir: Path, tmp_path: Path) -> None:
    row = train(data_dir, tmp_path, tracker="none")
    folder = tmp_path / row["run"]
    assert not (folder / "wandb").exists()
    assert len(epochs_of(folder)) == 2


def test_a_key_without_a_server_warns_and_logs_offline(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
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
        self.summary = self
        self.fault("start")

    @property
    def tracker(self) -> Any:
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None: ...

    def log(self, values: dict[str, Any], step: int | None = None, **more: Any) -> None:
        self.fault("log")

    def update(self, values: dict[str, Any]) -> None:
        self.fault("summary")

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
    with Log(RunFolder(folder), config(), Accelerator(cpu=True), "none") as log:
        for step in range(1, rows + 1):
            log.write({"train/loss": 1 / step, "lr": None}, step=step)
        mark = log.mark()
        log.write({"train/loss": 0.0}, step=rows + 1)
    return mark


def config() -> RunConfig:
    return make_config({"model": "logistic"})


def test_a_log_that_is_cut_anywhere_goes_on_from_its_mark_or_is_refused(tmp_path: Path) -> None:
    mark = marked(tmp_path / "run", 3)
    path, accelerator = tmp_path / "run" / "metrics.jsonl", Accelerator(cpu=True)
    content = path.read_bytes()
    assert content.count(b"\n") == 4
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        if length < mark.size:
            with pytest.raises(CheckpointError, match=r"metrics.jsonl is damaged.*--overwrite"):
                Log(RunFolder(path.parent), config(), accelerator, "none", mark)
            assert path.read_bytes() == content[:length]
        else:
            with Log(RunFolder(path.parent), config(), accelerator, "none", mark) as log:
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
        Log(RunFolder(path.parent), config(), Accelerator(cpu=True), "none", mark)


def test_a_tracker_that_is_not_installed_names_the_extra(data_dir: Path, tmp_path: Path) -> None:
    from importlib.util import find_spec

    if find_spec("tensorboard"):
        row = train(data_dir, tmp_path, tracker="tensorboard")
        assert list((tmp_path / row["run"]).rglob("events.out.tfevents.*"))
    else:
        with pytest.raises(UsageError, match=r"pip install 'stl10bench\[tensorboard\]'"):
            train(data_dir, tmp_path, tracker="tensorboard")


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
        assert not tracking.has_key("https://api.wandb.ai")
    assert not any("secret-of-a-user" in str(one.message) for one in said)
