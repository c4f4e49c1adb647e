"""Optimizers and learning rates against torch's own and closed forms."""

import math
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.optim import param_groups_layer_decay
from torch import nn

from stl10bench.config import RunConfig, make_config
from stl10bench.core.errors import UsageError
from stl10bench.models.factory import build_model
from stl10bench.training.optim import make_optimizer, make_schedule


class Net(nn.Module):
    """A model with a backbone, norms and biases, as far as parameter groups are concerned."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)


def config_of(**settings: Any) -> RunConfig:
    return make_config({"model": "mlp", **settings})


def rates(config: RunConfig, steps_per_epoch: int) -> list[float]:
    """The learning rate of each step of a run."""
    optimizer = make_optimizer(config, nn.Linear(2, 2))
    schedule = make_schedule(config, optimizer, steps_per_epoch)
    found = []
    for _ in range(config.epochs * steps_per_epoch):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@given(st.integers(1, 8), st.integers(1, 12), st.sampled_from([0.0, 0.1, 0.5]))
def test_cosine_falls_from_the_rate_to_nearly_zero(epochs: int, steps: int, warmup: float) -> None:
    total = epochs * steps
    rise = round(warmup * total)
    found = rates(config_of(epochs=epochs, warmup=warmup, schedule="cosine", lr=0.5), steps)
    expected = [0.5 * (step + 1) / (rise + 1) for step in range(rise)]
    expected += [
        0.25 * (1 + math.cos(math.pi * step / max(1, total - rise))) for step in range(total - rise)
    ]
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_constant_is_constant_after_the_warm_up() -> None:
    found = rates(config_of(epochs=2, warmup=0.3, schedule="constant", lr=0.4), 5)
    assert found == pytest.approx([0.1, 0.2, 0.3, *[0.4] * 7])


def test_step_drops_every_few_epochs() -> None:
    found = rates(config_of(epochs=5, schedule="step", step_epochs=2, step_gamma=0.5, lr=0.8), 3)
    assert found == pytest.approx([0.8] * 6 + [0.4] * 6 + [0.2] * 3)


def test_one_cycle_is_torchs_and_peaks_at_the_rate() -> None:
    found = rates(config_of(epochs=4, schedule="one-cycle", warmup=0.25, lr=0.5), 10)
    reference = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.5)
    torchs = torch.optim.lr_scheduler.OneCycleLR(
        reference, max_lr=0.5, total_steps=41, pct_start=0.25, cycle_momentum=False
    )
    expected = []
    for _ in range(40):
        expected.append(reference.param_groups[0]["lr"])
        reference.step()
        torchs.step()
    assert found == pytest.approx(expected, rel=1e-9)
    assert max(found) <= 0.5
    assert max(found) == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "one-cycle"])
@pytest.mark.parametrize("warmup", [0.0, 0.5, 0.99])
def test_the_shortest_run_has_a_rate_that_learns(schedule: str, warmup: float) -> None:
    (rate,) = rates(config_of(epochs=1, schedule=schedule, warmup=warmup), 1)
    assert 0 < rate <= 0.001


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)],
)
def test_torchs_optimizers_take_the_same_steps_as_torch(name: str, kind: Any) -> None:
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    extra = {"momentum": 0.8} if name == "sgd" else {}
    optimizers = (
        make_optimizer(config_of(optimizer=name, lr=0.1, weight_decay=0.01, momentum=0.8), ours),
        kind(
            [
                {"params": [theirs.weight], "weight_decay": 0.01},
                {"params": [theirs.bias], "weight_decay": 0.0},
            ],
            lr=0.1,
            **extra,
        ),
    )
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    for _ in range(5):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(inputs).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.bias, theirs.bias, rtol=1e-5, atol=1e-6)


def test_biases_and_norms_have_no_weight_decay_and_the_backbone_its_share_of_the_rate() -> None:
    model = Net()
    optimizer = make_optimizer(config_of(lr=0.2, weight_decay=0.05, backbone_lr=0.1), model)
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert {name: found[id(parameter)] for name, parameter in model.named_parameters()} == {
        "backbone.0.weight": (pytest.approx(0.02), 0.05),
        "backbone.0.bias": (pytest.approx(0.02), 0.0),
        "backbone.1.weight": (pytest.approx(0.02), 0.0),
        "backbone.1.bias": (pytest.approx(0.02), 0.0),
        "head.weight": (0.2, 0.05),
        "head.bias": (0.2, 0.0),
    }


def test_what_does_not_learn_is_not_in_the_optimizer() -> None:
    model = Net()
    model.backbone.requires_grad_(False)
    optimizer = make_optimizer(config_of(), model)
    learning = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert learning == {id(model.head.weight), id(model.head.bias)}


@pytest.mark.parametrize("name", ["lamb", "lion", "nadamw", "muon"])
def test_timms_optimizers_take_a_step(name: str) -> None:
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    optimizer = make_optimizer(config_of(optimizer=name, lr=0.01), model)
    model(torch.ones(4, 3)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.weight, before)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sgdd", "unknown optimizer 'sgdd': did you mean 'sgd"),
        ("qqqq", "unknown optimizer 'qqqq': known: "),
    ],
)
def test_an_unknown_optimizer_says_the_nearest(name: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        make_optimizer(config_of(optimizer=name), nn.Linear(2, 2))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_layers_learn_at_timms_rates(name: str) -> None:
    """And with `backbone_lr` at that share of them; decay and head are as without."""
    config = config_of(
        model=f"timm:{name}", layer_decay=0.75, backbone_lr=0.5, lr=0.1, weight_decay=0.05
    )
    options = {"freeze": False, "hidden": (4,)}
    model = build_model(config.model, 4, 64, options)
    whole = timm.create_model(name, num_classes=4)
    names = {parameter: key for key, parameter in whole.named_parameters()}
    expected = {
        f"backbone.{names[parameter]}": (0.1 * 0.5 * group["lr_scale"], group["weight_decay"])
        for group in param_groups_layer_decay(whole, weight_decay=0.05, layer_decay=0.75)
        for parameter in group["params"]
    }
    groups = make_optimizer(config, model).param_groups
    rates = {p: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    for key, parameter in model.named_parameters():
        by_dimension = 0.05 if parameter.ndim > 1 else 0.0
        assert rates[parameter] == pytest.approx(expected.get(key, (0.1, by_dimension))), key
    assert groups[-1]["lr"] == 0.1, "the rate that is logged is the head's"
    assert len({rate for rate, _ in rates.values()}) > 5
