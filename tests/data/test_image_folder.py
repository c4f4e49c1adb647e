"""The importer: a folder of class folders becomes data that open_dataset takes."""

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stl10bench.cli.main import main
from stl10bench.core.errors import DataError, StorageError, UsageError
from stl10bench.data.image_folder import import_folder
from stl10bench.data.stl10 import CLASS_NAMES, open_dataset


def paint(path: Path, colour: object = (200, 30, 60), *, mode: str = "RGB", side: int = 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (side, side), colour).save(path)  # type: ignore[arg-type]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two classes of ten images, each of its own grey."""
    for label, name in enumerate(("ant", "bee")):
        for index in range(10):
            grey = 100 * label + index * 10
            paint(tmp_path / "photos" / name / f"{index}.png", (grey, grey, grey))
    return tmp_path / "photos"


def greys(images: np.ndarray) -> list[int]:
    return [int(image[0, 48, 48]) for image in images]


def test_an_imported_folder_opens_as_a_dataset(source: Path, tmp_path: Path) -> None:
    counts = import_folder(source, tmp_path / "data")
    data = open_dataset(tmp_path / "data")
    assert counts == {"classes": 2, "train": 16, "test": 4, "skipped": 0}
    assert (data.name, data.class_names) == ("STL-10 layout", ("ant", "bee"))
    assert np.bincount(data.train.labels).tolist() == [8, 8]
    assert np.bincount(data.test.labels).tolist() == [2, 2]
    assert sorted(greys(data.train.images) + greys(data.test.images)) == list(range(0, 200, 10))
    for split in (data.train, data.test):
        assert [grey >= 100 for grey in greys(split.images)] == split.labels.astype(bool).tolist()


def test_the_split_depends_on_the_seed_and_on_nothing_else(source: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        shutil.copytree(source, tmp_path / f"copy of {name}")
        import_folder(tmp_path / f"copy of {name}", tmp_path / name, seed=seed)
    one, two, three = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "stl10_binary").iterdir()}
        for name in ("one", "two", "three")
    )
    assert one == two
    assert one["test_X.bin"] != three["test_X.bin"]
    assert set(one) == {"train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "class_names.txt"}


def test_every_class_keeps_an_image_in_each_split(source: Path, tmp_path: Path) -> None:
    assert import_folder(source, tmp_path / "few", test_fraction=0.01)["test"] == 2
    assert import_folder(source, tmp_path / "many", test_fraction=0.99)["train"] == 2


def test_train_and_test_folders_are_the_splits(source: Path, tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        (source / "test" / name).mkdir(parents=True)
        (source / name / "3.png").rename(source / "test" / name / "3.png")
        (source / "train").mkdir(exist_ok=True)
        (source / name).rename(source / "train" / name)
    assert import_folder(source, tmp_path / "data")["train"] == 18
    assert greys(open_dataset(tmp_path / "data").test.images) == [30, 130]


def put_into(folder: Path, source: Path, *names: str) -> None:
    """Move the images of each class to `folder`, which gets folders of both classes."""
    for label in ("ant", "bee"):
        (folder / label).mkdir(parents=True)
        for name in names:
            (source / label / name).rename(folder / label / name)


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Train", "", "Test"),
        ("train", "valid", "test"),  # Roboflow
        ("training", "validation", "testing"),
        ("TRAIN", "Val", "test"),
        ("train", "val", ""),
    ],
)
def test_folders_of_splits_are_taken_under_their_usual_names(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], train: str, val: str, test: str
) -> None:
    splits = tmp_path / "splits"
    if test:
        put_into(splits / test, source, "3.png", "4.png")
    if val:
        put_into(splits / val, source, "5.png")
    put_into(splits / train, source, "0.png", "1.png", "2.png")
    (splits / "__MACOSX" / "train").mkdir(parents=True)
    (splits / "README.roboflow.txt").write_text("a file beside the folders")
    import_folder(splits, tmp_path / "data")
    data = open_dataset(tmp_path / "data")
    expected = [0, 10, 20, *([50] if val and test else [])]
    assert sorted(greys(data.train.images)) == [*expected, *(100 + grey for grey in expected)]
    tested = [30, 40] if test else [50]
    assert sorted(greys(data.test.images)) == [*tested, *(100 + grey for grey in tested)]
    told = capfd.readouterr().err
    meaning = "join the training split" if test else "are the test split"
    assert (f"the images in {val}/ {meaning}" in told) if val else told == ""


