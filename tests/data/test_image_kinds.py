"""Every kind of PNG, and the TIFFs with numbers of their own: their colours, on white.

Written by encoders of our own, as Pillow cannot write most of them; held to what the formats say,
and to ImageMagick where it is installed.
"""

import io
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError, features

from stl10bench.core.errors import DataError
from stl10bench.data import image_file

SIDE = 96
Pixels = Any


class Kind(NamedTuple):
    """A file's content, and the samples (H, W, channels) 0..1 and alpha (H, W) 0..1 in it."""

    content: bytes
    colours: Pixels
    alpha: Pixels

    def on_white(self) -> Pixels:
        alpha = np.broadcast_to(self.alpha, (SIDE, SIDE))[..., None]
        return 255 * (self.colours * alpha + 1 - alpha)


def samples(channels: int, bits: int) -> Pixels:
    """Noise whose left half has one colour, next to it a band that differs in the lowest bit."""
    rng = np.random.default_rng([channels, bits])
    values = rng.integers(0, 2**bits, (SIDE, SIDE, channels))
    values[:, :48] = values[0, 0]
    values[:, 48:52] = values[0, 0] ^ 1
    return values


def chunk(kind: bytes, content: bytes) -> bytes:
    sum_ = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", sum_)


def packed(values: Pixels, bits: int, order: str = ">") -> Pixels:
    """uint8 (H, bytes of a row): samples of any number of bits, in rows of whole bytes."""
    if bits % 8 == 0:
        return values.astype(f"{order}u{bits // 8}").reshape(len(values), -1).view(np.uint8)
    single = values[..., None] >> np.arange(bits - 1, -1, -1) & 1
    return np.packbits(single.reshape(len(values), -1).astype(np.uint8), axis=1)


