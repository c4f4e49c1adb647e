"""A safetensors file -> its bytes and metadata, once its whole header has been checked.

The format: https://huggingface.co/docs/safetensors (version 0.8). This reader is stricter, so that
no file makes it slow or large: the library takes any number of tensors and dimensions.
"""

import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from stl10bench.core.errors import CheckpointError

_HEADER_LIMIT = 4 << 20  # bytes: ten thousand tensors with long names
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
_TENSORS = 10_000
_DIMENSIONS = 8
_ELEMENTS = 2**40  # counted as if no dimension were 0
_NAME = 200  # characters


def read_safetensors(path: Path) -> tuple[bytes, dict[str, str]]:
    """All bytes of a safetensors file and the metadata in its header, which has been checked.

    Raises CheckpointError with the path and what the file is instead, before it takes memory for
    anything that is not there.
    """
    with _opened(path) as (file, metadata):
        file.seek(0)
        return file.read(), metadata  # read, not mapped: a mapped file can be cut while in use


def read_safetensors_metadata(path: Path) -> dict[str, str]:
    """The metadata alone, proven by no checksum; raises as `read_safetensors` does."""
    with _opened(path) as (_, metadata):
        return metadata


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, dict[str, str]]]:
    """A file, open after its header, and the header's metadata.

    An OSError or MemoryError within the `with` block becomes a CheckpointError too.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # opening a pipe would wait for a writer
            kind = "Is a directory" if stat.S_ISDIR(mode) else "not a regular file"
            raise CheckpointError(f"cannot read {path}: {kind}")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or not 2 <= length <= min(_HEADER_LIMIT, size - 8):
                # Only now: a valid length (640, 896 ... bytes) can begin with the same two bytes.
                if start.startswith(_PICKLES):
                    raise CheckpointError(
                        f"{path} is a pickle (.pt, .pth), which can run code and is never read: "
                        "convert it to safetensors if you trust it"
                    )
                raise CheckpointError(f"{path} is not a safetensors file")
            try:
                metadata = check_header(file.read(length), size - 8 - length)
            except ValueError as error:
                raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None
            yield file, metadata
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except MemoryError:
        raise CheckpointError(f"cannot read {path}: {size:,} bytes do not fit in memory") from None


def check_header(header: bytes, size: int) -> dict[str, str]:
    """The metadata of a file with the JSON `header` and `size` bytes of tensors after it.

    Raises ValueError, in one short line, unless the tensors have printable names, known dtypes,
    sane shapes and lie one after the other over all of these bytes.
    """
    try:
        content = json.loads(header.decode(), object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("the header is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("the header is not a JSON object")
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(x, str) for x in metadata.values()):
        raise ValueError("its metadata must be strings")
    if len(content) > _TENSORS:
        raise ValueError(f"{len(content):,} tensors: the limit is {_TENSORS:,}")
    end = 0
    for start, stop in sorted(_span(name, entry) for name, entry in content.items()):
        if start != end:
            raise ValueError(f"the tensors overlap or leave a hole at byte {min(start, end):,}")
        end = stop
    if end != size:
        raise ValueError(f"its header describes {end:,} bytes of tensors, but it has {size:,}")
    return metadata


def _span(name: str, entry: Any) -> tuple[int, int]:
    """The bytes where a tensor starts and stops, once its name and its entry have been checked."""
    if not name.isprintable() or len(name) > _NAME:
        raise ValueError(
            f"tensor name {name[:20]!r}...: must be {_NAME} printable characters at most"
        )
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name}: must have dtype, shape and data_offsets, nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise ValueError(
            f"tensor {name}: dtype {str(dtype)[:20]!r}: not one of {', '.join(_BYTES)}"
        )
    if not _is_counts(shape) or len(shape) > _DIMENSIONS:
        raise ValueError(
            f"tensor {name}: its shape must be a list of up to {_DIMENSIONS} sizes >= 0"
        )
    if math.prod(max(size, 1) for size in shape) >= _ELEMENTS:
        raise ValueError(f"tensor {name}: its shape has {_ELEMENTS:,} elements or more")
    if not _is_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {name}: data_offsets must be two numbers >= 0")
    start, stop = offsets
    if stop - start != math.prod(shape) * _BYTES[dtype]:
        raise ValueError(f"tensor {name}: its shape does not fill its bytes")
    return start, stop


def _is_counts(value: Any) -> bool:
    """Whether `value` is a list of whole numbers from 0 on."""
    return isinstance(value, list) and all(type(x) is int and x >= 0 for x in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; json itself would take the last of several equal keys, others the first."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("the header has the same key twice")
    return content
