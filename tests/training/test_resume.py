"""A run's checkpoints: whatever is wrong with one is said, and the one before it taken."""

import contextlib
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm import optim
from torch import nn
from torch.nn import functional as F

import stl10bench
from stl10bench.config import RunConfig, make_config
from stl10bench.core.errors import CheckpointError, DivergedError, UsageError
from stl10bench.results.run_folder import RunFolder
from stl10bench.training import epoch, resume
from stl10bench.training.optim import make_optimizer, make_schedule

TINY: dict[str, Any] = {
    **{"image_size": 8, "epochs": 2, "batch_size": 8, "optimizer": "sgd", "precision": "no"},
    **{"tracker": "none", "threads": 1},
}
Content = dict[str, Any]


def train(data_dir: Path, runs_dir: Path, **options: Any) -> Any:
    return stl10bench.train("logistic", data_dir=data_dir, runs_dir=runs_dir, **{**TINY, **options})


def stop_after(steps: int, data_dir: Path, runs_dir: Path, **options: Any) -> Path:
    """The folder of a run that was stopped after some steps, with a checkpoint of each."""
    calls = []

    def poisoned(losses: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) > steps:
            raise KeyboardInterrupt
        return original(losses)

    original = epoch.nan_if_infinite
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch, "nan_if_infinite", poisoned)
        with pytest.raises(KeyboardInterrupt):
            train(data_dir, runs_dir, checkpoint_minutes=0, **options)
    (folder,) = (path for path in runs_dir.iterdir() if path.is_dir())
    return folder


