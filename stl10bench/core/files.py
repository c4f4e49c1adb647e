"""Bytes <-> disk: whole or not at all, and never more than was agreed."""

import errno
import hashlib
import json
import os
import shutil
import stat
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from stl10bench.core.errors import BenchError, BusyError, StorageError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # how a disk says that it has no room
_CHUNK = 1 << 20
_JSON_LIMIT = 1 << 20  # bytes


def write(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, flush it to the disk and rename it into place.

    The folder is created if it is missing. Raises StorageError with the path and the cause; an
    existing file at `path` is then unchanged.
    """
    try:
        with new_file(path) as part:
            part.write_bytes(content)
    except OSError as error:
        raise cannot_write(path, len(content), error) from error


def cannot_write(path: Path, size: int, error: OSError) -> StorageError:
    """The error for `size` bytes that could not be written to `path`; a full disk is named."""
    if error.errno not in FULL:
        return StorageError(f"cannot write {path} ({size:,} bytes): {error}")
    return StorageError(
        f"no room for {path}: it needs {size:,} bytes, {free_space(path):,} are free: {error}"
    )


@contextmanager
def storage_errors(failure: str) -> Iterator[None]:
    """Raise an OSError as a StorageError that begins with `failure`, e.g. "cannot read FILE"."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{failure}: {error}") from error


@contextmanager
def locked(path: Path, busy: Callable[[], str], timeout: float = -1) -> Iterator[None]:
    """Hold the lock file `path`, made with its folder; it dies with its process.

    Waits `timeout` seconds for another process, -1 for ever. Raises BusyError, which says what
    `busy` returns, and StorageError.
    """
    with storage_errors(f"cannot write {path.parent}"):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path, timeout=timeout).acquire()
        except Timeout:
            raise BusyError(busy()) from None
    with lock:
        yield


def free_space(path: Path) -> int:
    """Bytes that can be written at `path`, whose folders need not exist yet. Raises OSError."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Fill a folder beside `folder`; it gets that name at the end, or is removed on an error.

    `folder` must not exist. Raises OSError.
    """
    part = _part(folder)
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

    For writers that want a path, which has the suffix of `path`. Raises OSError.
    """
    part = _part(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        with part.open("r+b") as file:  # Windows flushes only what is open for writing
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove `folder` so that it is never seen with only a part of its files. Raises OSError."""
    part = _part(folder)
    folder.rename(part)
    shutil.rmtree(part)


def _part(path: Path) -> Path:
    """A hidden name beside `path`, never used before, for what is not whole yet."""
    return path.with_name(f".{path.stem}.{uuid4().hex[:8]}.part{path.suffix}")


def remove_parts(folder: Path) -> None:
    """Remove what a killed process left half written in `folder`, which must be ours alone.

    Raises OSError.
    """
    for part in folder.glob(".*.part*"):
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part)
        else:
            part.unlink()


def sizes(folder: Path) -> dict[str, int]:
    """The bytes of each file below `folder`, by its path there; what vanishes is left out."""
    bytes_by_path = {}
    for parent, _, names in os.walk(folder):  # goes on where a folder vanishes, unlike rglob
        for path in (Path(parent) / name for name in names):
            with suppress(FileNotFoundError):  # of a link its own: what it leads to may be anything
                bytes_by_path[str(path.relative_to(folder))] = path.lstat().st_size
    return dict(sorted(bytes_by_path.items()))


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable (POSIX; elsewhere a folder cannot be opened: no-op)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, keys in their own order.

    Raises StorageError as `write` does, ValueError for NaN and infinities.
    """
    write(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path, error: type[BenchError]) -> dict[str, Any]:
    """The JSON object in `path`; raises `error` for more than 1 MiB or for any other content."""
    content = read(path, _JSON_LIMIT, error)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as cause:
        raise error(f"{path} is not JSON: {cause}") from cause
    if not isinstance(value, dict):
        raise error(f"{path} contains a JSON {type(value).__name__}: it must be an object")
    return value


def read_toml(path: Path, error: type[BenchError], *, limit: int = _JSON_LIMIT) -> dict[str, Any]:
    """The table in `path`; raises `error` for more than `limit` bytes or for any other content."""
    content = read(path, limit, error)
    try:
        return tomllib.loads(content.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as cause:
        raise error(f"{path} is not TOML: {cause}") from cause


def read(path: Path, limit: int, error: type[BenchError]) -> bytes:
    """The bytes of `path`; raises `error` if it cannot be read or has more than `limit` bytes."""
    try:
        if stat.S_ISFIFO(path.stat().st_mode):  # reading it would wait for a writer
            raise error(f"cannot read {path}: it is a pipe, not a file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(min(size, limit) + 1)  # takes that much memory at once
    except OSError as cause:
        raise error(f"cannot read {path}: {cause.strerror}") from cause
    if len(content) > limit:
        raise error(f"{path} is larger than {limit:,} bytes, the limit for this file")
    return content


def digests(path: Path, *names: str, report: Callable[[int], None] = lambda _: None) -> list[str]:
    """Hexadecimal checksums of a file in one pass, e.g. `digests(path, "md5", "sha256")`.

    `report` is called with the number of bytes read since its last call. Raises OSError.
    """
    hashes = [hashlib.new(name, usedforsecurity=name != "md5") for name in names]
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            for checksum in hashes:
                checksum.update(chunk)
            report(len(chunk))
    return [checksum.hexdigest() for checksum in hashes]
