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
PIXEL_LIMIT = 89_478_485  # Pillow's: what takes 256 MB at 24 bits a pixel
BYTE_LIMIT = 1 << 29  # of a file; 16-bit RGB at the limit of pixels, uncompressed
LARGE = 12_000_000  # pixels, from which on an image is averaged down before anything else
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
    """An image that a caller left to be read later."""


def read(path: Path, *, limit: int = PIXEL_LIMIT) -> NDArray[np.uint8]:
    """The image in `path`, uint8 (96, 96, 3), RGB.

    It is turned upright as its EXIF data say, put on white where it is transparent, cropped to the
    central square and resized (bicubic, antialiased); of an animation the first frame counts. The
    content decides what it is, not the name. An image at the limit of pixels takes a GB meanwhile;
    threads that read at once give a lower `limit` for the pixels to decode (a large JPEG has fewer
    than it is wide and high), and TooLargeError says what to read later, one by one. Raises
    DataError for what is no ordinary file or over a limit, and otherwise whatever Pillow raises:
    `reason` makes one line of it.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for, a device read for ever
        raise DataError("it is no ordinary file")
    if found.st_size > BYTE_LIMIT:
        raise DataError(f"{found.st_size} bytes, and at most {BYTE_LIMIT} are read")
    with Image.open(path, formats=FORMATS) as opened:
        pixels = opened.width * opened.height
        if pixels > PIXEL_LIMIT:
            raise DataError(
                f"{opened.width}x{opened.height} = {pixels} pixels, and at most {PIXEL_LIMIT} "
                "are decoded"
            )
        opened.draft("RGB", (4 * SIDE, 4 * SIDE))  # large JPEGs: decoded at a half to an eighth
        if "progressive" not in opened.info:  # such a JPEG is kept whole while it is decoded
            pixels = opened.width * opened.height
        if pixels > limit:
            raise TooLargeError(f"more than {limit} pixels to decode")
        return np.asarray(_square(opened))


def reason(error: Exception) -> str:
    """What `read` raised, on one line and without the path."""
    if isinstance(error, UnidentifiedImageError):
        return f"cannot identify it as {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


@contextmanager
def silenced() -> Iterator[None]:
    """Pillow's warnings of odd but readable files, and of large ones, are not shown meanwhile.

    For the whole process, so not to be entered by a thread of its own.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _square(opened: Image.Image) -> Image.Image:
    opened.load()  # which turns a TIFF upright already
    try:
        turn = _UPRIGHT.get(opened.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises of all kinds; damaged EXIF data turn nothing
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
