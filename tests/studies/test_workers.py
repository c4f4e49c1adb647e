"""Workers that share a runs folder: each run exactly once, whoever is killed, whatever fails."""

import contextlib
import csv
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import timm
from safetensors.torch import save_file

import stl10bench
from stl10bench.cli.main import main
from stl10bench.studies import ledger, place

ROOT = Path(__file__).parents[2]
TINY = [
    *(
        "--image-size",
        "8",
        "--epochs",
        "2",
        "--batch-size",
        "8",
        "--seeds",
        "1",
    ),  # [4:6]: the batch
    *("--tracker", "none", "--precision", "no", "--optimizer", "sgd", "--schedule", "constant"),
]
LAUNCH = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "scripts/sweep.py")


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, data_dir: Path
) -> Iterator[Any]:
    """`stl10bench study run` in this process, on the small data: its code, stdout and stderr."""
    monkeypatch.setenv("STL10BENCH_DATA", str(data_dir))

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stl10bench", "study", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


def start(*arguments: str, data_dir: Path, cwd: Path = ROOT) -> "subprocess.Popen[str]":
    """A program of its own, as a user would start it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "STL10BENCH_DATA": str(data_dir)}
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def table(runs_dir: Path, name: str) -> list[dict[str, str]]:
    """The lines of a study's CSV."""
    text = (runs_dir / "studies" / name / f"{name}.csv").read_text()
    return list(csv.DictReader(io.StringIO(text)))


def begun(runs_dir: Path, name: str) -> list[int]:
    """How often each run's first epoch was trained, by what its children said."""
    logs = (runs_dir / "studies" / name / "log").glob("*.txt")
    return [log.read_text().count("epoch 1/") for log in logs]


def test_two_workers_of_a_launcher_train_each_run_once_and_record_what_fails(
    data_dir: Path, tmp_path: Path, cli: Any
) -> None:
    (tmp_path / "mixed.toml").write_text(
        'model = "mlp"\n[settings]\nhidden = [8]\n[vary.step]\n'
        "good = {batch_size = 8}\nwild = {lr = 1e30, batch_size = 8}\nlarge = {batch_size = 64}\n"
    )
    runs_dir = tmp_path / "runs"
    options = [*TINY[:4], *TINY[6:], "--runs-dir", str(runs_dir), "--no-stack"]
    options = [str(tmp_path / "mixed.toml"), "--recipe", "quick", *options]
    ended = start(*LAUNCH, *options, data_dir=data_dir)
    out, err = ended.communicate(timeout=240)
    assert ended.returncode == 0, err
    assert len(re.findall("^ good ", out, re.M)) == 1  # one table, of the first worker
    lines = table(runs_dir, "mixed")
    assert [(line["step"], line["state"]) for line in lines] == [
        *(("good", "finished"), ("wild", "diverged"), ("large", "failed"))
    ]
    assert "there are only 36 training images" in lines[2]["reason"]
    assert sorted(begun(runs_dir, "mixed")) == [0, 0, 1]
    assert len(list(runs_dir.glob("*/config.json"))) == 3
    results = {path: path.read_bytes() for path in runs_dir.glob("*/result.json")}

    # Begun again, only what failed is tried again.
    code, _, err = cli("run", *options)
    assert code == 0
    tried = [line for line in err.splitlines() if line.startswith("[")]
    assert len(tried) == 1
    assert "step=large seed 0: failed" in tried[0]
    assert {path: path.read_bytes() for path in runs_dir.glob("*/result.json")} == results


