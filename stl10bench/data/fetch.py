"""A URL -> its bytes from the first on, kept in a file as they come, so that they come but once."""

import time
from collections.abc import Callable, Generator, Mapping
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from stl10bench import __version__, files
from stl10bench.errors import DataError, StorageError

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
        remove(part)
    yield from read(part) if part.exists() else ()
    failures = 0
    while (have := part.stat().st_size if part.exists() else 0) != facts.get("bytes"):
        if have and not (facts.get("validator") and facts.get("bytes")):
            raise StartOver(f"{url} does not say which file it sends, so it cannot be resumed")
        try:
            with _open(url, have, facts, timeout) as response:
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


def _open(url: str, have: int, facts: Mapping[str, Any], timeout: float) -> HTTPResponse:
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


def read(path: Path) -> Chunks:
    """The bytes of a file. Raises DataError."""
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def remove(part: Path) -> None:
    """Forget what has arrived. Raises StorageError."""
    try:
        part.unlink(missing_ok=True)
        _facts_path(part).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot remove {part}: {error}") from error