def test_other_layouts_are_told_which_are_taken(source: Path, tmp_path: Path) -> None:
    put_into(tmp_path / "odd" / "train", source, "0.png")
    put_into(tmp_path / "odd" / "eval", source, "1.png")
    taken = r"train \(or training\) and test \(testing\) or val \(valid, validation\)"
    with pytest.raises(DataError, match=rf"a folder within a class folder: .*{taken}"):
        import_folder(tmp_path / "odd", tmp_path / "data")
    (tmp_path / "odd" / "eval").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=rf"found 1: 'train'; .*{taken}"):
        import_folder(tmp_path / "odd", tmp_path / "data")


def test_files_known_to_be_no_photos_are_skipped_and_counted(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in (
        "Thumbs.db",
        "desktop.ini",
        "notes.txt",
        "_classes.CSV",
        "a.json",
        "b.md",
        "c.xml",
    ):
        (source / "ant" / name).write_bytes(b"x")
    (source / "ant" / "@eaDir").mkdir()
    counts = import_folder(source, tmp_path / "data")
    assert counts == {"classes": 2, "train": 16, "test": 4, "skipped": 7}
    told = capfd.readouterr().err
    assert "skipped 7 files that are not photos: 'ant/Thumbs.db', 'ant/_classes.CSV'" in told
    assert "'ant/b.md', 'ant/c.xml' and 2 more\n" in told
    (source / "ant" / "photo.heic").write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"1 of 21 files cannot be read as images: 'ant/photo.heic'"
    ):
        import_folder(source, tmp_path / "other")


def test_one_skipped_file_is_told_in_the_singular(cli: Any, source: Path, tmp_path: Path) -> None:
    (source / "ant" / "notes.txt").write_bytes(b"x")
    code, out, err = cli("data", "import", str(source), "--data-dir", str(tmp_path / "data"))
    assert (code, out.endswith("; 1 file skipped\n")) == (0, True)
    assert "skipped 1 file that is not a photo: 'ant/notes.txt'" in err


