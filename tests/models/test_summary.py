"""A model's table: its rows add up, its formulas hold, its memory is the report's."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.entry import Entry
from torch import Tensor, nn

from stl10bench.models import summary
from stl10bench.models.factory import build_model

MODELS = ("logistic", "mlp", "cnn", "mobilenetv2", "timm:resnet18", "timm:vit_tiny_patch16_224")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Entry:
    return Entry(monkeypatch, capsys)


class Odd(nn.Module):
    """A layer that is called twice, one that is used as a function, and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(12))
        self.twice = nn.Linear(12, 12)
        self.function = nn.Linear(12, 5, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        features = self.twice(self.twice(images.flatten(1) + self.shift))
        return features @ self.function.weight.T


@pytest.mark.parametrize("name", MODELS)
def test_the_rows_of_every_model_add_up_to_the_model(name: str) -> None:
    model = build_model(name, 10, 64, {})
    layers = summary.layers(model, 64)
    assert sum(layer.parameters for layer in layers) == sum(p.numel() for p in model.parameters())
    assert sum(layer.macs for layer in layers) == summary.macs(model, 64)


def test_what_is_called_twice_counts_its_macs_twice_and_its_parameters_once() -> None:
    layers = summary.layers(Odd(), 2)
    assert [(layer.name, layer.shape, layer.parameters, layer.macs) for layer in layers] == [
        ("", (), 12, 12 * 5),
        ("twice", (12,), 12 * 12 + 12, 144),
        ("twice", (12,), 0, 144),
        ("function", (), 60, 0),
    ]


@pytest.mark.parametrize("name", MODELS)
def test_every_formula_gives_its_layers_parameters(name: str) -> None:
    model = build_model(name, 10, 64, {})
    layers = [layer for layer in summary.layers(model, 64) if layer.formula]
    assert layers
    for layer in layers:
        assert eval(re.sub("[a-z]", "", layer.formula)) == layer.parameters, layer


@pytest.mark.parametrize(
    ("name", "start", "value"),
    [
        ("logistic", "64*64*3*10 weights + 10 biases", 122_890),
        ("cnn", "3*3*3*256 weights + 256 biases + 256 scales + 256 shifts", 8_807_106),
    ],
)
def test_the_whole_formula_of_a_small_model_gives_its_parameters(
    name: str, start: str, value: int
) -> None:
    formula = summary.formula(summary.layers(build_model(name, 10, 64, {}), 64))
    assert formula.startswith(start)
    assert eval(re.sub("[a-z]", "", formula)) == value


def test_a_large_model_has_no_formula() -> None:
    assert summary.formula(summary.layers(build_model("timm:resnet18", 10, 64, {}), 64)) == ""


def test_describe_prints_the_reports_parameters_and_memory(cli: Entry) -> None:
    out = cli("describe", "cnn").out
    assert re.search(r"MB +input +forward/backward +parameters +total", out)
    assert re.search(r"cnn +6.00 +4591.35 +33.60 +4630.95", out)
    assert "8,807,106 parameters (8,807,106 trainable), 1,279,006,208 MACs" in out
    assert re.search(r"total +8,807,106 +1,279,006,208", out)
    (first, *_) = (line.split() for line in out.splitlines() if "Conv2d" in line)
    assert first[:5] == ["1", "Conv2d", "256x62x62", "7,168", "26,569,728"]
    assert re.search(r"4 +MaxPool2d +256x30x30 .* 7,680", out), "the sum of the first block"


def test_describe_says_how_logistic_regressions_parameters_are_counted(cli: Entry) -> None:
    assert "64*64*3*10 weights + 10 biases = 122,890" in cli("describe", "logistic").out


def test_memory_grows_with_the_batch_but_for_the_parameters(cli: Entry) -> None:
    one, two = (
        json.loads(cli("describe", "mlp", "--batch-size", size, "--json").out) for size in (64, 128)
    )
    assert two["memory_bytes"]["input"] == 2 * one["memory_bytes"]["input"] == 128 * 3 * 64**2 * 4
    assert two["memory_bytes"]["forward_backward"] == 2 * one["memory_bytes"]["forward_backward"]
    assert two["memory_bytes"]["parameters"] == one["memory_bytes"]["parameters"]
    parts = ("input", "forward_backward", "parameters")
    assert two["memory_bytes"]["total"] == sum(two["memory_bytes"][part] for part in parts)


def test_json_carries_what_the_table_shows(cli: Entry) -> None:
    facts: dict[str, Any] = json.loads(cli("describe", "timm:vit_tiny_patch16_224", "--json").out)
    assert facts["parameters"] == sum(layer["parameters"] for layer in facts["layers"])
    assert facts["macs"] == sum(layer["macs"] for layer in facts["layers"])
    assert facts["layers"][0]["name"] == "backbone"  # its class token and position embedding
    assert facts["layers"][1]["formula"] == "16*16*3*192 weights + 192 biases"
    assert facts["formula"] == ""


def test_layers_stand_in_the_order_of_the_forward_pass_and_activations_among_them() -> None:
    kinds = [layer.kind for layer in summary.layers(build_model("mlp", 10, 8, {}), 8)]
    assert kinds == ["Linear", "relu()", "Dropout"] * 3 + ["Linear"]
    kinds = [layer.kind for layer in summary.layers(build_model("mobilenetv2", 10, 64, {}), 64)]
    assert kinds[:5] == ["Conv2d", "BatchNormAct2d", "ReLU6", "Conv2d", "BatchNormAct2d"]
    assert "hardtanh()" not in kinds, "what ReLU6 itself calls"


@pytest.mark.parametrize("name", ["timm:pit_ti_224", "timm:test_vit3"])
def test_macs_are_counted_where_views_of_trainable_weights_enter_a_layer(name: str) -> None:
    model = build_model(name, 10, 64, {"freeze": False})
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    model.get_submodule("backbone").eval()
    modes = [module.training for module in model.modules()]
    assert summary.macs(model, 64) > 1_000_000
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable
    assert [module.training for module in model.modules()] == modes


@pytest.mark.usefixtures("forgetful")
def test_a_plugins_layer_names_are_not_markup(
    cli: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hostile_model.py").write_text(
        "from torch import nn\nfrom stl10bench import register\n"
        "Layer = type('[red]x[/red]', (nn.Linear,), {})\n"
        "@register\ndef hostile(num_classes: int, image_size: int) -> nn.Module:\n"
        "    return nn.Sequential(nn.Flatten(), Layer(3 * image_size**2, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    assert "[red]x[/red]" in cli("describe", "hostile", "--plugin", "hostile_model").out