@pytest.fixture(scope="module")
def stopped(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was stopped in its second epoch, of 4 steps each."""
    return stop_after(6, data_dir, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def folder(stopped: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to be damaged."""
    return Path(shutil.copytree(stopped, tmp_path / "runs" / stopped.name))


def config_of(folder: Path) -> RunConfig:
    return RunConfig.model_validate_json((folder / "config.json").read_text())


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").iterdir())


def rewrite(path: Path, change: Callable[[Content], Any]) -> None:
    """Change a manifest and sign it again, so that only what it says can be wrong."""
    content = json.loads((path / "manifest.json").read_bytes())
    del content["sha256"]
    change(content)
    (path / "manifest.json").write_bytes(resume._signed(content))


def retensor(path: Path, data: bytes) -> None:
    """Give a checkpoint another file of tensors, and a manifest that vouches for it."""
    import hashlib

    (path / "state.safetensors").write_bytes(data)
    facts = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rewrite(path, lambda content: content.update(tensors=facts))


def flips(path: Path, bits: range | None, every: int = 1) -> int:
    """Flip bits in turn (one of a byte, or `bits`) of `every` n-th byte; how many passed."""
    config, passed = config_of(path.parents[1]), 0
    for file in (path / "manifest.json", path / "state.safetensors"):
        content = file.read_bytes()
        for index in range(0, len(content), every):
            for bit in bits or (index % 8,):
                changed = bytearray(content)
                changed[index] ^= 1 << bit
                file.write_bytes(changed)
                try:
                    resume.load_state(path, config)
                    passed += 1
                except CheckpointError:
                    pass
        file.write_bytes(content)
    resume.load_state(path, config)
    return passed


def test_a_flipped_bit_of_a_checkpoint_is_detected(data_dir: Path, tmp_path: Path) -> None:
    folder = stop_after(1, data_dir, tmp_path, momentum=0)
    assert flips(newest(folder), None, every=7) == 0


@pytest.mark.faults
def test_every_flipped_bit_of_a_checkpoint_is_detected(stopped: Path) -> None:
    """With the state of an optimizer and a best epoch."""
    assert flips(newest(stopped), range(8)) == 0


def test_a_damaged_checkpoint_is_left_out_with_one_warning_and_the_run_ends_the_same(
    data_dir: Path, folder: Path, tmp_path: Path
) -> None:
    straight = train(data_dir, tmp_path / "straight")
    path = newest(folder)
    assert path.name == "step-00000006"
    data = (path / "state.safetensors").read_bytes()
    (path / "state.safetensors").write_bytes(data[:-1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        row = train(data_dir, tmp_path / "runs")
    (warning,) = caught
    assert "step-00000006" in str(warning.message)
    assert str(warning.message).endswith("match its checksum; resuming from step-00000005")
    for name in ("best.safetensors", "last.safetensors", "predictions.safetensors"):
        expected = (tmp_path / "straight" / straight["run"] / name).read_bytes()
        assert (folder / name).read_bytes() == expected, name
    assert row["test_loss"] == straight["test_loss"]


def test_without_a_whole_checkpoint_the_run_is_refused(
    data_dir: Path, folder: Path, tmp_path: Path
) -> None:
    for path in (folder / "checkpoints").iterdir():
        (path / "manifest.json").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"is damaged.*pass --overwrite to train from the start"
    ) as e:
        train(data_dir, tmp_path / "runs")
    assert e.value.exit_code == 4
    assert len(list((folder / "checkpoints").iterdir())) == 2
    train(data_dir, tmp_path / "runs", overwrite=True)


def test_only_checkpoints_are_taken_for_checkpoints(
    data_dir: Path, folder: Path, tmp_path: Path
) -> None:
    mine = folder / "checkpoints" / "step-of-mine"
    mine.mkdir()
    assert resume.newest(RunFolder(folder), config_of(folder)) is not None
    resume.forget_after(RunFolder(folder), 5)
    assert sorted(p.name for p in mine.parent.iterdir()) == ["step-00000005", "step-of-mine"]


def deep(depth: int) -> Any:
    tree: Any = {"value": 1}
    for _ in range(depth):
        tree = {"list": [tree]}
    return tree


def put(*keys: Any, value: Any) -> Callable[[Content], None]:
    """Put a value at the place that `keys` lead to."""

    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def drop(*keys: Any) -> Callable[[Content], None]:
    return lambda content: content.pop(*keys)


CRAFTED = {
    "another seed": (put("config", "seed", value=1), "belongs to another run"),
    "a newer format": (put("format", value=2), "manifest: .*format"),
    "an older format": (put("format", value=0), "manifest: .*format"),
    "an unknown fact": (put("more", value=0), "manifest: .*more"),
    "no position": (drop("position"), "manifest: .*position"),
    "a negative epoch": (put("position", "epoch", value=-1), "epoch"),
    "an epoch that is none": (put("position", "epoch", value="1"), "epoch"),
    "an epoch after the last": (put("position", "epoch", value=3), "epoch 3 of 2"),
    "an epoch that is not its header's": (put("position", "epoch", value=0), "epoch 0 of 2"),
    "steps without sums": (
        put("position", "sums", value=[]),
        "sums of 0 processes, but 1 processes trained",
    ),
    "sums of too little": (put("position", "sums", value=[[1.0]]), "sums of 1 process"),
    "sums of too many": (put("position", "sums", value=[[1.0] * 3] * 2), "sums of 2 processes"),
    "no best epoch": (put("best", value=None), "no best epoch after 1"),
    "a best of another run": (
        put("best", "config", "seed", value=1),
        "header belongs to another run",
    ),
    "a header of another run": (put("header", "config", "seed", value=1), "belongs to another run"),
    "a mean of two channels": (put("header", "mean", value=[0.5, 0.5]), "manifest: .*mean"),
    "no process": (put("processes", value=0), "manifest: .*processes"),
    "a negative size": (put("tensors", "size", value=-1), "manifest: .*size"),
    "a small size": (put("tensors", "size", value=10), "larger than 10 bytes"),
    "a great size": (put("tensors", "sha256", value="0" * 64), "does not match its checksum"),
    "a model that is a number": (put("model", value=3), "does not contain the state"),
    "a model of numbers": (put("model", value={"dict": [["w", {"value": 1}]]}), "not contain"),
    "a tensor that is not there": (put("model", value={"tensor": "no"}), "not contain"),
    "a tree of an unknown kind": (put("optimizer", value={"code": "1"}), "unknown kind 'code'"),
    "a type that is none": (put("optimizer", value={"dtype": "save"}), "unknown kind 'dtype'"),
    "a tree of two kinds": (put("scaler", value={"list": [], "dict": []}), "not contain"),
    "a list as a key": (put("scaler", value={"dict": [[[1], {"value": 1}]]}), "not contain"),
    "an object as a value": (put("scaler", value={"value": {}}), "unknown kind 'value'"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_manifest_that_vouches_for_nonsense_is_refused(folder: Path, name: str) -> None:
    change, reason = CRAFTED[name]
    rewrite(newest(folder), change)
    with pytest.raises(CheckpointError, match=reason):
        resume.load_state(newest(folder), config_of(folder))


@pytest.mark.parametrize("size", [2**40, 2**62, 10**30])
def test_a_size_that_no_memory_has_is_not_asked_for(folder: Path, size: int) -> None:
    """The tensors are whole, so that the state is good."""
    rewrite(newest(folder), put("tensors", "size", value=size))
    resume.load_state(newest(folder), config_of(folder))


@pytest.mark.parametrize("depth", [200, 100_000])
def test_a_deep_tree_is_refused(folder: Path, depth: int) -> None:
    path = newest(folder) / "manifest.json"
    if depth == 200:
        rewrite(newest(folder), put("optimizer", value=deep(depth)))
    else:
        path.write_bytes(b'{"optimizer":' + b'{"list":[' * depth + b"]}" * depth + b"}")
    with pytest.raises(CheckpointError, match=r"does not fit|is damaged|does not contain"):
        resume.restore_optimizer(
            sgd(), resume.load_state(newest(folder), config_of(folder)).optimizer
        )


@pytest.mark.parametrize("text", [b"", b"{", b"null", b"[1]", b'{"sha256": NaN}', b"\xff" * 9])
def test_a_manifest_that_is_none_is_damaged(folder: Path, text: bytes) -> None:
    (newest(folder) / "manifest.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"manifest.json is damaged"):
        resume.load_state(newest(folder), config_of(folder))


def test_a_checkpoint_that_is_a_pickle_is_never_unpickled(folder: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "marker",)

    torch.save({"model": Evil()}, tmp_path / "evil")
    retensor(newest(folder), (tmp_path / "evil").read_bytes())
    with pytest.raises(CheckpointError, match="does not contain the state of a run"):
        resume.load_state(newest(folder), config_of(folder))
    assert not (tmp_path / "marker").exists()


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = safetensors.torch.load((newest(folder) / "state.safetensors").read_bytes())
    change(tensors)
    retensor(newest(folder), safetensors.torch.save(tensors))


WEIGHT, BEST = "model.linears.0.weight", "best.linears.0.weight"
BUFFER = "optimizer.state.0.momentum_buffer"
TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "NaN in the weights": (lambda t: t[WEIGHT].view(-1)[3].fill_(torch.nan), "finite numbers"),
    "inf in the best": (lambda t: t[BEST].view(-1)[3].fill_(torch.inf), "finite numbers"),
    "no weights": (lambda t: t.pop(WEIGHT), "does not contain the state"),
    "weights of another shape": (lambda t: t.update({WEIGHT: torch.zeros(4, 3)}), "1 tensors diff"),
    "a best of another shape": (lambda t: t.update({BEST: torch.zeros(4, 3)}), "1 tensors differ"),
    "a short momentum": (lambda t: t.update({BUFFER: torch.zeros(3)}), "does not fit the optimi"),
    "an empty momentum": (lambda t: t.update({BUFFER: torch.zeros(0)}), "does not fit the optim"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_cannot_be_are_refused(
    data_dir: Path, folder: Path, tmp_path: Path, name: str
) -> None:
    """By the run, where the model and the optimizer are known."""
    change, reason = TENSORS[name]
    change_tensors(folder, change)
    shutil.rmtree(min((folder / "checkpoints").iterdir()))
    with pytest.raises(CheckpointError, match=reason):
        train(data_dir, tmp_path / "runs")


def test_more_steps_than_an_epoch_has_are_refused(
    data_dir: Path, folder: Path, tmp_path: Path
) -> None:
    rewrite(newest(folder), put("position", "batch", value=10**12))
    with pytest.raises(CheckpointError, match="step 1000000000000 of 4"):
        train(data_dir, tmp_path / "runs")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["tensor", "dict", "list", "tuple", "value", "dtype", WEIGHT, BUFFER]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["tensor", "dict", "list", "tuple", "value"]), inner)
        | st.tuples(st.sampled_from(["tensor", "dict", "value"]), inner).map(
            lambda pair: dict([pair])
        )
    ),
    max_leaves=8,
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to every value in a JSON tree."""
    inner = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    return [way for key, value in inner for way in [(*path, key), *places(value, (*path, key))]]


def forge(path: Path, whole: Path, data: st.DataObject) -> None:
    """Give a checkpoint the manifest of a whole one, with any value at any place, signed."""
    (path / "manifest.json").write_bytes(content := (whole / "manifest.json").read_bytes())
    way = data.draw(st.sampled_from(places(json.loads(content))))
    rewrite(path, put(*way, value=data.draw(JSON)))


@settings(max_examples=200)
@given(data=st.data())
def test_a_forged_manifest_is_a_state_or_refused(
    stopped: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "forged" / stopped.name
    if not folder.exists():
        shutil.copytree(stopped, folder)
    forge(newest(folder), newest(stopped), data)
    with contextlib.suppress(CheckpointError):
        resume.load_state(newest(folder), config_of(folder))


@pytest.mark.faults
@settings(max_examples=300)
@given(data=st.data())
def test_a_run_with_a_forged_manifest_ends_or_is_refused(
    data_dir: Path, stopped: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    runs_dir = tmp_path_factory.mktemp("forged")
    folder = Path(shutil.copytree(stopped, runs_dir / stopped.name))
    shutil.rmtree(min((folder / "checkpoints").iterdir()))
    forge(newest(folder), newest(stopped), data)
    with warnings.catch_warnings(), contextlib.suppress(CheckpointError, DivergedError):
        warnings.simplefilter("ignore")
        train(data_dir, runs_dir)


def small(name: str) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    """A model with kernels in channels_last, matrices, norms and biases, and what trains it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
    ).to(memory_format=torch.channels_last)
    config = make_config({"model": "a", "optimizer": name, "weight_decay": 0.01, "epochs": 2})
    return model, (optimizer := make_optimizer(config, model)), partial_schedule(config, optimizer)


def partial_schedule(config: RunConfig, optimizer: torch.optim.Optimizer) -> Callable[[int], Any]:
    return lambda taken: make_schedule(config, optimizer, 10, taken)


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(3))], momentum=0.9, fused=True)


