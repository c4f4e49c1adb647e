"""Bytes <-> disk: whole or not at all, and never more than was agreed."""

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from stl10bench.core.errors import BenchError, StorageError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # how a disk says that it has no room
_CHUNK = 1 << 20
_JSON_LIMIT = 1 << 20  # bytes


def write(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, flush it to the disk and rename it into place.

    The folder is made if it is missing. Raises StorageError with the path and the cause; an
    existing file at `path` is then still the old one.
    """
    part = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, len(content), error) from error


def cannot_write(path: Path, size: int, error: OSError) -> StorageError:
    """The error for `size` bytes that did not get to `path`; says how many there is room for."""
    if error.errno not in FULL:
        return StorageError(f"cannot write {path} ({size:,} bytes): {error}")
    return StorageError(
        f"no room for {path}: it needs {size:,} bytes, {free_space(path):,} are free: {error}"
    )


def free_space(path: Path) -> int:
    """Bytes that can be written at `path`, whose folders need not be there yet."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Fill a folder beside `folder`; it gets that name at the end, or is removed on an error.

    `folder` must not exist. Raises OSError.
    """
    part = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.part")
    part.mkdir(parents=True)
    try:
        yield part
        part.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Write a file beside `path`; it replaces `path` at the end, or is removed on an error.

    For writers that want a path (with its suffix); `write` is for bytes. Raises OSError.
    """
    part = path.with_name(f".{path.stem}.{uuid4().hex[:8]}.part{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove `folder` so that it is never seen with only a part of its files. Raises OSError."""
    part = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.part")
    folder.rename(part)
    shutil.rmtree(part)


def sweep(folder: Path) -> None:
    """Remove what a killed process left half written in `folder`, which must be ours alone."""
    for part in folder.glob(".*.part"):
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part)
        else:
            part.unlink()


def sizes(folder: Path) -> dict[str, int]:
    """The bytes of each file below `folder`, by its path there; of one that vanishes, nothing."""
    found = {}
    for place, _, names in os.walk(folder):  # which goes on where a folder vanishes
        for path in (Path(place) / name for name in names):
            with suppress(FileNotFoundError):
                found[str(path.relative_to(folder))] = path.stat().st_size
    return dict(sorted(found.items()))


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable (POSIX; elsewhere a folder cannot be opened: no-op)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, keys in their own order; NaN and infinities are refused."""
    write(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path, error: type[BenchError]) -> dict[str, Any]:
    """The JSON object in `path`; raises `error` for more than 1 MB or for anything else in it."""
    content = read(path, _JSON_LIMIT, error)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as cause:
        raise error(f"{path} is not JSON: {cause}") from cause
    if not isinstance(value, dict):
        raise error(f"{path} holds a JSON {type(value).__name__}, an object is needed")
    return value


def read(path: Path, limit: int, error: type[BenchError]) -> bytes:
    """The bytes of `path`; raises `error` when it cannot be read, or for more than `limit`."""
    try:
        if stat.S_ISFIFO(path.stat().st_mode):  # would be waited for
            raise error(f"cannot read {path}: a pipe, no file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(min(size, limit) + 1)  # asks for that much memory at once
    except OSError as cause:
        raise error(f"cannot read {path}: {cause.strerror}") from cause
    if len(content) > limit:
        raise error(f"{path} is larger than {limit:,} bytes, the limit for it here")
    return content


def digests(path: Path, *names: str, report: Callable[[int], None] = lambda _: None) -> list[str]:
    """Hexadecimal sums of a file in one pass, e.g. `digests(path, "md5", "sha256")`.

    `report` is called with the number of bytes read since its last call. Raises OSError.
    """
    sums = [hashlib.new(name, usedforsecurity=name != "md5") for name in names]
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            for one in sums:
                one.update(chunk)
            report(len(chunk))
    return [one.hexdigest() for one in sums]
