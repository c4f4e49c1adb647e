"""A model that cannot be trained or used is refused in one line, before anything is trained."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.layout import save
from torch import Tensor, nn

import stl10bench
from stl10bench import register
from stl10bench.core.errors import CheckpointError, UsageError
from stl10bench.models import registry
from stl10bench.models.check import check_logits, check_training
from stl10bench.models.factory import build_model, check_options

TINY: dict[str, Any] = {"image_size": 8, "epochs": 1, "batch_size": 8, "tracker": "none"}
pytestmark = pytest.mark.usefixtures("forgetful")


class Net(nn.Module):
    """Linear logits, and what `change` makes of them in `modes` of training."""

    def __init__(
        self, classes: int, size: int, change: Callable[[Tensor], Any], modes: Any = (True, False)
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * size**2, classes)
        self.change, self.modes = change, modes

    def forward(self, images: Tensor) -> Any:
        logits = self.linear(images.flatten(1))
        return self.change(logits) if self.training in self.modes else logits


class Extra(nn.Module):
    def get_extra_state(self) -> dict[str, int]:
        return {"a": 1}


def register_net(change: Callable[[Tensor], Any], modes: Any = (True, False)) -> None:
    @register
    def my_net(num_classes: int, image_size: int) -> nn.Module:
        return Net(num_classes, image_size, change, modes)


def fail(_: Tensor) -> None:
    raise KeyError("no such feature")


def train(data_dir: Path, tmp_path: Path, **options: Any) -> Any:
    return stl10bench.train("my_net", data_dir=data_dir, runs_dir=tmp_path, **TINY | options)


@pytest.mark.parametrize(
    ("change", "modes", "text"),
    [
        (lambda x: torch.cat([x, x], 1), (True, False), r"float32 \(2, 8\) for 2 images in eval"),
        (lambda x: x[:, :3], (True, False), r"float32 \(2, 3\) .* must return logits \(2, 4\)"),
        (lambda x: (x, x), (True, False), "returns a tuple for 2 images in evaluation mode"),
        (lambda x: (x, x), (True,), "returns a tuple for 2 images in training mode"),
        (lambda x: {"logits": x}, (False,), "returns a dict for 2 images in evaluation mode"),
        (lambda x: x.argmax(1), (True, False), r"returns int64 \(2,\)"),
        (lambda x: x.long(), (True, False), r"returns int64 \(2, 4\)"),
        (lambda x: x[:, :, None], (True, False), r"returns float32 \(2, 4, 1\)"),
        (
            Tensor.to_sparse,
            (True, False),
            "returns a sparse tensor for 2 images in evaluation mode",
        ),
        (
            lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged),
            (True,),
            "returns a nested tensor for 2 images",
        ),
        (lambda x: x * math.nan, (True, False), "logits that are not finite with its initial"),
        (lambda x: x.detach(), (True,), "do not depend on a trainable parameter"),
        (fail, (True, False), "fails on 2 images in evaluation mode: KeyError: 'no such feature'"),
        (fail, (True,), "fails on 2 images in training mode: KeyError: 'no such feature'"),
    ],
)
def test_a_model_without_logits_is_refused_before_its_first_step(
    data_dir: Path, tmp_path: Path, change: Any, modes: Any, text: str
) -> None:
    register_net(change, modes)
    with pytest.raises(UsageError, match=text) as error:
        train(data_dir, tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("*/*.safetensors"))


def test_a_model_with_nothing_to_train_is_refused(data_dir: Path, tmp_path: Path) -> None:
    @register
    def my_net(num_classes: int, image_size: int) -> nn.Module:
        return Net(num_classes, image_size, lambda logits: logits).requires_grad_(False)

    with pytest.raises(UsageError, match="'my_net' has no trainable parameter"):
        train(data_dir, tmp_path)


def with_weight(make: Callable[[Tensor], Tensor]) -> Callable[[Net], None]:
    def change(net: Net) -> None:
        net.linear.weight = nn.Parameter(make(net.linear.weight.detach()))

    return change


def growing(net: Net) -> None:
    def grow(module: nn.Module, *_: Any) -> None:
        number = sum(1 for _ in module.buffers())
        module.register_buffer(f"seen{number}", torch.zeros(1))

    net.register_forward_hook(grow)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda net: net.to("meta"), "linear.weight is on the meta device"),
        (with_weight(lambda x: x[:1].expand(4, -1)), r"linear.weight has entries that share"),
        (with_weight(Tensor.to_sparse), "linear.weight is sparse, nested or quantized"),
        (
            with_weight(lambda x: x.to(torch.complex64)),
            r"weight is complex64 \(4, 192\): what is tr",
        ),
        (
            lambda net: net.register_parameter("no", nn.Parameter(torch.zeros(0))),
            r"no is float32 \(0",
        ),
        (
            lambda net: net.register_module("extra", Extra()),
            "extra._extra_state is a dict: a check",
        ),
        (growing, "changes what its state holds when it is called: seen0; make"),
    ],
)
def test_a_model_whose_state_cannot_be_trained_or_kept_is_refused(
    data_dir: Path, tmp_path: Path, change: Callable[[Net], Any], text: str
) -> None:
    @register
    def my_net(num_classes: int, image_size: int) -> nn.Module:
        net = Net(num_classes, image_size, lambda logits: logits)
        change(net)
        return net

    with pytest.raises(UsageError, match=text) as error:
        train(data_dir, tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("my_net-*"))


def test_a_batch_of_one_that_a_batch_norm_cannot_take_is_refused(
    data_dir: Path, tmp_path: Path
) -> None:
    @register
    def my_net(num_classes: int, image_size: int) -> nn.Module:
        pixels = 3 * image_size**2
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(pixels), nn.Linear(pixels, num_classes))

    with pytest.raises(UsageError, match=r"fails on 1 image in training mode \(raise --batch-size"):
        train(data_dir, tmp_path, batch_size=1)
    assert train(data_dir, tmp_path, batch_size=2).test_images == 20


def test_lazy_layers_take_their_sizes_from_the_image_size(data_dir: Path, tmp_path: Path) -> None:
    @register
    def my_net(num_classes: int, image_size: int) -> nn.Module:
        return nn.Sequential(nn.LazyConv2d(2, 3), nn.Flatten(), nn.LazyLinear(num_classes))

    row = train(data_dir, tmp_path)
    assert row.parameters == 2 * 27 + 2 + 4 * 72 + 4
    images = torch.zeros(1, 3, 9, 9, dtype=torch.uint8)
    assert stl10bench.load(tmp_path / row.checkpoint)(images).shape == (1, 4)


@pytest.mark.parametrize("name", ["cnn", "mobilenetv2"])
def test_the_check_changes_nothing_that_a_run_is_made_of(name: str) -> None:
    model = build_model(name, 10, 64, {"freeze": False} if name == "mobilenetv2" else {})
    model.get_submodule("0" if name == "cnn" else "backbone").eval()
    modes = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    check_training(name, model, 10, 64, batch=8, autocast=torch.autocast("cpu", enabled=False))
    check_logits(name, model, 10, 64)
    assert torch.equal(torch.get_rng_state(), generator)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_that_cannot_be_copied_trains(data_dir: Path, tmp_path: Path) -> None:
    @register
    def my_net(num_classes: int, image_size: int) -> nn.Module:
        net = Net(num_classes, image_size, lambda logits: logits)
        net.scale = 2 * nn.Parameter(torch.ones(1))  # no leaf: deepcopy refuses it
        return net

    assert train(data_dir, tmp_path).test_images == 20


@pytest.mark.parametrize(
    ("annotation", "default"),
    [(dict[str, int], {}), (float, math.inf), (Any, [[1]])],
)
def test_an_option_that_no_row_can_hold_is_refused_with_the_settings(
    annotation: Any, default: Any
) -> None:
    def my_net(num_classes: int, image_size: int, *, how: Any = default) -> None: ...

    my_net.__annotations__["how"] = annotation
    registry.register(my_net)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"option how = .* of model 'my_net'"):
        check_options("my_net", {})


def test_a_builder_that_fails_or_builds_no_model_is_told() -> None:
    @register
    def my_none(num_classes: int, image_size: int) -> Any:
        return None

    @register
    def my_fault(num_classes: int, image_size: int) -> Any:
        raise RuntimeError("no weights\nand more")

    @register
    def my_option(num_classes: int, image_size: int, *, width) -> Any: ...  # type: ignore

    with pytest.raises(UsageError, match=r"'my_none' is a NoneType, not an nn.Module"):
        build_model("my_none", 10, 8, {})
    with pytest.raises(UsageError, match=r"cannot be built for 8 px: RuntimeError: no weights$"):
        build_model("my_fault", 10, 8, {})
    with pytest.raises(UsageError, match="option width of model 'my_option' needs a type and a"):
        build_model("my_option", 10, 8, {})


def test_a_checkpoint_whose_plugin_has_changed_since_is_refused(tmp_path: Path) -> None:
    register_net(lambda logits: logits)
    path = save(tmp_path / "m.safetensors", "my_net")
    assert stl10bench.load(path).class_names
    del registry._registered["my_net"]
    with pytest.raises(CheckpointError, match=r"unknown model 'my_net': .*--plugin FILE"):
        stl10bench.load(path)
    register_net(lambda logits: logits[:, :2])
    with pytest.raises(CheckpointError, match=r"'my_net' returns float32 \(2, 2\) for 2 images"):
        stl10bench.load(path)


def test_describe_refuses_such_a_model_and_shows_one_without_parameters(
    cli: Any, tmp_path: Path
) -> None:
    (tmp_path / "my_models.py").write_text(
        "from torch import nn\nfrom stl10bench import register\n\n"
        "class Pool(nn.Module):\n"
        "    def forward(self, images):\n"
        "        return images.flatten(1)[:, :10]\n\n"
        "@register\ndef my_pool(num_classes: int, image_size: int):\n    return Pool()\n"
    )
    code, out, _ = cli("describe", "my_pool", "--plugin", "my_models")
    assert code == 0
    assert "0 parameters (0 trainable), 0 MACs" in out
    code, _, err = cli("describe", "my_pool", "--plugin", "my_models", "--num-classes", "11")
    assert code == 2
    assert "error: model 'my_pool' returns float32 (2, 10) for 2 images in evaluation mode" in err
