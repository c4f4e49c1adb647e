"""Grad-CAM is the paper's: equal to captum's, to CAM where that exists, and to its definition."""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from helpers.entry import Entry
from helpers.pictures import painted, save_model, texts, written
from PIL import Image
from torch import Tensor, nn

from stl10bench.core.errors import UsageError
from stl10bench.inference.predictor import Predictor, load
from stl10bench.models.classifier import Classifier
from stl10bench.plots import galleries, gradcam
from stl10bench.plots.galleries import GAP, MIN_WIDTH, SIDE

CNN: dict[str, Any] = {"channels": (6, 6, 6, 8), "hidden": (7,)}
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("cnn", CNN),
    ("mobilenetv2", {"hidden": (6,)}),
    ("mobilenetv2", {"hidden": (6,), "freeze": False}),
    ("timm:resnet18", {"hidden": (6,)}),
]


def loaded(folder: Path, name: str, size: int = 64, **options: Any) -> Predictor:
    """A model whose batch norms do something, with its preprocessing."""
    torch.manual_seed(1)
    save_model(folder / "m.safetensors", name, size, **options)
    predictor = load(folder / "m.safetensors")
    draw = torch.Generator().manual_seed(2)
    for module in predictor.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.rand(module.num_features, generator=draw) / 5)
    return predictor


def noise(count: int, size: int = 96) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), generator=draw, dtype=torch.uint8)


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_heat_maps_equal_captums(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    predictor = loaded(tmp_path, name, **options)
    layers = gradcam.feature_maps(predictor)
    convolutions = [
        layer for layer in layers if isinstance(predictor.model.get_submodule(layer), nn.Conv2d)
    ]
    classes = torch.tensor([0, 1, 3, 3])
    for layer in (gradcam.choose_layer(predictor, None)[0], convolutions[0], convolutions[-1]):
        module = predictor.model.get_submodule(layer)
        ours = gradcam.grad_cam(predictor, module, noise(4), classes)
        for classifier in predictor.modules():
            if isinstance(classifier, Classifier):
                classifier.frozen = False  # captum needs the gradients that we ask for ourselves
        inputs = (torch.nn.functional.interpolate(
            noise(4), (64, 64), mode="bilinear", antialias=True
        ) / 255 - predictor.mean) / predictor.std  # fmt: skip
        with warnings.catch_warnings(action="ignore"):
            theirs = LayerGradCam(predictor.model, module).attribute(
                inputs.requires_grad_(), target=classes, relu_attributions=True
            )
        assert ours.shape == (4, *layers[layer])
        assert torch.allclose(ours, theirs[:, 0], rtol=1e-4, atol=1e-7), layer
        assert layer != convolutions[0] or ours.any()


def test_it_is_cam_where_the_maps_are_averaged_and_weighted() -> None:
    # Section 3.1 of the paper: Grad-CAM generalises CAM (Zhou et al. 2016), up to the map's size.
    torch.manual_seed(0)
    convolution, last = nn.Conv2d(3, 5, 3), nn.Linear(5, 4, bias=False)
    model = nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last).eval()
    images = torch.rand(2, 3, 12, 12)
    heat = gradcam.grad_cam(model, convolution, images, torch.tensor([2, 0]))
    weights = last.weight.detach()[[2, 0]].view(2, 5, 1, 1) / 100
    expected = (weights * convolution(images).detach()).sum(1).relu()
    assert torch.allclose(heat, expected, atol=1e-8)
    assert heat.any()


