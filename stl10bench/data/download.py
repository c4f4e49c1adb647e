"""STL-10's server -> its files: resumable, verified, never over plain http after https."""

import hashlib
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from stl10bench.core import __version__, files
from stl10bench.core.errors import BusyError, DataError, StorageError, UsageError
from stl10bench.data.archive import unpack
from stl10bench.data.stl10 import CLASS_NAMES, FOLDER, MARKER, NEEDED, OFFICIAL

_CHUNK = 1 << 16  # bytes; what a lost connection costs at most

Chunks = Generator[bytes, None, None]


class StartOver(Exception):  # noqa: N818 (a signal, not a fault)
    """What has arrived is not the beginning of what the server would send now."""


def fetch(
    url: str,
    part: Path,
    say: Callable[[str], None],
    *,
    attempts: int = 6,
    wait: float = 1.0,
    timeout: float = 30.0,
) -> Chunks:
    """The bytes at `url`: first what `part` holds, then what the server sends, appended to `part`.

    A lost connection is tried again after `wait` seconds, then twice that and so on, at most
    `attempts` times in a row without news; silence of `timeout` seconds counts as lost. Only the
    file that `part` was begun with is gone on with (Range and If-Range). Raises StartOver when
    another one has come, StorageError for network and disk.
    """
    facts = _recall(url, part)
    if not facts:
        remove_part(part)
    yield from read_part(part) if part.exists() else ()
    failures = 0
    while (have := part.stat().st_size if part.exists() else 0) != facts.get("bytes"):
        if have and not (facts.get("validator") and facts.get("bytes")):
            raise StartOver(f"{url} does not say which file it sends, so it cannot be resumed")
        try:
            with _open_url(url, have, facts, timeout) as response:
                if not have:
                    facts = _remember(url, part, response)
                while chunk := response.read(_CHUNK):
                    _append(part, chunk)
                    failures = 0
                    yield chunk
            if facts["bytes"] is None:
                return
            lost = "the connection ended early"
        except HTTPError as error:
            error.close()
            if error.code == 416:
                raise StartOver("the server's file is shorter than what has arrived") from None
            if error.code < 500 and error.code not in (408, 429):
                raise StorageError(f"{url}: {error}; or use --from FILE") from None
            lost = str(error)
        except (OSError, HTTPException) as error:
            lost = str(error) or type(error).__name__
        have = part.stat().st_size if part.exists() else 0
        if have == facts.get("bytes"):
            return
        failures += 1
        if failures >= attempts:
            raise StorageError(
                f"{url}: {lost}; {attempts} attempts failed, {have} bytes are kept in {part}: "
                "the same command goes on from there, or use --from FILE"
            )
        seconds = wait * 2 ** (failures - 1)
        say(f"{lost}, at byte {have}: trying again in {seconds:.0f} s")
        time.sleep(seconds)


