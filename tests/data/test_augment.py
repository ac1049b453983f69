"""Views against torchvision: every operation and the whole pipeline, image by image with the same parameters."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

from mocokit.data import augment as module
from mocokit.data.augment import augment, center_view
from mocokit.data.view_params import Augmentation, sample_params
from tests.data.torchvision_views import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    POINT,
    RESAMPLED,
    SATURATION,
    SEEDS,
    SETS,
    full_sizes,
    generator,
    noise,
    plain_params,
    torchvision_view,
    unnormalised,
)

# Operations, one at a time


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
        module._shift_hue(shifted, turns[None])
        expected = F.adjust_hue(x, turns.item())
        torch.testing.assert_close(shifted.transpose(0, 1), expected, atol=POINT, rtol=0)


@pytest.mark.parametrize("gray_first", [True, False])
def test_grayscale_equals_torchvision(gray_first: bool) -> None:
    images = noise(6, 3, 16, 16)
    params = sample_params(
        Augmentation((0.4, 0.4, 0.4, 0.4), 1.0, 0.5, gray_first, 0.0), full_sizes(images), 3, generator(3)
    )
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


# The whole pipeline


@pytest.mark.parametrize("size", [8, 32, 80])
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("name", list(SETS))
def test_pipeline_equals_torchvision(name: str, channels: int, size: int) -> None:
    """Padded canvases, 1-pixel-high images, up- and downscaling: within 2e-5."""
    H, W, B = 70, 41, 48
    images = noise(B, channels, H, W)
    g = generator(1)
    sizes = torch.stack([torch.randint(1, n + 1, (B,), generator=g) for n in (H, W)], dim=1)
    sizes[:6, 0] = 1
    params = sample_params(SETS[name], sizes, channels, g)
    expected = torch.stack([torchvision_view(image, params, i, size) for i, image in enumerate(images)])
    torch.testing.assert_close(unnormalised(images, params, size), expected, atol=RESAMPLED, rtol=0)


def test_normalisation_comes_last() -> None:
    images = noise(5, 3, 24, 24)
    params = sample_params(SETS["v2"], full_sizes(images), 3, generator())
    mean, std = [0.1, 0.5, 0.7], [0.2, 0.3, 0.4]
    expected = F.normalize(unnormalised(images, params, 16), mean, std)
    torch.testing.assert_close(augment(images, params, 16, mean, std), expected, atol=1e-5, rtol=0)


def test_wrong_number_of_means_is_an_error() -> None:
    images = noise(1, 3, 8, 8)
    with pytest.raises(ValueError):
        augment(images, plain_params(images), 8, [0.5], [0.5])


@pytest.mark.parametrize("name", list(SETS))
def test_padding_never_leaks(name: str) -> None:
    g = generator(5)
    sizes = torch.randint(1, 33, (64, 2), generator=g)
    images, other = noise(64, 3, 32, 32, seed=1), noise(64, 3, 32, 32, seed=2)
    for i, (height, width) in enumerate(sizes.tolist()):
        other[i, :, :height, :width] = images[i, :, :height, :width]
    params = sample_params(SETS[name], sizes, 3, g)
    assert torch.equal(unnormalised(images, params, 16), unnormalised(other, params, 16))
    assert torch.equal(
        center_view(images, sizes, 16, [0.5] * 3, [1.0] * 3), center_view(other, sizes, 16, [0.5] * 3, [1.0] * 3)
    )


def test_images_without_jitter_are_untouched() -> None:
    """Bit for bit, whatever their factors say and whatever happens to the rest of the batch."""
    images = noise(64, 3, 32, 32)
    augmentation = dataclasses.replace(SETS["v2"], jitter_p=0.5, gray_p=0.0, blur_p=0.0)
    params = sample_params(augmentation, full_sizes(images), 3, generator())
    alone = dataclasses.replace(params, jittered=torch.zeros(64, dtype=torch.bool))
    same = (unnormalised(images, params, 32) == unnormalised(images, alone, 32)).flatten(1).all(dim=1)
    assert torch.equal(same, ~params.jittered)


@pytest.mark.parametrize("name", list(SETS))
def test_extremes_stay_in_range(name: str) -> None:
    images = noise(200, 3, 32, 32).lt(128).byte() * 255
    images[:50], images[50:100] = 0, 255
    strong = dataclasses.replace(SETS[name], jitter=(1.0, 1.0, 1.0, 0.5), blur_p=0.5)
    view = unnormalised(images, sample_params(strong, full_sizes(images), 3, generator()), 32)
    assert view.isfinite().all()
    assert view.min() >= -1e-6
    assert view.max() <= 1 + 1e-6


def test_same_parameters_give_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(70, 3, 32, 32)
    params = sample_params(SETS["v2"], full_sizes(images), 3, generator())
    once = unnormalised(images, params, 32)
    assert torch.equal(once, unnormalised(images, params, 32))
    monkeypatch.setattr(module, "_CPU_CHUNK_BYTES", 100_000)
    torch.testing.assert_close(unnormalised(images, params, 32), once, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", list(SETS))
def test_a_view_does_not_depend_on_its_batch(name: str) -> None:
    images = noise(40, 3, 32, 32)
    params = sample_params(SETS[name], full_sizes(images), 3, generator())
    together = unnormalised(images, params, 32)
    alone = torch.cat([unnormalised(images[i : i + 1], params[i : i + 1], 32) for i in range(40)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    reverse = torch.arange(39, -1, -1)
    torch.testing.assert_close(unnormalised(images[reverse], params[reverse], 32), together[reverse], atol=1e-6, rtol=0)


def test_autocast_does_not_lower_the_precision() -> None:
    images = noise(4, 3, 16, 16)
    params = sample_params(SETS["v2"], full_sizes(images), 3, generator())
    expected = unnormalised(images, params, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(unnormalised(images, params, 16), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_renders_the_same_views_without_waiting() -> None:
    images = noise(64, 3, 32, 32)
    params = sample_params(SETS["v2"], full_sizes(images), 3, generator())
    expected = unnormalised(images, params, 32)
    on_device = images.cuda()
    unnormalised(on_device, params, 32)  # the first call makes the blur's constants
    try:
        torch.cuda.set_sync_debug_mode("error")
        view = unnormalised(on_device, params, 32)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(view.cpu(), expected, atol=1e-5, rtol=0)


def test_empty_batch() -> None:
    images = noise(0, 3, 8, 8)
    params = sample_params(SETS["v2"], full_sizes(images), 3, generator())
    assert unnormalised(images, params, 8).shape == (0, 3, 8, 8)


# Evaluation


@pytest.mark.parametrize("size", [8, 32, 64])
@pytest.mark.parametrize(("height", "width"), [(40, 40), (50, 31), (31, 50), (1, 9), (12, 100)])
def test_center_view_equals_center_crop_and_resize(height: int, width: int, size: int) -> None:
    images = noise(2, 3, height + 3, width + 5)
    view = center_view(images, torch.tensor([[height, width]] * 2), size, [0.0] * 3, [1.0] * 3)
    square = F.center_crop(images[..., :height, :width].float() / 255, [min(height, width)])
    expected = F.resize(square, [size, size], antialias=True)
    torch.testing.assert_close(view, expected, atol=RESAMPLED, rtol=0)


def test_large_center_view_shows_seven_eighths() -> None:
    images = noise(2, 3, 128, 160)
    view = center_view(images, full_sizes(images), 96, [0.5] * 3, [0.25] * 3)
    square = F.center_crop(images.float() / 255, [112])
    expected = F.normalize(F.resize(square, [96, 96], antialias=True), [0.5] * 3, [0.25] * 3)
    torch.testing.assert_close(view, expected, atol=4 * RESAMPLED, rtol=0)


@pytest.mark.parametrize(
    ("height", "width", "size"), [(40, 40, 8), (50, 31, 64), (9, 30, 24), (1, 5, 8), (200, 90, 96)]
)
@pytest.mark.parametrize("crop", [1.0, 0.95, 0.5])
def test_bicubic_center_view_equals_torchvision(height: int, width: int, size: int, crop: float) -> None:
    images = noise(2, 3, height + 3, width + 5)
    sizes = torch.tensor([[height, width]] * 2)
    view = center_view(images, sizes, size, [0.0] * 3, [1.0] * 3, crop, "bicubic")
    side = max(1, round(crop * min(height, width)))
    square = F.center_crop(images[..., :height, :width].float() / 255, [side])
    expected = F.resize(square, [size, size], F.InterpolationMode.BICUBIC, antialias=True)
    torch.testing.assert_close(view, expected, atol=4 * RESAMPLED, rtol=0)
