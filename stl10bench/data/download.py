"""The official archive on a server -> verified files in STL-10's layout: resumable, streamed."""

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

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

from stl10bench import files
from stl10bench.data import archive as archives
from stl10bench.data.fetch import StartOver, fetch, read, remove
from stl10bench.data.stl10 import CLASS_NAMES, FOLDER, MARKER, NEEDED, OFFICIAL
from stl10bench.errors import BusyError, DataError, StorageError, UsageError

URL = "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"
# The archive holds the labelled splits first (an eighth of it), then the unlabelled images, then
# class names and folds. The names are known here: for LABELLED the eighth is enough.
LABELLED = NEEDED
FOLDS = ("fold_indices.txt",)
UNLABELLED = ("unlabeled_X.bin", *FOLDS)

_PART = "stl10_binary.tar.gz.part"
_STARTS = 4  # how often to begin again with a server that does not resume, or changes its file

Sums = Mapping[str, tuple[int, str]]


def download(
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
                        read(archive)
                        if archive
                        else fetch(url, part, say, attempts=attempts, wait=wait, timeout=timeout)
                    )
                    with closing(stream):
                        archives.unpack(
                            stream,
                            folder,
                            packed,
                            source=str(archive or url),
                            report=lambda count: progress.advance(task, count),  # noqa: B023
                        )
            except StartOver as cause:
                remove(part)
                say(f"starting over: {cause}")
            except DataError as error:
                if archive:
                    raise
                remove(part)
                raise DataError(f"{error}; what had arrived is removed, so try again") from None
            else:
                break
        else:
            raise StorageError(f"{url}: started over {_STARTS} times in vain; try --from FILE")
        for name, content in known.items():
            files.write(folder / name, content)
        if part.exists() and not archive:
            remove(part)
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
