"""Augmentation against torchvision for the same draws, and what the draws depend on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from stl10bench.config import make_config
from stl10bench.data import augment
from stl10bench.data.augment import Draws

OFF: dict[str, Any] = {
    "brightness": 0,
    "contrast": 0,
    "saturation": 0,
    "hue": 0,
    "flip": 0,
    "rotation": (0, 0),
}
ON: dict[str, Any] = {
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "flip": 0.5,
    "rotation": (-30, 30),
}
STEP = 1 / 255


def config(size: int = 32, **changed: Any) -> Any:
    return make_config({"model": "logistic", "image_size": size, **OFF, **changed})


def photos(count: int = 6, size: int = 32, seed: int = 0) -> Tensor:
    """uint8 (count, 3, size, size): smooth fields with edges, greys and clipped lights, as photos.

    The first is white noise, the second black, the third white, the fourth grey.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    images = (smooth * 1.4 - 0.2).clamp(0, 1)
    images[:, :, size // 3 : size // 2, size // 4 :] = torch.rand(
        count, 3, 1, 1, generator=generator
    )
    images[0] = torch.rand(3, size, size, generator=generator)
    if count > 3:
        images[1], images[2] = 0, 1
        images[3] = images[3].mean(0)
    return (images * 255).round().to(torch.uint8)


def draws(count: int, size: int = 32, **changed: Any) -> Draws:
    """Draws that change nothing, but for those given; crops are `size` pixels wide and high."""
    neutral = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0}
    neutral |= {"width": float(size), "height": float(size)}
    columns = {
        name: torch.as_tensor(changed.get(name, neutral.get(name, 0.0))).float().expand(count)
        for name in Draws._fields
    }
    return Draws(**columns)


def expected(image: Tensor, draws: dict[str, float], cfg: Any) -> Tensor:
    """torchvision's answer for one uint8 image (3, S, S) and its own draws, in our order."""
    out = image.float() / 255
    if cfg.brightness:
        out = reference.adjust_brightness(out, draws["brightness"])
    if cfg.contrast:
        out = reference.adjust_contrast(out, draws["contrast"])
    if cfg.saturation:
        out = reference.adjust_saturation(out, draws["saturation"])
    if cfg.hue:
        out = reference.adjust_hue(out, draws["hue"])
    size = cfg.image_size
    out = reference.crop(out, int(draws["top"]), int(draws["left"]), size, size)
    if draws["flip"]:
        out = reference.horizontal_flip(out)
    if cfg.rotation != (0, 0):
        out = reference.rotate(out, draws["angle"], interpolation=InterpolationMode.BILINEAR)
    return out


def compare(images: Tensor, drawn: Draws, cfg: Any, *, tolerance: float = STEP) -> None:
    ours = augment.apply(images, drawn, cfg)
    assert ours.dtype == torch.float32
    for number, image in enumerate(images):
        draws = {name: column[number].item() for name, column in drawn._asdict().items()}
        difference = (ours[number] - expected(image, draws, cfg)).abs().max().item()
        assert difference <= tolerance, (number, draws)


FACTORS = torch.tensor([0.0, 0.5, 0.9, 1.0, 1.3, 2.0])
TURNS = torch.tensor([-0.5, -0.2, 0.01, 0.0, 0.3, 0.5])
ANGLES = torch.tensor([0.0, 20.0, -45.0, 90.0, 7.3, 180.0])
FLIPS = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 0.0])


@pytest.mark.parametrize("start", range(6))
@pytest.mark.parametrize(
    ("name", "setting", "values"),
    [
        ("brightness", 1.0, FACTORS),
        ("contrast", 1.0, FACTORS),
        ("saturation", 1.0, FACTORS),
        ("hue", 0.5, TURNS),
        ("flip", 1.0, FLIPS),
        ("angle", (-180, 180), ANGLES),
    ],
)
def test_each_operation_equals_torchvisions(
    name: str, setting: Any, values: Tensor, start: int
) -> None:
    cfg = config(**{"rotation" if name == "angle" else name: setting})
    tolerance = 1e-5 if name != "angle" else 1e-3  # of 0..1; a step of uint8 is 4e-3
    compare(photos(), draws(6, **{name: values.roll(start)}), cfg, tolerance=tolerance)


@given(
    seed=st.integers(0, 10**6),
    factors=st.lists(st.floats(0.5, 1.5), min_size=3, max_size=3),
    hue=st.floats(-0.5, 0.5),
    flip=st.sampled_from([0.0, 1.0]),
    angle=st.floats(-180, 180),
)
@settings(max_examples=60)
def test_all_operations_together_equal_torchvisions_in_this_order(
    seed: int, factors: list[float], hue: float, flip: float, angle: float
) -> None:
    cfg = config(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.5, rotation=(-180, 180))
    brightness, contrast, saturation = factors
    drawn = draws(
        4,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=hue,
        flip=flip,
        angle=angle,
    )
    compare(photos(4, seed=seed), drawn, cfg)


@pytest.mark.parametrize("size", [64, 65, 96])
def test_a_batch_as_it_is_drawn_equals_torchvisions_image_by_image(size: int) -> None:
    cfg = config(size, **ON)
    compare(photos(6, size), augment.draw(cfg, 6, size, epoch=3, batch=1), cfg)


@pytest.mark.parametrize("size", [32, 31, 45])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_random_crop_is_a_slice(size: int, flip: float) -> None:
    images = photos(6, 46)
    cfg = config(size, input="crop", flip=flip)
    drawn = augment.draw(cfg, 6, 46, epoch=1, batch=0)
    cropped = augment.apply(images, drawn, cfg)
    for number, image in enumerate(images):
        left, top = int(drawn.left[number]), int(drawn.top[number])
        slice_ = image[:, top : top + size, left : left + size] / 255
        slice_ = slice_.flip(2) if flip else slice_
        torch.testing.assert_close(cropped[number], slice_, atol=1e-4, rtol=0)


@pytest.mark.parametrize("source", [32, 46])  # of the input's size, as `resize` has it, or not
@pytest.mark.parametrize("flip", [0.0, 0.5])
def test_a_random_resized_crop_is_torchvisions_of_the_same_box(source: int, flip: float) -> None:
    images = photos(8, source)
    cfg = config(32, input="crop", flip=flip, random_resized_crop=(0.05, 0.9))
    drawn = augment.draw(cfg, 8, source, epoch=1, batch=0)
    ours = augment.apply(images, drawn, cfg)
    for number, image in enumerate(images):
        left, top, width, height = (int(column[number]) for column in drawn[6:10])
        theirs = reference.resized_crop(
            image.float() / 255, top, left, height, width, [32, 32], antialias=False
        )
        theirs = theirs.flip(2) if drawn.flip[number] else theirs
        torch.testing.assert_close(ours[number], theirs, atol=2e-5, rtol=0)


def test_a_random_resized_crop_of_the_whole_image_changes_nothing() -> None:
    images = photos(6)
    cfg = config(32, random_resized_crop=(1, 1), rotation=(-30, 30), flip=0.5)
    drawn = augment.draw(cfg, 6, 32, epoch=1, batch=0)
    assert (drawn.width == 32).any()
    whole = drawn._replace(**dict.fromkeys(("width", "height"), torch.full((6,), 32.0)))
    whole = whole._replace(left=torch.zeros(6), top=torch.zeros(6))
    plain = cfg.model_copy(update={"random_resized_crop": None})
    difference = (augment.apply(images, whole, cfg) - augment.apply(images, whole, plain)).abs()
    assert (difference > 1e-5).float().mean() < 0.05, "but for the rotated image's very edge"


def test_a_rotated_box_ends_in_black_as_if_it_had_been_cut_out() -> None:
    images = torch.full((2, 3, 96, 96), 255, dtype=torch.uint8)
    cfg = config(64, input="crop", random_resized_crop=(0.1, 0.5), rotation=(45, 45))
    turned = augment.apply(images, augment.draw(cfg, 2, 96, epoch=1, batch=0), cfg)
    assert turned[:, :, 0, 0].max() == 0
    assert turned[:, :, 32, 32].min() > 0.999


def test_boxes_are_drawn_as_torchvision_draws_them() -> None:
    """Same shares of the area and ratios; each box lies anywhere in the image with equal chance."""
    cfg = config(96, random_resized_crop=(0.08, 1.0))
    drawn = augment.draw(cfg, 4000, 96, epoch=1, batch=0)
    assert torch.equal(torch.stack(drawn[6:]), torch.stack(drawn[6:]).round())
    assert drawn.left.min() == drawn.top.min() == 0
    assert (drawn.left + drawn.width).max() == (drawn.top + drawn.height).max() == 96
    torch.manual_seed(0)
    image = torch.zeros(3, 96, 96)
    boxes = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    top, left, height, width = torch.tensor(boxes).float().T
    for ours, theirs in (
        (drawn.width * drawn.height, width * height),
        (drawn.width.log() - drawn.height.log(), width.log() - height.log()),
        (drawn.left, left),
        (drawn.top, top),
    ):
        assert ks_2samp(ours.numpy(), theirs.numpy()).pvalue > 0.01


