"""resnet9: its whitened first layer, its size, and that it learns."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stl10bench.core.errors import UsageError
from stl10bench.models.factory import build_model
from stl10bench.models.resnet9 import Whitening


def smooth_images(count: int) -> Tensor:
    """Neighbouring pixels are alike, and so are the channels: far from white."""
    noise = torch.randn(count, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    noise = noise + 2 * noise.mean(1, keepdim=True)
    return F.avg_pool2d(noise, 5, stride=1)


@pytest.mark.parametrize("patch", [2, 3, 4])
def test_whitened_patches_have_no_correlations_and_the_variance_one(patch: int) -> None:
    images, layer = smooth_images(64), Whitening(patch)
    layer.fit([images[:40], images[40:]], seed=0)
    kernels = layer.kernels[: 3 * patch**2]
    outputs = F.conv2d(images, kernels, stride=2).transpose(0, 1).flatten(1)
    covariance = outputs @ outputs.T / outputs.shape[1]
    large = covariance.diagonal() > 0.9  # smaller directions are held down, as noise is
    assert large.sum() >= 6
    torch.testing.assert_close(
        covariance, torch.diag(covariance.diagonal()), atol=0.01, rtol=0, msg="correlated"
    )
    assert (covariance.diagonal() < 1.01).all()
    torch.testing.assert_close(layer.kernels[3 * patch**2 :], -kernels)


@pytest.mark.parametrize("size", [16, 33, 64])
def test_it_takes_any_size_from_the_smallest_on(size: int) -> None:
    model = build_model("resnet9", 10, size, {})
    assert model(torch.rand(2, 3, size, size)).shape == (2, 10)


def test_images_that_its_groups_shrink_to_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="needs at least 16 px"):
        build_model("resnet9", 10, 15, {})


def test_the_whitened_layer_is_in_the_checkpoint_and_never_learns() -> None:
    model = build_model("resnet9", 10, 16, {"channels": (8, 8)})
    assert "0.kernels" in model.state_dict()
    assert "0.kernels" not in dict(model.named_parameters())


def test_a_first_layer_that_learns_has_the_same_shape() -> None:
    models = [build_model("resnet9", 10, 16, {"whitening": on}) for on in (True, False)]
    shapes = [model[0](torch.rand(1, 3, 16, 16)).shape for model in models]
    assert shapes[0] == shapes[1]
    assert "0.weight" in dict(models[1].named_parameters())
