"""An image file of any kind and size -> a square of uint8 RGB pixels."""

import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from stl10bench.data.stl10 import SIDE
from stl10bench.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
PIXEL_LIMIT = 89_478_485  # Pillow's: what takes 256 MB at 24 bits a pixel
BYTE_LIMIT = 1 << 29  # of a file; 16-bit RGB at the limit of pixels, uncompressed
_LARGE = 12_000_000  # pixels, from which on images are decoded one at a time
_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")  # Pillow's modes with an alpha channel

_one_large = threading.Lock()


def read(path: Path) -> NDArray[np.uint8]:
    """The image in `path`, uint8 (96, 96, 3), RGB.

    It is turned upright as its EXIF data say, put on white where it is transparent, cropped to the
    central square and resized (bicubic, antialiased); of an animation the first frame counts. The
    content decides what it is, not the name. Threads may call this at once; large images then wait
    for each other, so that memory stays bounded. Raises DataError for what is no ordinary file or
    over a limit, and otherwise whatever Pillow raises: `reason` makes one line of it.
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
        with _one_large if opened.width * opened.height > _LARGE else nullcontext():
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
    image = ImageOps.exif_transpose(opened)
    if image.mode == "F":
        raise DataError("its pixels are floats, whose range is unknown: convert it to 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits of grey
        image = Image.fromarray(np.clip(np.asarray(image) >> 8, 0, 255).astype(np.uint8))
    if image.mode in _ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.BICUBIC)
