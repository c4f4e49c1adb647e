"""What a row says of cost and of what made it."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.layout import write_layout

import stl10bench
from stl10bench.results.run_folder import RunFolder
from stl10bench.training import row as row_module

TINY: dict[str, Any] = {"image_size": 8, "epochs": 1, "batch_size": 8, "tracker": "none"}


def test_a_row_says_what_inference_costs(data_dir: Path, tmp_path: Path) -> None:
    options = {**TINY, "data_dir": data_dir, "runs_dir": tmp_path, "threads": 1}
    small = stl10bench.train("mlp", hidden=(4,), **options)
    large = stl10bench.train("mlp", hidden=(4096, 4096), **options)
    for row in (small, large):
        assert 0 < row["latency_ms"] <= row["latency_p95_ms"]
        checkpoint = tmp_path / row["checkpoint"]
        assert row["checkpoint_mb"] == checkpoint.stat().st_size / 1e6
        assert row["peak_memory_mb"] > 50
    assert small["latency_ms"] < large["latency_ms"]
    assert small["inference_images_per_second"] > large["inference_images_per_second"]
    assert large["peak_memory_mb"] >= small["peak_memory_mb"]


def test_a_row_says_what_made_it_and_nothing_of_who(data_dir: Path, tmp_path: Path) -> None:
    row = stl10bench.train(
        "logistic", data_dir=data_dir, runs_dir=tmp_path, deterministic=True, threads=1, **TINY
    )
    assert torch.__version__.startswith(row["libraries"]["torch"])
    assert (row["threads"], row["processes"], row["deterministic"]) == (1, 1, True)
    assert row["contamination"] == "none"
    assert row["weights"] == {"source": "none", "sha256": None}
    assert len(row.config.data) == 64
    text = (tmp_path / row["run"] / "result.json").read_text()
    assert str(tmp_path) not in text
    assert os.uname().nodename not in text
    torch.use_deterministic_algorithms(False)


def test_a_row_names_the_commit_and_whether_the_code_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "stl10bench"
    package.mkdir()
    code = package / "__init__.py"
    code.write_text("")
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    monkeypatch.setattr(row_module, "_PACKAGE", package)
    for change, dirty in (("", False), ("\n", True)):
        code.write_text(change)
        row_module._code.cache_clear()
        found = row_module.provenance(torch.device("cpu"))
        assert re.fullmatch(r"[0-9a-f]{40}", found["commit"])
        assert found["dirty"] == dirty
    row_module._code.cache_clear()


def test_the_commit_is_that_of_the_whole_package() -> None:
    assert Path(stl10bench.__file__).parent == row_module._PACKAGE


@pytest.mark.parametrize(
    ("target", "fields", "note"),
    [
        ("models.summary.macs", ["macs"], "macs"),
        ("training.row.measure_cost", ["latency_ms", "inference_images_per_second"], "latency"),
        ("training.row._peak_bytes", ["peak_memory_mb"], "peak memory"),
        ("training.row.provenance", ["device", "cpu", "commit"], "machine"),
        ("training.row.measures", ["test_macro_f1", "test_ece"], "confusion and calibration"),
    ],
)
def test_what_describes_a_result_never_loses_it(
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    fields: list[str],
    note: str,
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("\x1b[31mExpected gradient function to be set\x1b[0m\nand more")

    monkeypatch.setattr(f"stl10bench.{target}", fail)
    row = stl10bench.train("logistic", data_dir=data_dir, runs_dir=tmp_path, **TINY)
    assert [row[field] for field in fields] == [None] * len(fields)
    expected = f"{note}: not known (AssertionError: Expected gradient function to be set)"
    assert expected in row.test_notes
    assert stl10bench.train("logistic", data_dir=data_dir, runs_dir=tmp_path, **TINY) == row


def test_a_single_fold_overlaps_with_none_and_has_its_row(tmp_path: Path) -> None:
    write_layout(tmp_path)
    (tmp_path / "stl10_binary" / "fold_indices.txt").write_text("0 1 2 3 4 5 6 7\n")
    options = {**TINY, "data_dir": tmp_path, "runs_dir": tmp_path, "fold": 0, "val_fraction": 0.0}
    row = stl10bench.train("logistic", **options)
    assert row.fold_overlap == 0


def test_a_finite_loss_of_any_size_has_a_row(data_dir: Path, tmp_path: Path) -> None:
    options = {**TINY, "data_dir": data_dir, "runs_dir": tmp_path, "optimizer": "sgd"}
    row = stl10bench.train("logistic", lr=1e17, weight_decay=0.0, schedule="constant", **options)
    assert row.test_loss is not None
    assert row.test_loss > 1e15
    assert RunFolder(tmp_path / str(row.run)).row() == row


def test_a_row_of_255_classes_is_small_and_its_confusion_comes_from_the_predictions(
    tmp_path: Path,
) -> None:
    names = tuple(f"class-{number}" for number in range(255))
    write_layout(tmp_path / "data", train=510, test=255, names=names)
    options = {**TINY, "data_dir": tmp_path / "data", "runs_dir": tmp_path, "val_fraction": 0}
    row = stl10bench.train("logistic", **options)
    folder = RunFolder(tmp_path / str(row.run))
    assert folder.result_file.stat().st_size < 20_000
    confusion = folder.with_hits(folder.row()).confusion
    assert confusion is not None
    assert (len(confusion), sum(map(sum, confusion))) == (255, 255)
