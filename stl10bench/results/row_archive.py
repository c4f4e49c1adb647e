"""Finished runs <-> one tar of their rows and predictions, for somebody else to check.

A plain tar (USTAR): `rows.json` with the size and the sha256 of each file, then the files of each
run, which unpack to run folders. The same runs give the same bytes. The reader takes nothing but
what the writer writes, header by header, so there are no links, no other names and nothing hidden.
"""

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stl10bench.config import RunConfig, make_config
from stl10bench.core import files
from stl10bench.core.errors import (
    BenchError,
    CheckpointError,
    InterruptedRunError,
    UsageError,
    first_problem,
)
from stl10bench.results import predictions
from stl10bench.results.rows import LEVELS, NOT_STORED, Level, Row
from stl10bench.results.run_folder import RunFolder

INDEX = "rows.json"
_KEPT = RunFolder(Path())  # for the names of the files
_REQUIRED = tuple(
    path.name for path in (_KEPT.config_file, _KEPT.predictions_file, _KEPT.result_file)
)
_CHECKPOINTS = (_KEPT.best_file.name, _KEPT.last_file.name)
_LIMITS = {  # bytes
    **dict.fromkeys((INDEX, _KEPT.config_file.name, _KEPT.result_file.name), 1 << 20),
    _KEPT.predictions_file.name: 1 << 30,
    **dict.fromkeys(_CHECKPOINTS, 4 << 30),
}
_LIMIT = 16 << 30  # bytes of an archive
_RUNS = 1000
_OVERHEAD = 8 << 20  # bytes: more than the index, and the headers and padding of the most files
_CHUNK = 1 << 20
_VERIFIED = "verified.json"  # in a folder of runs
_RUN_NAME = r"\A[A-Za-z0-9_-]{1,60}-[0-9a-f]{8}\z"  # as `RunConfig.name` makes them
_PATH = re.compile(
    r"(?<![\w.:/-])(?:file:)?(?:~|[A-Za-z]:)?[\\/][^\s'\":;,()]*[\\/]"
)  # all but the last part
_DERIVED = ("model", "method", "seed", "image_size", "precision")  # a row's copies of its settings


