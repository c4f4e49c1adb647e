"""What a run starts from: files, runs and hub names, and what they had seen before."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.layout import write_layout
from safetensors.torch import load_file, save_file

import stl10bench
from stl10bench.core.errors import CheckpointError, UsageError

SMALL: dict[str, Any] = {
    **{"image_size": 8, "precision": "no", "tracker": "none", "threads": 1, "epochs": 1},
    **{"batch_size": 8, "hidden": (6, 5)},
}


@pytest.fixture
def train(data_dir: Path, tmp_path: Path) -> Any:
    def train(model: str = "mlp", **options: Any) -> Any:
        where = {"data_dir": data_dir, "runs_dir": tmp_path / "runs"}
        return stl10bench.train(model, **{**SMALL, **where, **options})

    return train


def tensors(row: Any, runs_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(runs_dir / str(row.checkpoint))


@pytest.mark.parametrize("form", ["file", "name", "beginning", "folder", "export"])
def test_a_run_starts_from_the_weights_of_another(train: Any, tmp_path: Path, form: str) -> None:
    first = train()
    forms = {
        "file": tmp_path / "runs" / first.checkpoint,
        "name": first.run,
        "beginning": first.run[:9],
        "folder": tmp_path / "runs" / first.run,
        "export": tmp_path / "hub",
    }
    if form == "export":
        stl10bench.export(forms["file"], to="hub", output=forms["export"])
    # At a rate of almost 0 the first weights stay as they are.
    row = train(weights=forms[form], lr=1e-12, weight_decay=0.0)
    for key, value in tensors(row, tmp_path / "runs").items():
        torch.testing.assert_close(value, tensors(first, tmp_path / "runs")[key])
    assert row.config.weights.startswith("sha256:")
    assert row.contamination == "none"


def test_a_classifier_of_other_classes_is_left_out(train: Any, tmp_path: Path) -> None:
    first = train()
    other = write_layout(tmp_path / "other", names=("one", "two", "three", "four", "five"))
    with pytest.warns(UserWarning, match=r"leaving out its classifier.*linears\.2"):
        row = train(weights=first.run, data_dir=other, lr=1e-12, weight_decay=0.0)
    theirs, ours = (tensors(each, tmp_path / "runs") for each in (first, row))
    torch.testing.assert_close(ours["linears.1.weight"], theirs["linears.1.weight"])
    assert ours["linears.2.weight"].shape == (5, 5)
    assert row.contamination == f"data {first.config.data[:12]}"


def test_what_the_weights_have_seen_is_handed_on(train: Any) -> None:
    first = train(seed=1)
    second = train(weights=first.run)  # whose validation images are others
    assert second.contamination == "validation images"
    third = train(weights=second.run, seed=0, epochs=2)
    assert third.contamination == "validation images"
    assert train(weights=train(seed=0, epochs=3).run, epochs=4).contamination == "none"


def test_what_the_run_before_the_last_one_learned_from_counts(train: Any) -> None:
    first = train(seed=1)
    second = train(weights=first.run, labels_per_class=1, batch_size=4, seed=2)
    assert second.contamination == "none"  # it has no validation images
    last = train(weights=second.run, labels_per_class=4, val_fraction=0.5)
    assert last.contamination == "validation images"  # some of which the first had
    clean = train(weights=train(weights=train(seed=0, epochs=5).run, epochs=6).run, epochs=7)
    assert clean.contamination == "none"


def test_a_backbone_starts_from_a_run_of_its_own_at_another_size(
    train: Any, tmp_path: Path, data_dir: Path
) -> None:
    torch.manual_seed(0)
    file = tmp_path / "backbone.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), file)
    options = {"image_size": 32, "hidden": (4,), "freeze": False}
    first = train("timm:test_resnet", weights=file, **options)
    assert first.contamination == "unknown"
    settings = {**options, "image_size": 40, "lr": 1e-12, "weight_decay": 0.0}
    second = train("timm:test_resnet", weights=first.run, **settings)
    theirs, ours = (tensors(each, tmp_path / "runs") for each in (first, second))
    for name, _ in timm.create_model("test_resnet", num_classes=0).named_parameters():
        torch.testing.assert_close(ours[f"backbone.{name}"], theirs[f"backbone.{name}"])
    assert second.mean == first.mean
    assert second.contamination == "unknown"
    probe = stl10bench.train(
        "timm:test_resnet",
        method="probe",
        weights=first.run,
        image_size=32,
        data_dir=data_dir,
        runs_dir=tmp_path / "runs",
        tracker="none",
    )
    assert probe.config.weights == second.config.weights


def test_weights_of_the_hub_are_named_by_their_content(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the hub's cache, where an earlier download left them."""
    first = train()
    folder = tmp_path / "hub/models--someone--something"
    (folder / "snapshots/abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("abc")
    shutil.copy(tmp_path / "runs" / first.checkpoint, folder / "snapshots/abc/model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    row = train(weights="hf-hub:someone/something")
    assert row.config.weights == train(weights=first.run).config.weights
    with pytest.raises(CheckpointError, match="cannot download someone/else"):
        train(weights="hf-hub:someone/else")


@pytest.mark.parametrize(
    ("model", "weights", "error", "message"),
    [
        ("cnn", "RUN", UsageError, "a checkpoint of model 'mlp'; 'cnn' cannot start from it"),
        ("mlp", "no-such", UsageError, "no run 'no-such'|unknown run 'no-such'"),
        ("mlp", "no.safetensors", CheckpointError, "cannot read the weights no.safetensors"),
        ("mlp", "FOREIGN", UsageError, "is not a stl10bench checkpoint"),
        ("mlp", "BITS", CheckpointError, "damaged"),
        ("mlp", "HEADER", CheckpointError, "damaged|format"),
    ],
)
def test_weights_that_cannot_be_are_refused(
    train: Any, tmp_path: Path, model: str, weights: str, error: type[Exception], message: str
) -> None:
    first = train()
    file = tmp_path / "runs" / first.checkpoint
    content = file.read_bytes()
    (tmp_path / "bits.safetensors").write_bytes(content[:-2] + b"\x01\x02")
    (tmp_path / "header.safetensors").write_bytes(content.replace(b"config", b"confug"))
    save_file({"a": torch.ones(2)}, tmp_path / "foreign.safetensors")
    names = {
        **{"RUN": first.run, "FOREIGN": tmp_path / "foreign.safetensors"},
        **{"BITS": tmp_path / "bits.safetensors", "HEADER": tmp_path / "header.safetensors"},
    }
    before = {path.name for path in (tmp_path / "runs").glob("*/")}
    with pytest.raises(error, match=message):
        train(model, weights=names.get(weights, weights))
    assert {path.name for path in (tmp_path / "runs").glob("*/")} == before


def test_a_hidden_layer_of_another_width_is_refused(train: Any) -> None:
    first = train()
    with pytest.raises(CheckpointError, match=r"does not fit the model.*linears\.0"):
        train(weights=first.run, hidden=(7, 5))


def test_a_header_of_010_knows_the_source_alone(data_dir: Path, tmp_path: Path) -> None:
    stored = Path(__file__).parents[1] / "fixtures/runs-0.1.0/mlp-6585d2c6/best.safetensors"
    row = stl10bench.train(
        "mlp",
        **{**SMALL, "hidden": (16,), "weights": stored},
        data_dir=data_dir,
        runs_dir=tmp_path / "runs",
    )
    assert row.contamination == "none"  # the same images, the same seed
