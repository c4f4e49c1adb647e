"""`stl10bench visualize`: what each picture shows is what the data and the model hold."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.entry import Entry
from helpers.layout import NAMES, write_layout
from helpers.pictures import HOSTILE, painted, save_model, texts, written
from matplotlib.text import Text

import stl10bench
from stl10bench.config import RunConfig
from stl10bench.core.errors import DataError, UsageError
from stl10bench.data import augment
from stl10bench.data.stl10 import Dataset, open_dataset
from stl10bench.inference.predictor import load
from stl10bench.models import checkpoint, registry
from stl10bench.plots import galleries, inspection
from stl10bench.plots.galleries import GAP, LINE, MIN_WIDTH, SIDE, Section, Tile, Words, gallery
from stl10bench.plots.style import DPI
from stl10bench.results.run_folder import RunFolder

STEP = SIDE + GAP
HEADER = checkpoint.Header(
    config=RunConfig(model="mlp"), class_names=NAMES, mean=(0.5,) * 3, std=(0.2,) * 3
)


def tile(pixels: Any, top: int, left: int = GAP) -> Any:
    """An image of 96 px, as which it stands at a place, each of its pixels four of the sheet's."""
    large = pixels[top : top + SIDE, left : left + SIDE]
    assert np.array_equal(large[::2, ::2], large[1::2, 1::2])
    return large[::2, ::2]


@pytest.fixture
def dataset(data_dir: Path) -> Dataset:
    return open_dataset(data_dir)


# Samples.


def test_each_cell_of_the_samples_is_another_image_of_its_columns_class(
    cli: Entry, data_dir: Path, dataset: Dataset, tmp_path: Path
) -> None:
    ended = cli("visualize", "samples", "--data-dir", data_dir)
    assert (ended.code, ended.out, ended.err) == (0, "samples.png\n", "")
    pixels = written(tmp_path / "samples.png")
    height = LINE + 4 * STEP + GAP
    assert pixels.shape[1] == max(MIN_WIDTH, 4 * STEP + GAP)
    pixels = pixels[pixels.shape[0] - height :]  # below the title
    images = galleries.hwc(dataset.train.images)
    shown = set()
    for label in range(4):
        for place in range(4):
            top, left = LINE + place * STEP, GAP + label * STEP
            cell = tile(pixels, top, left)
            (row,) = np.flatnonzero((images == cell).all(axis=(1, 2, 3)))
            assert dataset.train.labels[row] == label
            shown.add(int(row))
    assert len(shown) == 16


def test_samples_depend_on_the_seed_and_on_nothing_else(
    cli: Entry, data_dir: Path, tmp_path: Path
) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        cli(
            "visualize",
            "samples",
            "--data-dir",
            data_dir,
            "--seed",
            seed,
            "--output",
            f"{name}.svg",
        )
    first, again, other = ((tmp_path / f"{name}.svg").read_bytes() for name in "abc")
    assert first == again
    assert first != other


def test_the_test_split_and_the_number_of_images_can_be_chosen(dataset: Dataset) -> None:
    pixels = painted(galleries.samples(dataset, split="test", per_class=7))
    images = galleries.hwc(dataset.test.images)
    cells = [tile(pixels, top) for top in range(LINE, LINE + 7 * STEP, STEP)]
    rows = [np.flatnonzero((images == cell).all(axis=(1, 2, 3))).tolist() for cell in cells]
    assert sorted(rows) == [[], [], [0], [4], [8], [12], [16]], "there are five of the class"
    assert (cells[6] == 255).all()