class _File(BaseModel):
    """What a member must be."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"\A[0-9a-f]{64}\z")


class _Index(BaseModel):
    """What `rows.json` says: of each run its files, in the order of the members."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)

    format: Literal[1] = 1
    runs: dict[Annotated[str, Field(pattern=_RUN_NAME)], dict[str, _File]] = Field(
        min_length=1, max_length=_RUNS
    )

    def encoded(self) -> bytes:
        return (json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()


class SharedRun(NamedTuple):
    """A run out of an archive: whole, but believed by nobody yet."""

    folder: RunFolder
    digest: str  # sha256 over the sums of its settings, row and predictions
    has_checkpoint: bool


def pack(path: Path, folders: Sequence[RunFolder], *, with_checkpoint: bool = False) -> None:
    """Write finished runs as an archive: settings, row, predictions, and the tested checkpoint.

    Nothing in it says where they lie, on which host, or whose they are. Raises CheckpointError for
    a run whose files are not whole or do not belong together, UsageError for a setting that names a
    path and for more than `unpack` takes, StorageError.
    """
    if len(folders) > _RUNS:
        raise UsageError(
            f"an archive has at most {_RUNS:,} runs, these are {len(folders):,}: name fewer of them"
        )
    members: dict[str, bytes | Path] = {}
    index: dict[str, dict[str, _File]] = {}
    for folder in sorted(folders, key=lambda folder: folder.name):
        if folder.name in index:
            raise UsageError(f"two runs are named {folder.name!r}: name only one of them")
        contents = _contents(folder, with_checkpoint=with_checkpoint)
        index[folder.name] = {name: _describe(contents[name]) for name in sorted(contents)}
        for name, described in index[folder.name].items():
            if described.bytes > _LIMITS[name]:
                raise UsageError(
                    f"{folder.path}: its {name} has {described.bytes:,} bytes, the limit is "
                    f"{_LIMITS[name]:,}: leave this run out"
                )
        members |= {f"{folder.name}/{name}": contents[name] for name in sorted(contents)}
    total = sum(described.bytes for sums in index.values() for described in sums.values())
    if total > _LIMIT - _OVERHEAD:
        raise UsageError(
            f"{path} would have {total:,} bytes, the limit is {_LIMIT - _OVERHEAD:,}: name fewer "
            "runs, or leave out --with-checkpoint"
        )
    with (
        files.storage_errors(f"cannot write {path}"),
        files.new_file(path) as part,
        tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, content in {INDEX: _Index(runs=index).encoded(), **members}.items():
            size = len(content) if isinstance(content, bytes) else content.stat().st_size
            with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
                tar.addfile(_member(name, size), file)


def _contents(folder: RunFolder, *, with_checkpoint: bool) -> dict[str, bytes | Path]:
    """The files of a run as they are shared: written anew, so that nothing else is in them."""
    row, config = folder.row(), folder.config()
    values = row.stored()
    if row.stacked > 1:  # else its seconds, which are those of several settings, would be its own
        values["stacked"] = row.stacked
    values["test_notes"] = [_PATH.sub("", note) for note in row.test_notes]
    settings = config.model_dump(mode="json")
    # A row has the defaults too, which those of a plug-in's model may take from the machine.
    shown = [settings, *(values[key] for key in ("model_options", "method_options", "chosen"))]
    if named := _PATH.search(json.dumps(shown, ensure_ascii=False)):
        raise UsageError(
            f"{folder.path} has a setting with a path, {named[0]!r}...: it would tell where files "
            "lie on this machine; leave this run out"
        )
    arrays = folder.predictions(row)._asdict()
    arrays = {key: value for key, value in arrays.items() if value is not None}
    contents: dict[str, bytes | Path] = {
        folder.config_file.name: _as_json(settings),
        folder.predictions_file.name: predictions.encode(arrays),
        folder.result_file.name: _as_json(values),
    }
    check_row(folder.name, config, row, row.protocol)
    if with_checkpoint:
        tested = folder.checkpoint()
        contents[tested.name] = tested
    return contents


def _as_json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, allow_nan=False) + "\n").encode()


