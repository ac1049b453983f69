"""Views against torchvision: the whole pipeline, image by image with the same parameters."""

import dataclasses

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from mocokit.data import augment as module
from mocokit.data.augment import augment, center_view
from mocokit.data.view_params import sample_params
from tests.data.torchvision_views import (
    RESAMPLED,
    SETS,
    full_sizes,
    generator,
    noise,
    plain_params,
    torchvision_view,
    unnormalised,
)

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