def learn(model: nn.Module, optimizer: Any, schedule: Any, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        images, labels = torch.randn(6, 3, 4, 4), torch.arange(6) % 3
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def goes_on_exactly(name: str) -> bool:
    """Whether 3 steps after a stored and restored state are those without it."""
    model, optimizer, schedule = small(name)
    at = schedule(0)
    learn(model, optimizer, at, range(7))
    tensors: dict[str, torch.Tensor] = {}
    tree = json.loads(json.dumps(resume._pack(optimizer.state_dict(), "o", tensors)))
    stored = resume._unpack(tree, safetensors.torch.load(safetensors.torch.save(tensors)))
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    learn(model, optimizer, at, range(7, 10))

    other, fresh, schedule = small(name)
    other.load_state_dict(weights)
    at = schedule(7)
    resume.restore_optimizer(fresh, stored)
    learn(other, fresh, at, range(7, 10))
    expected = model.state_dict()
    return all(torch.equal(value, expected[key]) for key, value in other.state_dict().items())


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lamb", "adan", "adafactorbv", "lion"])
def test_an_optimizer_goes_on_exactly_from_its_stored_state(name: str) -> None:
    assert goes_on_exactly(name)


REFUSED = ("adahessian",)


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(map(str, optim.list_optimizers())))
def test_every_optimizer_goes_on_exactly_from_its_stored_state_or_is_refused(name: str) -> None:
    if name in REFUSED or name.startswith(("bnb", "fused")):
        with pytest.raises(
            UsageError, match=r"cannot create optimizer .*: CUDA|needs second derivatives"
        ):
            goes_on_exactly(name)
    else:
        assert goes_on_exactly(name)


