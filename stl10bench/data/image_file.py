"""An image file of any kind and size -> a square of uint8 RGB pixels."""

import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from stl10bench.core.errors import DataError
from stl10bench.data.stl10 import SIDE

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
PIXEL_LIMIT = 89_478_485  # Pillow's own: 256 MB at 24 bits a pixel
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
_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")  # Pillow's modes with an alpha channel


class TooLargeError(DataError):
    """An image over the caller's `limit`, which may be read later, alone."""


def read(path: Path, *, limit: int = PIXEL_LIMIT) -> NDArray[np.uint8]:
    """The image in `path`, uint8 (96, 96, 3), RGB.

    It is turned upright by its EXIF data, put on white where it is transparent, cropped to the
    central square and resized (bicubic, antialiased). Only the first frame of an animation is
    read; the format is told by the content, not by the name.

    Decoding PIXEL_LIMIT pixels takes a GB. Threads that read at once pass a lower `limit` for the
    pixels to decode (fewer than width x height for a large JPEG) and read what raises
    TooLargeError later, one by one. Raises DataError for anything but a regular file and over a
    limit, and otherwise whatever Pillow raises: `reason` makes one line of it.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would never answer, a device never end
        raise DataError("not a regular file")
    if status.st_size > BYTE_LIMIT:
        raise DataError(f"{status.st_size} bytes, and at most {BYTE_LIMIT} are read")
    with Image.open(path, formats=FORMATS) as opened:
        pixels = opened.width * opened.height
        if pixels > PIXEL_LIMIT:
            raise DataError(
                f"{opened.width}x{opened.height} = {pixels} pixels, and at most {PIXEL_LIMIT} "
                "are decoded"
            )
        opened.draft("RGB", (4 * SIDE, 4 * SIDE))  # large JPEGs: decoded at a half to an eighth
        # A progressive JPEG is kept whole while it is decoded; of others only what is decoded.
        if "progressive" not in opened.info:
            pixels = opened.width * opened.height
        if pixels > limit:
            raise TooLargeError(f"more than {limit} pixels to decode")
        return np.asarray(_square(opened))


def reason(error: Exception) -> str:
    """What `read` raised, on one line and without the path; never empty."""
    if isinstance(error, UnidentifiedImageError):
        return f"cannot identify it as {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


@contextmanager
def silenced() -> Iterator[None]:
    """Hide Pillow's warnings of odd but readable files and of large ones.

    For the whole process: enter it before threads start, not in one of them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _square(opened: Image.Image) -> Image.Image:
    """RGB (96, 96): upright, on white, the central square."""
    opened.load()  # first: it turns a TIFF upright and drops its orientation
    # Not ImageOps.exif_transpose, which raises for damaged EXIF data; here they turn nothing.
    try:
        turn = _UPRIGHT.get(opened.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises errors of all kinds
        turn = None
    image = _shrunk(opened)
    if image.mode in _ALPHA:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.BICUBIC)
    return image if turn is None else image.transpose(turn)


def _shrunk(image: Image.Image) -> Image.Image:
    """The image with 8 bits a channel and no palette, averaged down if it is large."""
    if image.mode == "F":
        raise DataError("its pixels are floats, whose range is unknown: convert it to 8 or 16 bits")
    size = image.size
    if image.mode.startswith("I"):  # 16 bits of grey
        image = Image.fromarray(np.clip(np.asarray(image) >> 8, 0, 255).astype(np.uint8))
    elif image.mode in ("1", "P") or "transparency" in image.info:
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    factor = min(size) // (4 * SIDE)
    return image.reduce(factor) if size[0] * size[1] > LARGE and factor > 1 else image
