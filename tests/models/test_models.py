"""Every model: its size and layers, that it learns, and that frozen means frozen."""

import copy
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from stl10bench.core.errors import CheckpointError, UsageError
from stl10bench.models import registry, summary
from stl10bench.models.factory import build_model, check_options
from stl10bench.training.run import train

SHARED = Path(__file__).parents[3] / "shared"
WEIGHTS = SHARED / "weights" / "mobilenetv2_100.safetensors"
SMALL_CNN: dict[str, Any] = {"channels": (4, 8, 8, 8), "hidden": (8,)}


def with_freezing(names: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Each name with its defaults, and a backbone also unfrozen."""
    cases: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in names]
    backbones = [name for name in names if registry.backbone_name(name)]
    return [*cases, *((name, {"freeze": False}) for name in backbones)]


def photos(count: int, size: int) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def train_steps(model: nn.Module, images: Tensor, steps: int = 1) -> None:
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learning, lr=0.01)
    labels = torch.arange(len(images)) % 10
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


@pytest.fixture(scope="module")
def mobilenetv2() -> nn.Module:
    """A MobileNetV2 with random weights, never trained: copy it."""
    torch.manual_seed(0)
    return build_model("mobilenetv2", 10, 32, {"hidden": (8,)})


@pytest.mark.parametrize(("name", "options"), with_freezing(registry.names()))
def test_a_training_step_changes_all_that_should_learn(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = build_model(name, 7, 64, options)
    images, labels = photos(4, 64), torch.tensor([0, 3, 6, 0])
    before = snapshot(model)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    logits = model.train()(images)
    assert logits.shape == (4, 7)
    F.cross_entropy(logits, labels).backward()
    optimizer.step()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            assert not torch.equal(parameter, before[key]), key
        else:
            assert parameter.grad is None, key
            assert torch.equal(parameter, before[key]), key


@pytest.mark.parametrize("name", registry.names())
def test_an_evaluated_model_treats_each_image_alone(name: str) -> None:
    torch.manual_seed(0)
    options = SMALL_CNN if name == "cnn" else {}
    model, images = build_model(name, 10, 64, options).eval(), photos(3, 64)
    with torch.no_grad():
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together[0], together[1])


def test_logistic_regression_is_one_matrix_on_the_pixels() -> None:
    model, images = build_model("logistic", 10, 64, {}), photos(2, 64)
    assert summary.parameters(model) == (122_890, 122_890)
    weight, bias = model.state_dict().values()
    torch.testing.assert_close(model(images), images.reshape(2, -1) @ weight.T + bias)


@pytest.mark.parametrize(
    "hidden",
    [(512, 256, 128), (512, 512, 256, 256, 128), (1024, 1024, 512, 512, 256, 256, 128), ()],
)
def test_the_mlp_has_the_parameters_of_its_widths(hidden: tuple[int, ...]) -> None:
    with torch.device("meta"):
        model = build_model("mlp", 10, 64, {"hidden": hidden})
    widths = [3 * 64 * 64, *hidden, 10]
    expected = sum(a * b + b for a, b in pairwise(widths))
    assert summary.parameters(model)[0] == expected


def test_the_mlp_of_the_report_is_the_default() -> None:
    assert check_options("mlp", {})["hidden"] == (512, 256, 128)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    model, images = build_model("mlp", 10, 8, {"dropout": 0.5, "hidden": (64,)}), photos(2, 8)
    assert not torch.equal(model.train()(images), model(images))
    assert torch.equal(model.eval()(images), model(images))


# The CNN of the study, as its layer table has it.

CNN_LAYERS = [
    ("Conv2d", (256, 62, 62), 7_168),
    ("BatchNorm2d", (256, 62, 62), 512),
    ("ReLU", (256, 62, 62), 0),
    ("MaxPool2d", (256, 30, 30), 0),
    ("Conv2d", (512, 28, 28), 1_180_160),
    ("BatchNorm2d", (512, 28, 28), 1_024),
    ("ReLU", (512, 28, 28), 0),
    ("MaxPool2d", (512, 13, 13), 0),
    ("Conv2d", (512, 11, 11), 2_359_808),
    ("BatchNorm2d", (512, 11, 11), 1_024),
    ("ReLU", (512, 11, 11), 0),
    ("MaxPool2d", (512, 5, 5), 0),
    ("Conv2d", (1000, 3, 3), 4_609_000),
    ("BatchNorm2d", (1000, 3, 3), 2_000),
    ("ReLU", (1000, 3, 3), 0),
    ("MaxPool2d", (1000, 1, 1), 0),
    ("Linear", (512,), 512_512),
    ("Dropout", (512,), 0),
    ("Linear", (256,), 131_328),
    ("Dropout", (256,), 0),
    ("Linear", (10,), 2_570),
]


def test_the_cnn_is_the_one_of_the_report() -> None:
    model = build_model("cnn", 10, 64, {})
    listed = summary.layers(model, 64)
    layers = [layer for layer in listed if not layer.is_function]  # which the report leaves out
    assert [(layer.kind, layer.shape, layer.parameters) for layer in layers] == CNN_LAYERS
    assert summary.parameters(model) == (8_807_106, 8_807_106)
    assert model.training, "counting leaves the mode as it was"

    megabyte, batch = 2**20 / 4, 128  # of fp32 numbers
    outputs = sum(torch.Size(layer.shape).numel() for layer in layers)
    sizes = (
        batch * 3 * 64 * 64 / megabyte,
        2 * batch * outputs / megabyte,
        sum(layer.parameters for layer in layers) / megabyte,
    )
    assert [f"{size:.2f}" for size in (*sizes, sum(sizes))] == [
        "6.00",
        "4591.35",
        "33.60",
        "4630.95",
    ]


@pytest.mark.parametrize("size", [8, 32, 60])
def test_the_cnn_refuses_images_that_its_blocks_shrink_to_nothing(size: int) -> None:
    with pytest.raises(UsageError, match=rf"image_size = {size}: .* at least 61 px") as error:
        build_model("cnn", 10, size, SMALL_CNN)
    assert "raise --image-size or shorten --channels" in str(error.value)


@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 5])
def test_the_smallest_size_that_the_cnn_names_is_the_smallest_that_works(blocks: int) -> None:
    options = {"channels": (2,) * blocks, "hidden": ()}
    with pytest.raises(UsageError) as error:
        build_model("cnn", 10, 1, options)
    smallest = int(re.findall(r"at least (\d+) px", str(error.value))[0])
    with pytest.raises(UsageError):
        build_model("cnn", 10, smallest - 1, options)
    model = build_model("cnn", 10, smallest, options)
    assert model.eval()(photos(1, smallest)).shape == (1, 10)


@pytest.mark.parametrize("size", [61, 63, 64, 65, 76, 77, 96, 128])
def test_the_cnn_has_the_same_weights_at_every_size(size: int) -> None:
    model = build_model("cnn", 10, size, SMALL_CNN).eval()
    assert model(photos(1, size)).shape == (1, 10)
    reference = build_model("cnn", 10, 64, SMALL_CNN).state_dict()
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert list(shapes.values()) == [value.shape for value in reference.values()]


# Counting.


def test_macs_of_a_cnn_are_those_computed_by_hand() -> None:
    model = build_model("cnn", 10, 64, SMALL_CNN)
    by_hand = (
        62 * 62 * 4 * (3 * 9)
        + 28 * 28 * 8 * (4 * 9)
        + 11 * 11 * 8 * (8 * 9)
        + 3 * 3 * 8 * (8 * 9)
        + 8 * 8
        + 8 * 10
    )
    assert summary.macs(model, 64) == by_hand


def test_macs_of_linear_layers_are_their_weights() -> None:
    assert summary.macs(build_model("logistic", 10, 64, {}), 64) == 122_880
    mlp = build_model("mlp", 10, 8, {"hidden": (5, 4)})
    assert summary.macs(mlp, 8) == 192 * 5 + 5 * 4 + 4 * 10


def test_macs_count_depthwise_convolutions_by_their_groups(mobilenetv2: nn.Module) -> None:
    shapes = {layer.name: layer.shape for layer in summary.layers(mobilenetv2, 32)}
    expected = 0
    for name, module in mobilenetv2.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            per_output = module.weight[0].numel()  # inputs that one output is a sum of
            expected += torch.Size(shapes[name]).numel() * per_output
    assert summary.macs(mobilenetv2, 32) == expected


def test_frozen_parameters_count_but_not_as_learning(mobilenetv2: nn.Module) -> None:
    head = 1280 * 8 + 8 + 8 * 10 + 10
    assert summary.parameters(mobilenetv2) == (2_223_872 + head, head)  # timm's own count


# Frozen.


def test_freezing_keeps_every_backbone_tensor(mobilenetv2: nn.Module) -> None:
    model = copy.deepcopy(mobilenetv2)
    backbone, head = model.get_submodule("backbone"), model.get_submodule("head")
    frozen, learning = snapshot(backbone), snapshot(head)
    model.eval()
    nn.Sequential(model).train()  # as a wrapper (DDP's, say) does it
    train_steps(model, photos(4, 32), steps=3)
    assert model.training
    assert not backbone.training
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, frozen[key]), key
    for key, value in head.state_dict().items():
        assert not torch.equal(value, learning[key]), key


def test_without_freezing_every_backbone_tensor_learns() -> None:
    torch.manual_seed(0)
    model = build_model("mobilenetv2", 10, 32, {"hidden": (8,), "freeze": False})
    total, trainable = summary.parameters(model)
    assert total == trainable
    before = snapshot(model)
    train_steps(model, photos(4, 32))
    for key, value in model.state_dict().items():
        assert not torch.equal(value, before[key]), key


def test_the_state_has_the_same_keys_frozen_or_not(mobilenetv2: nn.Module) -> None:
    free = build_model("mobilenetv2", 10, 32, {"hidden": (8,), "freeze": False})
    assert list(free.state_dict()) == list(mobilenetv2.state_dict())
    assert any(key.endswith("running_mean") for key in mobilenetv2.state_dict())


def test_evaluation_gives_no_gradients_to_a_frozen_backbone(mobilenetv2: nn.Module) -> None:
    model = copy.deepcopy(mobilenetv2)
    images = photos(2, 32).requires_grad_()
    model(images).sum().backward()
    assert images.grad is None
    with torch.no_grad():
        assert not model(images).requires_grad


# Any timm model.


@pytest.mark.parametrize("freeze", [True, False])
def test_any_timm_model_gets_the_same_head(freeze: bool) -> None:
    torch.manual_seed(0)
    model = build_model("timm:resnet18", 10, 64, {"freeze": freeze})
    head = 512 * 512 + 512 + 512 * 256 + 256 + 256 * 10 + 10
    assert summary.parameters(model) == (11_176_512 + head, head if freeze else 11_176_512 + head)
    before = snapshot(model.get_submodule("backbone"))
    train_steps(model, photos(4, 64), steps=2)  # the first moves the gates that timm starts at 0
    after = model.get_submodule("backbone").state_dict()
    kept = [torch.equal(value, before[key]) for key, value in after.items()]
    assert all(kept) if freeze else not any(kept)


def test_a_backbone_of_fixed_size_is_made_for_the_size_asked_for() -> None:
    model = build_model("timm:vit_tiny_patch16_224", 10, 64, {"hidden": (8,)})
    assert model.eval()(photos(1, 64)).shape == (1, 10)


def test_a_size_that_a_backbone_cannot_take_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"image_size = 8: timm:vit_tiny_patch16_224 .*use --image-size 32"
    ):
        build_model("timm:vit_tiny_patch16_224", 10, 8, {})


def test_an_unknown_timm_model_says_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown timm model 'resnet81': did you mean 'resnet18'"):
        build_model("timm:resnet81", 10, 64, {})


# Pretrained weights.


@pytest.fixture(scope="module")
def donor() -> dict[str, Tensor]:
    """A whole timm state dict, classifier included."""
    import timm

    torch.manual_seed(7)
    state: dict[str, Tensor] = timm.create_model("mobilenetv2_100", num_classes=5).state_dict()
    return state


def load(model: nn.Module, state: dict[str, Tensor], size: int = 32) -> dict[str, Tensor]:
    from stl10bench.models.timm_backbone import load_pretrained

    backbone = model.get_submodule("backbone")
    load_pretrained(backbone, "mobilenetv2_100", size, state)
    return backbone.state_dict()


@pytest.mark.parametrize("left_out", ["", "classifier.", "num_batches_tracked"])
def test_weights_fill_the_backbone_with_or_without_classifier(
    mobilenetv2: nn.Module, donor: dict[str, Tensor], left_out: str
) -> None:
    state = {key: value for key, value in donor.items() if not (left_out and left_out in key)}
    model = copy.deepcopy(mobilenetv2)
    head = snapshot(model.get_submodule("head"))
    loaded = load(model, dict(state))
    assert all(torch.equal(loaded[key], state[key]) for key in loaded if key in state)
    assert loaded.keys() == donor.keys() - {"classifier.weight", "classifier.bias"}
    after = model.get_submodule("head").state_dict()
    assert all(torch.equal(after[key], head[key]) for key in head)
    assert not any(p.requires_grad for p in model.get_submodule("backbone").parameters())


@pytest.mark.parametrize("number", [1, 9])
def test_weights_that_lack_tensors_are_refused_with_at_most_five_names(
    mobilenetv2: nn.Module, donor: dict[str, Tensor], number: int
) -> None:
    missing = [key for key in donor if "running_mean" in key][:number]
    state = {key: value for key, value in donor.items() if key not in missing}
    model = copy.deepcopy(mobilenetv2)
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=f"lack {number} of") as error:
        load(model, state)
    named = [key for key in donor if re.search(rf"[( ]{re.escape(key)}[ ,)]", str(error.value))]
    assert named == missing[:5]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_weights_of_other_shapes_are_refused(
    mobilenetv2: nn.Module, donor: dict[str, Tensor]
) -> None:
    state = {**donor, "conv_stem.weight": torch.zeros(16, 3, 3, 3)}
    model = copy.deepcopy(mobilenetv2)
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=r"do not fit mobilenetv2_100: .*conv_stem\.weight"):
        load(model, state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_weights_that_are_no_floats_are_refused(
    mobilenetv2: nn.Module, donor: dict[str, Tensor], dtype: torch.dtype
) -> None:
    state = {**donor, "conv_stem.weight": donor["conv_stem.weight"].to(dtype)}
    with pytest.raises(CheckpointError, match=r"do not fit mobilenetv2_100: conv_stem\.weight is"):
        load(copy.deepcopy(mobilenetv2), state)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(
    data_dir: Path, tmp_path: Path, donor: dict[str, Tensor], value: float
) -> None:
    state = {**donor, "conv_stem.weight": torch.full_like(donor["conv_stem.weight"], value)}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(
        CheckpointError, match=r"w\.safetensors contains numbers that are not finite"
    ):
        train(
            *("mobilenetv2",),
            **{"weights": tmp_path / "w.safetensors", "image_size": 32, "batch_size": 8},
            **{"data_dir": data_dir, "runs_dir": tmp_path / "runs", "tracker": "none"},
        )


def test_weights_of_another_input_size_are_adapted() -> None:
    import timm

    from stl10bench.models.timm_backbone import load_pretrained

    state = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    model = build_model("timm:vit_tiny_patch16_224", 10, 64, {"hidden": (8,)})
    backbone = model.get_submodule("backbone")
    load_pretrained(backbone, "vit_tiny_patch16_224", 64, dict(state))
    loaded = backbone.state_dict()
    assert loaded["pos_embed"].shape == (1, 1 + (64 // 16) ** 2, 192)
    assert all(torch.equal(loaded[key], state[key]) for key in loaded if key != "pos_embed")


@pytest.mark.skipif(not WEIGHTS.exists(), reason=f"no {WEIGHTS}")
@pytest.mark.parametrize("size", [64, 96])
def test_the_real_weights_fill_every_backbone_tensor(mobilenetv2: nn.Module, size: int) -> None:
    state = load_file(WEIGHTS)
    loaded = load(copy.deepcopy(mobilenetv2), dict(state), size)
    assert len(loaded) > 300
    for key, value in loaded.items():
        assert torch.equal(value, state[key]), key
