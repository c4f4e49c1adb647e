"""One run: what it computes, what it leaves behind, what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.layout import write_layout
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

import stl10bench
from stl10bench.core.errors import (
    BusyError,
    CheckpointError,
    DataError,
    DivergedError,
    StorageError,
    UsageError,
)
from stl10bench.data.splits import split_validation
from stl10bench.data.stl10 import open_dataset
from stl10bench.models import checkpoint

TINY: dict[str, Any] = {
    "image_size": 8,
    "epochs": 3,
    "batch_size": 8,
    "tracker": "none",
    "threads": 1,
}
MODELS = {
    "logistic": {"image_size": 8},
    "mlp": {"image_size": 8, "hidden": (16,)},
    "cnn": {"image_size": 61, "channels": (4, 4, 4, 8), "hidden": (8,)},
    "mobilenetv2": {"image_size": 32, "freeze": False, "pretrained": False, "hidden": (8,)},
}


def train(data_dir: Path, runs_dir: Path, model: str = "logistic", **options: Any) -> Any:
    return stl10bench.train(
        model, **{**TINY, "data_dir": data_dir, "runs_dir": runs_dir, **options}
    )


def metrics_of(row: dict[str, Any], runs_dir: Path) -> list[dict[str, Any]]:
    lines = (runs_dir / row["run"] / "metrics.jsonl").read_text().splitlines()
    varying = ("time", "seconds", "images_per_second")
    return [{k: v for k, v in json.loads(line).items() if k not in varying} for line in lines]


@pytest.mark.parametrize("model", MODELS)
def test_the_same_seed_gives_the_same_bits(data_dir: Path, tmp_path: Path, model: str) -> None:
    options = {**MODELS[model], "epochs": 2}
    rows = [train(data_dir, tmp_path / name, model, **options) for name in ("a", "b")]
    first, second = (tmp_path / name / row["run"] for name, row in zip("ab", rows, strict=True))
    assert metrics_of(rows[0], tmp_path / "a") == metrics_of(rows[1], tmp_path / "b")
    for name in ("best.safetensors", "last.safetensors", "predictions.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_another_seed_gives_other_weights(data_dir: Path, tmp_path: Path) -> None:
    states = []
    for seed in (0, 1):
        row = train(data_dir, tmp_path, seed=seed, val_fraction=0)
        states.append(checkpoint.load(tmp_path / row["checkpoint"])[0])
    assert not torch.equal(states[0]["linears.0.weight"], states[1]["linears.0.weight"])


def test_training_learns_what_colour_alone_can_tell(data_dir: Path, tmp_path: Path) -> None:
    row = train(data_dir, tmp_path, epochs=20, lr=0.01, brightness=0, contrast=0, hue=0)
    assert row["test_accuracy"] > 0.9
    losses = [line["train/loss"] for line in metrics_of(row, tmp_path) if "train/loss" in line]
    assert losses[-1] < losses[0] / 2


def test_a_run_leaves_its_row_metrics_weights_and_predictions(
    data_dir: Path, tmp_path: Path
) -> None:
    row = train(data_dir, tmp_path)
    folder = tmp_path / row["run"]
    assert json.loads((folder / "result.json").read_text()) == row.stored()
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert json.loads((folder / "config.json").read_text()) == row.config.model_dump(mode="json")
    lines = metrics_of(row, tmp_path)
    assert [line.get("epoch") for line in lines] == [1, 2, 3, None]
    assert [line["step"] for line in lines] == [4, 8, 12, 12]  # 36 images to train on, batch 8
    stored = load_file(folder / "predictions.safetensors")
    hits = (stored["logits"].argmax(1) == stored["labels"]).sum().item()
    assert row["test_accuracy"] == hits / 20
    assert stored["labels"].tolist() == open_dataset(data_dir).test.labels.tolist()
    wanted = (
        "run model config dataset test_accuracy test_accuracy_interval test_loss val_accuracy "
        "parameters trainable_parameters macs image_size pretrained epochs processes "
        "train_seconds images_per_second checkpoint"
    )
    assert set(wanted.split()) <= row.stored().keys()
    assert row.best_epoch is not None
    assert 0 < row["seconds_to"] <= row["train_seconds"]
    logged = (folder / "metrics.jsonl").read_text().splitlines()
    times = [json.loads(line)["time"] for line in logged if '"epoch"' in line]
    since_best = times[-1] - times[row.best_epoch - 1]
    assert row["train_seconds"] - row["seconds_to"] == pytest.approx(since_best, abs=0.1)
    assert not list(folder.glob("**/.*"))


def test_best_is_the_epoch_with_the_highest_hold_out_accuracy(
    data_dir: Path, tmp_path: Path
) -> None:
    options = {"epochs": 8, "val_fraction": 0.3, "lr": 0.1, "schedule": "constant"}
    row = train(data_dir, tmp_path, **options)
    epochs = [line for line in metrics_of(row, tmp_path) if "epoch" in line]
    best = max(epochs, key=lambda line: (line["val/accuracy"], -line["val/loss"]))
    _, header = checkpoint.load(tmp_path / row["checkpoint"])
    assert header.epoch == row["best_epoch"] == best["epoch"]
    assert header.metrics["val/accuracy"] == best["val/accuracy"] == row["val_accuracy"]
    assert header.metrics["test/accuracy"] == row["test_accuracy"]
    assert best["epoch"] < 8, "another seed or rate: the test must tell best from last"
    options |= {"epochs": best["epoch"]}  # at a constant rate the same steps, but no more of them
    shorter = train(data_dir, tmp_path, **options)
    kept, _ = checkpoint.load(tmp_path / row["checkpoint"])
    last, _ = checkpoint.load(tmp_path / shorter["run"] / "last.safetensors")
    assert all(torch.equal(kept[key], last[key]) for key in last)


@pytest.mark.parametrize("split", ["val", "test"])
def test_neither_hold_out_nor_test_images_reach_the_weights(
    data_dir: Path, tmp_path: Path, split: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(data_dir, other)
    name = "test_X.bin" if split == "test" else "train_X.bin"
    images = np.memmap(other / "stl10_binary" / name, mode="r+").reshape(-1, 3, 96, 96)
    rows = slice(None)
    if split == "val":
        rows = split_validation(open_dataset(data_dir).train.labels, 0.1, seed=0)[1]
    images[rows] = 255 - images[rows]
    images.flush()
    states = []
    for folder in (data_dir, other):
        row = train(folder, tmp_path / "runs")
        states.append(load_file(tmp_path / "runs" / row["run"] / "last.safetensors"))
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


def test_without_a_hold_out_all_images_train_and_the_last_epoch_counts(
    data_dir: Path, tmp_path: Path
) -> None:
    row = train(data_dir, tmp_path, val_fraction=0)
    folder = tmp_path / row["run"]
    assert (row["selection"], row["val_accuracy"], row["best_epoch"]) == ("last epoch", None, 3)
    assert row["checkpoint"].endswith("last.safetensors")
    assert not (folder / "best.safetensors").exists()
    assert metrics_of(row, tmp_path)[0]["step"] == 5  # 40 images


def test_evaluate_gives_the_row_of_the_run_again(data_dir: Path, tmp_path: Path) -> None:
    row = train(data_dir, tmp_path, "cnn", **MODELS["cnn"])
    again = stl10bench.evaluate(tmp_path / row["checkpoint"], data_dir=data_dir)
    for key in ("test_accuracy", "test_accuracy_interval", "test_loss", "parameters", "macs"):
        assert again[key] == row.stored()[key], key
    held_out = stl10bench.evaluate(tmp_path / row["checkpoint"], data_dir=data_dir, split="val")
    assert held_out["val_accuracy"] == row["val_accuracy"]
    assert held_out["val_images"] == 4


def test_a_loaded_checkpoint_gives_the_stored_logits_for_raw_images(
    data_dir: Path, tmp_path: Path
) -> None:
    row = train(data_dir, tmp_path, "cnn", **MODELS["cnn"], precision="no")
    model = stl10bench.load(tmp_path / row["checkpoint"])
    images = torch.from_numpy(np.ascontiguousarray(open_dataset(data_dir).test.images))
    with torch.no_grad():
        logits = model(images)
    stored = load_file(tmp_path / row["run"] / "predictions.safetensors")["logits"]
    torch.testing.assert_close(logits, stored, atol=1e-5, rtol=1e-5)
    assert model.class_names == ("ant", "bee", "cow", "dog")


def test_data_of_another_size_train_crop_and_are_predicted_at_their_size(tmp_path: Path) -> None:
    data_dir = write_layout(tmp_path / "data", size=128)
    row = train(data_dir, tmp_path, input="crop", image_size=112)
    assert (row.config.data_size, row.config.image_size) == (128, 112)
    images = open_dataset(data_dir).test.images
    for index, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{index:02}.png")
    best = tmp_path / row.run / "best.safetensors"
    found = stl10bench.load(best).predict(*sorted(tmp_path.glob("*.png")))
    stored = load_file(tmp_path / row.run / "predictions.safetensors")["logits"].softmax(1)
    assert [one.probabilities[0] for one in found] == pytest.approx(stored.amax(1).tolist())
    with pytest.raises(UsageError, match="larger than the data's images"):
        train(data_dir, tmp_path, input="crop", image_size=144)
    again = stl10bench.evaluate(best, data_dir=data_dir)
    assert again["test_loss"] == pytest.approx(row.test_loss)


def test_a_crop_trains_and_is_evaluated_in_the_centre(data_dir: Path, tmp_path: Path) -> None:
    row = train(data_dir, tmp_path, input="crop", image_size=32)
    model = stl10bench.load(tmp_path / row["checkpoint"])
    images = torch.from_numpy(np.ascontiguousarray(open_dataset(data_dir).test.images))
    stored = load_file(tmp_path / row["run"] / "predictions.safetensors")["logits"]
    with torch.no_grad():
        torch.testing.assert_close(model(images), stored, atol=1e-5, rtol=1e-5)
        cropped = model.model((images[:, :, 32:64, 32:64] / 255 - model.mean) / model.std)
    torch.testing.assert_close(cropped, stored, atol=1e-5, rtol=1e-5)


def test_a_finished_run_is_not_trained_again(data_dir: Path, tmp_path: Path) -> None:
    row = train(data_dir, tmp_path)
    before = (tmp_path / row["checkpoint"]).stat().st_mtime_ns
    assert train(data_dir, tmp_path) == row
    assert (tmp_path / row["checkpoint"]).stat().st_mtime_ns == before


def test_overwrite_moves_the_old_run_aside(data_dir: Path, tmp_path: Path) -> None:
    row = train(data_dir, tmp_path)
    old = (tmp_path / row["checkpoint"]).read_bytes()
    train(data_dir, tmp_path, overwrite=True)
    assert (tmp_path / f"{row['run']}.old-1" / "best.safetensors").read_bytes() == old
    assert (tmp_path / row["checkpoint"]).exists()


def test_an_edited_result_is_refused(data_dir: Path, tmp_path: Path) -> None:
    row = train(data_dir, tmp_path)
    path = tmp_path / row["run"] / "result.json"
    path.write_text(path.read_text().replace('"epochs": 3', '"epochs": 4'))
    with pytest.raises(
        CheckpointError,
        match=r"result.json: epochs = 4, but logistic-.* of epochs = 3: .*--overwrite",
    ):
        train(data_dir, tmp_path)


def test_a_run_without_a_row_is_made_anew_in_its_folder(data_dir: Path, tmp_path: Path) -> None:
    row = train(data_dir, tmp_path)
    (tmp_path / row["run"] / "result.json").unlink()
    (tmp_path / row["run"] / "metrics.jsonl").write_text("half a run\n")
    again = train(data_dir, tmp_path)
    assert again["test_loss"] == row["test_loss"]
    assert len(metrics_of(again, tmp_path)) == 4


@pytest.mark.parametrize("state", ["interrupted", "diverged"])
def test_a_folder_made_for_another_config_is_refused(
    data_dir: Path, tmp_path: Path, state: str
) -> None:
    row = train(data_dir, tmp_path)
    folder = tmp_path / row["run"]
    (folder / "result.json").unlink()
    status = {"state": state, "reason": "for a test"}
    (folder / "status.json").write_text(json.dumps(status))
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(
        CheckpointError, match=r"config.json: seed = 1, but .* --overwrite"
    ) as error:
        train(data_dir, tmp_path)
    assert error.value.exit_code == 4
    train(data_dir, tmp_path, overwrite=True)
    assert (tmp_path / f"{row['run']}.old-1" / "config.json").exists()


def test_a_run_folder_in_use_is_refused(data_dir: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    row = train(data_dir, tmp_path)
    with FileLock(tmp_path / f".{row['run']}.lock"), pytest.raises(BusyError, match=row["run"]):
        train(data_dir, tmp_path, overwrite=True)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lamb"])
def test_divergence_is_said_recorded_and_not_repeated(
    data_dir: Path, tmp_path: Path, optimizer: str
) -> None:
    options = {"optimizer": optimizer, "lr": 1e30, "schedule": "constant", "warmup": 0}
    texts = []
    for _ in range(2):
        with pytest.raises(DivergedError, match=r"of step \d+ are not finite.*lower --lr") as error:
            train(data_dir, tmp_path, "mlp", **options)
        assert error.value.exit_code == 5
        texts.append(str(error.value))
    assert texts[1].startswith(texts[0])
    assert "pass --overwrite to retrain" in texts[1]
    (path,) = tmp_path.glob("*/status.json")
    status = json.loads(path.read_text())
    assert status["state"] == "diverged"
    assert 1 <= status["step"] <= 12
    assert status["lr"] == pytest.approx(1e30)
    assert status["last_finite_loss"] > 0
    assert not list(tmp_path.glob("*/result.json"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch_size": 37}, r"batch_size = 37 is larger than the 36 training images"),
        ({"optimizer": "adamv"}, r"unknown optimizer 'adamv': did you mean 'adam"),
        ({"device": "cpuu"}, r"unknown device 'cpuu': did you mean 'cpu'"),
        ({"precision": "fp16", "device": "cpu"}, r"fp16 does not work on a CPU"),
        ({"tracker": "wandbb"}, r"unknown tracker 'wandbb': did you mean 'wandb'"),
        ({"dataset": "stl11"}, r"unknown dataset 'stl11': did you mean 'stl10'"),
        ({"dropout": 0.1}, r"model 'logistic' has no option.*'dropout'"),
        ({"epoch": 3}, r"'epoch'.*did you mean 'epochs'"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    data_dir: Path, tmp_path: Path, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        train(data_dir, tmp_path, **options)
    assert not list(tmp_path.glob("*/result.json"))


def test_a_recipes_batch_is_halved_until_the_training_images_fill_it(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that was asked for is refused: see above."""
    options = {**TINY, "data_dir": data_dir, "runs_dir": tmp_path, "epochs": 1, "hidden": (8,)}
    del options["batch_size"]
    row = stl10bench.train("mlp", labels_per_class=4, console=Console(width=200), **options)
    images = row.labels_used
    assert images < 64
    assert images // 2 < row.config.batch_size <= images
    said = capsys.readouterr().out
    assert f"Batch size {row.config.batch_size}, not the recipe's 128: there are {images}" in said


def test_a_hold_out_of_no_image_is_refused(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"val_fraction = 0.01: class 0 has 10 images"):
        train(data_dir, tmp_path, val_fraction=0.01)


def test_a_runs_folder_that_is_a_file_is_a_storage_error(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(StorageError, match="runs"):
        train(data_dir, tmp_path / "runs")


def test_a_checkpoint_for_other_classes_is_refused(data_dir: Path, tmp_path: Path) -> None:
    row = train(data_dir, tmp_path)
    other = write_layout(tmp_path / "other", names=("ant", "bee", "cow", "elk"))
    with pytest.raises(DataError, match=r"classes of the checkpoint .ant, bee, cow, dog. differ"):
        stl10bench.evaluate(tmp_path / row["checkpoint"], data_dir=other)
    many = write_layout(tmp_path / "many", names=tuple(f"c{n}" for n in range(20)))
    with pytest.raises(DataError, match=r"c8, c9, ... \(20 in all\)\): pass"):
        stl10bench.evaluate(tmp_path / row["checkpoint"], data_dir=many)