def test_a_random_resized_crop_shifts_no_other_draw() -> None:
    drawn = [
        augment.draw(config(32, **ON, random_resized_crop=area), 8, 32, epoch=1, batch=0)
        for area in (None, (0.3, 0.5))
    ]
    for one, two in zip(*(each[:6] for each in drawn), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("size", [32, 31])
def test_a_crop_is_rotated_about_its_own_centre(size: int) -> None:
    images = photos(6, 46)
    cfg = config(size, input="crop", flip=0.5, rotation=(90, 90))
    drawn = augment.draw(cfg, 6, 46, epoch=1, batch=0)
    turned = augment.apply(images, drawn, cfg)
    for number, image in enumerate(images):
        left, top = int(drawn.left[number]), int(drawn.top[number])
        slice_ = image[:, top : top + size, left : left + size] / 255
        slice_ = slice_.flip(2) if drawn.flip[number] else slice_
        quarter = slice_.rot90(1, (1, 2))  # counter-clockwise
        torch.testing.assert_close(turned[number], quarter, atol=1e-3, rtol=0)


def test_a_rotated_crop_shows_the_source_beyond_its_border_and_never_black_inside() -> None:
    images = torch.full((8, 3, 96, 96), 255, dtype=torch.uint8)
    cfg = config(64, input="crop", rotation=(-20, 20))
    middle = draws(8, 64, angle=torch.linspace(-20, 20, 8), left=16, top=16)
    assert augment.apply(images, middle, cfg).min() > 0.999
    resized = augment.apply(
        images[:, :, :64, :64], middle._replace(left=middle.flip), config(64, rotation=(-20, 20))
    )
    assert resized[0, :, 0, 0].max() == 0, "outside the source is black"


@pytest.mark.parametrize(("size", "start"), [(32, 7), (31, 7), (46, 0)])
def test_evaluation_takes_the_centre_as_it_is(size: int, start: int) -> None:
    images = photos(4, 46)
    window = images[:, :, start : start + size, start : start + size]
    assert torch.equal(augment.centre(images, size), window.float() / 255)


# Draws.


def test_every_image_has_draws_of_its_own() -> None:
    drawn = augment.draw(config(input="crop", **ON), 64, 96, epoch=1, batch=0)
    for name, column in drawn._asdict().items():
        assert column.shape == (64,)
        if name in ("width", "height"):
            assert set(column.tolist()) == {32.0}
        elif name == "flip":
            assert 15 < column.sum() < 49
        elif name in ("left", "top"):
            assert len(column.unique()) > 25
        elif name in ("grey", "blur", "side", "across", "down"):  # see below
            assert not column.any()
        else:
            assert len(column.unique()) == 64, name


def test_equal_images_of_a_batch_come_out_different() -> None:
    cfg = config(**ON)
    images = photos(1).expand(16, 3, 32, 32)
    out = augment.apply(images, augment.draw(cfg, 16, 32, epoch=1, batch=0), cfg)
    assert all(not torch.equal(out[i], out[j]) for i in range(16) for j in range(i))


def test_no_two_kinds_of_draw_are_the_same_numbers() -> None:
    cfg = config(input="crop", **{**ON, "brightness": 0.4, "flip": 0.5})
    drawn = augment.draw(cfg, 200, 96, epoch=1, batch=0)
    table = torch.stack(tuple(drawn)[:8])  # without the sides, which follow from nothing
    correlation = torch.corrcoef(table) - torch.eye(len(table))
    assert correlation.abs().max() < 0.3


@pytest.mark.parametrize("same", [{"lr": 0.5}, {"epochs": 7}, {"data": "x"}, {"batch_size": 3}])
def test_draws_depend_on_seed_epoch_and_batch_alone(same: dict[str, Any]) -> None:
    def drawn(epoch: int = 1, batch: int = 0, **changed: Any) -> Tensor:
        draws = augment.draw(config(**{**ON, **changed}), 8, 32, epoch=epoch, batch=batch)
        return torch.stack(tuple(draws))

    torch.manual_seed(1)
    first = drawn()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(drawn(**same), first)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    others = [drawn(epoch=2), drawn(batch=1), drawn(seed=1), drawn(epoch=0, batch=1)]
    for other in others:
        assert not torch.equal(other, first)


@given(
    strength=st.floats(0, 3),
    hue=st.floats(0, 0.5),
    flip=st.floats(0, 1),
    angles=st.tuples(st.floats(-180, 180), st.floats(-180, 180)).map(sorted),
    size=st.integers(8, 96),
    epoch=st.integers(1, 100),
)
@settings(max_examples=60)
def test_draws_stay_within_what_the_config_says(
    strength: float, hue: float, flip: float, angles: list[float], size: int, epoch: int
) -> None:
    cfg = config(
        size,
        input="crop",
        brightness=strength,
        contrast=strength,
        saturation=strength,
        hue=hue,
        flip=flip,
        rotation=tuple(angles),
    )
    drawn = augment.draw(cfg, 50, 96, epoch=epoch, batch=0)
    slack = 1e-4  # float32
    for factor in (drawn.brightness, drawn.contrast, drawn.saturation):
        assert factor.min() >= max(0, 1 - strength) - slack
        assert factor.max() <= 1 + strength + slack
    assert drawn.hue.abs().max() <= hue + slack
    assert drawn.angle.min() >= angles[0] - slack
    assert drawn.angle.max() <= angles[1] + slack
    assert set(drawn.flip.tolist()) <= {0.0, 1.0}
    assert flip not in (0.0, 1.0) or set(drawn.flip.tolist()) == {flip}
    for start in (drawn.left, drawn.top):
        assert torch.equal(start, start.round())
        assert start.min() >= 0
        assert start.max() <= 96 - size


def test_draws_fill_their_ranges_evenly() -> None:
    cfg = config(90, **{**ON, "flip": 0.3, "rotation": (0, 20)}, input="crop")
    drawn = augment.draw(cfg, 20_000, 96, epoch=1, batch=0)
    ranges = {
        "brightness": (0.6, 1.4),
        "contrast": (0.6, 1.4),
        "saturation": (0.6, 1.4),
        "hue": (-0.1, 0.1),
        "angle": (0, 20),
    }
    for name, (low, high) in ranges.items():
        counts = torch.histc(getattr(drawn, name), bins=10, min=low, max=high)
        assert counts.sum() == 20_000, name
        assert (counts - 2000).abs().max() < 200, name  # 4.7 standard deviations
    assert abs(drawn.flip.mean().item() - 0.3) < 0.015
    for name in ("left", "top"):
        counts = torch.bincount(getattr(drawn, name).long(), minlength=7)
        assert (counts - 20_000 / 7).abs().max() < 240, name
        assert len(counts) == 7


def test_processes_share_the_draws_of_a_batch_by_rows() -> None:
    cfg = config(**ON)
    images = photos(6)
    whole = augment.draw(cfg, 6, 32, epoch=2, batch=5)
    cpu = torch.device("cpu")
    parts = [whole.rows(start, start + 2, cpu) for start in (0, 2, 4)]
    for column, *shares in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat(shares), column)
    shared = [augment.apply(images[2 * k : 2 * k + 2], part, cfg) for k, part in enumerate(parts)]
    torch.testing.assert_close(torch.cat(shared), augment.apply(images, whole, cfg))


