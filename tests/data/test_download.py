"""The download against a loopback server with faults, and against crafted archives."""

import gzip
import hashlib
import io
import json
import os
import shutil
import ssl
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from stl10bench.core.errors import BusyError, DataError, StorageError, UsageError
from stl10bench.data.download import FOLDS, LABELLED, UNLABELLED, Retries, download_stl10
from stl10bench.data.stl10 import CLASS_NAMES, OFFICIAL, open_dataset

_RNG = np.random.default_rng(0)
NOISE = {split: _RNG.bytes(27_648 * count) for split, count in (("train", 20), ("test", 10))}
CONTENT = {  # in the order of the real archive
    "test_X.bin": NOISE["test"],
    "test_y.bin": bytes(range(1, 11)),
    "train_X.bin": NOISE["train"],
    "train_y.bin": bytes(range(1, 11)) * 2,
    "unlabeled_X.bin": _RNG.bytes(27_648 * 40),
    "class_names.txt": "".join(f"{name}\n" for name in CLASS_NAMES).encode(),
    "fold_indices.txt": b"0 1 2 3 \n4 5 6 7 \n",
}
EXPECTED = {
    name: (len(content), hashlib.md5(content, usedforsecurity=False).hexdigest())
    for name, content in CONTENT.items()
}


def quick(**retries: Any) -> dict[str, Any]:
    return {"expected": EXPECTED, "retries": Retries(**{"wait": 0.01, "timeout": 5.0} | retries)}


QUICK = quick()


def pack(*members: tuple[tarfile.TarInfo | str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for member, content in members:
            if isinstance(member, str):
                member = tarfile.TarInfo(member)
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return gzip.compress(packed.getvalue(), 1)


ARCHIVE = pack(*((f"stl10_binary/{name}", content) for name, content in CONTENT.items()))
LABELLED_END = len(NOISE["train"]) + len(NOISE["test"]) + 100_000  # bytes of ARCHIVE, generously

Answer = Callable[[BaseHTTPRequestHandler], None]


class Server(ThreadingHTTPServer):
    """Serves ARCHIVE with ranges; `script` holds answers for the first requests instead."""

    daemon_threads = True

    def __init__(self, *script: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = list(script)
        self.seen: list[dict[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/stl10_binary.tar.gz"
        self.gate = threading.Event()

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up early is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.seen.append(dict(self.headers))
        (self.server.script.pop(0) if self.server.script else send())(self)

    def log_message(self, *_: Any) -> None:
        pass


def send(
    *, end: int | None = None, etag: str = '"one"', ranges: bool = True, if_range: bool = True
) -> Answer:
    """ARCHIVE, from the byte asked for where `ranges`, cut before byte `end`."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        start, asked = 0, request.headers.get("Range")
        if asked and ranges and (not if_range or request.headers["If-Range"] == etag):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(ARCHIVE) - 1}/{len(ARCHIVE)}")
        else:
            request.send_response(200)
        request.send_header("Content-Length", str(len(ARCHIVE) - start))
        request.send_header("ETag", etag)
        request.end_headers()
        request.wfile.write(ARCHIVE[start:end])

    return answer


def refuse(code: int) -> Answer:
    return lambda request: request.send_error(code)


def redirect(url: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", url)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


@contextmanager
def serving(*script: Answer) -> Iterator[Server]:
    server = Server(*script)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()


def written(data_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (data_dir / "stl10_binary").iterdir()}


def chosen(*members: str) -> dict[str, bytes]:
    return {name: CONTENT[name] for name in members}


def leftovers(data_dir: Path) -> list[str]:
    return sorted(path.name for path in data_dir.rglob("*part*"))


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_the_members_are_the_seven_official_files() -> None:
    assert set(LABELLED) | set(UNLABELLED) == set(OFFICIAL)
    assert set(FOLDS) < set(UNLABELLED)


@pytest.mark.parametrize("members", [LABELLED, FOLDS, (*LABELLED, *UNLABELLED)])
def test_a_download_writes_exactly_the_members_asked_for(
    tmp_path: Path, members: tuple[str, ...]
) -> None:
    with serving() as server:
        download_stl10(tmp_path / "new" / "data", source=server.url, members=members, **QUICK)
    assert written(tmp_path / "new" / "data") == chosen(*members)
    assert leftovers(tmp_path) == []


def test_what_was_downloaded_opens_as_data_of_the_layout(tmp_path: Path) -> None:
    with serving() as server:
        download_stl10(tmp_path, source=server.url, **QUICK)
    data = open_dataset(tmp_path, verify=False)
    assert data.name == "STL-10 layout"
    assert data.train.images.shape == (20, 3, 96, 96)


def test_a_download_of_the_labelled_splits_reads_no_further_than_them(tmp_path: Path) -> None:
    def stall(request: BaseHTTPRequestHandler) -> None:
        send(end=LABELLED_END)(request)
        request.wfile.flush()
        request.server.gate.wait(20)  # type: ignore[attr-defined]

    with serving(stall) as server:
        download_stl10(tmp_path, source=server.url, **QUICK)
        assert len(server.seen) == 1
    assert written(tmp_path) == chosen(*LABELLED)


def test_a_lost_connection_is_resumed_where_it_broke(tmp_path: Path) -> None:
    with serving(send(end=200_000), send(end=500_000)) as server:
        download_stl10(tmp_path, source=server.url, members=UNLABELLED, **QUICK)
        assert [seen.get("Range") for seen in server.seen] == [
            None,
            "bytes=200000-",
            "bytes=500000-",
        ]
        assert {seen["If-Range"] for seen in server.seen[1:]} == {'"one"'}
    assert written(tmp_path) == chosen(*UNLABELLED)


def test_a_later_call_goes_on_from_what_an_earlier_one_left(tmp_path: Path) -> None:
    with serving(send(end=700_000)) as server:
        with pytest.raises(StorageError, match=r"700000 bytes are kept in .*run the same command"):
            download_stl10(tmp_path, source=server.url, **quick(attempts=1))
        assert not (tmp_path / "stl10_binary" / "train_X.bin").exists()
        assert (tmp_path / "stl10_binary" / "test_X.bin").read_bytes() == NOISE["test"]
        assert "stl10_binary.tar.gz.part" in leftovers(tmp_path)
        download_stl10(tmp_path, source=server.url, **QUICK)
        assert [seen.get("Range") for seen in server.seen] == [None, "bytes=700000-"]
    assert written(tmp_path) == chosen(*LABELLED)
    assert leftovers(tmp_path) == []


def test_what_another_address_left_is_not_gone_on_with(tmp_path: Path) -> None:
    with serving(send(end=700_000)) as server, serving() as other:
        with pytest.raises(StorageError):
            download_stl10(tmp_path, source=server.url, **quick(attempts=1))
        download_stl10(tmp_path, source=other.url, **QUICK)
        assert "Range" not in other.seen[0]
    assert written(tmp_path) == chosen(*LABELLED)


@pytest.mark.parametrize("validator", ["a\r\nX-Evil: 1", "\ud800", "é", "\0", 3, None])
def test_what_cannot_be_a_validator_is_not_sent(tmp_path: Path, validator: object) -> None:
    with serving(send(end=700_000)) as server:
        with pytest.raises(StorageError):
            download_stl10(tmp_path, source=server.url, **quick(attempts=1))
        facts = next(tmp_path.glob("*.part.json"))
        facts.write_text(json.dumps(json.loads(facts.read_text()) | {"validator": validator}))
        download_stl10(tmp_path, source=server.url, **QUICK)
        assert "If-Range" not in server.seen[-1]
    assert written(tmp_path) == chosen(*LABELLED)


@pytest.mark.parametrize(
    "second",
    [send(ranges=False), send(etag='"two"'), send(etag='"two"', if_range=False), refuse(416)],
    ids=["ignores Range", "changed", "changed, ignores If-Range", "shorter"],
)
def test_a_server_that_does_not_resume_is_read_from_the_start(
    tmp_path: Path, second: Answer
) -> None:
    with serving(send(end=300_000), second, send(etag='"two"')) as server:
        download_stl10(tmp_path, source=server.url, **QUICK)
        assert ["Range" in seen for seen in server.seen] == [False, True, False]
    assert written(tmp_path) == chosen(*LABELLED)
    assert leftovers(tmp_path) == []


def test_a_server_that_never_resumes_is_given_up(tmp_path: Path) -> None:
    with serving(*[send(end=300_000, ranges=False)] * 20) as server:
        with pytest.raises(StorageError, match="gave up after 4 new starts"):
            download_stl10(tmp_path, source=server.url, **QUICK)
        assert len(server.seen) == 8


def test_a_busy_server_is_asked_again_and_then_given_up(tmp_path: Path) -> None:
    with serving(refuse(503), refuse(500)) as server:
        download_stl10(tmp_path / "one", source=server.url, **QUICK)
        assert len(server.seen) == 3
    with serving(*[refuse(503)] * 9) as server:
        with pytest.raises(StorageError, match=r"503.*3 attempts failed.*--from FILE"):
            download_stl10(
                tmp_path / "two",
                source=server.url,
                **quick(attempts=3),
            )
        assert len(server.seen) == 3


def test_a_missing_archive_is_reported_at_once(tmp_path: Path) -> None:
    with serving(refuse(404)) as server:
        with pytest.raises(StorageError, match="404") as caught:
            download_stl10(tmp_path, source=server.url, **QUICK)
        assert len(server.seen) == 1
    assert caught.value.exit_code == 7
    assert not (tmp_path / "stl10_binary").exists()


def test_a_silent_server_counts_as_lost(tmp_path: Path) -> None:
    def silent(request: BaseHTTPRequestHandler) -> None:
        request.server.gate.wait(20)  # type: ignore[attr-defined]

    with serving(silent) as server:
        start = time.monotonic()
        download_stl10(tmp_path, source=server.url, **quick(timeout=0.5))
        assert len(server.seen) == 2
        assert time.monotonic() - start < 10
    assert written(tmp_path) == chosen(*LABELLED)


def test_nobody_at_the_address_is_a_storage_error(tmp_path: Path) -> None:
    with serving() as server:
        url = server.url
    with pytest.raises(StorageError, match="refused"):
        download_stl10(tmp_path, source=url, **quick(attempts=2))


def test_a_redirect_is_followed(tmp_path: Path) -> None:
    with serving() as target, serving(redirect(target.url)) as server:
        download_stl10(tmp_path, source=server.url, **QUICK)
    assert written(tmp_path) == chosen(*LABELLED)


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl for a certificate")
def test_a_redirect_from_https_to_http_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=here -addext"
    subprocess.run(
        [*command.split(), "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with serving() as plain, serving(redirect(plain.url), redirect(plain.url)) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        with pytest.raises(StorageError, match="less safe"):
            download_stl10(tmp_path / "data", source=server.url.replace("http:", "https:"), **QUICK)
        assert plain.seen == []


def test_an_address_that_is_no_http_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be http or https"):
        download_stl10(tmp_path, source=f"file://{tmp_path}/a.tar.gz", **QUICK)


def test_an_unknown_member_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'../x': must be one of"):
        download_stl10(tmp_path, members=("../x",), **QUICK)


def test_wrong_content_is_refused_with_both_sums_and_nothing_is_left(tmp_path: Path) -> None:
    wrong = {**EXPECTED, "test_y.bin": (10, "0" * 32)}
    found = EXPECTED["test_y.bin"][1]
    with (
        serving() as server,
        pytest.raises(
            DataError, match=f"expected 10 bytes, MD5 {'0' * 32}; found 10 bytes, MD5 {found}"
        ),
    ):
        download_stl10(tmp_path, source=server.url, **QUICK | {"expected": wrong})
    assert written(tmp_path) == chosen("test_X.bin")
    assert leftovers(tmp_path) == []


def test_files_that_are_there_are_not_fetched_again(tmp_path: Path) -> None:
    with serving() as server:
        download_stl10(tmp_path, source=server.url, **QUICK)
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "stl10_binary").iterdir()}
        download_stl10(tmp_path, source=server.url, **QUICK)
        assert len(server.seen) == 1
        (tmp_path / "stl10_binary" / "train_y.bin").unlink()
        download_stl10(tmp_path, source=server.url, **QUICK)
        assert len(server.seen) == 2
    changed = [path.name for path, time in before.items() if path.stat().st_mtime_ns != time]
    assert changed == ["train_y.bin"]


def test_a_wrong_file_that_is_there_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "stl10_binary").mkdir()
    mine = tmp_path / "stl10_binary" / "train_y.bin"
    mine.write_bytes(b"mine")
    with serving() as server:
        with pytest.raises(DataError, match=r"expected 20 bytes, MD5 .*found 4 bytes.*move it"):
            download_stl10(tmp_path, source=server.url, **QUICK)
        assert server.seen == []
    assert written(tmp_path) == {"train_y.bin": b"mine"}


def test_the_demo_data_are_not_mixed_with_the_real(tmp_path: Path) -> None:
    (tmp_path / "stl10_binary").mkdir()
    (tmp_path / "stl10_binary" / "demo.json").write_text("{}")
    with pytest.raises(DataError, match="demo data"):
        download_stl10(tmp_path, source=tmp_path / "none", **QUICK)


def test_two_downloads_into_one_folder_do_not_meet(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".stl10_binary.lock"), pytest.raises(BusyError, match="another"):
        download_stl10(tmp_path, source=tmp_path / "none", **QUICK)


def test_a_data_folder_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        download_stl10(tmp_path / "file", source=tmp_path / "none", **QUICK)


def test_a_disk_that_is_too_small_is_seen_before(tmp_path: Path) -> None:
    huge = {"train_X.bin": (1 << 60, "0" * 32)}
    with pytest.raises(StorageError, match="GB needed"):
        download_stl10(tmp_path, members=tuple(huge), **QUICK | {"expected": huge})


def test_an_archive_on_disk_is_unpacked_and_kept(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(ARCHIVE)
    download_stl10(tmp_path, source=archive, members=(*LABELLED, *UNLABELLED), **QUICK)
    assert written(tmp_path) == CONTENT
    assert archive.read_bytes() == ARCHIVE
    umask = os.umask(0)
    os.umask(umask)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "stl10_binary").iterdir()}
    assert modes == {0o666 & ~umask}


@pytest.mark.parametrize(
    "content",
    [b"", b"no archive", ARCHIVE[:400_000], gzip.compress(b"x")],
    ids=["nothing", "no archive", "cut", "no tar"],
)
def test_what_is_no_whole_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.tar\.gz"):
        download_stl10(tmp_path, source=archive, **QUICK)
    assert leftovers(tmp_path) == []
    assert archive.read_bytes() == content


def test_an_archive_that_is_not_there_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*No such file"):
        download_stl10(tmp_path, source=tmp_path / "a.tar.gz", **QUICK)


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, "/etc/passwd"
    return info


WANTED = "stl10_binary/train_y.bin"
RIGHT = CONTENT["train_y.bin"]


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (pack((member(WANTED, tarfile.SYMTYPE, 20), RIGHT)), "a link or a special file"),
        (pack((member(WANTED, tarfile.LNKTYPE, 20), RIGHT)), "a link or a special file"),
        (pack((member(WANTED, tarfile.FIFOTYPE, 20), RIGHT)), "a link or a special file"),
        (pack((member(WANTED, tarfile.CHRTYPE, 20), RIGHT)), "a link or a special file"),
        (pack((member(WANTED, tarfile.DIRTYPE, 20), RIGHT)), "a link or a special file"),
        (pack((WANTED, b"x" * 21)), "it is 21 bytes"),
        (pack((f"../{WANTED}", RIGHT)), "ends without"),
        (pack((f"/{WANTED}", RIGHT)), "ends without"),
        (pack(("stl10_binary/../train_y.bin", RIGHT)), "ends without"),
        (pack(("x" * 300 + WANTED, RIGHT)), "ends without"),
        (pack(*[(f"stl10_binary/{i}", b"") for i in range(1001)]), "more than 1000 members"),
        (gzip.compress(member("huge", size=1 << 40).tobuf(tarfile.GNU_FORMAT)), "1099511627776"),
        (gzip.compress(b"x" * 512), "not a tar archive, or damaged"),
    ],
    ids=[
        *("symlink", "hardlink", "pipe", "device", "folder", "too long", "parent", "absolute"),
        *("parent inside", "long name", "many members", "huge member", "no tar"),
    ],
)
def test_a_hostile_archive_is_refused_and_writes_nothing(
    tmp_path: Path, archive: bytes, message: str
) -> None:
    data_dir = tmp_path / "data"
    (tmp_path / "a.tar.gz").write_bytes(archive)
    with pytest.raises(DataError, match=message):
        download_stl10(data_dir, source=tmp_path / "a.tar.gz", members=("train_y.bin",), **QUICK)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        ".stl10_binary.lock",
        "a.tar.gz",
        "data",
    ]


def test_strange_members_around_the_wanted_ones_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(
        pack(
            (member("stl10_binary", tarfile.DIRTYPE), b""),
            ("../../outside", b"x" * 5000),
            (member("stl10_binary/passwd", tarfile.SYMTYPE), b""),
            ("stl10_binary/._train_y.bin", b"resource fork"),
            (f"./{WANTED}", CONTENT["train_y.bin"]),
            (WANTED, b"another of that name"),
        )
    )
    download_stl10(tmp_path, source=tmp_path / "a.tar.gz", members=("train_y.bin",), **QUICK)
    assert written(tmp_path) == chosen("train_y.bin")
    assert not (tmp_path.parent.parent / "outside").exists()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=2000), st.integers(0, 3000))
@example(b"", 512)
def test_damage_anywhere_in_an_archive_is_a_data_error_or_harmless(
    tmp_path: Path, patch: bytes, place: int
) -> None:
    whole = pack((WANTED, CONTENT["train_y.bin"]))
    data_dir = tmp_path / hashlib.sha256(patch + bytes([place % 251])).hexdigest()[:16]
    data_dir.mkdir(exist_ok=True)
    plain = bytearray(gzip.decompress(whole))
    plain[place : place + len(patch)] = patch
    (data_dir / "a").write_bytes(gzip.compress(bytes(plain), 1))
    try:
        download_stl10(data_dir, source=data_dir / "a", members=("train_y.bin",), **QUICK)
    except DataError:
        assert not list(data_dir.glob("stl10_binary/*"))
    else:
        assert written(data_dir) == chosen("train_y.bin")
    shutil.rmtree(data_dir)
