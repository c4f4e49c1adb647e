"""Finished runs become one tar, byte by byte the same, and nothing else is unpacked."""

import gzip
import io
import json
import os
import random
import tarfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import archives
from helpers.hostile import make_shared_run

from stl10bench.core.errors import CheckpointError, InterruptedRunError, UsageError
from stl10bench.results import row_archive
from stl10bench.results.row_archive import (
    named,
    note_levels,
    pack,
    shared_rows,
    unpack,
    verified_levels,
)
from stl10bench.results.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return make_shared_run(tmp_path / "runs")


@pytest.fixture
def archive(folder: RunFolder, tmp_path: Path) -> Path:
    pack(tmp_path / "rows.tar", [folder], with_checkpoint=True)
    return tmp_path / "rows.tar"


def refused(archive: Path, reason: str) -> None:
    """`unpack` refuses it with `reason` in one line, and writes nothing outside its folder."""
    into = archive.parent / "into"
    before = {*archive.parent.rglob("*")}
    with pytest.raises(CheckpointError, match=reason) as error:
        unpack(archive, into)
    assert str(error.value).startswith(str(archive))
    assert str(into) not in str(error.value)
    assert all(into in (path, *path.parents) for path in {*archive.parent.rglob("*")} - before)


def test_the_same_runs_give_the_same_bytes_from_any_folder(
    folder: RunFolder, archive: Path, tmp_path: Path
) -> None:
    (unpacked,) = unpack(archive, tmp_path / "elsewhere")
    assert unpacked.has_checkpoint
    assert unpacked.folder.row() == folder.row()
    pack(tmp_path / "again.tar", [unpacked.folder], with_checkpoint=True)
    assert (tmp_path / "again.tar").read_bytes() == archive.read_bytes()


def test_no_path_host_or_user_is_in_it(folder: RunFolder, tmp_path: Path) -> None:
    values = json.loads(folder.result_file.read_text())
    values["test_notes"] = ["macs: not known (FileNotFoundError: '/home/me/plugin/net.py')"]
    folder.result_file.write_text(json.dumps(values | {"host": "my-host"}))
    folder.status_file.write_text('{"state": "finished", "reason": "", "host": "my-host"}')
    pack(tmp_path / "rows.tar", [folder])
    content = (tmp_path / "rows.tar").read_bytes()
    assert b"my-host" not in content
    assert b"/home/me" not in content
    assert b"'net.py'" in content
    assert str(tmp_path).encode() not in content


@pytest.mark.parametrize("start", ["/home/me/", "file:///home/me/", "/home/zoë/"])
def test_a_setting_that_is_a_path_is_not_shared(tmp_path: Path, start: str) -> None:
    folder = make_shared_run(tmp_path / "runs", table=f"{start}table.csv")
    with pytest.raises(UsageError, match=rf"a setting with a path, '{start}'.*leave this run"):
        pack(tmp_path / "rows.tar", [folder])


def test_a_default_of_a_model_that_is_a_path_is_not_shared(
    folder: RunFolder, tmp_path: Path
) -> None:
    values = json.loads(folder.result_file.read_text())
    values["model_options"] = {"table": "/home/me/table.csv"}  # the settings leave it out
    folder.result_file.write_text(json.dumps(values))
    with pytest.raises(UsageError, match=r"a setting with a path, '/home/me/'.*leave this run"):
        pack(tmp_path / "rows.tar", [folder])


@pytest.mark.parametrize(
    ("limit", "value", "reason"),
    [
        ("_RUNS", 0, r"at most 0 runs, these are 1: name fewer"),
        ("_LIMIT", 1 << 23, r"would have [\d,]+ bytes, the limit is 0: name fewer runs"),
        (
            "_LIMITS",
            defaultdict(int),
            r"its config.json has .* bytes, the limit is 0: leave",
        ),
    ],
)
def test_what_nobody_could_unpack_is_not_written(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    limit: str, value: object, reason: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(row_archive, limit, value)
    with pytest.raises(UsageError, match=reason):
        pack(tmp_path / "rows.tar", [folder])
    assert not (tmp_path / "rows.tar").exists()


def test_a_run_whose_files_do_not_belong_together_is_not_shared(
    folder: RunFolder, tmp_path: Path
) -> None:
    values = json.loads(folder.result_file.read_text())
    folder.result_file.write_text(json.dumps(values | {"test_loss": 0.5}))
    with pytest.raises(CheckpointError, match="does not belong to this run"):
        pack(tmp_path / "rows.tar", [folder])
    assert not (tmp_path / "rows.tar").exists()


def test_a_changed_bit_anywhere_is_refused(archive: Path, tmp_path: Path) -> None:
    whole = archive.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(whole)), 60):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        archive.write_bytes(changed)
        with pytest.raises(CheckpointError):
            unpack(archive, tmp_path / "into")
    changed = bytearray(whole)
    changed[whole.rindex(b"predictions.safetensors") + 1024] ^= 1  # beyond the member's header
    archive.write_bytes(changed)
    refused(archive, "rows.tar is damaged: the checksum of .*safetensors does not match")
    archive.write_bytes(whole)
    assert unpack(archive, tmp_path / "into")


