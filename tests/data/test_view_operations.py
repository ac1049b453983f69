"""Each operation of views against torchvision's, image by image with the same parameters."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

from mocokit.data.view_operations import shift_hue
from mocokit.data.view_params import Augmentation, sample_params
from tests.data.torchvision_views import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    POINT,
    RESAMPLED,
    SATURATION,
    SEEDS,
    full_sizes,
    generator,
    noise,
    plain_params,
    torchvision_view,
    unnormalised,
)


@settings(max_examples=60)
@given(st.data())
def test_crop_resize_flip_equals_torchvision(data: st.DataObject) -> None:
    """Any box of any canvas, enlarged or reduced, 1-pixel images included: within 2e-5."""
    H, W = data.draw(st.integers(1, 100)), data.draw(st.integers(1, 100))
    height, width = data.draw(st.integers(1, H)), data.draw(st.integers(1, W))
    box = [data.draw(st.integers(0, H - height)), data.draw(st.integers(0, W - width)), height, width]
    size, flip = data.draw(st.integers(4, 64)), data.draw(st.booleans())
    images = noise(1, 2, H, W, seed=data.draw(SEEDS))
    params = dataclasses.replace(plain_params(images), box=torch.tensor([box]), flip=torch.tensor([flip]))

    expected = torchvision_view(images[0], params, 0, size)
    torch.testing.assert_close(unnormalised(images, params, size)[0], expected, atol=RESAMPLED, rtol=0)


def test_whole_canvas_at_its_own_size_is_the_image() -> None:
    images = noise(3, 3, 32, 32)
    view = unnormalised(images, plain_params(images), 32)
    torch.testing.assert_close(view, images.float() / 255, atol=1e-7, rtol=0)


def test_flip_mirrors_the_columns() -> None:
    images = noise(4, 3, 20, 30)
    params = plain_params(images)
    flipped = dataclasses.replace(params, flip=torch.tensor([True, False, True, False]))
    a, b = unnormalised(images, params, 16), unnormalised(images, flipped, 16)
    torch.testing.assert_close(b[::2], a[::2].flip(-1), atol=POINT, rtol=0)
    assert torch.equal(b[1::2], a[1::2])


@settings(max_examples=60)
@given(
    seed=SEEDS,
    factors=st.tuples(st.floats(0, 2), st.floats(0, 2), st.floats(0, 2), st.floats(-0.5, 0.5)),
    order=st.permutations(range(4)),
    channels=st.sampled_from([1, 2, 3, 7]),
)
def test_jitter_in_any_order_equals_torchvision(
    seed: int, factors: tuple[float, ...], order: list[int], channels: int
) -> None:
    """Four clamped operations after one another: within 1e-5, as factors of 2 double what came before."""
    images = noise(1, channels, 12, 12, seed=seed)
    identity = (1.0, 0.0) if channels != 3 else factors[SATURATION:]
    params = dataclasses.replace(
        plain_params(images),
        jittered=torch.tensor([True]),
        factors=torch.tensor([[*factors[:SATURATION], *identity]]),
        order=torch.tensor([order]),
    )
    expected = torchvision_view(images[0], params, 0, 12)
    torch.testing.assert_close(unnormalised(images, params, 12)[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("operation", [BRIGHTNESS, CONTRAST, SATURATION, HUE])
def test_each_jitter_operation_alone_equals_torchvision(operation: int) -> None:
    images = noise(11, 3, 16, 16)
    images[:, :, :4] = images[:, :1, :4]  # gray rows: no hue
    images[:, :, 4:6], images[:, :, 6:8] = 0, 255
    params = plain_params(images)
    params = dataclasses.replace(params, jittered=torch.ones(11, dtype=torch.bool))
    params.factors[:, operation] = torch.linspace(-0.5, 0.5, 11) if operation == HUE else torch.linspace(0, 2, 11)
    expected = torch.stack([torchvision_view(image, params, i, 16) for i, image in enumerate(images)])
    torch.testing.assert_close(unnormalised(images, params, 16), expected, atol=POINT, rtol=0)


def test_hue_of_every_corner_and_edge_of_the_color_cube() -> None:
    """Ties between channels are where a hue formula breaks."""
    levels = torch.tensor([0, 1, 127, 128, 254, 255], dtype=torch.uint8)
    colors = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 12, 18)
    x = colors.float().div(255)
    for turns in torch.linspace(-0.5, 0.5, 25):
        shifted = x.transpose(0, 1).clone()
        shift_hue(shifted, turns[None])
        expected = F.adjust_hue(x, turns.item())
        torch.testing.assert_close(shifted.transpose(0, 1), expected, atol=POINT, rtol=0)


@pytest.mark.parametrize("gray_first", [True, False])
def test_grayscale_equals_torchvision(gray_first: bool) -> None:
    images = noise(6, 3, 16, 16)
    half = Augmentation(jitter=(0.4, 0.4, 0.4, 0.4), jitter_p=1.0, gray_p=0.5, gray_first=gray_first)
    params = sample_params(half, full_sizes(images), 3, generator(3))
    assert 0 < params.gray.sum() < 6
    expected = torch.stack([torchvision_view(image, params, i, 16) for i, image in enumerate(images)])
    torch.testing.assert_close(unnormalised(images, params, 16), expected, atol=RESAMPLED, rtol=0)


@settings(max_examples=40)
@given(sigma=st.floats(0.1, 2.0), size=st.integers(2, 48), seed=SEEDS)
def test_blur_equals_torchvision(sigma: float, size: int, seed: int) -> None:
    images = noise(1, 3, size, size, seed=seed)
    params = dataclasses.replace(plain_params(images), sigma=torch.tensor([sigma]))
    expected = torchvision_view(images[0], params, 0, size)
    torch.testing.assert_close(unnormalised(images, params, size)[0], expected, atol=POINT, rtol=0)


def test_solarize_equals_torchvision_and_spares_the_rest() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(6, 3, 1, 1)
    solarized = torch.tensor([True, False, True, True, False, False])
    params = dataclasses.replace(plain_params(images), solarized=solarized)
    view = unnormalised(images, params, 16)
    plain = unnormalised(images, plain_params(images), 16)
    assert torch.equal(view[~solarized], plain[~solarized])
    assert torch.equal(view[solarized], F.solarize(plain[solarized], threshold=0.5))
    assert view[0].max() <= 0.5
    assert plain.max() == 1


def test_solarize_comes_after_blur() -> None:
    images = noise(3, 3, 20, 20)
    params = dataclasses.replace(
        plain_params(images), sigma=torch.tensor([0.0, 1.0, 2.0]), solarized=torch.tensor([False, False, True])
    )
    view = unnormalised(images, params, 20)
    blurred = F.gaussian_blur(images[2:].float() / 255, [13, 13], [2.0])
    torch.testing.assert_close(view[2:], F.solarize(blurred, threshold=0.5), atol=POINT, rtol=0)