def test_what_counts_is_where_the_class_lies() -> None:
    # Channel 0 speaks for class 0 and red pixels alone turn it on.
    layer = nn.Conv2d(3, 2, 1, bias=False)
    head = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]).view(2, 3, 1, 1)
    head.weight.data = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    model = nn.Sequential(layer, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    image = torch.zeros(1, 3, 4, 4)
    image[0, 0, 1, 2] = 1  # red
    image[0, 2, 3, 0] = 1  # blue
    for label, place in ((0, (1, 2)), (1, (3, 0))):
        heat = gradcam.grad_cam(model.eval(), layer, image, torch.tensor([label]))[0]
        assert heat.nonzero().tolist() == [list(place)]


def test_the_model_is_as_it_was_after(tmp_path: Path) -> None:
    predictor = loaded(tmp_path, "mobilenetv2", hidden=(6,))
    before = {key: value.clone() for key, value in predictor.state_dict().items()}
    layer = predictor.model.get_submodule(gradcam.choose_layer(predictor, None)[0])
    gradcam.grad_cam(predictor, layer, noise(1), torch.tensor([0]))
    assert isinstance(predictor.model, Classifier)
    assert predictor.model.frozen
    assert not any(module._forward_hooks for module in predictor.modules())
    assert all(torch.equal(before[key], value) for key, value in predictor.state_dict().items())
    assert all(p.grad is None for p in predictor.parameters())


def test_the_layer_is_the_last_that_does_not_pool_unless_one_is_named(tmp_path: Path) -> None:
    predictor = loaded(tmp_path, "cnn", 96, **CNN)
    assert list(gradcam.feature_maps(predictor))[-1] == "15", "the last pooling gives 3x3"
    assert gradcam.choose_layer(predictor, None) == ("14", "Layer 14, 7x7.")
    assert gradcam.choose_layer(predictor, "8")[0] == "8"
    with pytest.raises(
        UsageError, match="unknown layer with feature maps '144': did you mean '14'"
    ):
        gradcam.choose_layer(predictor, "144")


def test_where_the_last_maps_are_a_blur_a_finer_layer_is_chosen_and_named(tmp_path: Path) -> None:
    predictor = loaded(tmp_path, "cnn", **CNN)
    layers = gradcam.feature_maps(predictor)
    layer, note = gradcam.choose_layer(predictor, None)
    assert layers["14"] == (3, 3)
    assert min(layers[layer]) >= 4
    assert note == f"Layer {layer}, 11x11: finer than the last one, 14, 3x3."


def test_an_image_explained_is_the_image_that_the_model_sees(tmp_path: Path) -> None:
    predictor = loaded(tmp_path, "cnn", **CNN)
    shown = gradcam.explain(predictor, "14", noise(3).numpy(), None)
    small = torch.nn.functional.interpolate(noise(3), (64, 64), mode="bilinear", antialias=True)
    assert np.array_equal(shown.images, small.numpy())
    with torch.no_grad():
        chances = predictor(noise(3)).softmax(1)
    assert shown.classes.tolist() == chances.argmax(1).tolist()
    assert shown.confidences == pytest.approx(chances.amax(1).numpy())
    cow = gradcam.explain(predictor, "14", noise(3).numpy(), 2)
    assert cow.classes.tolist() == [2, 2, 2]
    assert cow.confidences == pytest.approx(chances[:, 2].numpy())


def test_maps_are_enlarged_to_their_own_maximum_and_none_stays_none() -> None:
    heat = torch.tensor([[[0.0, 0], [0, 5]], [[0, 0], [0, 0]]])
    large = gradcam.enlarged(heat, 8)
    assert large.shape == (2, 8, 8)
    assert large[0, -1, -1] == large.max() == 1
    assert large[0, 0, 0] == 0
    assert not large[1].any()


def test_where_there_is_no_evidence_the_picture_is_grey_and_a_wrong_class_orange(
    tmp_path: Path,
) -> None:
    predictor = loaded(tmp_path, "cnn", **CNN)
    shown = gradcam.explain(predictor, "14", noise(1).numpy(), 1)
    blank = shown._replace(heat=np.zeros_like(shown.heat))
    hot = shown._replace(heat=np.ones_like(shown.heat))
    left, top, side = GAP + SIDE + GAP, GAP, SIDE
    grey = painted(galleries.heat_maps(predictor.header, blank, ["ant"], ""))
    cell = grey[top : top + side, left : left + side].astype(int)
    assert (cell.max(axis=2) - cell.min(axis=2)).max() == 0
    bright = painted(galleries.heat_maps(predictor.header, hot, ["ant"], ""))
    cell = bright[top : top + side, left : left + side].astype(int)
    assert (cell[..., 0] > cell[..., 2]).all(), "yellow lies on it"
    figure = galleries.heat_maps(predictor.header, shown, ["ant"], "Layer 14.")
    assert texts(figure)[1].endswith("Layer 14."), "the caption is not cut"
    assert texts(figure)[2:] == ["ant", "bee", f"{shown.confidences[0]:.2f}"]
    assert [text.get_color() for text in figure.texts[2:]] == ["black", "#d55e00", "#d55e00"]


def test_gradcam_draws_files_and_test_images(cli: Entry, tmp_path: Path, data_dir: Path) -> None:
    save_model(tmp_path / "m.safetensors", "cnn", 64, **CNN)
    Image.fromarray(noise(1)[0].permute(1, 2, 0).numpy()).save(tmp_path / "photo [red].png")
    ended = cli("visualize", "gradcam", "m.safetensors", "photo [red].png", "--class", "cow")
    assert (ended.code, ended.out, ended.err) == (0, "gradcam.png\n", "")
    assert written(tmp_path / "gradcam.png").shape[1] == MIN_WIDTH
    cli("visualize", "gradcam", "m.safetensors", "photo [red].png", "--output", "class.svg")
    predicted = "ant|bee|cow|dog"
    assert len(re.findall(rf"<!-- ({predicted}) -->", Path("class.svg").read_text())) == 1
    options = ["--class", "cow", "--output", "class.svg"]
    cli("visualize", "gradcam", "m.safetensors", "photo [red].png", *options)
    assert "<!-- cow -->" in Path("class.svg").read_text()
    options = ["--data-dir", data_dir, "--count", 3, "--output", "test.svg"]
    assert cli("visualize", "gradcam", "m.safetensors", *options).out == "test.svg\n"
    first = (tmp_path / "test.svg").read_bytes()
    cli("visualize", "gradcam", "m.safetensors", *options)
    assert (tmp_path / "test.svg").read_bytes() == first
