"""An image file of any kind and size -> a square of uint8 RGB pixels."""

import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFile, ImageOps, UnidentifiedImageError, features
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from stl10bench.core.errors import DataError
from stl10bench.data.stl10 import SIDE

FORMATS = (
    *("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"),
    *(("JPEG2000",) if features.check("jpg_2000") else ()),
    *(("AVIF",) if features.check("avif") else ()),
)
PIXEL_LIMIT = 89_478_485  # Pillow's own: 256 MB at 24 bits a pixel
REDUCED_LIMIT = 3 * PIXEL_LIMIT  # of what is decoded at a fraction of its size: phones make 200 MP
BYTE_LIMIT = 1 << 29  # of a file: 16-bit RGB at the limit of pixels, uncompressed
LARGE = 12_000_000  # pixels; a larger image is averaged down before anything else
_ORIENTATION = 0x0112  # EXIF's tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow scales a PNG's greys of 2 and 4 bits to 8, but not the transparent one among them.
_STEPS = {"L;2": 85, "L;4": 17}
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF's tags
_WHITE_IS_ZERO, _SIGNED = 0, 2  # values of the last two


class TooLargeError(DataError):
    """An image over the caller's `limit`, which may be read later, alone."""


def read(path: Path, *, size: int = SIDE, limit: int = PIXEL_LIMIT) -> NDArray[np.uint8]:
    """The image in `path`, uint8 (size, size, 3), RGB.

    It is turned upright by its EXIF data, put on white where it is transparent, cropped to the
    central square and resized (bicubic, antialiased). Only the first frame of an animation is
    read; the format is told by the content, not by the name.

    A JPEG or JPEG 2000 is decoded at the smallest size that is enough, so it may have more than
    PIXEL_LIMIT pixels. Decoding PIXEL_LIMIT takes a GB. Threads that read at once pass a lower
    `limit` for the pixels to decode and read what raises TooLargeError later, one by one. Raises
    DataError for anything but a regular file and over a limit, and otherwise whatever Pillow
    raises: `reason` makes one line of it.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would never answer, a device never end
        raise DataError("not a regular file")
    if status.st_size > BYTE_LIMIT:
        raise DataError(f"{status.st_size} bytes, and at most {BYTE_LIMIT} are read")
    with Image.open(path, formats=FORMATS) as opened:
        size_text, whole = f"{opened.width}x{opened.height}", opened.width * opened.height
        pixels = _reduce(opened, path, 4 * size)
        if "progressive" in opened.info:  # kept whole, at half of what a transparent image takes
            pixels = max(pixels, whole // 2)
        most = min(REDUCED_LIMIT, PIXEL_LIMIT * whole // pixels)
        if whole > most:
            raise DataError(f"{size_text} = {whole} pixels, and at most {most} are decoded")
        if pixels > limit:
            raise TooLargeError(f"more than {limit} pixels to decode")
        return np.asarray(_square(opened, path, size))


def reason(error: Exception) -> str:
    """What `read` raised, on one line and without the path; never empty."""
    if isinstance(error, UnidentifiedImageError):
        return f"cannot identify it as {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


@contextmanager
def silenced() -> Iterator[None]:
    """Hide Pillow's warnings of odd but readable files, and set its limit for large ones to ours.

    For the whole process: enter it before threads start, not in one of them.
    """
    pillows_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, REDUCED_LIMIT
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = pillows_limit


def _reduce(opened: ImageFile.ImageFile, path: Path, least: int) -> int:
    """Have a large JPEG or JPEG 2000 decoded at a half to an eighth, `least` pixels a side or more.

    Returns the number of pixels that will be decoded.
    """
    opened.draft("RGB", (least, least))  # a JPEG
    level = 0
    if isinstance(opened, Jpeg2KImageFile):
        level = min(3, _levels(path), max(1, min(opened.size) // least).bit_length() - 1)
        opened.reduce = level
    return (opened.width >> level) * (opened.height >> level)


def _levels(path: Path) -> int:
    """How many halvings of a JPEG 2000 are stored, by its COD segment (ISO 15444-1, A.6.1)."""
    with path.open("rb") as file:
        start = file.read(1 << 20).partition(b"\xff\x4f\xff\x51")[2]
    cod = start.partition(b"\xff\x52")[2]
    return cod[7] if len(cod) > 7 else 0


def _square(opened: ImageFile.ImageFile, path: Path, size: int) -> Image.Image:
    """RGB (size, size): upright, on white, the central square."""
    image = _averaged(_eight_bits(opened, path), size)
    if image.mode in ("RGBA", "LA"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
    # Not ImageOps.exif_transpose, which raises for damaged EXIF data; here they turn nothing.
    try:
        turn = _UPRIGHT.get(opened.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises errors of all kinds
        return image
    return image if turn is None else image.transpose(turn)


def _averaged(image: Image.Image, size: int) -> Image.Image:
    factor = min(image.size) // (4 * size)
    return image.reduce(factor) if image.width * image.height > LARGE and factor > 1 else image


def _eight_bits(opened: ImageFile.ImageFile, path: Path) -> Image.Image:
    """The pixels with 8 bits a channel, no palette, and alpha where anything is transparent."""
    coding = opened.tile[0][3] if opened.tile else ""  # for a PNG, how its samples are stored
    opened.load()
    transparent = opened.info.get("transparency")  # a colour, or the alpha of a palette's entries
    if opened.mode == "F":
        raise DataError("its pixels are floats, whose range is unknown: convert it to 8 or 16 bits")
    if opened.mode.startswith("I"):
        return _from_integers(opened, transparent)
    if opened.mode == "La":
        return opened.convert("LA")
    if transparent is not None and coding == "RGB;16B":
        opened.putalpha(_alpha_of_16_bits(opened, path, transparent))
        return opened
    if transparent is not None and coding in _STEPS:
        opened.info["transparency"] = transparent * _STEPS[coding]
    if transparent is not None or opened.mode in ("RGBa", "PA"):
        return opened.convert("RGBA")
    return opened.convert("RGB") if opened.mode in ("1", "P") else opened


def _from_integers(image: Image.Image, transparent: int | None) -> Image.Image:
    """L or LA of greys of 16 bits; a TIFF may have 12, 15 and a sign, or 16 stored in 32."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    bits = min(16, tags.get(_BITS, (16,))[0])
    if tags.get(_BITS) == (16,) and tags.get(_SAMPLE_FORMAT) == (_SIGNED,):
        bits = 15
    white = (1 << bits) - 1
    least, most = values.min(), values.max()
    if least < 0 or most > white:
        raise DataError(
            f"its pixels run from {least} to {most}, and 0 (black) to {white} (white) are read: "
            "convert it to 8 or 16 bits"
        )
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = white - values
    grey = Image.fromarray((values >> (bits - 8)).astype(np.uint8))
    if transparent is not None:
        grey.putalpha(Image.fromarray((values != transparent) * np.uint8(255)))
    return grey


def _alpha_of_16_bits(
    opened: ImageFile.ImageFile, path: Path, transparent: tuple[int, int, int]
) -> Image.Image:
    """L (H, W): 0 where all 48 bits of a PNG's pixel are its transparent colour, else 255.

    Pillow decodes the higher byte of each sample. Taken for little-endian, it is the lower one.
    """
    with Image.open(path, formats=("PNG",)) as low:
        low.tile = [(*low.tile[0][:3], "RGB;16L")]  # type: ignore[list-item]
        alpha = Image.new("L", low.size)
        for image, shift in ((opened, 8), (low, 0)):
            for channel, value in enumerate(transparent):
                byte = value >> shift & 0xFF
                differs = [255 * (other != byte) for other in range(256)]
                alpha = ImageChops.lighter(alpha, image.getchannel(channel).point(differs))
    return alpha