def test_a_compressed_archive_is_not_opened(archive: Path) -> None:
    bomb = gzip.compress(archive.read_bytes() + bytes(50 << 20))
    archive.write_bytes(bomb)
    refused(archive, "no tar header where rows.json should begin .*unpacked first")


def test_a_size_beyond_the_limit_is_refused_before_it_is_read(archive: Path) -> None:
    member = tarfile.TarInfo("rows.json")
    member.size = 1 << 33
    archive.write_bytes(member.tobuf(tarfile.GNU_FORMAT))
    refused(archive, "rows.json says it has 8,589,934,592 bytes, the limit is 1,048,576")


def test_an_extra_member_is_refused(folder: RunFolder, archive: Path) -> None:
    contents = archives.members(archive)
    archives.write(archive, contents | {f"{folder.name}/x.py": b"print()"})
    refused(archive, "must have config.json, .* and at most one checkpoint; it has .*x.py")
    with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in (*contents.items(), ("x", b"")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    refused(archive, "rows.json expected, found a member")


@pytest.mark.parametrize("name", ["../evil-01234567", "/tmp/evil-01234567", "evil", "a/b-01234567"])
def test_a_run_with_a_name_that_no_run_has_is_refused(
    folder: RunFolder, archive: Path, name: str
) -> None:
    index = archives.encoded({"format": 1, "runs": {name: {}}})
    archives.write(archive, archives.members(archive), index)
    refused(archive, r"rows.json: runs\..*match pattern")


def test_another_member_name_is_refused(folder: RunFolder, archive: Path) -> None:
    content = archive.read_bytes()
    archive.write_bytes(content.replace(f"{folder.name}/config".encode(), b"x" * 24))
    refused(archive, "no tar header where|expected, found a member")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, b"S", b"x"])
def test_links_and_special_members_are_refused(archive: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("rows.json")
    member.type, member.linkname = kind, "/etc/passwd"
    archive.write_bytes(member.tobuf(tarfile.USTAR_FORMAT) + bytes(10240 - 512))
    refused(archive, "rows.json is (a link|no plain file)")


def test_names_of_people_in_a_header_are_refused(archive: Path) -> None:
    with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
        member = tarfile.TarInfo("rows.json")
        member.uname = "me"
        tar.addfile(member)
    refused(archive, "the header of rows.json is not as 'rows share' writes it")


def test_settings_that_are_not_the_runs_are_refused(folder: RunFolder, archive: Path) -> None:
    contents = archives.members(archive)
    name = f"{folder.name}/config.json"
    config = json.loads(contents[name])
    forged = json.dumps(config | {"lr": 0.5}).encode()
    archives.write(archive, contents | {name: forged})
    refused(archive, r"config.json has the settings of logistic-\w{8}: one was edited")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("seed", 3, "seed = 3, but its settings say 0"),
        ("selection", "last epoch", "selection = 'last epoch', but its settings say 'validation'"),
        ("protocol", "x-m1", "protocol = 'x-m1', but its settings say"),
        ("checkpoint", "../../x.safetensors", "checkpoint = .* is not its"),
        ("run", "mlp-0", "run = 'mlp-0'"),
        ("weights", {"source": "hub:a/b"}, "other weights"),
        ("test_accuracy_sd", 0.1, "not as 'rows share' writes it: it has test_accuracy_sd"),
        ("baseline", True, "not as 'rows share' writes it: it has baseline"),
        ("title", "reference", "not as 'rows share' writes it: it has title"),
    ],
)
def test_a_row_that_is_not_of_its_settings_is_refused(
    folder: RunFolder, archive: Path, key: str, value: object, reason: str
) -> None:
    contents = archives.members(archive)
    name = f"{folder.name}/result.json"
    contents[name] = json.dumps(json.loads(contents[name]) | {key: value}).encode()
    archives.write(archive, contents)
    refused(archive, reason)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes are POSIX's")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="no such file, or not a regular one"):
        unpack(tmp_path / "pipe", tmp_path)


def test_an_interruption_says_the_same_within_an_archive(tmp_path: Path) -> None:
    with (
        pytest.raises(InterruptedRunError, match=r"^stopped$") as error,
        named(tmp_path / "rows.tar", tmp_path),
    ):
        raise InterruptedRunError("stopped", 143)
    assert error.value.exit_code == 143


def test_no_temporary_folder_is_made_for_no_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_archive, "TemporaryDirectory", None)
    with shared_rows([], tmp_path) as rows:
        assert rows == []


def test_the_highest_level_is_kept_and_a_refusal_counts_more(tmp_path: Path) -> None:
    assert verified_levels(tmp_path) == {}
    note_levels(tmp_path, {"a": "reproduced", "b": "whole"})
    note_levels(tmp_path, {"a": "whole", "b": "recomputed", "c": "refused"})
    note_levels(tmp_path, {"b": "refused", "c": "whole"})
    assert verified_levels(tmp_path) == {"a": "reproduced", "b": "refused", "c": "whole"}
    with ThreadPoolExecutor() as threads:  # each as a process of its own
        list(threads.map(lambda x: note_levels(tmp_path, {str(x): "whole"}), range(20)))
    assert len(verified_levels(tmp_path)) == 23
    (tmp_path / "verified.json").write_text('{"a": ["x"]}')
    with pytest.raises(CheckpointError, match="is damaged: delete it"):
        verified_levels(tmp_path)
