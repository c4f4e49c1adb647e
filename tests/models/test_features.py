"""Options of backbones: features of several levels, and a stem that moves by one pixel."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.layout import save
from torch import nn

import stl10bench
from stl10bench.core.errors import UsageError
from stl10bench.inference import hub
from stl10bench.models.classifier import Classifier
from stl10bench.models.factory import build_model

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build(name: str = "timm:resnet10t", **options: Any) -> Classifier:
    torch.manual_seed(0)
    model = build_model(name, 10, 32, {"hidden": (8,), **options})
    assert isinstance(model, Classifier)
    return model.eval()


def test_intermediate_features_join_the_last_ones() -> None:
    model, levels = build(intermediates=2), []
    backbone: Any = model.backbone
    for stage in (backbone.layer3, backbone.layer4):
        stage.register_forward_hook(lambda _, __, output: levels.append(output.mean((2, 3))))
    expected = torch.cat([backbone(IMAGES), *levels], 1)
    torch.testing.assert_close(model.features(IMAGES), expected)


def test_fused_batch_norms_give_the_same_intermediate_features() -> None:
    model = build("mobilenetv2", intermediates=2)
    before = model.features(IMAGES)
    model.fuse(IMAGES, torch.float32)
    torch.testing.assert_close(model.features(IMAGES), before, rtol=1e-3, atol=1e-4)


def test_a_stem_of_stride_1_doubles_every_map() -> None:
    sizes = {}
    for stride in (1, 2):
        backbone: Any = build("mobilenetv2", stem_stride=stride).backbone
        sizes[stride] = [level.shape[-1] for level in backbone.forward_intermediates(IMAGES)[1]]
    assert sizes[1] == [2 * size for size in sizes[2]]


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("timm:resnet10t", {"intermediates": 99}, "intermediates = 99: .*lower it"),
        ("timm:vit_tiny_patch16_224", {"stem_stride": 1}, "has stride 16, not 2"),
    ],
)
def test_what_a_backbone_does_not_have_is_refused(
    name: str, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        build(name, **options)


@pytest.mark.parametrize("options", [{"intermediates": 1}, {"stem_stride": 1}])
def test_an_exported_folder_has_the_same_logits(tmp_path: Path, options: dict[str, Any]) -> None:
    file = save(tmp_path / "best.safetensors", "timm:resnet10t", 32, hidden=(8,), **options)
    model = stl10bench.load(file)
    (tmp_path / "hub").mkdir()
    hub.write_folder(file, model.header, tmp_path / "hub")
    again = stl10bench.load(tmp_path / "hub")
    images = (255 * IMAGES).to(torch.uint8)
    assert torch.equal(again(images), model(images))
    hub.check_backbone(tmp_path / "hub", model.model)
    assert (tmp_path / "hub" / hub.HEAD).exists() == ("intermediates" in options)


def test_timm_loads_an_exported_backbone_with_its_own_features(tmp_path: Path) -> None:
    file = save(tmp_path / "best.safetensors", "timm:resnet10t", 32, hidden=(8,), intermediates=1)
    model = stl10bench.load(file)
    hub.write_folder(file, model.header, tmp_path / "hub")
    backbone: nn.Module = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True)
    assert backbone.num_features == backbone.eval()(IMAGES).shape[1]
