"""Image files and folders -> classes: what evaluation would say of the same images."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.layout import NAMES
from PIL import Image

import stl10bench
from stl10bench.config import make_config
from stl10bench.core.errors import CheckpointError, UsageError
from stl10bench.data.loader import load_images
from stl10bench.data.stl10 import open_dataset
from stl10bench.inference import predictor
from stl10bench.inference.predictor import (
    BATCH,
    Broken,
    Prediction,
    Predictor,
    classify,
    find_checkpoint,
)
from stl10bench.models import checkpoint
from stl10bench.models.factory import build_model


def save(path: Path, *, size: int = 8, fill: float | None = None, **settings: object) -> Path:
    """A checkpoint of an untrained logistic regression on the four classes."""
    torch.manual_seed(0)
    model = build_model("logistic", len(NAMES), size, {})
    for parameter in model.parameters() if fill else ():
        torch.nn.init.constant_(parameter, fill)
    config = make_config({"model": "logistic", "image_size": size, **settings})
    made = checkpoint.Header(
        config=config, class_names=NAMES, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)
    )
    checkpoint.save(path, model, made)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Predictor:
    return stl10bench.load(save(tmp_path / "model.safetensors"))


def paint(path: Path, seed: int, shape: tuple[int, int] = (96, 96)) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def decoded_by_two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor, "_THREADS", 2)


@pytest.mark.parametrize("settings", [{}, {"input": "crop", "size": 32}, {"size": 96}])
def test_a_png_is_seen_as_the_same_image_in_stl10s_files(
    tmp_path: Path, data_dir: Path, settings: dict[str, object]
) -> None:
    """The files hold channel, column, row: a transposed image would have other logits."""
    model = stl10bench.load(save(tmp_path / "model.safetensors", **settings))  # type: ignore[arg-type]
    split = open_dataset(data_dir).test
    for index, image in enumerate(split.images):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{index:02}.png")
    fed = load_images(split, np.arange(20), model.header.config, torch.device("cpu")).images
    config = model.header.config
    start = (fed.shape[-1] - config.image_size) // 2
    window = slice(start, start + config.image_size)
    floats = (fed[:, :, window, window].float() / 255 - model.mean) / model.std
    expected = model.model(floats).detach().softmax(1).max(1)
    found = model.predict(tmp_path)
    assert isinstance(found[-1], Broken)  # the checkpoint
    for row, one in enumerate(found[:-1]):
        assert isinstance(one, Prediction)
        assert one.file.name == f"{row:02}.png"
        assert one.classes == (NAMES[int(expected.indices[row])],)
        assert one.probabilities[0] == pytest.approx(float(expected.values[row]), abs=1e-6)


def test_the_probabilities_of_all_classes_are_sorted_and_sum_to_one(
    model: Predictor, tmp_path: Path
) -> None:
    (one,) = model.predict(paint(tmp_path / "a.png", 1), top=100)
    assert isinstance(one, Prediction)
    assert sorted(one.classes) == sorted(NAMES)
    assert list(one.probabilities) == sorted(one.probabilities, reverse=True)
    assert sum(one.probabilities) == pytest.approx(1)


@pytest.mark.usefixtures("decoded_by_two_threads")
def test_batches_and_threads_change_neither_order_nor_classes(
    model: Predictor, tmp_path: Path
) -> None:
    files = [
        paint(tmp_path / f"{seed:03}.png", seed, (40 + seed % 7, 50)) for seed in range(BATCH + 9)
    ]
    files[5].write_text("no image")
    files[BATCH].write_bytes(files[BATCH].read_bytes()[:-60])
    counted: list[int] = []
    together = classify(model, files, top=2, report=counted.append)
    assert [one.file for one in together] == files
    assert [isinstance(one, Broken) for one in together] == [
        index in (5, BATCH) for index in range(len(files))
    ]
    assert sum(counted) == len(files)
    for index in (0, 6, BATCH - 1, BATCH + 1, BATCH + 8):
        (alone,) = model.predict(files[index], top=2)
        assert alone[:2] == together[index][:2]
        assert alone[2] == pytest.approx(together[index][2], abs=1e-6)  # type: ignore[misc]


def test_a_large_image_is_read_like_a_small_one(
    model: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [paint(tmp_path / "a.png", 1, (40, 40)), paint(tmp_path / "b.png", 2, (30, 30))]
    before = classify(model, files)
    monkeypatch.setattr("stl10bench.data.image_file.LARGE", 1000)  # so that threads leave it
    assert classify(model, files) == before


def test_an_image_over_the_limit_of_pixels_is_reported_and_not_read_later(
    model: Predictor, tmp_path: Path
) -> None:
    Image.new("1", (10_000, 9_000)).save(tmp_path / "bomb.png")
    (one,) = model.predict(tmp_path / "bomb.png")
    assert isinstance(one, Broken)
    assert one.reason == "10000x9000 = 90000000 pixels, and at most 89478485 are decoded"


def test_folders_are_walked_by_name_and_links_never_in_circles(
    model: Predictor, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    for name in ("b.png", "a.png", "deep/er/c.png", ".hidden.png", ".cache/d.png"):
        paint(folder / name, 0)
    (folder / "deep" / "circle").symlink_to(folder)
    (folder / "z.png").symlink_to("a.png")
    (folder / "loop.png").symlink_to("loop.png")
    (tmp_path / "empty").mkdir()
    found = model.predict(folder, tmp_path / "empty", tmp_path / "missing.png")
    shown = [one.file.relative_to(tmp_path).as_posix() for one in found]
    assert shown == [
        *("photos/a.png", "photos/b.png", "photos/loop.png", "photos/z.png"),
        *("photos/deep/circle", "photos/deep/er/c.png", "empty", "missing.png"),
    ]
    reasons = {one.file.name: one.reason for one in found if isinstance(one, Broken)}
    assert reasons.keys() == {"circle", "loop.png", "empty", "missing.png"}
    assert "not followed" in reasons["circle"]
    assert reasons["empty"] == "the folder is empty"


def test_logits_that_overflow_are_an_error_and_no_probability(tmp_path: Path) -> None:
    model = stl10bench.load(save(tmp_path / "model.safetensors", fill=3e38))
    with pytest.raises(CheckpointError, match="not finite"):
        model.predict(paint(tmp_path / "a.png", 0))


def test_resizing_to_the_own_size_changes_no_pixel() -> None:
    """So that one graph serves images of all sizes."""
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    for layout in (torch.contiguous_format, torch.channels_last):
        given = images.contiguous(memory_format=layout)
        resized = torch.nn.functional.interpolate(
            given, size=(40, 40), mode="bilinear", antialias=True
        )
        assert torch.equal(resized, images)


def test_a_checkpoint_may_be_said_by_the_name_of_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(Path(__file__).parents[1] / "fixtures" / "runs-0.1.0", tmp_path / "mine")
    monkeypatch.setenv("STL10BENCH_RUNS", str(tmp_path / "mine"))
    best = tmp_path / "mine" / "logistic-3ccf0de0" / "best.safetensors"
    for name in ("logistic-3cc", "logistic-3ccf0de0", best.parent, best):
        assert find_checkpoint(Path(name)) == best
    with pytest.raises(UsageError, match="run 'logistic' is ambiguous"):
        find_checkpoint(Path("logistic"))
    with pytest.raises(UsageError, match="unknown run 'logstic': did you mean 'logistic'"):
        find_checkpoint(Path("logstic"))
    with pytest.raises(CheckpointError, match="no checkpoint none/nothing: pass a run's name in"):
        find_checkpoint(Path("none/nothing"))
