"""Settings that are trained side by side: each as if it were alone."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import stl10bench
from stl10bench.core.console import LAUNCHED
from stl10bench.core.errors import InterruptedRunError, UsageError
from stl10bench.models import checkpoint

TINY: dict[str, Any] = {
    "image_size": 8,
    "epochs": 5,  # of 4 steps: 20 steps
    "batch_size": 8,
    "tracker": "none",
    "threads": 1,
    "precision": "no",
}

MEMBERS: dict[str, list[dict[str, Any]]] = {
    "logistic": [
        {"lr": 0.01},
        {"lr": 0.001, "weight_decay": 0.5},
        {"lr": 0.1, "optimizer": "sgd", "momentum": 0.5, "schedule": "constant"},
        {"lr": 0.01, "label_smoothing": 0.2, "warmup": 0.5},
    ],
    "mlp": [
        {"hidden": [16, 8], "dropout": 0.5},
        {"hidden": [16, 8], "dropout": 0.0},
        {"hidden": [4], "dropout": 0.5, "lr": 0.01},
    ],
}


def of(row: dict[str, Any], runs_dir: Path, name: str) -> dict[str, torch.Tensor]:
    return checkpoint.load(runs_dir / row["run"] / f"{name}.safetensors")[0]


def numbers(row: dict[str, Any], runs_dir: Path) -> list[dict[str, float]]:
    lines = (runs_dir / row["run"] / "metrics.jsonl").read_text().splitlines()
    varying = ("time", "seconds", "images_per_second")
    return [{k: v for k, v in json.loads(line).items() if k not in varying} for line in lines]


@pytest.mark.parametrize("model", MEMBERS)
def test_a_member_is_the_run_that_it_would_be_alone(
    data_dir: Path, tmp_path: Path, model: str
) -> None:
    options = {**TINY, "data_dir": data_dir}
    alone = [
        stl10bench.train(model, runs_dir=tmp_path / "alone", **{**options, **member})
        for member in MEMBERS[model]
    ]
    stacked = stl10bench.train_stack(model, MEMBERS[model], runs_dir=tmp_path / "stack", **options)
    for one, member in zip(alone, stacked, strict=True):
        assert one["run"] == member["run"]
        assert member.pop("stacked") == len(alone)
        assert one.keys() == member.keys()
        for name in ("last", "best"):
            expected, found = (
                of(row, tmp_path / where, name)
                for row, where in ((one, "alone"), (member, "stack"))
            )
            for key, value in expected.items():
                torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5)
        pairs = zip(
            numbers(one, tmp_path / "alone"), numbers(member, tmp_path / "stack"), strict=True
        )
        for first, second in pairs:
            assert second == pytest.approx(first, rel=1e-4, abs=1e-6)


def test_a_member_that_diverges_does_not_stop_the_others(data_dir: Path, tmp_path: Path) -> None:
    members = [{"lr": 0.01}, {"lr": 1e38, "optimizer": "sgd", "warmup": 0}, {"lr": 0.001}]
    rows = stl10bench.train_stack("logistic", members, data_dir=data_dir, runs_dir=tmp_path, **TINY)
    assert ["error" in row for row in rows] == [False, True, False]
    assert "diverged" in rows[1]["error"]
    assert "1e+38" in rows[1]["error"]
    status = json.loads((tmp_path / rows[1]["run"] / "status.json").read_text())
    assert status["state"] == "diverged"
    alone = stl10bench.train(
        "logistic", lr=0.001, data_dir=data_dir, runs_dir=tmp_path / "alone", **TINY
    )
    for key, value in of(alone, tmp_path / "alone", "last").items():
        torch.testing.assert_close(of(rows[2], tmp_path, "last")[key], value, rtol=0, atol=1e-5)


def test_finished_members_are_not_trained_again(data_dir: Path, tmp_path: Path) -> None:
    options = {**TINY, "data_dir": data_dir, "runs_dir": tmp_path}
    first = stl10bench.train("logistic", lr=0.01, **options)
    members = [{"lr": 0.02}, {"lr": 0.01}, {"lr": 0.02}]
    rows = stl10bench.train_stack("logistic", members, **options)
    assert rows[1] == first
    assert rows[0] == rows[2]
    assert rows[0]["stacked"] == 1
    assert stl10bench.train_stack("logistic", members, **options) == rows
    assert len(list(tmp_path.glob("*/result.json"))) == 2


def test_a_member_that_another_finished_meanwhile_keeps_its_row(
    data_dir: Path, tmp_path: Path
) -> None:
    options = {**TINY, "data_dir": data_dir}
    members = [{"lr": 0.02}, {"lr": 0.01}]
    other = stl10bench.train("logistic", **options, **members[1], runs_dir=tmp_path / "other")

    class Said(io.StringIO):
        def write(self, text: str) -> int:
            if "epoch 2/" in text:  # the other finishes now
                shutil.copytree(tmp_path / "other", tmp_path / "runs", dirs_exist_ok=True)
            return len(text)

    rows = stl10bench.train_stack(
        "logistic", members, **options, runs_dir=tmp_path / "runs", console=Console(file=Said())
    )
    assert ("stacked" in rows[0], rows[1]) == (True, other)
    name = f"{other['run']}/result.json"
    assert (tmp_path / "runs" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    status = json.loads((tmp_path / "runs" / other["run"] / "status.json").read_text())
    assert status["state"] == "finished"


def test_a_stack_whose_launcher_died_ends_with_its_epoch(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LAUNCHED, "-1")  # nobody's child
    said = io.StringIO()
    with pytest.raises(InterruptedRunError, match="its launcher died"):
        stl10bench.train_stack(
            *("logistic", [{"lr": 0.02}, {"lr": 0.01}]),
            **{**TINY, "data_dir": data_dir, "runs_dir": tmp_path / "runs"},
            console=Console(file=said),
        )
    assert said.getvalue().count("epoch") == 1
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ([{}, {"batch_size": 4}], "batch_size = 8 and 4 cannot be stacked"),
        ([{}, {"lr": 1.0}, {"flip": 0.0}], "flip = 0.5 and 0.0 cannot be stacked"),
        ([{"seed": 1}, {"seed": 2}], "seed = 1 and 2 cannot be stacked"),
    ],
)
def test_members_that_need_other_batches_are_refused(
    data_dir: Path, tmp_path: Path, members: list[dict[str, Any]], text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        stl10bench.train_stack(
            "logistic", members, **{**TINY, "data_dir": data_dir, "runs_dir": tmp_path}
        )
    assert not list(tmp_path.iterdir())


def test_a_backbone_is_not_stacked(data_dir: Path) -> None:
    with pytest.raises(UsageError, match="'mobilenetv2' has a backbone"):
        stl10bench.train_stack("mobilenetv2", [{}], data_dir=data_dir)
