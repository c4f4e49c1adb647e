"""STL-10's server -> its files: resumable, verified, never over plain http after https."""

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.markup import escape
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from stl10bench.core import __version__, files
from stl10bench.core.errors import DataError, StorageError, UsageError
from stl10bench.data import stl10
from stl10bench.data.archive import unpack

URL = "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"
# The archive holds the labelled splits first (an eighth of it), then the unlabelled images, then
# class names and folds. The class names are known here, so the eighth is enough for LABELLED.
LABELLED = stl10.NEEDED
FOLDS = ("fold_indices.txt",)
UNLABELLED = ("unlabeled_X.bin", *FOLDS)

_PART = "stl10_binary.tar.gz.part"
_STARTS = 4  # how often to begin with a server that does not resume, or changes its file
_CHUNK = 1 << 16  # bytes; what a lost connection costs at most

Chunks = Generator[bytes, None, None]
Sums = Mapping[str, stl10.FileSum]


class Retries(NamedTuple):
    """When a lost connection is tried again, and when it counts as lost."""

    attempts: int = 6  # in a row without a new byte, then it is given up
    wait: float = 1.0  # seconds before the second attempt, then twice that and so on
    timeout: float = 30.0  # seconds of silence


class StartOver(Exception):  # noqa: N818 (a signal, not a fault)
    """What has arrived is not the beginning of what the server would send now."""


def download_stl10(
    data_dir: Path,
    *,
    members: Sequence[str] = LABELLED,
    source: str | Path = URL,
    console: Console | None = None,
    expected: Sums = stl10.OFFICIAL,
    retries: Retries = Retries(),  # noqa: B008  frozen
) -> None:
    """Take `members` from the archive `source`, a URL or a file, into `data_dir`/stl10_binary.

    Files that exist and are right are kept; one that exists and is wrong is refused and left as it
    is. What arrives stays in stl10_binary.tar.gz.part until all members are in place: the next call
    resumes there. `expected` holds the bytes and the MD5 of each member. Raises UsageError,
    DataError for wrong content, StorageError for network and disk, BusyError.
    """
    console = console or Console(stderr=True)
    if isinstance(source, str) and urlsplit(source).scheme not in ("http", "https"):
        raise UsageError(f"url {source!r}: must be http or https; for a file use --from FILE")
    if unknown := [name for name in members if name not in expected]:
        raise UsageError(f"member {unknown[0]!r}: must be one of {', '.join(expected)}")

    names = stl10.encode_class_names(stl10.CLASS_NAMES)
    names_sum = stl10.OFFICIAL["class_names.txt"]
    folder, part = data_dir / stl10.FOLDER, data_dir / _PART
    busy = f"another process is downloading into {data_dir}: wait until it has finished"
    with files.locked(data_dir / f".{stl10.FOLDER}.lock", lambda: busy, timeout=0):
        for _ in range(_STARTS):
            missing = _missing(folder, {name: expected[name] for name in members})
            # The class names lie behind the unlabelled images: not to be read for them alone.
            packed = {name: md5 for name, md5 in missing.items() if md5 != names_sum}
            try:
                if packed:
                    _unpack(source, folder, part, packed, console, retries)
                break
            except StartOver as reason:
                remove_part(part)
                _say(console, f"starting over: {reason}")
        else:
            raise StorageError(f"{source}: gave up after {_STARTS} new starts; use --from FILE")
        for name in missing.keys() - packed.keys():
            files.write(folder / name, names)
        if part.exists() and isinstance(source, str):
            remove_part(part)
            _say(console, f"unpacked and verified everything: removed {part}")


def _unpack(
    source: str | Path, folder: Path, part: Path, members: Sums, console: Console, retries: Retries
) -> None:
    """Unpack `members` into `folder`; raises as `fetch` and `unpack` do."""
    total = sum(size for size, _ in members.values())
    # What is downloaded is kept in `part` as well, and photos hardly compress.
    needed = total if isinstance(source, Path) else 2 * total
    if (free := files.free_space(folder.parent)) < needed:
        raise StorageError(
            f"{folder.parent}: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free; "
            "make room or choose another --data-dir"
        )
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as progress:
        report = partial(progress.advance, progress.add_task("STL-10", total=total))
        if isinstance(source, Path):
            stream = read_part(source)
        else:
            stream = fetch(source, part, console, retries)
        try:
            with closing(stream):
                unpack(stream, folder, members, source=str(source), report=report)
        except DataError as error:
            if isinstance(source, Path):
                raise
            remove_part(part)
            raise DataError(f"{error}; the partial download was removed: try again") from None


def _say(console: Console, text: str) -> None:
    console.print(escape(text), highlight=False, soft_wrap=True)


class _Version(BaseModel):
    """Which file the server sends; stored beside what has arrived, so that a later call resumes."""

    model_config = ConfigDict(frozen=True, strict=True)

    url: str
    bytes: int | None = None
    validator: Annotated[str, Field(pattern=r"^[ -~]+$")] | None = None  # goes into a header