def test_copies_across_the_splits_and_under_two_labels_are_told(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    put_into(tmp_path / "both" / "test", source, "3.png", "4.png")
    put_into(tmp_path / "both" / "train", source, "0.png", "1.png", "2.png")
    shutil.copy(tmp_path / "both" / "train" / "ant" / "1.png", tmp_path / "both" / "test" / "ant")
    shutil.copy(tmp_path / "both" / "train" / "ant" / "2.png", tmp_path / "both" / "train" / "bee")
    data_dir = tmp_path / "my data"
    import_folder(tmp_path / "both", data_dir)
    told = capfd.readouterr().err
    example = "1 image is in both the training and the test split, e.g. 'train/ant/1.png', 'test"
    assert example in told
    assert f"'stl10bench data audit --data-dir {shlex.quote(str(data_dir))}'" in told
    assert "1 image is under two labels, e.g. 'train/ant/2.png', 'train/bee/2.png'" in told


def test_images_of_another_size_are_stored_with_it(source: Path, tmp_path: Path) -> None:
    checker = np.indices((128, 128)).sum(0) % 2 * 255
    for index in range(10):
        Image.fromarray(checker.astype(np.uint8)).save(source / "ant" / f"{index}.png")
    import_folder(source, tmp_path / "data", size=128)
    import_folder(source, tmp_path / "small")
    data, small = open_dataset(tmp_path / "data"), open_dataset(tmp_path / "small")
    assert data.train.images.shape == (16, 3, 128, 128)
    assert np.array_equal(data.train.images[0, 0], checker)
    assert "of 128x128 pixels" in data.summary()
    assert (data.image_size, small.image_size) == (128, 96)
    assert not (tmp_path / "small" / "stl10_binary" / "image_size.txt").exists()
    with pytest.raises(UsageError, match="size = 7: must be 8 to 1024 pixels"):
        import_folder(source, tmp_path / "tiny", size=7)


def test_train_and_test_with_other_classes_are_refused(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "both" / "train")
    shutil.copytree(source, tmp_path / "both" / "test")
    (tmp_path / "both" / "test" / "ant").rename(tmp_path / "both" / "test" / "fly")
    with pytest.raises(DataError, match=r"need the same class folders; only .*train has 'ant'"):
        import_folder(tmp_path / "both", tmp_path / "data")


def test_rows_and_columns_arrive_where_they_were(source: Path, tmp_path: Path) -> None:
    image = Image.new("RGB", (96, 96), (10, 10, 10))
    image.putpixel((70, 20), (250, 0, 0))  # x, y
    for index in range(10):
        image.save(source / "ant" / f"{index}.png")
    import_folder(source, tmp_path / "data")
    stored = open_dataset(tmp_path / "data").train.images[0]
    assert stored[:, 20, 70].tolist() == [250, 0, 0]
    assert stored[:, 70, 20].tolist() == [10, 10, 10]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tiff", "ppm"])
def test_images_of_any_format_and_size_are_read(source: Path, tmp_path: Path, suffix: str) -> None:
    for index in range(10):
        (source / "ant" / f"{index}.png").unlink()
        paint(source / "ant" / f"{index}.{suffix}", (200, 40, 60), side=333)
    import_folder(source, tmp_path / "data")
    images = open_dataset(tmp_path / "data").train.images[:1].astype(int)
    assert np.abs(images - np.array([200, 40, 60])[:, None, None]).max() <= 5


@pytest.mark.parametrize(
    ("mode", "colour", "shown"),
    [
        ("RGBA", (0, 200, 0, 0), [255, 255, 255]),
        ("RGBA", (0, 100, 0, 128), [127, 177, 127]),
        ("LA", (40, 255), [40, 40, 40]),
        ("L", 77, [77, 77, 77]),
        ("1", 1, [255, 255, 255]),
        ("P", 0, [0, 0, 0]),
        ("I;16", 51 * 256, [51, 51, 51]),
    ],
)
def test_grey_palettes_and_transparency_become_colours_on_white(
    source: Path, tmp_path: Path, mode: str, colour: object, shown: list[int]
) -> None:
    for index in range(10):
        paint(source / "ant" / f"{index}.png", colour, mode=mode)
    import_folder(source, tmp_path / "data")
    images = open_dataset(tmp_path / "data").train.images[:1].astype(int)
    assert np.abs(images - np.array(shown)[:, None, None]).max() <= 1


def test_a_photo_is_turned_upright_and_cropped_to_its_centre(source: Path, tmp_path: Path) -> None:
    pixels = np.zeros((100, 300, 3), dtype=np.uint8)
    pixels[:, 100:200] = 90
    pixels[:, 190:200] = 250  # the right edge of the central square
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise: right becomes bottom
    for index in range(10):
        Image.fromarray(pixels).save(source / "ant" / f"{index}.png", exif=exif)
    import_folder(source, tmp_path / "data")
    column = open_dataset(tmp_path / "data").train.images[0][0, :, 48].astype(int)
    assert abs(column[0] - 90) <= 6
    assert abs(column[-1] - 250) <= 6


def test_shrinking_averages_what_it_leaves_out(source: Path, tmp_path: Path) -> None:
    lines = np.zeros((960, 960, 3), dtype=np.uint8)
    lines[::2] = 200
    for index in range(10):
        Image.fromarray(lines).save(source / "ant" / f"{index}.png")
    import_folder(source, tmp_path / "data")
    stored = open_dataset(tmp_path / "data").train.images[0].astype(int)
    assert np.abs(stored - 100).max() <= 3


def test_all_broken_images_are_named_with_their_reason(source: Path, tmp_path: Path) -> None:
    whole = (source / "ant" / "1.png").read_bytes()
    (source / "ant" / "1.png").write_bytes(whole[:-40])
    (source / "bee" / "note\n.jpg").write_text("no image")
    with pytest.raises(DataError) as caught:
        import_folder(source, tmp_path / "data")
    message = str(caught.value)
    assert "2 of 21 files cannot be read as images" in message
    assert "'ant/1.png' (" in message
    assert r"'bee/note\n.jpg' (cannot identify" in message
    assert "--skip-broken" in message
    assert "\n" not in message
    assert list((tmp_path / "data").iterdir()) == []


def test_broken_images_are_left_out_when_asked(source: Path, tmp_path: Path) -> None:
    (source / "ant" / "1.png").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"'ant/1.png' \(.*they are skipped"):
        counts = import_folder(source, tmp_path / "data", skip_broken=True)
    assert counts == {"classes": 2, "train": 15, "test": 4, "skipped": 1}