@pytest.mark.faults
@pytest.mark.parametrize("all_at_once", [False, True])
@pytest.mark.parametrize("stacked", [False, True])
def test_workers_that_are_killed_lose_no_run_and_leave_none_twice(
    data_dir: Path, tmp_path: Path, cli: Any, stacked: bool, all_at_once: bool
) -> None:
    """Two launchers with working folders of their own and one runs folder."""
    runs_dir = tmp_path / "runs"
    own = ["--model", "mlp", "--hidden", "8", "--vary", "lr=0.01,0.003,0.001", "--threads", "1"]
    options = [*own, *TINY, "--epochs", "150"]
    options += [] if stacked else ["--no-stack", "--checkpoint-epochs", "20"]
    workers = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        given = ("stl10bench", "study", "run", *options, "--runs-dir", "../runs")
        workers.append(start(*given, data_dir=data_dir, cwd=tmp_path / name))

    def said() -> list[str]:
        return [log.read_text() for log in (runs_dir / "studies" / "mlp-by-lr" / "log").glob("*")]

    def children(worker: "subprocess.Popen[str]") -> list[psutil.Process]:
        return psutil.Process(worker.pid).children()

    wait_until(lambda: any(2 < text.count("\nepoch ") < 100 for text in said()))
    workers.sort(key=lambda worker: not children(worker))  # one has the whole stack
    in_hand = [child for worker in workers for child in children(worker)]
    workers[0].kill()  # its child notices, saves what a stack has not, and ends by itself
    if all_at_once:
        for child in in_hand:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        workers[1].kill()
        code, _, err = cli("run", *options, "--runs-dir", str(runs_dir))
    else:  # the other takes over what the first had in hand
        _, err = workers[1].communicate(timeout=240)
        code = workers[1].returncode
    assert code == 0, err
    for worker in workers:
        worker.communicate()
    lines = table(runs_dir, "mlp-by-lr")
    assert [(line["state"], line["stacked"]) for line in lines] == [
        ("finished", "3" if stacked else "")
    ] * 3
    assert not psutil.wait_procs(in_hand, timeout=60)[1]
    assert sum(text.count("epoch 150/150") for text in said()) == (1 if stacked else 3)
    for line in lines:
        logged = (runs_dir / line["run"] / "metrics.jsonl").read_text().splitlines()
        epochs = [json.loads(one).get("epoch") for one in logged]
        assert epochs == [*range(1, 151), None]  # each once, and the test split
    assert len(list(runs_dir.glob("*/result.json"))) == 3


