"""Checkpoints: equal runs give equal bytes, and nothing damaged, foreign or executable loads."""

import json
import os
import pickle
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stl10bench.config import make_config
from stl10bench.core.errors import CheckpointError, StorageError
from stl10bench.inference.predictor import load
from stl10bench.models import checkpoint
from stl10bench.models.factory import build_model
from stl10bench.models.pretrained import choose_weights
from stl10bench.results import predictions

CLASSES = ("ant", "bee", "cow")
CNN: dict[str, Any] = {"channels": (2, 2, 2, 4), "hidden": (4,)}


def build(name: str = "logistic", size: int = 8, seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(name, len(CLASSES), size, options)


def header(name: str = "logistic", size: int = 8, **options: Any) -> checkpoint.Header:
    return checkpoint.Header(
        config=make_config({"model": name, "image_size": size, "model_options": options}),
        class_names=CLASSES,
        mean=(0.5, 0.25, 0.125),
        std=(1.0, 0.5, 0.25),
        epoch=3,
        step=12,
        metrics={"val/accuracy": 0.75, "val/loss": None},
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A checkpoint of a tiny logistic regression, about 3 KB."""
    path = tmp_path / "best.safetensors"
    checkpoint.save(path, build(), header())
    return path


def refuse(path: Path, content: bytes, match: str | None = None) -> str:
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=match) as error:
        checkpoint.load(path)
    text = str(error.value)
    assert str(path) in text
    assert "\n" not in text
    assert error.value.exit_code == 4
    return text


def resign(content: bytes, change: Any) -> bytes:
    """The same file with its header changed by `change`, and the sum made right again."""
    tensors = safetensors.torch.load(content)
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    inner = json.loads(metadata["stl10bench"])
    del inner["sha256"]
    change(inner, tensors)
    inner["sha256"] = checkpoint._sum(inner, tensors)
    return safetensors.torch.save(tensors, {"stl10bench": json.dumps(inner)})


# What is saved comes back.


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [("logistic", 8, {}), ("mlp", 8, {"hidden": (4,)}), ("cnn", 61, CNN)],
)
def test_what_is_saved_comes_back(
    tmp_path: Path, name: str, size: int, options: dict[str, Any]
) -> None:
    model, head = build(name, size, **options), header(name, size, **options)
    path = tmp_path / "new" / "folder" / "best.safetensors"
    checkpoint.save(path, model, head)
    tensors, read = checkpoint.load(path)
    state = model.state_dict()
    assert read == head
    assert tensors.keys() == state.keys()
    for key, value in state.items():
        assert tensors[key].dtype == value.dtype, key
        assert torch.equal(tensors[key], value), key

    loaded = load(path)
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    mean, std = torch.tensor(head.mean), torch.tensor(head.std)
    normal = (images / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    assert not loaded.training
    torch.testing.assert_close(loaded(images), model.eval()(normal))


def test_equal_models_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        checkpoint.save(tmp_path / name, build("cnn", 61, **CNN), header("cnn", 61, **CNN))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_layout_and_device_copies_do_not_change_the_bytes(tmp_path: Path) -> None:
    model = build("cnn", 61, **CNN)
    checkpoint.save(tmp_path / "a", model, header("cnn", 61, **CNN))
    channels_last: Any = torch.channels_last
    checkpoint.save(tmp_path / "b", model.to(memory_format=channels_last), header("cnn", 61, **CNN))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_model_whose_layers_share_a_matrix_is_saved_and_comes_back(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    checkpoint.save(tmp_path / "x", model, header())
    tensors, _ = checkpoint.load(tmp_path / "x")
    assert torch.equal(tensors["0.weight"], tensors["1.weight"])
    checkpoint.fill(model, tensors, tmp_path / "x")


def test_any_change_of_the_header_changes_the_bytes(tmp_path: Path) -> None:
    heads = [header(), header().at(4, 16, {"val/accuracy": 0.8}), header(size=16)]
    for number, head in enumerate(heads):
        checkpoint.save(tmp_path / str(number), build(), head)
    assert len({(tmp_path / str(number)).read_bytes() for number in range(3)}) == 3


def test_a_header_keeps_the_metrics_of_quality_and_not_those_of_speed() -> None:
    values = {"val/loss": 1.0, "test/accuracy": None, "seconds": 3.0, "lr": 0.1}
    later = header().at(9, 99, values)
    assert (later.epoch, later.step) == (9, 99)
    assert later.metrics == {"val/loss": 1.0, "test/accuracy": None}
    assert later.config == header().config


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_file_has_the_mode_that_the_umask_asks_for(
    tmp_path: Path, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        checkpoint.save(tmp_path / "x", build(), header())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == mode


# Damage.


def test_a_flipped_bit_in_any_byte_is_noticed(path: Path) -> None:
    content = path.read_bytes()
    silent = []
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            checkpoint.load(path)
        except CheckpointError:
            continue
        silent.append(position)
    assert silent == []


def test_another_spelling_of_the_same_header_is_noticed(tmp_path: Path) -> None:
    """JSON reads 1E-05 as 1e-05 and \\u00E9 as \\u00e9: flips that the values do not show."""
    config = header().config.model_copy(update={"lr": 1e-5})
    odd = header().model_copy(update={"config": config, "class_names": ("é", "ê", "ë")})
    path = tmp_path / "x"
    checkpoint.save(path, build(), odd)
    content = path.read_bytes()
    assert b"1e-05" in content
    assert b"u00e9" in content
    letters = [at for at in range(8, len(content)) if chr(content[at]).isascii()]
    for position in (at for at in letters if chr(content[at]).isalpha() and at < 2500):
        damaged = bytearray(content)
        damaged[position] ^= 0x20  # the other case
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            checkpoint.load(path)


def test_every_truncation_is_noticed(path: Path) -> None:
    content = path.read_bytes()
    whole = []
    for length in range(len(content)):
        path.write_bytes(content[:length])
        try:
            checkpoint.load(path)
        except CheckpointError:
            continue
        whole.append(length)
    assert whole == []


def test_bytes_at_the_end_are_noticed(path: Path) -> None:
    refuse(path, path.read_bytes() + b"\0", "not a whole safetensors file")


@given(content=st.binary(max_size=200), valid_length=st.booleans())
@settings(max_examples=200)
def test_random_bytes_are_no_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, valid_length: bool
) -> None:
    if valid_length:
        content = len(content).to_bytes(8, "little") + content
    refuse(tmp_path_factory.getbasetemp() / "random", content)


@pytest.mark.parametrize(
    "inner",
    [
        "",
        "null",
        "[]",
        "3",
        '"text"',
        "{}",
        '{"sha256": null}',
        '{"sha256": "0"}',
        '{"sha256": "0", "format": 1}',
        "[" * 100_000,
        '{"a":' * 100_000,
    ],
    ids=lambda text: text[:20],
)
def test_a_header_that_is_not_ours_is_refused(path: Path, inner: str) -> None:
    refuse(path, safetensors.torch.save({"x": torch.zeros(2)}, {"stl10bench": inner}))


@pytest.mark.parametrize(
    "structure",
    [
        b"[]",
        b"3",
        b"null",
        b'"x"',
        b"{}",
        b'{"__metadata__":3}',
        b'{"__metadata__":null}',
        b"[" * 100_000,
        b"\xff\xfe\x00",
    ],
    ids=lambda structure: structure[:20].decode("latin1"),
)
def test_a_file_with_another_structure_is_refused(path: Path, structure: bytes) -> None:
    refuse(path, len(structure).to_bytes(8, "little") + structure)


@pytest.mark.parametrize("length", [2**63, 2**40, (10 << 20) + 1, 1 << 20, 1, 0])
def test_a_header_of_an_absurd_length_is_refused_without_reading_it(
    path: Path, length: int
) -> None:
    refuse(path, length.to_bytes(8, "little") + b"{}" + bytes(100))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(path: Path, value: float) -> None:
    model = build()
    with torch.no_grad():
        model.get_parameter("linears.0.bias")[1] = value
    checkpoint.save(path, model, header())
    refuse(path, path.read_bytes(), r"not finite, e\.g\. in linears\.0\.bias")


# Honest sums over dishonest contents.


@pytest.mark.parametrize("version", [0, 2, None, "1", [1]])
def test_another_format_is_named(path: Path, version: Any) -> None:
    content = resign(path.read_bytes(), lambda inner, _: inner.update(format=version))
    text = refuse(path, content)
    assert repr(version) in text


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"config": {"model": "logistic", "lr": -1}}, "lr"),
        ({"config": {"model": "logistic", "new_field": 3}}, "new_field"),
        ({"config": 3}, "config"),
        ({"mean": [0.5]}, "mean"),
        ({"class_names": 3}, "class_names"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_header_with_wrong_contents_says_where(
    path: Path, change: dict[str, Any], text: str
) -> None:
    content = resign(path.read_bytes(), lambda inner, _: inner.update(change))
    assert text in refuse(path, content)


def test_another_architecture_is_told_with_at_most_five_names(tmp_path: Path) -> None:
    path = tmp_path / "x"
    checkpoint.save(path, build("cnn", 61, **CNN), header("mlp", 8))
    with pytest.raises(
        CheckpointError, match=r"does not fit the model .* \d+ tensors differ"
    ) as error:
        load(path)
    text = str(error.value)
    assert str(path) in text
    assert sum(key in text for key in build("cnn", 61, **CNN).state_dict()) <= 5
    assert len(text) < 500 + len(str(path))


@pytest.mark.parametrize("classes", [2, 4])
def test_another_number_of_classes_does_not_fit(tmp_path: Path, classes: int) -> None:
    checkpoint.save(tmp_path / "x", build_model("logistic", classes, 8, {}), header())
    with pytest.raises(
        CheckpointError, match=r"2 tensors differ \(linears.0.bias, linears.0.weight"
    ):
        load(tmp_path / "x")


@pytest.mark.parametrize(
    "config",
    [
        {"model": "mlp", "model_options": {"hidden": [10**7, 10**7]}},  # 4 * 10^14 bytes
        {"model": "mlp", "model_options": {"hidden": [2**62]}},
        {"model": "mlp", "model_options": {"hidden": [10**30]}},
        {"model": "mlp", "model_options": {"hidden": [1] * 100_000}},
        {"model": "cnn", "image_size": 64, "model_options": {"channels": [2**40, 2, 2, 2]}},
        {"model": "logistic", "image_size": 1024},
        {"model": "timm:hf-hub:someone/evil"},
        {"model": "timm:local-dir:/tmp"},
        {"model": "../../x"},
        {"model": "x" * 500_000},
    ],
    ids=lambda config: str(config)[:60],
)
def test_a_header_that_asks_for_another_model_gets_no_memory_and_no_network(
    path: Path, config: dict[str, Any]
) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path.write_bytes(resign(path.read_bytes(), lambda inner, _: inner["config"].update(config)))
    with pytest.raises(CheckpointError, match=r"does not fit|cannot be built|cannot use") as error:
        load(path)
    assert len(str(error.value)) < 500 + len(str(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.int8, torch.complex64, torch.float8_e4m3fn]
)
def test_weights_of_another_kind_of_number_do_not_fit(path: Path, dtype: torch.dtype) -> None:
    def change(_: Any, tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({key: value.to(dtype) for key, value in tensors.items()})

    path.write_bytes(resign(path.read_bytes(), change))
    with pytest.raises(CheckpointError, match="2 tensors differ"):
        load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": ["a"]},
        {"class_names": [str(i) for i in range(256)]},
        {"mean": [0.5, 0.5, 1.5]},
        {"std": [0.5, 0.0, 0.5]},
        {"format": "x" * 100_000},
        {"x" * 100_000: 1},
    ],
    ids=lambda change: str(change)[:30],
)
def test_a_header_out_of_bounds_is_refused_briefly(path: Path, change: dict[str, Any]) -> None:
    content = resign(path.read_bytes(), lambda inner, _: inner.update(change))
    assert len(refuse(path, content)) < 500 + len(str(path))


def test_a_header_of_more_than_a_million_characters_is_refused(path: Path) -> None:
    inner = json.dumps({"sha256": "x" * (1 << 20)})
    refuse(path, safetensors.torch.save({}, {"stl10bench": inner}), "over 1,048,576 characters")


# Foreign files.


class Bomb:
    """Writes a marker when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.write_text, (self.marker, "ran")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_and_never_run(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "marker"
    content = pickle.dumps(Bomb(marker), protocol=protocol)
    refuse(tmp_path / "model.pt", content, "pickle" if protocol >= 2 else "not a safetensors file")
    assert not marker.exists()
    pickle.loads(content)  # it is a bomb indeed
    assert marker.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves_is_refused_as_a_pickle(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.pt"
    torch.save(build().state_dict(), path, _use_new_zipfile_serialization=zipped)
    text = refuse(path, path.read_bytes(), "is a pickle")
    assert "never read" in text
    assert "safetensors" in text


def test_a_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("data.pkl", "x")
    refuse(tmp_path / "x.zip", (tmp_path / "x.zip").read_bytes())


def test_weights_of_another_program_are_told_where_they_belong(tmp_path: Path) -> None:
    content = safetensors.torch.save(build().state_dict(), {"format": "pt"})
    refuse(tmp_path / "x", content, "is not a stl10bench checkpoint: .*--weights")
    refuse(
        tmp_path / "x",
        safetensors.torch.save({"x": torch.zeros(1)}),
        "is not a stl10bench checkpoint",
    )


def test_weights_of_another_program_can_be_read_as_tensors(tmp_path: Path) -> None:
    state = build().state_dict()
    safetensors.torch.save_file(state, tmp_path / "x")
    tensors, metadata = checkpoint.read_tensors(tmp_path / "x")
    assert metadata == {}
    assert all(torch.equal(tensors[key], state[key]) for key in state)


def test_predictions_are_no_checkpoint(tmp_path: Path) -> None:
    arrays = {"logits": torch.rand(4, 3).numpy(), "labels": torch.arange(4).numpy()}
    predictions.save(tmp_path / "p", arrays)
    refuse(tmp_path / "p", (tmp_path / "p").read_bytes(), "is not a stl10bench checkpoint")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes are POSIX's")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    with pytest.raises(CheckpointError, match="x: not a regular file"):
        checkpoint.load(tmp_path / "x")
    with pytest.raises(CheckpointError, match="x: not a regular file"):
        choose_weights("mobilenetv2", file=tmp_path / "x", pretrained=True, frozen=True)


def test_a_file_that_does_not_fit_in_memory_is_told(path: Path) -> None:
    resource = pytest.importorskip("resource")
    shape = [1 << 37]  # 512 GB of zeros, in a file that takes no room
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 << 37]}})
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    os.truncate(path, path.stat().st_size + (4 << 37))
    limits = resource.getrlimit(resource.RLIMIT_AS)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 36, limits[1]))
        with pytest.raises(CheckpointError, match=r"549,755,.* bytes do not fit in memory"):
            checkpoint.read_tensors(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_what_cannot_be_read_is_told(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    reason = {"missing": "No such file", "folder": "Is a directory"}[kind]
    with pytest.raises(CheckpointError, match=rf"cannot read .*x: {reason}"):
        checkpoint.load(path)


# Writing: whole or not at all.


def test_nothing_is_left_beside_the_file(path: Path) -> None:
    checkpoint.save(path, build(seed=1), header())
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(path: Path) -> None:
    old = path.read_bytes()
    blocked = path / "best.safetensors"  # its folder is a file
    with pytest.raises(StorageError, match="cannot write") as error:
        checkpoint.save(blocked, build(seed=1), header())
    assert str(blocked) in str(error.value)
    assert error.value.exit_code == 7
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


def test_a_disk_that_fills_up_leaves_the_old_file_and_nothing_else(path: Path) -> None:
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    old = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(
            StorageError, match=r"no room for .*: it needs [\d,]+ bytes, [\d,]+ are free"
        ):
            checkpoint.save(path, build(seed=1), header())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]
    checkpoint.load(path)


def test_a_folder_in_the_files_place_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "best.safetensors"
    (target / "inside").mkdir(parents=True)
    with pytest.raises(StorageError):
        checkpoint.save(target, build(), header())
    assert (target / "inside").is_dir()
    assert list(tmp_path.iterdir()) == [target]


def test_a_header_that_json_cannot_hold_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match="finite"):
        checkpoint.Header(**{**header().model_dump(), "mean": (float("nan"), 0.0, 0.0)})
    broken = header().at(1, 1, {"val/loss": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.save(tmp_path / "x", build(), broken)
    assert list(tmp_path.iterdir()) == []
