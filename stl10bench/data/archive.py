"""A gzipped tar as a stream of bytes -> the wanted members, verified and renamed into place."""

import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from stl10bench.core import files
from stl10bench.core.errors import DataError
from stl10bench.data.stl10 import FOLDER, FileSum, check_sum

_BLOCK = 1 << 20  # bytes
_LIMIT = 4 << 30  # bytes; the official archive holds 3.1 GB
_MEMBERS = 1000  # the official archive holds eight


def unpack(
    stream: Iterator[bytes],
    folder: Path,
    wanted: Mapping[str, FileSum],
    *,
    source: str,
    report: Callable[[int], None] = lambda _: None,
) -> None:
    """Take the `wanted` files (name -> bytes, MD5) out of a gzipped tar, into `folder`.

    Reads no further than the last of them. Takes only a regular file called stl10_binary/NAME with
    the right size and MD5 and skips everything else, so that no archive writes outside `folder`.
    `report` is called with the bytes taken since its last call; `source` names the archive in
    errors. Raises DataError for an archive that is cut, damaged, too large or has other content,
    StorageError.
    """
    missing = {f"{FOLDER}/{name}": expected for name, expected in wanted.items()}
    plain = _Plain(stream, source)
    for _ in range(_MEMBERS):
        if not missing:
            return
        header = plain.read(tarfile.BLOCKSIZE)
        if not header.strip(b"\0"):
            raise DataError(f"{source} ends without {', '.join(missing)}")
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "replace")
        except tarfile.HeaderError as error:
            raise DataError(f"{source} is not a tar archive, or damaged: {error}") from None
        name = member.name.removeprefix("./")
        padding = -member.size % tarfile.BLOCKSIZE  # the zeros up to the next block
        if name not in missing:
            plain.skip(member.size + padding)
            continue
        expected = missing.pop(name)
        if not member.isreg() or member.size != expected[0]:
            kind = f"{member.size} bytes" if member.isreg() else "a link or a special file"
            raise DataError(f"{source}: {name} must be a file of {expected[0]} bytes; it is {kind}")
        _take(plain, folder / Path(name).name, expected, report)
        plain.skip(padding)
    if missing:
        raise DataError(f"{source} holds more than {_MEMBERS} members: it is not STL-10's archive")


def _take(plain: "_Plain", path: Path, expected: FileSum, report: Callable[[int], None]) -> None:
    """Write the next bytes to `path`, which then has the `expected` size and MD5, or not at all."""
    size, _ = expected
    # One name, and not one of `core.files`: what a killed download leaves, the next overwrites.
    part = path.with_name(f".{path.name}.part")
    md5 = hashlib.new("md5", usedforsecurity=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                for block in plain.blocks(size):
                    md5.update(block)
                    file.write(block)
                    report(len(block))
                file.flush()
                os.fsync(file.fileno())
            check_sum(path, (size, md5.hexdigest()), expected, f"it came from {plain.source}")
            if path.exists():
                raise DataError(f"another process wrote {path} meanwhile: it is left unchanged")
            part.rename(path)
            files.sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise files.cannot_write(path, size, error) from error


def _inflate(stream: Iterator[bytes], source: str) -> Iterator[bytes]:
    """What a gzip stream holds, block by block, up to _LIMIT bytes."""
    inflater = zlib.decompressobj(wbits=31)  # 31: gzip with its header
    total = 0
    try:
        for chunk in stream:
            while chunk and not inflater.eof:
                plain = inflater.decompress(chunk, _BLOCK)
                chunk = inflater.unconsumed_tail
                total += len(plain)
                if total > _LIMIT:
                    raise DataError(f"{source} holds over {_LIMIT} bytes: it is not STL-10's")
                yield plain
            if inflater.eof:
                return
        yield inflater.flush()  # at most what one block of input left behind
    except zlib.error as error:
        raise DataError(f"{source} is not a gzip archive, or damaged: {error}") from None


class _Plain:
    """What a gzip stream holds, to be read in order."""

    def __init__(self, stream: Iterator[bytes], source: str) -> None:
        self.source = source
        self._inflated = _inflate(stream, source)
        self._left = bytearray()

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end."""
        while len(self._left) < size and (block := next(self._inflated, None)) is not None:
            self._left += block
        content = bytes(self._left[:size])
        del self._left[:size]
        return content

    def blocks(self, size: int) -> Iterator[bytes]:
        """The next `size` bytes in blocks. Raises DataError where there are fewer."""
        while size:
            block = self.read(min(size, _BLOCK))
            if not block:
                raise DataError(f"{self.source} is cut short")
            size -= len(block)
            yield block

    def skip(self, size: int) -> None:
        """Read past `size` bytes. Raises DataError for more than STL-10's archive can hold."""
        if not 0 <= size <= _LIMIT:
            raise DataError(f"{self.source} holds a member of {size} bytes: it is not STL-10's")
        for _ in self.blocks(size):
            pass
