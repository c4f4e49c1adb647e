"""mixup and CutMix against timm's for the same draws, and what the draws depend on."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from timm.data.mixup import Mixup

from stl10bench.config import make_config
from stl10bench.data import mix

CLASSES = 5


def config(**settings: Any) -> Any:
    return make_config({"model": "mlp", **settings})


def timms(
    monkeypatch: pytest.MonkeyPatch, draws: mix.Draws, size: int, smoothing: float, **alphas: float
) -> Mixup:
    """timm's with our draws, of images whose partners are the mirrored places of the batch."""
    choices = [np.where(draws.cut, 0.0, 1.0)] if min(alphas.values()) else []
    uniforms = iter([*choices, np.zeros(len(draws.cut))])
    middles = torch.stack([(draws.down * size).floor(), (draws.across * size).floor()], 1)
    boxes = iter(middles[draws.cut].flatten().int().tolist())
    monkeypatch.setattr(np.random, "rand", lambda *_: next(uniforms))
    monkeypatch.setattr(np.random, "beta", lambda *_, size: draws.share.numpy())
    monkeypatch.setattr(np.random, "randint", lambda *_, size: next(boxes))
    return Mixup(**alphas, mode="elem", label_smoothing=smoothing, num_classes=CLASSES)


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_images_and_targets_are_timms(
    monkeypatch: pytest.MonkeyPatch, mixup: float, cutmix: float, layout: Any, size: int
) -> None:
    random = torch.Generator().manual_seed(0)
    images = torch.randn(32, 3, size, size, generator=random).contiguous(memory_format=layout)
    labels = torch.randint(0, CLASSES, (32,), generator=random)
    draws = mix.draw(config(mixup=mixup, cutmix=cutmix), 32, epoch=1, batch=0)
    # Their partner is the one at the mirrored place, ours the neighbour.
    order = torch.cat([torch.arange(0, 32, 2), torch.arange(31, 0, -2)])
    theirs_draws = mix.Draws(*(column[order] for column in draws))
    mixer = timms(monkeypatch, theirs_draws, size, 0.1, mixup_alpha=mixup, cutmix_alpha=cutmix)
    expected, targets = mixer(images[order].clone(), labels[order])
    mixed, shares = mix.mix(images.clone(memory_format=layout), labels, draws, CLASSES)
    assert mixed.is_contiguous(memory_format=layout)
    torch.testing.assert_close(mixed[order], expected, atol=1e-6, rtol=1e-5)
    smoothed = shares * 0.9 + 0.1 / CLASSES  # as F.cross_entropy smooths them
    torch.testing.assert_close(smoothed[order], targets, atol=1e-6, rtol=1e-5)
    changed = (mixed != images).flatten(1).any(1).float().mean()
    assert changed > 0.8


def test_the_targets_are_the_pixels_shares() -> None:
    """Of images of one colour a class, also for boxes that the image's edge cuts."""
    labels = torch.tensor([0, 1, 2, 3, 4, 4, 1])
    images = torch.nn.functional.one_hot(labels, CLASSES).float().view(7, CLASSES, 1, 1)
    draws = mix.draw(config(mixup=1.0, cutmix=1.0), 7, epoch=1, batch=0)
    mixed, targets = mix.mix(images.repeat(1, 1, 12, 12), labels, draws, CLASSES)
    torch.testing.assert_close(mixed.mean((2, 3)), targets)
    assert targets[-1].tolist() == [0, 1, 0, 0, 0], "the last of an odd number keeps to itself"


def test_shares_are_beta_distributed_and_the_two_are_chosen_evenly() -> None:
    draws = mix.draw(config(mixup=0.3, cutmix=2.0), 20_000, epoch=1, batch=0)
    assert abs(draws.cut.float().mean().item() - 0.5) < 0.02
    for part, alpha in ((draws.share[draws.cut], 2.0), (draws.share[~draws.cut], 0.3)):
        assert kstest(part.numpy(), "beta", args=(alpha, alpha)).pvalue > 0.01
    for middle in (draws.down, draws.across):
        assert kstest(middle.numpy(), "uniform").pvalue > 0.01


def test_draws_depend_on_seed_epoch_and_batch_and_no_two_images_share_them() -> None:
    def drawn(epoch: int = 1, batch: int = 0, **changed: Any) -> torch.Tensor:
        settings = {"mixup": 0.4, "cutmix": 1.0, **changed}
        return mix.draw(config(**settings), 16, epoch=epoch, batch=batch).share

    first = drawn()
    assert torch.equal(drawn(lr=0.5, image_size=32), first)
    assert len(first.unique()) == 16
    for other in (drawn(epoch=2), drawn(batch=1), drawn(seed=1)):
        assert not torch.equal(other, first)
