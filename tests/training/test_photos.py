"""Real photos and real ImageNet weights, where `../shared` has them: short runs, end to end."""

import tarfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers.layout import SHARED
from PIL import Image
from safetensors.torch import load_file

import stl10bench
from stl10bench.data.image_folder import import_folder
from stl10bench.models import checkpoint

PHOTOS = SHARED / "data" / "photos96"
WEIGHTS = SHARED / "weights" / "mobilenetv2_100.safetensors"
pytestmark = pytest.mark.skipif(
    not (PHOTOS.is_dir() and WEIGHTS.is_file()),
    reason=f"needs the real photos and weights of {SHARED}, which are not part of the project",
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each of the ten classes 24 photos to train on and 12 to test, imported as a user would."""
    source = tmp_path_factory.mktemp("photos")
    for split, most in (("train", 24), ("test", 12)):
        seen: Counter[str] = Counter()
        with tarfile.open(PHOTOS / f"{split}.tar") as tar:
            for member in tar:
                label = Path(member.name).stem.split("_")[1]
                if seen[label] < most:
                    seen[label] += 1
                    folder = source / split / f"class {label}"
                    folder.mkdir(parents=True, exist_ok=True)
                    content = tar.extractfile(member)
                    assert content is not None
                    (folder / Path(member.name).name).write_bytes(content.read())
    data_dir = tmp_path_factory.mktemp("imported")
    counts = import_folder(source, data_dir)
    assert (counts["train"], counts["test"]) == (240, 120)
    return data_dir


def test_a_frozen_backbone_knows_photos_after_seconds_and_keeps_every_tensor(
    photos: Path, tmp_path: Path
) -> None:
    row = stl10bench.train(
        "mobilenetv2",
        data_dir=photos,
        runs_dir=tmp_path,
        weights=WEIGHTS,
        tracker="none",
        threads=1,
        epochs=6,
        batch_size=24,
    )
    assert row["test_accuracy"] > 0.5  # chance is 0.1; from random weights it stays below 0.2
    assert row["pretrained"]
    assert row.config.weights == f"sha256:{row['weights']['sha256']}"
    assert row["mean"] == pytest.approx([0.485, 0.456, 0.406])
    stored, _ = checkpoint.load(tmp_path / row["checkpoint"])
    for name, value in load_file(WEIGHTS).items():
        if not name.startswith("classifier"):
            assert torch.equal(stored[f"backbone.{name}"].float(), value.float()), name


def test_training_all_of_it_moves_the_backbone(photos: Path, tmp_path: Path) -> None:
    row = stl10bench.train(
        "mobilenetv2",
        data_dir=photos,
        runs_dir=tmp_path,
        weights=WEIGHTS,
        freeze=False,
        tracker="none",
        threads=1,
        epochs=2,
        batch_size=24,
    )
    assert row["trainable_parameters"] == row["parameters"]
    stored, _ = checkpoint.load(tmp_path / row["checkpoint"])
    original = load_file(WEIGHTS)["conv_stem.weight"].float()
    assert not torch.equal(stored["backbone.conv_stem.weight"], original)


def test_a_loaded_model_takes_a_photo_of_any_size(photos: Path, tmp_path: Path) -> None:
    row = stl10bench.train(
        "logistic",
        data_dir=photos,
        runs_dir=tmp_path,
        tracker="none",
        threads=1,
        epochs=1,
        batch_size=24,
    )
    model = stl10bench.load(tmp_path / row["checkpoint"])
    picture = SHARED / "data" / "stl10" / "test_images"
    with Image.open(next(picture.glob("*.png"))) as image:
        pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        batch = pixels.view(1, image.height, image.width, 3).permute(0, 3, 1, 2)
    assert model(batch).shape == (1, 10)
    assert row.stored()["dataset"] == "STL-10 layout"