def png(values: Pixels, bits: int, colour: int, **chunks: bytes) -> bytes:
    rows = packed(values, bits)
    rows = np.concatenate([np.zeros((len(rows), 1), np.uint8), rows], axis=1)  # no filter
    header = struct.pack(">IIBBBBB", SIDE, SIDE, bits, colour, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    content += b"".join(chunk(kind.encode(), value) for kind, value in chunks.items())
    return content + chunk(b"IDAT", zlib.compress(rows.tobytes())) + chunk(b"IEND", b"")


def tiff(values: Pixels, bits: int, photometric: int, order: str = "<", **tags: int) -> bytes:
    """One strip, not compressed; `tags`: ExtraSamples and SampleFormat."""
    channels = values.shape[2]
    data = packed(values, bits, order).tobytes()
    per_channel = struct.pack(f"{order}{channels}H", *[bits] * channels)
    bits_at, strip_at = 8, 8 + len(per_channel)
    short = [(258, 3, channels, bits if channels == 1 else bits | bits << 16)]
    if channels > 2:
        short = [(258, 3, channels, bits_at)]
    entries = [
        *((256, 4, 1, SIDE), (257, 4, 1, SIDE), *short, (259, 3, 1, 1), (262, 3, 1, photometric)),
        *((273, 4, 1, strip_at), (277, 3, 1, channels), (278, 4, 1, SIDE)),
        (279, 4, 1, len(data)),
        *([(338, 3, 1, tags["extra"])] if "extra" in tags else []),
        *([(339, 3, 1, tags["format"])] if "format" in tags else []),
    ]
    folder = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        two_bytes = kind == 3 and count == 1
        value_bytes = struct.pack(f"{order}{'H2x' if two_bytes else 'I'}", value)
        folder += struct.pack(f"{order}HHI", tag, kind, count) + value_bytes
    header = b"II*\0" if order == "<" else b"MM\0*"
    start = struct.pack(f"{order}I", strip_at + len(data))
    return header + start + per_channel + data + folder + bytes(4)


def kinds() -> dict[str, Kind]:
    """All of them, by file name."""
    made = {}
    for bits in (1, 2, 4, 8, 16):
        grey, top = samples(1, bits), 2**bits - 1
        made[f"grey{bits}.png"] = Kind(png(grey, bits, 0), grey / top, 1)
        see_through = png(grey, bits, 0, tRNS=struct.pack(">H", grey[0, 0, 0]))
        alpha = grey[..., 0] != grey[0, 0, 0]
        made[f"grey{bits}-transparent.png"] = Kind(see_through, grey / top, alpha)
    for bits in (8, 16):
        top = 2**bits - 1
        colour = samples(3, bits)
        made[f"colour{bits}.png"] = Kind(png(colour, bits, 2), colour / top, 1)
        see_through = png(colour, bits, 2, tRNS=struct.pack(">3H", *colour[0, 0]))
        alpha = (colour != colour[0, 0]).any(axis=2)
        made[f"colour{bits}-transparent.png"] = Kind(see_through, colour / top, alpha)
        for channels, number in ((2, 4), (4, 6)):
            values = samples(channels, bits)
            unit = values / top
            png_ = png(values, bits, number)
            made[f"alpha{channels}-{bits}.png"] = Kind(png_, unit[..., :-1], unit[..., -1])
    for bits in (1, 2, 4, 8):
        rng, entries = np.random.default_rng(bits), samples(1, bits)[..., 0]
        palette = rng.integers(0, 256, (2**bits, 3)).astype(np.uint8)
        alphas = rng.integers(0, 256, 2**bits).astype(np.uint8)
        for name, alpha in (("", None), ("-one", np.array([255, 0], np.uint8)), ("-each", alphas)):
            chunks = {"PLTE": palette.tobytes()} | ({} if alpha is None else {"tRNS": bytes(alpha)})
            of_all = np.full(2**bits, 255)
            of_all[: 0 if alpha is None else len(alpha)] = [] if alpha is None else alpha
            content = png(entries[..., None], bits, 3, **chunks)
            shown = Kind(content, palette[entries] / 255, of_all[entries] / 255)
            made[f"palette{bits}{name}.png"] = shown
    return made | tiffs()


def tiffs() -> dict[str, Kind]:
    made = {}
    for bits in (1, 2, 4, 8, 16):
        grey, top = samples(1, bits), 2**bits - 1
        made[f"white-is-zero{bits}.tiff"] = Kind(tiff(grey, bits, 0), 1 - grey / top, 1)
        made[f"grey{bits}.tiff"] = Kind(tiff(grey, bits, 1), grey / top, 1)
    twelve, fifteen, sixteen = samples(1, 12), samples(1, 15), samples(1, 16)
    made["grey12.tiff"] = Kind(tiff(twelve, 12, 1), twelve / 4095, 1)
    for order, name in (("<", "little"), (">", "big")):
        signed = tiff(fifteen, 16, 1, order, format=2)
        made[f"{name}-signed16.tiff"] = Kind(signed, fifteen / 32767, 1)
        made[f"{name}-16.tiff"] = Kind(tiff(sixteen, 16, 1, order), sixteen / 65535, 1)
        colour = samples(3, 16)
        made[f"{name}-colour16.tiff"] = Kind(tiff(colour, 16, 2, order), colour / 65535, 1)
    made["in-32.tiff"] = Kind(tiff(sixteen, 32, 1), sixteen / 65535, 1)
    for channels, photometric in ((2, 1), (4, 2)):
        values = samples(channels, 8)
        unit = values / 255
        straight = tiff(values, 8, photometric, extra=2)
        name = f"alpha{channels}.tiff"
        made[f"straight-{name}"] = Kind(straight, unit[..., :-1], unit[..., -1])
        values[..., :-1] = values[..., :-1] * values[..., -1:] // 255
        light = values / np.maximum(values[..., -1:], 1)
        premultiplied = tiff(values, 8, photometric, extra=1)
        made[f"premultiplied-{name}"] = Kind(premultiplied, light[..., :-1], values[..., -1] / 255)
    return made


KINDS = kinds()


def read(path: Path) -> Pixels:
    try:
        return image_file.read(path).astype(int)
    except UnidentifiedImageError:
        if path.name == "premultiplied-alpha2.tiff":
            pytest.skip("this Pillow knows no premultiplied grey")
        raise


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_shows_its_colours_on_white(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(KINDS[name].content)
    shown = read(tmp_path / name)
    assert np.abs(shown - KINDS[name].on_white()).max() <= 2.5  # Pillow rounds twice


def by_imagemagick(path: Path) -> Pixels:
    command = shutil.which("magick")
    if command is None and sys.platform != "win32":  # which has another `convert`
        command = shutil.which("convert")
    if command is None:
        pytest.skip("needs ImageMagick (apt-get install imagemagick)")
    options = ("-background", "white", "-alpha", "remove", "-colorspace", "sRGB", "-depth", "8")
    run = subprocess.run([command, f"{path}[0]", *options, "rgb:-"], capture_output=True)
    if run.returncode:
        pytest.skip(f"this ImageMagick cannot read it: {run.stderr.decode()[:100]}")
    return np.frombuffer(run.stdout, np.uint8).reshape(SIDE, SIDE, 3)


# Not those that ImageMagick 6 reads otherwise: of few bits it takes 0 for black even where a TIFF
# says that it is white, a signed sample has its black at -32768, and 32 bits are filled.
_OTHERWISE = ("white-is-zero2", "white-is-zero4", "signed", "in-32")


@pytest.mark.parametrize("name", [name for name in KINDS if not any(o in name for o in _OTHERWISE)])
def test_every_kind_is_what_imagemagick_shows(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(KINDS[name].content)
    shown = read(tmp_path / name)
    assert np.abs(shown - by_imagemagick(tmp_path / name)).max() <= 3


def smooth(channels: int) -> Pixels:
    y, x = np.mgrid[:SIDE, :SIDE]
    planes = [(x * (c + 1) + y * 2) * 255 // (SIDE * (c + 3)) for c in range(channels)]
    return np.stack(planes, axis=2).astype(np.uint8)


FORMATS = {
    **{
        "CMYK.jpg": {"quality": 100},
        "L.jpg": {"quality": 100},
        "CMYK.tiff": {},
        "YCbCr.tiff": {"compression": "tiff_deflate"},
    },
    **{"RGBA.webp": {"lossless": True, "exact": True}, "RGB.bmp": {}, "P.bmp": {}, "1.bmp": {}},
    **{"P.gif": {"transparency": 3}, "RGBA.jp2": {}, "LA.jp2": {}, "LAB.tiff": {}},
    **{"RGB.avif": {"quality": 100, "subsampling": "4:4:4"}},
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_what_imagemagick_shows(tmp_path: Path, name: str) -> None:
    mode, suffix = name.split(".")
    if not features.check({"jp2": "jpg_2000", "avif": "avif"}.get(suffix, "jpg")):
        pytest.skip(f"this Pillow has no {suffix}")
    image = Image.fromarray(smooth(4))
    image = image if mode in ("RGBA", "LA") else image.convert("RGB")
    if mode == "LAB":
        image = Image.merge("LAB", [Image.new("L", (SIDE, SIDE), v) for v in (140, 20, 250)])
    image.convert(mode).save(tmp_path / name, **FORMATS[name])
    shown = read(tmp_path / name)
    assert np.abs(shown - by_imagemagick(tmp_path / name)).max() <= 3


@pytest.mark.parametrize("value", [-1, 70_000])
def test_numbers_over_16_bits_are_refused_for_their_range_is_unknown(
    tmp_path: Path, value: int
) -> None:
    values = np.full((SIDE, SIDE, 1), 100)
    values[3, 4] = value
    (tmp_path / "x.tiff").write_bytes(tiff(values & 0xFFFFFFFF, 32, 1, format=2))
    with pytest.raises(DataError, match=r"run from .* to .*: convert it to 8 or 16 bits"):
        image_file.read(tmp_path / "x.tiff")


def test_an_interlaced_png_of_16_bits_loses_its_transparent_colour_too(tmp_path: Path) -> None:
    values = np.zeros((SIDE, SIDE, 3), dtype=int)  # one colour in all seven passes
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 1)
    steps = [(8, 8), (8, 8), (8, 4), (4, 4), (4, 2), (2, 2), (2, 1)]  # rows and columns of a pass
    raw = b"".join((b"\0" + bytes(6 * (SIDE // c))) * (SIDE // r) for r, c in steps)
    content = io.BytesIO(png(values, 16, 2)).getvalue()[:8] + chunk(b"IHDR", header)
    content += chunk(b"tRNS", bytes(6)) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(content)
    assert (image_file.read(tmp_path / "x.png") == 255).all()