def adam_state() -> dict[str, Any]:
    model, optimizer, schedule = small("adam")
    learn(model, optimizer, schedule(0), range(2))
    return optimizer.state_dict()


OTHERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "of another optimizer": lambda s: s.update(small("sgd")[1].state_dict()),
    "with a group less": lambda s: s["param_groups"].pop(),
    "with other parameters": put("param_groups", 0, "params", value=[0]),
    "with a switch": put("param_groups", 0, "amsgrad", value=True),
    "with a rate that is a word": put("param_groups", 0, "lr", value="fast"),
    "with one beta": put("param_groups", 0, "betas", value=(0.9,)),
    "with an object": put("param_groups", 0, "more", value={}),
    "without groups": lambda s: s.pop("param_groups"),
    "with a moment less": lambda s: s["state"][0].pop("exp_avg_sq"),
    "with a moment more": put("state", 0, "max", value=torch.zeros(1)),
    "with a short moment": put("state", 0, "exp_avg", value=torch.zeros(1)),
    "with an empty count": put("state", 0, "step", value=torch.zeros(0)),
    "with a count that is a number": put("state", 0, "step", value=2),
    "of a parameter that is not there": put("state", 99, value={}),
    "with a parameter's name": put("state", "weight", value={}),
    "that is a list": put("state", value=[1]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_state_of_another_optimizer_is_refused(name: str) -> None:
    stored = adam_state()
    OTHERS[name](stored)
    with pytest.raises(CheckpointError, match="the state does not fit the optimizer"):
        resume.restore_optimizer(small("adam")[1], stored)
