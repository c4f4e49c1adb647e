"""Image files of all kinds become the same square of pixels; hostile ones become one line."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from stl10bench.data import image_file


def refused(path: Path) -> str:
    with image_file.silenced(), pytest.raises(Exception) as caught:  # noqa: PT011  of all kinds
        image_file.read(path)
    text = image_file.reason(caught.value)
    assert text
    assert "\n" not in text
    assert str(path) not in text
    return text


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    chunks = b""
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        sum_ = zlib.crc32(kind + content).to_bytes(4)
        chunks += len(content).to_bytes(4) + kind + content + sum_
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tiff", "ppm"])
def test_an_image_of_96_pixels_keeps_every_pixel(tmp_path: Path, suffix: str) -> None:
    pixels = noise(96, 96)
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(pixels).save(path, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(image_file.read(path), pixels)


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (1, lambda p: p),
        (2, np.fliplr),
        (3, lambda p: np.rot90(p, 2)),
        (4, np.flipud),
        (5, lambda p: np.swapaxes(p, 0, 1)),
        (6, np.rot90),  # stored turned to the left, so that "turn to the right" makes it upright
        (7, lambda p: np.rot90(np.swapaxes(p, 0, 1), 2)),
        (8, lambda p: np.rot90(p, -1)),
    ],
)
def test_all_eight_exif_orientations_are_turned_upright(
    tmp_path: Path, orientation: int, undo: object
) -> None:
    upright = noise(96, 96)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo(upright)))  # type: ignore[operator]
    for name in ("photo.png", "photo.tiff", "photo.webp"):
        stored.save(tmp_path / name, exif=exif, lossless=True)
        assert np.array_equal(image_file.read(tmp_path / name), upright), name


def test_damaged_exif_data_leave_the_photo_as_it_is_stored(tmp_path: Path) -> None:
    Image.fromarray(noise(96, 96)).save(
        tmp_path / "photo.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"
    )
    Image.fromarray(noise(96, 96)).save(tmp_path / "other.png", exif=b"Exif\0\0nothing of the kind")
    Image.fromarray(noise(96, 96)).save(tmp_path / "third.jpg", quality=95, exif=b"\1\2\3")
    with image_file.silenced():
        assert np.array_equal(image_file.read(tmp_path / "photo.png"), noise(96, 96))
        assert np.array_equal(image_file.read(tmp_path / "other.png"), noise(96, 96))
        assert image_file.read(tmp_path / "third.jpg").shape == (96, 96, 3)


@pytest.mark.parametrize(("height", "width"), [(96, 192), (192, 96), (96, 97), (300, 96)])
def test_the_central_square_is_kept_undistorted(tmp_path: Path, height: int, width: int) -> None:
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    pixels[top : top + side, left : left + side] = noise(side, side)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    square = image_file.read(tmp_path / "wide.png")
    if (height - side) % 2 == (width - side) % 2 == 0:
        assert np.array_equal(square, pixels[top : top + side, left : left + side])
    else:  # half a pixel is shared by two
        assert square.shape == (96, 96, 3)


def test_grey_colour_palette_cmyk_and_16_bits_show_the_same_greys(tmp_path: Path) -> None:
    grey = np.tile(np.arange(0, 192, 2, dtype=np.uint8), (96, 1))
    image = Image.fromarray(grey)
    kinds = {
        "grey.png": image,
        "colour.png": image.convert("RGB"),
        "palette.gif": image.quantize(256),
        "16.png": Image.fromarray(grey.astype(np.uint16) << 8),
        "16.tiff": Image.fromarray(grey.astype(np.uint16) << 8),
        "cmyk.jpg": image.convert("RGB").convert("CMYK"),
        "cmyk.tiff": image.convert("RGB").convert("CMYK"),
        "opaque.png": image.convert("LA"),
        "32.tiff": Image.fromarray(grey.astype(np.int32) << 8),
    }
    for name, image in kinds.items():
        image.save(tmp_path / name)
        square = image_file.read(tmp_path / name).astype(int)
        worst = np.abs(square - grey[:, :, None].astype(int)).max()
        assert worst <= (4 if name.endswith("jpg") else 1), name


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    pixels = np.zeros((96, 96, 4), dtype=np.uint8)
    pixels[:, 48:, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "half.png")
    palette = Image.frombytes("P", (96, 96), bytes(([0] * 48 + [1] * 48) * 96))
    palette.putpalette([9, 9, 9, 0, 0, 0])
    palette.save(tmp_path / "half.gif", transparency=0)
    for name in ("half.png", "half.gif"):
        square = image_file.read(tmp_path / name)
        assert (square[:, :48] == 255).all()
        assert (square[:, 48:] == 0).all()


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    Image.fromarray(noise(96, 96)).save(tmp_path / "image.png")
    (tmp_path / "image.png").rename(tmp_path / "image.jpg")
    assert np.array_equal(image_file.read(tmp_path / "image.jpg"), noise(96, 96))
    (tmp_path / "notes.png").write_text("no image")
    assert refused(tmp_path / "notes.png").startswith("cannot identify it as JPEG, PNG, WEBP")


def test_a_huge_jpeg_is_read_at_a_fraction_of_its_size(tmp_path: Path) -> None:
    Image.new("RGB", (9000, 9000), (200, 40, 60)).save(tmp_path / "huge.jpg")
    square = image_file.read(tmp_path / "huge.jpg").astype(int)
    assert np.abs(square - [200, 40, 60]).max() <= 3


def huge_jpeg(width: int, height: int, *, orientation: int = 1) -> bytes:
    """A grey JPEG, written bit by bit as no one has the memory: its lower half is lighter.

    In the Huffman tables that Pillow writes, 001010 is a block of 8x8 pixels like the one before
    it, and 0xF40A is one that is lighter by 64.
    """
    exif = Image.Exif()
    exif[0x0112] = orientation
    small = io.BytesIO()
    Image.new("L", (8, 8)).save(small, "JPEG", quality=75, exif=exif)
    start, _, scan = small.getvalue().partition(b"\xff\xda")
    size = struct.pack(">HH", height, width)
    start = start.replace(b"\xff\xc0\x00\x0b\x08\0\x08\0\x08", b"\xff\xc0\x00\x0b\x08" + size)
    blocks = (width // 8) * (height // 8)
    four = bytes.fromhex("28a28a")
    data = four * (blocks // 8) + b"\xf4\x0a" + four * (blocks // 8 + 1)
    return start + b"\xff\xda" + scan[:8] + data + b"\xff\xd9"


@pytest.mark.parametrize(("width", "height"), [(12_000, 9_000), (16_320, 12_240)])
def test_photos_of_108_and_200_megapixels_are_read_and_turned(
    tmp_path: Path, width: int, height: int
) -> None:
    (tmp_path / "huge.jpg").write_bytes(huge_jpeg(width, height, orientation=6))
    with image_file.silenced():
        square = image_file.read(tmp_path / "huge.jpg", limit=4_000_000)
    assert (square[:, :44] == 192).all(), "the lower half has become the left one"
    assert (square[:, 52:] == 128).all()


def test_only_what_can_be_decoded_smaller_may_be_over_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_file, "PIXEL_LIMIT", 1_000_000)
    monkeypatch.setattr(image_file, "REDUCED_LIMIT", 3_000_000)
    image = Image.effect_noise((300, 200), 60).resize((1600, 800))  # 1.28 million pixels
    kinds = {
        "progressive.jpg": {"progressive": True},  # kept whole, in less memory
        "plain.jpg": {},
        "levels.jp2": {"quality_mode": "rates", "quality_layers": [20]},
    }
    image.save(tmp_path / "whole.png")
    expected = ImageOps.fit(image, (96, 96))
    for name, options in kinds.items():
        image.save(tmp_path / name, **options)
        square = image_file.read(tmp_path / name)[..., 0].astype(int)
        assert np.abs(square - np.asarray(expected)).mean() < 6, name
    image.save(tmp_path / "no-levels.jp2", num_resolutions=1)
    for name in ("whole.png", "no-levels.jp2"):
        assert refused(tmp_path / name).startswith("1600x800 = 1280000 pixels, and at most 1000000")
    image.resize((1600, 1600)).save(tmp_path / "larger.jpg", progressive=True)
    assert "2560000 pixels, and at most 2000000 are decoded" in refused(tmp_path / "larger.jpg")
    image.resize((2000, 1600)).save(tmp_path / "largest.jpg")
    assert "2000x1600 = 3200000 pixels, and at most 3000000 are decoded" in refused(
        tmp_path / "largest.jpg"
    )
    image.resize((90, 90)).save(tmp_path / "small.jp2", num_resolutions=1)
    assert image_file.read(tmp_path / "small.jp2").shape == (96, 96, 3)


def test_pillows_own_limit_is_raised_only_while_images_are_read() -> None:
    before = Image.MAX_IMAGE_PIXELS
    with image_file.silenced():
        assert image_file.REDUCED_LIMIT == Image.MAX_IMAGE_PIXELS
    assert before == Image.MAX_IMAGE_PIXELS


def test_a_square_of_any_size_is_cut_from_enough_pixels(tmp_path: Path) -> None:
    image = Image.effect_noise((60, 45), 80).resize((2000, 1500)).convert("RGB")
    image.save(tmp_path / "photo.jpg", quality=95)
    square = image_file.read(tmp_path / "photo.jpg", size=256)
    assert square.shape == (256, 256, 3)
    expected = ImageOps.fit(image, (256, 256), Image.Resampling.BICUBIC)
    assert np.abs(square.astype(int) - np.asarray(expected)).mean() < 2


def test_sizes_over_the_limit_are_refused_before_a_pixel_is_read(tmp_path: Path) -> None:
    for width, height in ((10_000, 9_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)):
        (tmp_path / "bomb.png").write_bytes(png(width, height))
        assert "pixels" in refused(tmp_path / "bomb.png")
    (tmp_path / "small.png").write_bytes(png(100, 100))  # the claim is possible, the pixels lack
    refused(tmp_path / "small.png")
    with (tmp_path / "long.webp").open("wb") as file:
        file.write(b"RIFF\0\0\0\0WEBP")
        file.truncate(image_file.BYTE_LIMIT + 1)
    assert "bytes" in refused(tmp_path / "long.webp")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tiff", "bmp"])
def test_a_file_cut_anywhere_is_whole_or_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise(40, 40)).save(path)
    content = path.read_bytes()
    for length in range(0, len(content) - 30, max(1, len(content) // 23)):
        path.write_bytes(content[:length])
        refused(path)


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")
    (tmp_path / "nowhere.jpg").symlink_to("missing.jpg")
    assert refused(tmp_path / "pipe.jpg") == "not a regular file"
    assert "symbolic links" in refused(tmp_path / "circle.jpg")
    assert refused(tmp_path / "nowhere.jpg") == "No such file or directory"
    assert refused(Path("/dev/null")) == "not a regular file"


def test_floats_are_refused_for_their_range_is_unknown(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)).save(tmp_path / "float.tiff")
    assert "floats" in refused(tmp_path / "float.tiff")