# What is off stays off.


def test_with_everything_off_the_images_are_only_divided_by_255() -> None:
    images, cfg = photos(), config()
    drawn = augment.draw(cfg, 6, 32, epoch=1, batch=0)
    before = images.clone()
    assert torch.equal(augment.apply(images, drawn, cfg), images.float() / 255)
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_a_colour_operation_that_is_off_ignores_its_draw(name: str) -> None:
    images, cfg = photos(), config(**{name: 0})
    assert torch.equal(augment.apply(images, draws(6, **{name: 0.3}), cfg), images.float() / 255)


def test_the_source_is_never_changed() -> None:
    images, cfg = photos(), config(**ON)
    before = images.clone()
    augment.apply(images, augment.draw(cfg, 6, 32, epoch=1, batch=0), cfg)
    assert torch.equal(images, before)


@given(seed=st.integers(0, 1000), turns=st.floats(-2, 2))
@settings(max_examples=40)
def test_a_hue_shift_keeps_the_brightest_and_the_darkest_channel(seed: int, turns: float) -> None:
    images = photos(4, 8, seed=seed).float() / 255
    shifted = augment.shift_hue(images, torch.full((4,), turns))
    torch.testing.assert_close(shifted.amax(1), images.amax(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(shifted.amin(1), images.amin(1), atol=1e-6, rtol=0)


def test_hue_turns_red_to_green_to_blue_and_back() -> None:
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    colours = [augment.shift_hue(red, torch.tensor([k / 3])).flatten() for k in range(4)]
    wanted = torch.eye(3)[[0, 1, 2, 0]]
    torch.testing.assert_close(torch.stack(colours), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_memory_layout_makes_no_difference(channels_last: bool) -> None:
    images, cfg = photos(6, 46), config(**ON, input="crop")
    drawn = augment.draw(cfg, 6, 46, epoch=1, batch=0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    again = augment.apply(images.contiguous(memory_format=layout), drawn, cfg)
    torch.testing.assert_close(again, augment.apply(images, drawn, cfg), atol=1e-6, rtol=0)


SHARED = Path(__file__).parents[3] / "shared"


@pytest.mark.skipif(not SHARED.exists(), reason=f"no {SHARED}")
def test_real_photos_come_out_as_torchvisions() -> None:
    files = sorted((SHARED / "data" / "stl10" / "test_images").glob("*.png"))
    images = torch.stack(
        [reference.pil_to_tensor(Image.open(file).convert("RGB")) for file in files]
    )
    cfg = config(96, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1, rotation=(0, 20))
    compare(images, augment.draw(cfg, len(images), 96, epoch=1, batch=0), cfg)


def test_a_grey_image_is_torchvisions() -> None:
    images = photos()
    grey = torch.tensor([0.0, 1, 1, 1, 1, 1])
    found = augment.apply(images, draws(6, grey=grey), config(grayscale=0.5))
    expected_ = reference.rgb_to_grayscale(images[1:].float() / 255, num_output_channels=3)
    assert torch.equal(found[0], images[0].float() / 255)
    assert (found[1:] - expected_).abs().max() < STEP


def test_a_blur_is_torchvisions_but_at_the_border() -> None:
    images, deviations = photos(), torch.tensor([0.0, 0.3, 0.5, 0.64, 0.1, 0.6])
    found = augment.apply(images, draws(6, blur=deviations), config(blur=0.5))
    assert torch.equal(found[0], images[0].float() / 255)
    for image, blurred, deviation in zip(
        images[1:], found[1:], deviations[1:].tolist(), strict=True
    ):
        expected_ = reference.gaussian_blur(image.float() / 255, [5, 5], [deviation] * 2)
        assert (blurred - expected_)[:, 2:-2, 2:-2].abs().max() < 2 * STEP
    assert (found[2] - 1).abs().max() < 1e-5  # white stays white, at the border too


def test_cutout_covers_a_square_as_far_as_it_is_within() -> None:
    drawn = draws(3, side=torch.tensor([0.0, 4, 5]), across=torch.tensor([9.0, 9, 0]), down=7.0)
    found = augment.apply(photos(3), drawn, config(cutout=0.5))
    changed = (found != photos(3).float() / 255).any(1)
    assert not changed[0].any()
    assert changed[1].nonzero().amin(0).tolist() == [5, 7]
    assert changed[1].nonzero().amax(0).tolist() == [8, 10]
    assert changed[2].nonzero().amax(0).tolist() == [9, 2]
    assert (found[1, :, 5:9, 7:11] == 0.5).all()


def test_effects_are_as_frequent_as_asked_and_shift_no_other_draw() -> None:
    plain = augment.draw(config(**ON), 4000, 32, epoch=1, batch=2)
    changed = config(**ON, grayscale=0.2, blur=0.5, cutout=0.5)
    more = augment.draw(changed, 4000, 32, epoch=1, batch=2)
    for name in ("hue", "flip", "angle", "left"):
        assert torch.equal(getattr(plain, name), getattr(more, name))
    assert more.grey.mean().item() == pytest.approx(0.2, abs=0.03)
    assert (more.blur > 0).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert (more.side.min().item(), more.side.max().item()) == (0, 16)
    assert not torch.stack([plain.grey, plain.blur, plain.side]).any()