def _open_url(url: str, have: int, facts: Mapping[str, Any], timeout: float) -> HTTPResponse:
    """The server's answer from byte `have` on; raises StartOver if it begins elsewhere."""
    request = Request(url, headers={"User-Agent": f"stl10bench/{__version__}"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", facts["validator"])
    response: HTTPResponse = build_opener(_NoDowngrade).open(request, timeout=timeout)
    if have:
        span = f"bytes {have}-{facts['bytes'] - 1}/{facts['bytes']}"
        same = _validator(response) in (None, facts["validator"])
        if response.headers.get("Content-Range") != span or not same:
            response.close()
            raise StartOver("the server does not go on where it stopped, or its file has changed")
    return response


class _NoDowngrade(HTTPRedirectHandler):
    def redirect_request(self, req: Request, fp: Any, *rest: Any) -> Request | None:
        target = str(rest[-1])
        if urlsplit(target).scheme not in ({"https"} if req.type == "https" else {"http", "https"}):
            raise StorageError(f"{req.full_url} redirects to {target}, which is less safe: refused")
        return super().redirect_request(req, fp, *rest)


def _remember(url: str, part: Path, response: HTTPResponse) -> dict[str, Any]:
    """Write beside `part` what a later call needs to resume: length and validator."""
    length = response.headers.get("Content-Length", "")
    facts = {
        "url": url,
        "bytes": int(length) if length.isdecimal() else None,
        "validator": _validator(response),
    }
    files.write_json(_facts_path(part), facts)
    return facts


def _validator(response: HTTPResponse) -> str | None:
    """What tells one version of a file from the next; a weak ETag does not (RFC 9110, 13.1.5)."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _recall(url: str, part: Path) -> dict[str, Any]:
    """What _remember wrote, or nothing where `part` is of no use with `url`."""
    path = _facts_path(part)
    if not (part.exists() and path.exists()):
        return {}
    try:
        facts = files.read_json(path, StorageError)
    except StorageError:
        return {}
    usable = (
        facts.get("url") == url
        and isinstance(facts.get("validator"), str)
        and facts["validator"].isascii()
        and facts["validator"].isprintable()  # it goes into a request's header
        and isinstance(facts.get("bytes"), int)
        and part.stat().st_size <= facts["bytes"]
    )
    return facts if usable else {}


def _facts_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _append(part: Path, chunk: bytes) -> None:
    try:
        with part.open("ab") as file:
            file.write(chunk)
    except OSError as error:
        raise StorageError(f"cannot write {part}: {error}") from error


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
    try:
        part.unlink(missing_ok=True)
        _facts_path(part).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot remove {part}: {error}") from error


URL = "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"
# The archive holds the labelled splits first (an eighth of it), then the unlabelled images, then
# class names and folds. The names are known here: for LABELLED the eighth is enough.
LABELLED = NEEDED
FOLDS = ("fold_indices.txt",)
UNLABELLED = ("unlabeled_X.bin", *FOLDS)

_PART = "stl10_binary.tar.gz.part"
_STARTS = 4  # how often to begin again with a server that does not resume, or changes its file

Sums = Mapping[str, tuple[int, str]]


def download_stl10(
    data_dir: Path,
    *,
    members: Sequence[str] = LABELLED,
    archive: Path | None = None,
    url: str = URL,
    console: Console | None = None,
    expected: Sums = OFFICIAL,
    attempts: int = 6,
    wait: float = 1.0,
    timeout: float = 30.0,
) -> None:
    """Fetch `members` of the archive at `url` (or of the file `archive`) into `data_dir`.

    Files that are there and right are not fetched again; one that is there and wrong is refused and
    left as it is. What arrives stays in stl10_binary.tar.gz.part until all members are in place:
    the next call goes on from there. `expected` holds the bytes and the MD5 sum of each member;
    for `attempts`, `wait` and `timeout` (seconds) see fetch. Raises UsageError, DataError for
    wrong content, StorageError for network and disk, BusyError.
    """
    console = console or Console(stderr=True)
    if urlsplit(url).scheme not in ("http", "https"):
        raise UsageError(f"url {url!r}: must be http or https; for a file use --from FILE")
    if unknown := [name for name in members if name not in expected]:
        raise UsageError(f"member {unknown[0]!r}: must be one of {', '.join(expected)}")

    def say(text: str) -> None:
        console.print(escape(text), highlight=False, soft_wrap=True)

    folder, part = data_dir / FOLDER, data_dir / _PART
    with _locked(data_dir):
        for _ in range(_STARTS):
            missing = _missing(folder, {name: expected[name] for name in members})
            known = _known(missing)
            packed = {name: facts for name, facts in missing.items() if name not in known}
            if not packed:
                break
            total = sum(size for size, _ in packed.values())
            _check_space(data_dir, total if archive else 2 * total)  # 2: the archive's own part
            try:
                with _progress(console) as progress:
                    task = progress.add_task("STL-10", total=total)
                    stream = (
                        read_part(archive)
                        if archive
                        else fetch(url, part, say, attempts=attempts, wait=wait, timeout=timeout)
                    )
                    with closing(stream):
                        unpack(
                            stream,
                            folder,
                            packed,
                            source=str(archive or url),
                            report=lambda count: progress.advance(task, count),  # noqa: B023
                        )
            except StartOver as cause:
                remove_part(part)
                say(f"starting over: {cause}")
            except DataError as error:
                if archive:
                    raise
                remove_part(part)
                raise DataError(f"{error}; what had arrived is removed, so try again") from None
            else:
                break
        else:
            raise StorageError(f"{url}: started over {_STARTS} times in vain; try --from FILE")
        for name, content in known.items():
            files.write(folder / name, content)
        if part.exists() and not archive:
            remove_part(part)
            say(f"all is unpacked and verified: removed {part}")


def _missing(folder: Path, wanted: Sums) -> dict[str, tuple[int, str]]:
    """The `wanted` files that `folder` lacks. Raises DataError for one that is something else."""
    if (folder / MARKER).exists():
        raise DataError(f"{folder} holds the demo data: choose another --data-dir")
    missing = {}
    for name, (size, md5) in wanted.items():
        path = folder / name
        if not path.exists():
            missing[name] = (size, md5)
            continue
        try:
            found = (path.stat().st_size, *files.digests(path, "md5"))
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error}") from error
        if found != (size, md5):
            raise DataError(
                f"{path} is not STL-10's: expected {size} bytes, MD5 {md5}; found {found[0]} "
                f"bytes, MD5 {found[1]}; move it away or choose another --data-dir"
            )
    return missing


def _known(missing: Sums) -> dict[str, bytes]:
    """The content of class_names.txt, where it is missing and has the sum that is expected."""
    content = "".join(f"{name}\n" for name in CLASS_NAMES).encode()
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return {name: content for name, facts in missing.items() if facts == (len(content), md5)}


def _check_space(data_dir: Path, needed: int) -> None:
    free = shutil.disk_usage(data_dir).free
    if free < needed:
        raise StorageError(
            f"{data_dir}: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free; "
            "make room or choose another --data-dir"
        )


@contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        guard = FileLock(data_dir / f".{FOLDER}.lock", timeout=0).acquire()
    except Timeout:
        raise BusyError(f"another process downloads into {data_dir}: let it finish") from None
    except OSError as error:
        raise StorageError(f"cannot write the data folder {data_dir}: {error}") from error
    with guard:
        yield


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
