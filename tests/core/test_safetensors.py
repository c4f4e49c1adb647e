"""Crafted safetensors files: each is refused for its own reason, before it costs anything."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from stl10bench.core.errors import CheckpointError
from stl10bench.core.safetensors import check_header
from stl10bench.models import checkpoint


def tensor(shape: Any = (1,), begin: Any = 0, end: Any = 4, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def crafted(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file with a header, as JSON or as bytes, that claims to be `length` bytes long."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


ONE = {"a": tensor()}
FOUR = b"\0" * 4
TWICE = b'{"a":' + json.dumps(tensor()).encode() + b',"a":' + json.dumps(tensor()).encode() + b"}"
BAD: dict[str, tuple[bytes, str]] = {
    "cut in the length": (crafted(ONE, FOUR)[:5], "not a safetensors file"),
    "cut in the header": (crafted(ONE, FOUR)[:30], "not a safetensors file"),
    "cut in the data": (crafted(ONE, FOUR)[:-1], "describes 4 bytes of tensors, but it has 3"),
    "bytes at the end": (crafted(ONE, FOUR + b"x"), "describes 4 bytes of tensors, but it has 5"),
    "header of 2^64 bytes": (crafted(ONE, FOUR, length=2**64 - 1), "not a safetensors file"),
    "header of 5 MB": (crafted(ONE, bytes(5 << 20), length=5 << 20), "not a safetensors file"),
    "header longer than the file": (crafted(ONE, FOUR, length=2000), "not a safetensors file"),
    "shorter header": (crafted(ONE, FOUR, length=20), "Expecting|Unterminated"),
    "overlap": (crafted({"a": tensor((2,), 0, 8), "b": tensor((2,), 4, 12)}, bytes(12)), "overlap"),
    "the same bytes twice": (crafted({"a": tensor(), "b": tensor()}, FOUR), "overlap"),
    "hole": (crafted({"a": tensor(), "b": tensor((1,), 8, 12)}, bytes(12)), "a hole at byte 4"),
    "hole at the start": (crafted({"a": tensor((1,), 4, 8)}, bytes(8)), "a hole at byte 0"),
    "backwards": (crafted({"a": tensor((1,), 4, 0)}, FOUR), "does not fill its bytes"),
    "end beyond the file": (crafted({"a": tensor((9,), 0, 36)}, FOUR), "describes 36 bytes"),
    "end of 2^63": (crafted({"a": tensor((1,), 0, 2**63)}, FOUR), "does not fill its bytes"),
    "negative begin": (crafted({"a": tensor((1,), -4, 0)}, FOUR), "must be two numbers >= 0"),
    "three offsets": (crafted({"a": tensor() | {"data_offsets": [0, 2, 4]}}, FOUR), "two numbers"),
    "other shape": (crafted({"a": tensor((2,))}, FOUR), "its shape does not fill its bytes"),
    "2^40 x 0": (crafted({"a": tensor((2**40, 0), 0, 0)}), "1,099,511,627,776 elements or more"),
    "2^63 x 0": (crafted({"a": tensor((2**63, 0), 0, 0)}), "1,099,511,627,776 elements or more"),
    "0 x 2^62 x 2^62": (crafted({"a": tensor((0, 2**62, 2**62), 0, 0)}), "elements or more"),
    "5,000 dimensions": (crafted({"a": tensor([1] * 5000)}, FOUR), "a list of up to 8 sizes"),
    "negative size": (crafted({"a": tensor((-1, -1))}, FOUR), "sizes >= 0"),
    "fractional size": (crafted({"a": tensor((1.0,))}, FOUR), "sizes >= 0"),
    "true as a size": (crafted({"a": tensor((True,))}, FOUR), "sizes >= 0"),
    "size of 5,000 digits": (crafted(b'{"a": ' + b"9" * 5000 + b"}"), "4300 digits"),
    "unknown dtype": (crafted({"a": tensor(dtype="F31")}, FOUR), "dtype 'F31': not one of"),
    "dtype of half bytes": (crafted({"a": tensor((8,), dtype="F4")}, FOUR), "dtype 'F4'"),
    "dtype that is none": (crafted({"a": tensor(dtype=["F32"])}, FOUR), "dtype"),
    "something more": (crafted({"a": tensor() | {"code": "x"}}, FOUR), "nothing else"),
    "something less": (crafted({"a": {"dtype": "F32"}}, FOUR), "must have dtype, shape"),
    "no tensor": (crafted({"a": 3}, FOUR), "must have dtype, shape"),
    "a key twice": (crafted(TWICE, FOUR), "has the same key twice"),
    "ANSI in a name": (crafted({"\x1b[2J": tensor()}, FOUR), r"name '\\x1b\[2J'"),
    "half a character in a name": (crafted({"\ud800": tensor()}, FOUR), r"name '\\ud800'"),
    "a long name": (crafted({"y" * 201: tensor()}, FOUR), "200 printable"),
    "metadata that are no texts": (crafted({"__metadata__": {"a": 1}}), "metadata must be strings"),
    "metadata that are a list": (crafted({"__metadata__": []}), "metadata must be strings"),
    "10,001 tensors": (crafted({f"{i}": tensor((0,), 0, 0) for i in range(10_001)}), "10,001 ten"),
    "nested 100,000 times": (crafted(b'{"a":' * 100_000), "nested too deeply"),
    "a list": (crafted([]), "not a JSON object"),
    "not UTF-8": (crafted(b'{"\xff": 1}'), "can't decode byte"),
    "with a byte order mark": (crafted(b"\xef\xbb\xbf{}"), "BOM"),
    "in UTF-16": (crafted('{"a": 1}'.encode("utf-16")), "can't decode byte"),
}  # fmt: skip


@pytest.mark.parametrize("read", [checkpoint.load, checkpoint.read_tensors])
@pytest.mark.parametrize("name", BAD)
def test_a_crafted_file_is_refused_for_its_own_reason(tmp_path: Path, name: str, read: Any) -> None:
    content, reason = BAD[name]
    (tmp_path / "x").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=reason) as error:
            read(tmp_path / "x")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(error.value).startswith(str(tmp_path / "x"))
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400 + len(str(tmp_path))
    assert peak < 20 * len(content) + 100_000  # bytes: nothing for what only the header claims


DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16,
    "U16": torch.uint16, "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32,
    "U32": torch.uint32, "F32": torch.float32, "F64": torch.float64, "I64": torch.int64,
    "U64": torch.uint64, "C64": torch.complex64, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


@given(
    st.dictionaries(
        st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=9),
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 3), max_size=4)),
        max_size=5,
    )
)
def test_whatever_safetensors_writes_is_read_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, kinds: dict[str, tuple[str, list[int]]]
) -> None:
    tensors = {
        name: torch.ones(shape).to(DTYPES[dtype])
        for name, (dtype, shape) in kinds.items()
        if name != "__metadata__"
    }
    path = tmp_path_factory.getbasetemp() / "x.safetensors"
    path.write_bytes(safetensors.torch.save(tensors, {"a": "b"}))
    read, metadata = checkpoint.read_tensors(path)
    assert metadata == {"a": "b"}
    assert {k: (v.dtype, v.shape) for k, v in read.items()} == {
        k: (v.dtype, v.shape) for k, v in tensors.items()
    }


def test_a_header_of_any_length_is_read(tmp_path: Path) -> None:
    for length in range(20, 2000):  # 640, 896, 1152 and 1408 begin like pickles
        header = json.dumps({"__metadata__": {}}).encode().ljust(length)
        (tmp_path / "x").write_bytes(crafted(header))
        assert checkpoint.read_tensors(tmp_path / "x") == ({}, {})


@given(st.binary(max_size=300), st.integers(0, 400))
def test_any_header_is_metadata_or_a_value_error(header: bytes, size: int) -> None:
    try:
        metadata = check_header(header, size)
    except ValueError:
        return
    assert all(isinstance(text, str) for text in metadata.values())


def test_a_file_that_is_cut_after_reading_harms_nobody(tmp_path: Path) -> None:
    values = torch.arange(1 << 18, dtype=torch.float32)
    safetensors.torch.save_file({"a": values}, tmp_path / "x")
    code = (
        "import os, sys; from pathlib import Path; from stl10bench.models import checkpoint\n"
        "tensors, _ = checkpoint.read_tensors(Path(sys.argv[1])); os.truncate(sys.argv[1], 0)\n"
        "print(int(tensors['a'].double().sum()))"  # a mapped file would end the process: SIGBUS
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert int(ended.stdout) == int(np.arange(1 << 18).sum())