def fetch(url: str, part: Path, console: Console, retries: Retries) -> Chunks:
    """The bytes at `url`: first what `part` holds, then what the server sends, appended to `part`.

    A download resumes (Range and If-Range) only while the server has the file that `part` was begun
    with. Raises StartOver when it has another one, StorageError for network and disk.
    """
    version = _recall(url, part)
    if version.validator is None:
        remove_part(part)
    else:
        yield from read_part(part)
    failures = 0
    while (arrived := _size(part)) != version.bytes:
        if arrived and not (version.validator and version.bytes):
            raise StartOver(f"{url} does not say which file it sends, so it cannot be resumed")
        try:
            with _open_url(version, arrived, retries.timeout) as response:
                if not arrived:
                    version = _remember(url, part, response)
                while chunk := response.read(_CHUNK):
                    _append(part, chunk)
                    failures = 0
                    yield chunk
            if version.bytes is None:  # then the end of the connection is the end of the file
                return
            problem = "the connection ended early"
        except HTTPError as error:
            error.close()
            if error.code == 416:
                raise StartOver("the server's file is shorter than what has arrived") from None
            if error.code < 500 and error.code not in (408, 429):  # no use in asking again
                raise StorageError(f"{url}: {error}; or use --from FILE") from None
            problem = str(error)
        except (OSError, HTTPException) as error:
            problem = str(error) or type(error).__name__
        if (arrived := _size(part)) == version.bytes:
            return
        failures += 1
        if failures >= retries.attempts:
            raise StorageError(
                f"{url}: {problem}; {failures} attempts failed, {arrived} bytes are kept in "
                f"{part}: run the same command again to resume, or use --from FILE"
            )
        seconds = retries.wait * 2 ** (failures - 1)
        _say(console, f"{problem}, at byte {arrived}: trying again in {seconds:.0f} s")
        time.sleep(seconds)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _open_url(version: _Version, start: int, timeout: float) -> HTTPResponse:
    """The server's answer from byte `start` on; raises StartOver if it begins elsewhere."""
    request = Request(version.url, headers={"User-Agent": f"stl10bench/{__version__}"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", str(version.validator))
    response: HTTPResponse = build_opener(_NoDowngrade).open(request, timeout=timeout)
    if start:
        span = f"bytes {start}-{(version.bytes or 0) - 1}/{version.bytes}"
        same = _validator(response) in (None, version.validator)
        if response.headers.get("Content-Range") != span or not same:
            response.close()
            raise StartOver("the server cannot resume where it stopped, or its file has changed")
    return response


class _NoDowngrade(HTTPRedirectHandler):
    """Refuses a redirect from https to http, which urllib follows."""

    def redirect_request(self, req: Request, fp: Any, *rest: Any) -> Request | None:
        target = str(rest[-1])
        if urlsplit(target).scheme not in ({"https"} if req.type == "https" else {"http", "https"}):
            raise StorageError(f"{req.full_url} redirects to {target}, which is less safe: refused")
        return super().redirect_request(req, fp, *rest)


def _remember(url: str, part: Path, response: HTTPResponse) -> _Version:
    """The version that a response sends, written beside `part` for `_recall`."""
    length = response.headers.get("Content-Length", "")
    size = int(length) if length.isdecimal() else None
    version = _Version.model_construct(url=url, bytes=size, validator=_validator(response))
    files.write_json(_version_path(part), version.model_dump())
    return version


def _validator(response: HTTPResponse) -> str | None:
    """What tells one version of a file from the next; a weak ETag does not (RFC 9110, 13.1.5)."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _recall(url: str, part: Path) -> _Version:
    """What `_remember` wrote; without a validator where `part` cannot be resumed from `url`."""
    try:
        version = _Version.model_validate(files.read_json(_version_path(part), StorageError))
    except ValueError:  # missing or damaged
        version = _Version(url="")
    size = version.bytes if version.url == url and version.validator else None
    return version if size and 0 < _size(part) <= size else _Version(url=url)


def _version_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _append(part: Path, chunk: bytes) -> None:
    with files.storage_errors(f"cannot write {part}"), part.open("ab") as file:
        file.write(chunk)


def read_part(path: Path) -> Chunks:
    """The bytes of a file. Raises DataError."""
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def remove_part(part: Path) -> None:
    """Forget what has arrived. Raises StorageError."""
    with files.storage_errors(f"cannot remove {part}"):
        part.unlink(missing_ok=True)
        _version_path(part).unlink(missing_ok=True)


def _missing(folder: Path, wanted: Sums) -> dict[str, stl10.FileSum]:
    """The `wanted` files that `folder` lacks. Raises DataError for one that is something else."""
    if (folder / stl10.MARKER).exists():
        raise DataError(f"{folder} holds the demo data: choose another --data-dir")
    missing = {}
    for name, expected in wanted.items():
        path = folder / name
        if not path.exists():
            missing[name] = expected
            continue
        with files.storage_errors(f"cannot read {path}"):
            content = path.stat().st_size, files.digests(path, "md5")[0]
        stl10.check_sum(path, content, expected, "move it away or choose another --data-dir")
    return missing