def test_a_decompression_bomb_is_a_broken_image(source: Path, tmp_path: Path) -> None:
    Image.new("1", (10_000, 9_000)).save(source / "ant" / "bomb.png")
    with pytest.raises(DataError, match=r"'ant/bomb.png' \(.*90000000 pixels"):
        import_folder(source, tmp_path / "data")


def test_hidden_files_are_passed_over(source: Path, tmp_path: Path) -> None:
    (source / "ant" / ".DS_Store").write_bytes(b"x")
    (source / ".cache").mkdir()
    assert import_folder(source, tmp_path / "data")["skipped"] == 0


def test_too_few_classes_or_images_are_refused(source: Path, tmp_path: Path) -> None:
    (source / "cow").mkdir()
    with pytest.raises(DataError, match="cow: at least 2 images needed, found none"):
        import_folder(source, tmp_path / "data")
    paint(source / "cow" / "a.png")
    with pytest.raises(DataError, match="cow: at least 2 images needed, found 1"):
        import_folder(source, tmp_path / "data")
    with pytest.raises(DataError, match="2 to 255 class folders expected, found 0"):
        import_folder(source / "ant", tmp_path / "data")
    with pytest.raises(DataError, match="is not a folder"):
        import_folder(source / "nothing", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_class_that_loses_its_images_to_damage_is_refused(source: Path, tmp_path: Path) -> None:
    for index in range(9):
        (source / "ant" / f"{index}.png").write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="9 of 20"),
        pytest.raises(DataError, match="ant: at least 2 images needed, found 1"),
    ):
        import_folder(source, tmp_path / "data", skip_broken=True)


def test_folders_within_class_folders_are_refused(source: Path, tmp_path: Path) -> None:
    (source / "ant" / "red").mkdir()
    with pytest.raises(DataError, match="a folder within a class folder"):
        import_folder(source, tmp_path / "data")


def test_class_names_that_cannot_be_written_are_refused(source: Path, tmp_path: Path) -> None:
    (source / "bee").rename(source / "be\ne")
    with pytest.raises(DataError, match=r"'be\\ne' cannot be a class name"):
        import_folder(source, tmp_path / "data")
    (source / "be\ne").rename(os.fsdecode(os.fsencode(source) + b"/\xff"))
    with pytest.raises(DataError, match=r"'\\udcff' cannot be a class name"):
        import_folder(source, tmp_path / "data")


def test_class_names_of_any_script_work(source: Path, tmp_path: Path) -> None:
    (source / "bee").rename(source / "пчела 🐝, =1+1")
    import_folder(source, tmp_path / "data")
    assert open_dataset(tmp_path / "data").class_names == ("ant", "пчела 🐝, =1+1")


def test_stl10s_own_class_names_are_refused(source: Path, tmp_path: Path) -> None:
    shutil.rmtree(source)
    for name in CLASS_NAMES:
        paint(source / name / "a.png")
    with pytest.raises(DataError, match=r"STL-10's own.*rename"):
        import_folder(source, tmp_path / "data")


def test_data_that_are_there_are_not_overwritten(source: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "stl10_binary").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"exists already.*move it away"):
        import_folder(source, tmp_path / "data")


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_a_test_fraction_outside_0_to_1_is_refused(
    source: Path, tmp_path: Path, fraction: float
) -> None:
    with pytest.raises(UsageError, match="must be between 0 and 1"):
        import_folder(source, tmp_path / "data", test_fraction=fraction)


def test_a_target_that_cannot_be_written_is_a_storage_error(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot import"):
        import_folder(source, tmp_path / "file")


def test_the_command_says_what_it_wrote(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    def run(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["stl10bench", "data", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return capsys.readouterr().out

    folder = tmp_path / "a" / "stl10_binary"
    told = run("import", str(source), "--data-dir", str(tmp_path / "a"), "--size", "32")
    assert told == (f"Wrote {folder}: 2 classes, 16 training and 4 test images; 0 files skipped\n")
    counts = {"classes": 2, "train": 16, "test": 4}
    told = run("import", str(source), "--data-dir", str(tmp_path / "b"), "--json")
    other = str(tmp_path / "b" / "stl10_binary")
    assert json.loads(told) == {"folder": other, "image_size": 96, **counts, "skipped": 0}
    facts = json.loads(run("verify", "--data-dir", str(tmp_path / "a"), "--json"))
    assert facts["data"] == open_dataset(tmp_path / "a").fingerprint
    assert facts.items() >= {"folder": str(folder), "image_size": 32, **counts}.items()
