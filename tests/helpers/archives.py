"""Archives of rows, taken apart and put together again, with sums that are right or not."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path


def members(archive: Path) -> dict[str, bytes]:
    """The contents of an archive by their names, without its index."""
    with tarfile.open(archive) as tar:
        files = ((member.name, tar.extractfile(member)) for member in tar)
        return {name: file.read() for name, file in files if file and name != "rows.json"}


def encoded(index: object) -> bytes:
    """The index as it stands in an archive."""
    return (json.dumps(index, indent=1, sort_keys=True) + "\n").encode()


def write(archive: Path, contents: Mapping[str, bytes], index: bytes | None = None) -> Path:
    """Write an archive as its author could: with an index that fits, or with any other."""
    runs: dict[str, dict[str, dict[str, object]]] = {}
    for name, content in sorted(contents.items()):
        run, _, file = name.partition("/")
        sums = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        runs.setdefault(run, {})[file] = sums
    if index is None:
        index = encoded({"format": 1, "runs": runs})
    with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in {"rows.json": index, **contents}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive
