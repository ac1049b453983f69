"""The classifiers' augmentation against torchvision, image by image with the same draws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from mocokit.data.augment import center_view
from mocokit.data.classifier_views import flip_probability, shift, training_view

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(seed))


def sizes_of(images: Tensor) -> Tensor:
    return torch.tensor(images.shape[-2:]).expand(len(images), 2)


@settings(max_examples=40)
@given(st.data())
def test_shift_is_torchvisions_pad_crop_flip(data: st.DataObject) -> None:
    B, C, S = (data.draw(st.integers(1, high)) for high in (4, 4, 20))
    padding = data.draw(st.integers(1, 5))
    views = torch.rand(B, C, S, S, generator=generator(data.draw(st.integers(0, 2**31))))
    offsets = torch.tensor([[data.draw(st.integers(0, 2 * padding)) for _ in range(2)] for _ in range(B)])
    flip = torch.tensor([data.draw(st.booleans()) for _ in range(B)])

    shown = shift(views, offsets, flip, padding)
    for i in range(B):
        top, left = offsets[i].tolist()
        expected = F.crop(F.pad(views[i], [padding] * 4), top, left, S, S)
        assert torch.equal(shown[i], F.horizontal_flip(expected) if flip[i] else expected)


def crops(images: Tensor, size: int, padding: int) -> dict[tuple[int, int, bool], Tensor]:
    """Every view that torchvision's RandomCrop(size, padding), flip and Normalize can give of one image."""
    padded = F.pad(center_view(images, sizes_of(images), size, [0] * 3, [1] * 3)[0], [padding] * 4)
    found = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            x = F.normalize(F.crop(padded, top, left, size, size), MEAN, STD)
            found[top, left, False], found[top, left, True] = x, F.horizontal_flip(x)
    return found


@pytest.mark.parametrize(("size", "padding"), [(4, 1), (16, 2), (32, 4)])
def test_each_of_torchvisions_views_comes_equally_often(size: int, padding: int) -> None:
    """Padding is black before normalisation; offsets are uniform and independent of flips and between images."""
    possible = crops(noise(1, 3, 32, 40), size, padding)
    expected = torch.stack(list(possible.values())).flatten(1)
    drawn = 20 * len(possible)
    images = noise(1, 3, 32, 40).expand(drawn, -1, -1, -1)
    views = training_view(images, sizes_of(images), size, MEAN, STD, generator(), flip_p=0.5)
    distance, which = torch.cdist(views.flatten(1), expected, p=float("inf")).min(dim=1)
    assert distance.max() < 1e-5
    assert chisquare(which.bincount(minlength=len(possible)).numpy()).pvalue > 0.001


@pytest.mark.parametrize("size", [16, 96])
@pytest.mark.parametrize(("flip_p", "share"), [(0.0, 0.0), (1.0, 1.0), (0.3, 0.3)])
def test_flip_probability(size: int, flip_p: float, share: float) -> None:
    """Images dark on the left: a flipped view is dark on the right."""
    images = torch.zeros(400, 3, 20, 20, dtype=torch.uint8)
    images[..., 10:] = 255
    views = training_view(images, sizes_of(images), size, MEAN, STD, generator(), flip_p)
    third = size // 3
    left, right = (views[..., third : size // 2].mean((1, 2, 3)), views[..., -size // 2 : -third].mean((1, 2, 3)))
    undecided = left == right  # a crop of one side only
    flipped = (left > right).sum() / (~undecided).sum()
    assert undecided.float().mean() < 0.5
    assert flipped.item() == pytest.approx(share, abs=0.08 if 0 < share < 1 else 0)


def test_large_views_are_crops_of_every_scale() -> None:
    """Of a picture whose red and green are its coordinates, each view tells its box: RandomResizedCrop's."""
    ramp = torch.arange(200).repeat(200, 1).to(torch.uint8)
    images = torch.stack([ramp, ramp.T, ramp]).expand(300, -1, -1, -1)
    views = training_view(images, sizes_of(images), 96, [0] * 3, [1] * 3, generator(), flip_p=0.0) * 255
    width = (views[:, 0, :, -1] - views[:, 0, :, 0]).mean(1) * 96 / 95
    height = (views[:, 1, -1] - views[:, 1, 0]).mean(1) * 96 / 95
    area, ratio = width * height / 200**2, width / height
    assert 0.06 < area.min() < 0.12
    assert 0.85 < area.max() <= 1.02
    assert area.mean().item() == pytest.approx(0.5, abs=0.06)
    assert 0.72 < ratio.min() < ratio.max() < 1.38


@pytest.mark.parametrize("size", [16, 96])
def test_only_the_image_counts_and_draws_come_from_the_generator(size: int) -> None:
    images = noise(6, 3, 40, 50)
    sizes = torch.tensor([[20, 30], [40, 50], [1, 1], [40, 10], [7, 50], [33, 33]])
    garbage = images.clone()
    for image, (height, width) in zip(garbage, sizes.tolist(), strict=True):
        image[:, height:], image[:, :, width:] = 255, 0
    views = [training_view(x, sizes, size, MEAN, STD, generator(5), 0.5) for x in (images, garbage)]
    assert torch.equal(*views)
    assert views[0].shape == (6, 3, size, size)
    assert views[0].dtype == torch.float32
    other = training_view(images, sizes, size, MEAN, STD, generator(6), 0.5)
    assert not torch.equal(views[0], other)


def test_autocast_changes_nothing() -> None:
    images = noise(4, 1, 24, 24)
    plain = training_view(images, sizes_of(images), 16, [0.5], [0.2], generator(), 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        cast = training_view(images, sizes_of(images), 16, [0.5], [0.2], generator(), 0.5)
    assert torch.equal(plain, cast)


def test_signs_are_not_mirrored() -> None:
    assert (flip_probability(3), flip_probability(1), flip_probability(5)) == (0.5, 0.0, 0.0)
