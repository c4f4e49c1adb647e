"""A fused backbone gives what the backbone gives, and leaves it as it was."""

import pytest
import timm
import torch
from torch import Tensor, nn

from stl10bench.models.classifier import fuse_batch_norms
from stl10bench.models.factory import build_model


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def shaken(model: nn.Module) -> nn.Module:
    """The model with batch-norm statistics and weights as training leaves them: all different."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in (
                (module.weight, 0.5),
                (module.bias, -0.5),
                (module.running_mean, -0.5),
                (module.running_var, 0.5),
            ):
                assert tensor is not None
                tensor.data.uniform_(low, low + 1, generator=generator)
    return model.eval()


IMAGES = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "left"),
    [("mobilenetv2_100", 0), ("resnet18", 0), ("densenet121", 62), ("vit_tiny_patch16_224", 0)],
)
@torch.no_grad()
def test_a_fused_backbone_gives_the_same_features(name: str, left: int) -> None:
    """DenseNet normalises before it convolves: most of its norms have nothing to go into."""
    size = {"img_size": 64} if name.startswith("vit") else {}
    model = shaken(timm.create_model(name, num_classes=0, **size))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fast = fuse_batch_norms(model, IMAGES[:2])
    torch.testing.assert_close(fast(IMAGES), model(IMAGES), rtol=1e-3, atol=1e-3)
    assert norms(fast) <= left
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Twice(nn.Module):
    """The convolution's output goes around the batch norm as well: it cannot be fused."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.convolution(images)
        out: Tensor = self.norm(features) + features
        return out


@torch.no_grad()
def test_what_cannot_be_fused_stays_and_is_still_right() -> None:
    model = shaken(Twice())
    fast = fuse_batch_norms(model, IMAGES)
    assert norms(fast) == 1
    assert torch.equal(fast(IMAGES), model(IMAGES))


def test_a_frozen_classifier_is_saved_unfused_and_keeps_its_logits() -> None:
    model = build_model("mobilenetv2", 10, 64, {})
    shaken(model.get_submodule("backbone"))
    keys = list(model.state_dict())
    with torch.no_grad():
        before = model.eval()(IMAGES)
        model.fuse(IMAGES, torch.float32)  # type: ignore[operator]
        after = model(IMAGES)
    assert list(model.state_dict()) == keys
    assert not torch.equal(after, before), "it ran as it was"
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)


def test_a_fine_tuned_backbone_is_not_fused() -> None:
    model = build_model("mobilenetv2", 10, 64, {"freeze": False})
    with torch.no_grad():
        before = model.eval()(IMAGES)
        model.fuse(IMAGES, torch.float32)  # type: ignore[operator]
        assert torch.equal(model(IMAGES), before)