@pytest.mark.parametrize(("size", "side"), [(128, 256), (40, 200)])
def test_samples_of_data_of_another_size_stand_side_by_side(
    tmp_path: Path, size: int, side: int
) -> None:
    dataset = open_dataset(write_layout(tmp_path, size=size))
    pixels = painted(galleries.samples(dataset, per_class=1))[LINE:]
    for column in range(4):
        left = GAP + column * (side + GAP)
        assert (pixels[:side, left - GAP : left] == 255).all()
        cell = pixels[:side, left : left + side][:: side // size, :: side // size]
        same = (galleries.hwc(dataset.train.images) == cell).all(axis=(1, 2, 3))
        assert dataset.train.labels[same].tolist() == [column]


def test_hostile_class_names_stand_in_the_picture_as_they_are(cli: Entry, tmp_path: Path) -> None:
    data_dir = write_layout(tmp_path / "hostile", names=HOSTILE)
    assert texts(galleries.samples(open_dataset(data_dir)))[1:4] == [
        *(HOSTILE[0], "<script>alert(1)<", "/script>")  # one name, in two lines
    ]
    for suffix in ("png", "svg"):
        ended = cli("visualize", "samples", "--data-dir", data_dir, "--output", f"x.{suffix}")
        assert (ended.code, ended.out) == (0, f"x.{suffix}\n")


def test_twelve_classes_make_two_bands(tmp_path: Path) -> None:
    names = tuple(f"class {number}" for number in range(12))
    dataset = open_dataset(write_layout(tmp_path, names=names, train=24, test=12))
    figure = galleries.samples(dataset, per_class=1)
    assert painted(figure).shape == (2 * (LINE + STEP + GAP), 10 * STEP + GAP, 3)
    first, eleventh = (text for text in figure.texts if text.get_text() in ("class 0", "class 10"))
    assert first.get_position()[0] == eleventh.get_position()[0]
    assert first.get_position()[1] > eleventh.get_position()[1]


def test_a_picture_of_the_demo_says_that_it_is_drawn(dataset: Dataset) -> None:
    assert "not the STL-10 images" in texts(galleries.samples(dataset))[0]
    drawn = Dataset("demo", "", NAMES, dataset.folder, dataset.train, dataset.test)
    assert "drawn images, not STL-10" in texts(galleries.samples(drawn))[0]


def test_samples_need_no_pyplot(data_dir: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['stl10bench', 'visualize', 'samples', '--data-dir', {str(data_dir)!r}]\n"
        "from stl10bench.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: print([n for n in ('matplotlib.pyplot',) if n in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ended.stdout == "samples.png\n[]\n"


# Augmentation.


def test_the_augmentation_shown_is_the_one_that_training_draws(dataset: Dataset) -> None:
    config = RunConfig(model="cnn", image_size=32, rotation=(0.0, 20.0), hue=0.1, seed=3)
    original, variants = galleries.variants(dataset.train, 7, config, 5)
    draws = augment.draw(config, 5, 32, epoch=1, batch=0)
    image = torch.from_numpy(dataset.train.images[7:8].copy())
    small = torch.nn.functional.interpolate(image, (32, 32), mode="bilinear", antialias=True)
    expected = augment.apply(small.expand(5, -1, -1, -1), draws, config).mul(255).round()
    assert np.array_equal(variants[-1].images, expected.numpy())
    assert np.array_equal(original, small[0].numpy())
    assert [row.operation for row in variants] == [
        *("brightness", "contrast", "saturation", "hue", "flip", "rotation", "all together")
    ]


def test_a_row_shows_its_own_operation_alone(dataset: Dataset) -> None:
    config = RunConfig(model="cnn", image_size=32, brightness=0.4)
    original, variants = galleries.variants(dataset.train, 0, config, 12)
    rows = {row.operation: row for row in variants}
    factors = np.array([float(value.removeprefix("x ")) for value in rows["brightness"].values])
    expected = (original * factors.reshape(-1, 1, 1, 1)).clip(0, 255)
    assert np.abs(rows["brightness"].images - expected).max() <= 0.5 + 255 * 0.005
    for image, value in zip(rows["flip"].images, rows["flip"].values, strict=True):
        flipped = original[..., ::-1] if value == "mirrored" else original
        assert np.abs(image.astype(int) - flipped).max() <= 1
    assert set(rows["flip"].values) == {"mirrored", "unchanged"}


def test_an_operation_that_is_off_has_no_row_and_a_crop_has_one(dataset: Dataset) -> None:
    config = RunConfig(
        model="cnn", image_size=64, input="crop", hue=0, rotation=(0.0, 0.0), saturation=0
    )
    original, variants = galleries.variants(dataset.train, 0, config, 3)
    assert [row.operation for row in variants] == [
        *("brightness", "contrast", "flip", "crop", "all together")
    ]
    whole = dataset.train.images[0]
    assert np.array_equal(original, whole[:, 16:80, 16:80])
    for image, value in zip(variants[3].images, variants[3].values, strict=True):
        left, top = map(int, value.removeprefix("from ").split(","))
        window = whole[:, top : top + 64, left : left + 64]
        assert np.abs(image.astype(int) - window).max() <= 1
    for image, value in zip(variants[2].images, variants[2].values, strict=True):
        centre = original[..., ::-1] if value == "mirrored" else original
        assert np.abs(image.astype(int) - centre).max() <= 1, "the others stay in the centre"


def test_a_random_resized_crop_has_a_row_in_place_of_the_crop(dataset: Dataset) -> None:
    config = RunConfig(
        **{"model": "cnn", "image_size": 64, "input": "crop", "random_resized_crop": (0.3, 0.3)},
        **{"hue": 0, "rotation": (0.0, 0.0), "saturation": 0, "brightness": 0, "contrast": 0},
    )
    original, (flip, boxes, _) = galleries.variants(dataset.train, 0, config, 3)
    assert (flip.operation, boxes.operation) == ("flip", "random_resized_crop")
    for value in boxes.values:
        width, height = map(int, value.removesuffix(" px").split(" x "))
        assert abs(width * height - 0.3 * 96**2) < 96
    for image, value in zip(flip.images, flip.values, strict=True):
        centre = original[..., ::-1] if value == "mirrored" else original
        assert np.abs(image.astype(int) - centre).max() <= 1, "the others stay in the centre"


def test_augmentations_are_drawn_by_the_command(cli: Entry, data_dir: Path, tmp_path: Path) -> None:
    options = ["--data-dir", data_dir, "--draws", 2, "--image", 5, "--recipe", "report"]
    ended = cli("visualize", "augmentations", "logistic", *options, "--rotation", "0,90")
    assert (ended.code, ended.out, ended.err) == (0, "augmentations.png\n", "")
    before = written(tmp_path / "augmentations.png")
    cli("visualize", "augmentations", "logistic", *options, "--rotation", "0,90")
    assert np.array_equal(before, written(tmp_path / "augmentations.png"))
    cli("visualize", "augmentations", "logistic", *options)
    assert not np.array_equal(before, written(tmp_path / "augmentations.png"))
    for more, ending in (([], ""), (["--rotation", "0,90"], " (changed: rotation)")):
        cli("visualize", "augmentations", "logistic", *options, *more, "--output", "a.svg")
        drawn = " ".join((tmp_path / "a.svg").read_text().split())
        assert f"5, augmented with recipe report for logistic{ending} -->" in drawn


# Predictions.


def test_right_and_wrong_images_stand_where_they_belong(dataset: Dataset) -> None:
    rows = np.array([3, 1, 8, 2])
    classes = dataset.test.labels[rows].copy()
    classes[1] = (classes[1] + 1) % 4
    predicted = inspection.Predictions(rows, classes, np.array([0.5, 0.875, 0.75, 0.625]))
    figure = galleries.predictions(HEADER, dataset, predicted, count=10, order="surest")
    shown = texts(figure)
    assert shown[0].startswith(f"{HEADER.config.name}: right and wrong predictions")
    assert "for 4 drawn of the 20 test images" in shown[1]
    names = [NAMES[label] for label in dataset.test.labels[[8, 2, 3]]]
    assert shown[2:] == [
        *("3 of 3 right", names[0], "0.75", names[1], "0.62", names[2], "0.50", "1 of 1 wrong"),
        *(NAMES[classes[1]], "0.88", f"true: {NAMES[dataset.test.labels[1]]}"),
    ]
    pixels = painted(figure)
    top = GAP + LINE + GAP
    first = tile(pixels, top)
    assert np.array_equal(first, galleries.hwc(dataset.test.images[8]))
    wrong = tile(pixels, top + STEP + 2 * LINE + LINE + GAP)
    assert np.array_equal(wrong, galleries.hwc(dataset.test.images[1]))


def test_an_unknown_order_names_the_nearest(dataset: Dataset) -> None:
    predicted = inspection.Predictions(np.array([0]), np.array([0]), np.array([0.5]))
    with pytest.raises(UsageError, match="unknown order 'sure': did you mean 'surest'"):
        galleries.predictions(HEADER, dataset, predicted, count=1, order="sure")


def test_the_predictions_are_those_of_the_models_logits(dataset: Dataset, tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", "mlp", hidden=(16,))
    predictor = load(tmp_path / "m.safetensors")
    predicted = inspection.predict(predictor, dataset, images=12, seed=0)
    assert len(set(predicted.rows)) == 12
    with torch.no_grad():
        chances = predictor(torch.from_numpy(dataset.test.images[predicted.rows])).softmax(1)
    assert np.array_equal(predicted.classes, chances.argmax(1).numpy())
    assert predicted.confidences == pytest.approx(chances.amax(1).numpy(), abs=1e-6)


def test_predictions_are_drawn_by_the_command(cli: Entry, data_dir: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", "mlp", hidden=(16,))
    ended = cli("visualize", "predictions", "m.safetensors", "--data-dir", data_dir)
    assert (ended.code, ended.out, ended.err) == (0, "predictions.png\n", "")
    assert written(tmp_path / "predictions.png").shape[1] > 400


def test_a_runs_picture_shows_the_predictions_that_its_row_counts(
    data_dir: Path, dataset: Dataset, tmp_path: Path
) -> None:
    tiny = {"image_size": 8, "epochs": 1, "batch_size": 8, "tracker": "none"}
    row = stl10bench.train(
        "logistic", data_dir=data_dir, runs_dir=tmp_path, precision="bf16", **tiny
    )
    folder = RunFolder(tmp_path / str(row.run))
    of_row = torch.from_numpy(folder.predictions(row).logits).double().softmax(1).amax(1)
    predictor = load(folder.path)
    for path, same in ((folder.path, True), (folder.best_file, True), (folder.last_file, False)):
        stored = inspection.stored_logits(path, dataset)
        found = inspection.predict(predictor, dataset, images=20, seed=0, stored=stored)
        assert np.array_equal(found.confidences, of_row[found.rows]) == same, path
    other = dataclasses.replace(dataset, fingerprint="0" * 64)
    assert inspection.stored_logits(folder.path, other) is None


def test_data_of_other_classes_are_refused(cli: Entry, tmp_path: Path) -> None:
    data_dir = write_layout(tmp_path / "other", names=HOSTILE)
    save_model(tmp_path / "m.safetensors", "cnn", 64, channels=(2, 2, 2, 2), hidden=(4,))
    for command in ("predictions", "gradcam", "embedding"):
        ended = cli("visualize", command, "m.safetensors", "--data-dir", data_dir)
        assert (ended.code, ended.out) == (3, "")
        assert (
            "the checkpoint was trained on the classes ant, bee, cow, dog; the data in" in ended.err
        )


# Filters.


def test_the_weights_of_logistic_regression_become_an_image_a_class(
    cli: Entry, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    model = save_model(path, "logistic", 8)
    kernels = torch.zeros(4, 3, 8, 8)
    kernels[0, 0, 2, 5] = 4.0  # class 0 likes red there
    kernels[1, 2, 7, 0] = -0.5  # class 1 dislikes blue there
    kernels[1, 1, 0, 0] = 0.25
    model.load_state_dict(
        {**model.state_dict(), "linears.0.weight": kernels.flatten(1)}  # bias as it is
    )
    _, header = checkpoint.load(path)
    checkpoint.save(path, model, header)
    layer, filters = inspection.first_kernels(load(path))
    assert layer == "linears.0"
    assert np.array_equal(filters, kernels.numpy())
    images = galleries.hwc(inspection.as_images(filters))
    assert images[0, 2, 5].tolist() == [255, 128, 128]
    assert images[1, 7, 0].tolist() == [128, 128, 0]
    assert images[1, 0, 0].tolist() == [128, 191, 128]
    assert (images[2] == 128).all()

    ended = cli("visualize", "filters", "m.safetensors", "--title", "", "--no-caption")
    assert (ended.code, ended.out, ended.err) == (0, "filters.png\n", "")
    pixels, scale, top = written(tmp_path / "filters.png"), SIDE // 8, GAP
    assert pixels[top + 2 * scale + 3, GAP + 5 * scale + 3].tolist() == [255, 128, 128]
    figure = galleries.filters(header, layer, inspection.as_images(filters), NAMES)
    assert texts(figure)[2:] == list(NAMES)


@pytest.mark.parametrize(
    ("name", "options", "size", "layer", "count"),
    [
        ("cnn", {"channels": (5, 4, 4, 4), "hidden": (4,)}, 64, "0", 5),
        ("mlp", {"hidden": (6, 5)}, 8, "linears.0", 6),
        ("mobilenetv2", {"hidden": (4,)}, 32, "backbone.conv_stem", 32),
        ("timm:vit_tiny_patch16_224", {"hidden": (4,)}, 32, "backbone.patch_embed.proj", 192),
    ],
)
def test_the_first_layer_of_every_kind_of_model_is_found(
    tmp_path: Path, name: str, options: dict[str, Any], size: int, layer: str, count: int
) -> None:
    model = save_model(tmp_path / "m.safetensors", name, size, **options)
    predictor = load(tmp_path / "m.safetensors")
    first, kernels = inspection.first_kernels(predictor)
    assert (first, len(kernels)) == (layer, count)
    weight = model.get_submodule(layer).weight
    assert isinstance(weight, torch.Tensor)
    assert np.array_equal(kernels.reshape(-1), weight.detach().reshape(-1))
    assert inspection.is_linear(predictor, first) is False


def test_a_model_that_begins_otherwise_has_no_filters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pooled(num_classes: int, image_size: int) -> torch.nn.Module:
        del image_size
        return torch.nn.Sequential(
            torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, num_classes)
        )

    monkeypatch.setitem(registry._registered, "pooled", pooled)
    save_model(tmp_path / "m.safetensors", "pooled")
    predictor = load(tmp_path / "m.safetensors")
    with pytest.raises(UsageError, match="'pooled' has no filters to show"):
        inspection.first_kernels(predictor)


# Faults.


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (
            "samples --output x.gif --data-dir none",
            2,
            "--output x.gif: must end in .png, .svg or .jpg",
        ),
        ("samples --split val", 2, "unknown split 'val'"),
        ("samples --dataset dmeo", 2, "unknown dataset 'dmeo': did you mean 'demo'"),
        ("samples --data-dir none", 3, "none/stl10_binary lacks"),
        ("augmentations --image 40", 2, "--image 40: the training images are 0 to 39"),
        ("augmentations mpl", 2, "unknown model 'mpl': did you mean 'mlp'"),
        ("augmentations --recipe mine", 2, "unknown recipe 'mine'"),
        ("filters none.safetensors", 4, "no checkpoint none.safetensors"),
        ("filters noise.safetensors", 4, "noise.safetensors is not a safetensors file"),
        ("predictions pickle.pt", 4, "is a pickle"),
        ("embedding noise.safetensors", 4, "is not a safetensors file"),
        ("gradcam cnn.safetensors broken.png", 3, "broken.png: cannot identify it"),
        ("gradcam cnn.safetensors none.png", 3, "none.png: No such file"),
        ("gradcam cnn.safetensors --class ante", 2, "unknown class 'ante': did you mean 'ant'"),
        ("gradcam cnn.safetensors --layer 99", 2, "unknown layer with feature maps '99'"),
        ("gradcam logistic.safetensors", 2, "'logistic' has no layer with feature maps"),
    ],
)
def test_what_cannot_be_drawn_is_one_line_with_the_remedy(
    cli: Entry, data_dir: Path, tmp_path: Path, arguments: str, code: int, text: str
) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "pickle.pt")
    (tmp_path / "noise.safetensors").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    save_model(tmp_path / "logistic.safetensors", "logistic")
    save_model(tmp_path / "cnn.safetensors", "cnn", 64, channels=(2, 2, 2, 2), hidden=(4,))
    words = arguments.split()
    if "--data-dir" not in words and words[0] != "filters":
        words += ["--data-dir", str(data_dir)]
    ended = cli("visualize", *words)
    assert (ended.code, ended.out) == (code, "")
    assert ended.err.count("\n") == 1
    assert text in ended.err
    assert not list(tmp_path.glob("*.png")) or list(tmp_path.glob("*.png")) == [
        tmp_path / "broken.png"
    ]


def test_an_unreadable_image_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="folder: "):
        inspection.read_images([tmp_path / "folder"], 96)


def test_a_gallery_without_images_is_refused() -> None:
    with pytest.raises(UsageError, match="no images to show"):
        gallery(Words("title"), [Section("empty", [])])


def test_text_below_a_tile_stays_below_it() -> None:
    black = Tile(np.zeros((SIDE, SIDE, 3), dtype=np.uint8), ("one", "two"))
    figure = gallery(Words("title"), [Section("", [black] * 3)])
    height = figure.get_figheight() * DPI
    top = height - painted(figure).shape[0]
    below = [text for text in figure.texts if text.get_text() in ("one", "two")]
    assert all((1 - text.get_position()[1]) * height > top + GAP + SIDE for text in below)
    assert all(isinstance(text, Text) for text in below)