def _describe(content: bytes | Path) -> _File:
    if isinstance(content, bytes):
        return _File(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    with files.storage_errors(f"cannot read {content}"):
        return _File(bytes=content.stat().st_size, sha256=files.digests(content, "sha256")[0])


def _member(name: str, size: int) -> tarfile.TarInfo:
    """A regular file of nobody, from no time."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member


def unpack(path: Path, into: Path) -> list[SharedRun]:
    """Write the runs of an archive as run folders below `into`; returns them in their order.

    Takes only what `pack` writes: members in the order of the index, their headers byte by byte,
    their sizes and sums, and files that are what their names say: settings whose hash is the run's
    name, the row of these settings, predictions. What the figures say is not proven by that. Raises
    CheckpointError, in one line, for anything else, and StorageError.
    """
    with _opened(path) as archive:
        index = _read_index(archive)
        for run, sums in index.runs.items():
            for name, expected in sums.items():
                _take(archive, f"{run}/{name}", expected, into / run / name)
        rest = archive.file.read(tarfile.RECORDSIZE + 1)
        whole = archive.file.tell() % tarfile.RECORDSIZE == 0
        if rest.strip(b"\0") or not whole or len(rest) < 2 * tarfile.BLOCKSIZE:
            raise archive.error("something follows its last file, or its end is cut off")
    runs = []
    for run, sums in index.runs.items():
        folder = RunFolder(into / run)
        with named(path, into):
            _check_run(folder)
        proven = _Index(runs={run: {name: sums[name] for name in _REQUIRED}})
        digest = hashlib.sha256(proven.encoded()).hexdigest()
        runs.append(SharedRun(folder, digest, len(sums) > len(_REQUIRED)))
    return runs


class _Archive(NamedTuple):
    path: Path
    file: BinaryIO

    def error(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is damaged, or not from 'rows share': {reason}")


@contextmanager
def _opened(path: Path) -> Iterator[_Archive]:
    if not path.is_file():  # opening a pipe would wait for a writer
        raise CheckpointError(f"cannot read {path}: no such file, or not a regular one")
    with files.storage_errors(f"cannot read {path} or write its files"), path.open("rb") as file:
        archive = _Archive(path, file)
        if os.fstat(file.fileno()).st_size > _LIMIT:
            raise archive.error(f"it is larger than {_LIMIT:,} bytes, the limit")
        yield archive


def _read_index(archive: _Archive) -> _Index:
    size = _next_size(archive, INDEX)
    content = archive.file.read(size)
    _skip_padding(archive, INDEX, size)
    try:
        index = _Index.model_validate_json(content)
    except ValidationError as error:
        raise archive.error(f"{INDEX}: {first_problem(error)}") from None
    if index.encoded() != content:
        raise archive.error(f"{INDEX} is not as 'rows share' writes it")
    for run, sums in index.runs.items():
        if {*sums} - {*_REQUIRED, *_CHECKPOINTS} or not {*_REQUIRED} <= {*sums} or len(sums) > 4:
            raise archive.error(
                f"{INDEX}: {run} must have {', '.join(_REQUIRED)} and at most one checkpoint; it "
                f"has {', '.join(sums)[:200]}"
            )
    return index


def _next_size(archive: _Archive, name: str) -> int:
    """The size in the next header, which must be that of a plain file called `name`."""
    header = archive.file.read(tarfile.BLOCKSIZE)
    try:
        member = tarfile.TarInfo.frombuf(header, "utf-8", "replace")
    except tarfile.HeaderError as error:
        reason = f"no tar header where {name} should begin ({error})"
        raise archive.error(f"{reason}; a compressed one must be unpacked first") from None
    if member.name != name:
        raise archive.error(f"{name} expected, found a member {member.name[:100]!r}")
    if member.type != tarfile.REGTYPE:
        kind = "a link" if member.issym() or member.islnk() else "no plain file"
        raise archive.error(f"{name} is {kind}")
    limit = _LIMITS[Path(name).name]
    if not 0 <= member.size <= limit:
        raise archive.error(f"{name} says it has {member.size:,} bytes, the limit is {limit:,}")
    if header != _member(name, member.size).tobuf(tarfile.USTAR_FORMAT):
        raise archive.error(f"the header of {name} is not as 'rows share' writes it")
    return member.size


def _take(archive: _Archive, name: str, expected: _File, target: Path) -> None:
    """Write the next member to `target`, with the size and the sum that the index gives."""
    size = _next_size(archive, name)
    if size != expected.bytes:
        raise archive.error(f"{name} has {size:,} bytes, {INDEX} says {expected.bytes:,}")
    digest, left = hashlib.sha256(), size
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        while left and (chunk := archive.file.read(min(left, _CHUNK))):
            digest.update(chunk)
            file.write(chunk)
            left -= len(chunk)
    if left or digest.hexdigest() != expected.sha256:
        reason = f"{name} is cut off" if left else f"the checksum of {name} does not match"
        raise CheckpointError(f"{archive.path} is damaged: {reason}")
    _skip_padding(archive, name, size)


def _skip_padding(archive: _Archive, name: str, size: int) -> None:
    padding = -size % tarfile.BLOCKSIZE
    if archive.file.read(padding) != bytes(padding):
        raise archive.error(f"{name} is cut off, or something is hidden behind it")


@contextmanager
def named(path: Path, into: Path) -> Iterator[None]:
    """Within, errors name files of the archive `path`, not those that it was unpacked to."""
    try:
        yield
    except InterruptedRunError:  # the user's own
        raise
    except BenchError as error:
        text = str(error).replace(f"{into}{os.sep}", "")
        raise type(error)(f"{path}: {text}") from None


def _check_run(folder: RunFolder) -> None:
    """Raise CheckpointError unless a folder out of an archive is that of one finished run."""
    try:
        config = make_config(files.read_json(folder.config_file, CheckpointError))
    except UsageError as error:
        raise CheckpointError(f"{folder.config_file}: {error}") from None
    values, row = files.read_json(folder.result_file, CheckpointError), folder.row()
    if forged := values.keys() & NOT_STORED - {"stacked"}:  # a table would believe them
        raise CheckpointError(
            f"{folder.result_file} is not as 'rows share' writes it: it has "
            f"{', '.join(sorted(forged))}"
        )
    check_row(folder.name, config, row, values.get("protocol"))
    predictions.read(folder.predictions_file)
    for file in _CHECKPOINTS:
        path = folder.path / file
        if path.exists() and path != folder.tested_file(config):
            raise CheckpointError(f"{path} is not the checkpoint that a run of its settings tests")


def check_row(name: str, config: RunConfig, row: Row, protocol: object) -> None:
    """Raise CheckpointError unless the settings and the row are those of the run `name`."""
    facts = {"run": name, **{key: getattr(config, key) for key in _DERIVED}}
    facts["selection"] = config.selection
    if config.name != name:
        raise CheckpointError(
            f"{name}/config.json has the settings of {config.name}: one was edited"
        )
    if row.config != config:
        raise CheckpointError(f"{name}/result.json has other settings than config.json")
    for key, expected in facts.items():
        if row[key] != expected:
            raise CheckpointError(
                f"{name}/result.json: {key} = {row[key]!r:.80}, but its settings say {expected!r}"
            )
    if row.checkpoint not in (None, f"{name}/{_KEPT.tested_file(config)}"):
        raise CheckpointError(f"{name}/result.json: checkpoint = {row.checkpoint!r:.80} is not its")
    if row.weights is not None and row.weights.get("source") != config.weights:
        raise CheckpointError(f"{name}/result.json has other weights than config.json")
    if protocol != row.protocol:
        raise CheckpointError(
            f"{name}/result.json: protocol = {protocol!r:.80}, but its settings say "
            f"{row.protocol!r}"
        )


@contextmanager
def shared_rows(paths: Sequence[Path], runs_dir: Path) -> Iterator[list[tuple[RunFolder, Row]]]:
    """The runs of archives as run folders, for the time within, and their rows.

    Each row says its archive, how far it was verified by the runs folder `runs_dir`, and what a
    ranking needs. Raises what `unpack` raises, CheckpointError for predictions that are not the
    row's, UsageError for two archives of one name.
    """
    if not paths:
        yield []
        return
    levels = verified_levels(runs_dir)
    runs = []
    with TemporaryDirectory(prefix="stl10bench-rows-") as folder:
        for path in paths:
            into = Path(folder) / path.name
            if into.exists():
                raise UsageError(f"two archives are called {path.name}: rename one of them")
            into.mkdir()
            for shared in unpack(path, into):
                with named(path, into):
                    row = shared.folder.with_hits(shared.folder.row())
                level = levels.get(shared.digest, LEVELS[0])
                name = f"{path.name}:{row.run}"
                facts = {"run": name, "source": path.name, "verified": level}
                runs.append((shared.folder, row.model_copy(update=facts)))
        yield runs


def verified_levels(runs_dir: Path) -> dict[str, Level]:
    """How far runs of others were verified here, by their digest. Raises CheckpointError."""
    path = runs_dir / _VERIFIED
    if not path.exists():
        return {}
    values = files.read_json(path, CheckpointError)
    if any(level not in (*LEVELS, "refused") for level in values.values()):
        raise CheckpointError(f"{path} is damaged: delete it, and verify the archives again")
    return values


def note_levels(runs_dir: Path, levels: Mapping[str, Level]) -> None:
    """Remember how far runs were verified; a lower level than before changes nothing.

    It lies in one's own runs folder, as nothing that comes with an archive can be believed. Waits
    for other processes that note theirs. Raises CheckpointError, StorageError.
    """
    with files.locked(runs_dir / f".{_VERIFIED}.lock", lambda: f"{runs_dir} is in use"):
        noted = verified_levels(runs_dir)
        for digest, level in levels.items():
            before = noted.get(digest, LEVELS[0])
            known = "refused" not in (before, level)
            noted[digest] = max(before, level, key=LEVELS.index) if known else level
        files.write_json(runs_dir / _VERIFIED, noted)