def wait_until(there: Any, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_claim_dies_with_its_process_and_keeps_others_off_until_then(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from stl10bench.studies import ledger\n"
        "with ledger.claimed(Path(sys.argv[1]), ['a', 'b']) as ours:\n"
        "    print(ours, flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout
    assert holder.stdout.readline() == "['a', 'b']\n"
    with ledger.claimed(tmp_path, ["a", "c"]) as ours:
        assert ours == ["c"]
    holder.kill()
    holder.communicate()
    with ledger.claimed(tmp_path, ["a", "b"]) as ours:
        assert ours == ["a", "b"]


def test_stacked_runs_are_those_that_would_be_trained_alone(
    data_dir: Path, tmp_path: Path, cli: Any
) -> None:
    options = ["--model", "logistic", "--vary", "lr=0.1,0.01,1e30", *TINY]
    code, _, _ = cli("run", *options, "--runs-dir", str(tmp_path / "stack"))
    assert code == 0
    lines = table(tmp_path / "stack", "logistic-by-lr")
    assert [(line["state"], line["stacked"]) for line in lines] == [
        *(("finished", "3"), ("finished", "3"), ("diverged", ""))
    ]
    for line in lines[:2]:
        alone = stl10bench.train(
            "logistic",
            **{"lr": line["lr"], "image_size": 8, "epochs": 2, "batch_size": 8, "seed": 0},
            **{"tracker": "none", "precision": "no", "optimizer": "sgd", "schedule": "constant"},
            **{"data_dir": data_dir, "runs_dir": tmp_path / "alone", "threads": 1},
        )
        assert alone["run"] == line["run"]
        assert float(line["val_loss"]) == pytest.approx(alone["val_loss"], rel=1e-4)
        assert float(line["val_accuracy"]) == alone["val_accuracy"]
    folder = tmp_path / "stack" / "studies" / "logistic-by-lr"
    page = (folder / "logistic-by-lr.md").read_text()
    assert re.search(r"^\| 0.1 \| .*\|$", page, re.M)
    assert "; diverged: lr=1e+30" in page
    (figure,) = re.findall(r"!\[.*\]\((.*)\)", page)
    assert (folder / figure).read_bytes().startswith(b"\x89PNG")
    of_stack = ("--runs-dir", str(tmp_path / "stack"))
    assert cli("show", "logistic-by-lr", *of_stack, "--format", "markdown")[:2] == (
        *(0, page.split("\n![")[0]),
    )
    assert re.search(r"logistic-by-lr .*best: lr=", cli("list", *of_stack)[1])
    # The same study with other settings: what fits is used, and that is said.
    code, _, err = cli(*("run", *options[:2], "--vary", "lr=0.1,0.2", *TINY, *of_stack))
    assert "has changed since its last runs (vary): 1 of its 2 finished runs still fit" in err
    assert err.count("hold-out ") == 1
    (folder / "study.json").write_text("{}")
    code, out, _ = cli("list", *of_stack)
    assert (code, "is no record of a study" in " ".join(out.split())) == (0, True)
    code, out, _ = cli("show", "logistic-lr", "--runs-dir", str(tmp_path / "stack"))
    assert "the report found" in out


def test_what_a_stack_cannot_honour_has_each_run_trained_on_its_own(
    tmp_path: Path, cli: Any
) -> None:
    own = ["--model", "logistic", "--vary", "lr=0.1,0.01", "--max-minutes", "9"]
    code, _, err = cli("run", *own, *TINY, "--runs-dir", str(tmp_path))
    assert code == 0, err
    assert [line["stacked"] for line in table(tmp_path, "logistic-by-lr")] == ["", ""]


def test_a_dry_run_lists_the_runs_with_minutes_and_trains_none(cli: Any, tmp_path: Path) -> None:
    own = ["--model", "logistic", "--vary", "lr=0.1,0.01", "--runs-dir", str(tmp_path)]
    code, out, _ = cli("run", *own, *TINY, "--dry-run")
    assert code == 0
    assert out.count("missing") == 2
    assert "minutes are left to do" in out
    assert not list(tmp_path.glob("*/config.json"))


def test_a_study_takes_weights_for_its_backbones_and_ignores_them_for_other_models(
    cli: Any, tmp_path: Path
) -> None:
    file = tmp_path / "mobilenetv2.safetensors"
    save_file(timm.create_model("mobilenetv2_100").state_dict(), file)
    own = ["--vary", "model=logistic,mobilenetv2", "--runs-dir", str(tmp_path / "runs")]
    asked = ["run", "--model", "logistic", *own, *TINY, "--dry-run", "--weights"]
    code, out, err = cli(*asked, str(file))
    assert (code, out.count("missing")) == (0, 2), err
    code, _, err = cli(*asked, str(tmp_path / "none.safetensors"))
    assert (code, "none.safetensors" in err) == (4, True), err


def test_a_run_of_a_worker_sees_its_own_device_and_nothing_of_the_launcher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launched = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    others = {"MASTER_ADDR": "x", "TORCHELASTIC_RUN_ID": "y", "ACCELERATE_MIXED_PRECISION": "no"}
    for name, value in {**launched, **others, "KEPT": "z"}.items():
        monkeypatch.setenv(name, value)
    here = place.here()
    assert here == place.Place(5, 8, 1, 4)
    kept = place.alone(here, threads=2, gpus=4)
    assert not kept.keys() & (launched | others).keys()
    assert (kept["KEPT"], kept["OMP_NUM_THREADS"], kept["CUDA_VISIBLE_DEVICES"]) == ("z", "2", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")
    assert place.alone(here, threads=2, gpus=2)["CUDA_VISIBLE_DEVICES"] == "7"
    assert place.alone(place.Place(), threads=2, gpus=2)["CUDA_VISIBLE_DEVICES"] == "6,7"
    shared = place.together(threads=2, port=1234)
    assert (shared["RANK"], shared["WORLD_SIZE"], shared["MASTER_PORT"]) == ("5", "8", "1234")


@pytest.mark.faults
def test_all_processes_train_each_run_together_with_ddp(data_dir: Path, tmp_path: Path) -> None:
    own = ["--model", "mlp", "--hidden", "8", "--vary", "lr=0.1,0.01", "--ddp"]
    ended = start(*LAUNCH, *own, *TINY, "--runs-dir", str(tmp_path), data_dir=data_dir)
    _, err = ended.communicate(timeout=240)
    assert ended.returncode == 0, err
    rows = [json.loads(path.read_text()) for path in tmp_path.glob("*/result.json")]
    assert [row["processes"] for row in rows] == [2, 2]
