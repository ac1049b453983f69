"""Features, pixels and histograms of stored images: any subset, in order, whatever the batches."""

import numpy as np
import pytest
import torch

import mocokit
from mocokit.data.store import open_store
from mocokit.evaluation import features
from mocokit.evaluation.features import SIMPLE, colour_histogram, extract, rows_of
from tests.helpers import noise, write_images
from tests.tiny_runs import TinyRun


@pytest.fixture(scope="module")
def images(tiny_run: TinyRun):
    return open_store(str(tiny_run.data), image_size=8).splits["train"]


def test_features_are_the_encoders_in_order(tiny_run, images, monkeypatch):
    encoder = mocokit.load(tiny_run.path)
    with torch.no_grad():
        expected = encoder(*rows_of(images, torch.arange(len(images)), encoder.device))
    monkeypatch.setattr(features, "BATCH", 7)
    torch.testing.assert_close(extract(encoder, images), expected, atol=1e-5, rtol=1e-4)
    some = torch.tensor([5, 2, 2])
    torch.testing.assert_close(extract(encoder.train(), images, some), expected[some], atol=1e-5, rtol=1e-4)
    assert encoder.training  # left as it was


def test_pixels_are_the_images_around_mid_gray(tmp_path, monkeypatch):
    data = write_images(tmp_path / "flat", [f"{i}.png" for i in range(20)], 8, 8)
    images = open_store(str(data), image_size=8).splits["train"]
    monkeypatch.setattr(features, "BATCH", 7)
    some = torch.tensor([4, 1])
    expected = torch.from_numpy(images.batch(some.numpy())).flatten(1) / 127.5 - 1
    pixels = SIMPLE["raw_pixels"]
    torch.testing.assert_close(pixels.extract(images, 8, some), expected, atol=1e-5, rtol=0)
    assert pixels.extract(images, 8).shape == (len(images), 3 * 8 * 8)


def test_pixels_are_sixteen_by_sixteen_at_most(tmp_path):
    data = write_images(tmp_path / "large", ["a.png", "b.png"], 40, 40)
    images = open_store(str(data), image_size=40).splits["train"]
    pixels = SIMPLE["raw_pixels"]
    assert torch.equal(pixels.extract(images, 40), pixels.extract(images, 16))
    assert pixels.extract(images, 40).shape == (2, 3 * 16 * 16)


def slow_histogram(image: np.ndarray) -> np.ndarray:
    """Of one image uint8 [H, W, C]."""
    if image.shape[2] == 3:
        counts, _ = np.histogramdd(image.reshape(-1, 3), bins=6, range=[(0, 256)] * 3)
        return np.sqrt(counts.ravel() / counts.sum())
    levels = [np.histogram(channel, bins=16, range=(0, 256))[0] for channel in np.moveaxis(image, 2, 0)]
    shares = np.concatenate(levels) / image.size
    if image.shape[2] > 1:
        return np.sqrt(shares)
    down, right = np.gradient(image[:, :, 0].astype(float))
    sums = np.zeros(8)
    for dy, dx in zip(down.ravel(), right.ravel(), strict=True):
        nearest = min(range(-8, 9), key=lambda k: abs(k * 22.5 - np.degrees(np.arctan2(dy, dx))))
        sums[nearest % 8] += np.hypot(dy, dx)
    if not sums.any():
        return np.sqrt(np.concatenate([shares, sums]))
    return np.sqrt(np.concatenate([shares, sums / sums.sum()]) / 2)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_histograms_are_numpys(channels):
    images = [np.atleast_3d(noise(seed, 9, 9, channels)) for seed in range(6)]
    images += [image // 64 * 85 for image in images] + [np.full_like(images[0], value) for value in (0, 127, 255)]
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    found = colour_histogram(x)
    assert found.shape[1] == {1: 16 + 8, 3: 216}.get(channels, 16 * channels)
    np.testing.assert_allclose(found, np.stack([slow_histogram(image) for image in images]), atol=2e-6)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))


def test_histograms_know_colours_but_no_places():
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    elsewhere = x.flatten(2)[:, :, torch.randperm(64)].reshape(x.shape)
    assert torch.equal(colour_histogram(x), colour_histogram(elsewhere))
    assert not torch.allclose(colour_histogram(x), colour_histogram(x.roll(1, dims=1)))


def test_edges_have_a_direction():
    """Bright to the right, downwards, and both: 0, 90 and 45 degrees; turned by 180 degrees they are the same."""
    slope = torch.arange(8) / 10
    slopes = [slope.expand(8, 8), slope[:, None].expand(8, 8), (slope + slope[:, None]) / 2]
    for image, direction in zip(slopes, (0, 4, 2), strict=True):
        for x in (image, image.flip(0, 1)):
            edges = colour_histogram(x[None, None])[0, 16:].square()
            assert edges.argmax() == direction
            assert edges[direction] > 0.49  # of the half that edges have; levels are rounded


def test_a_histogram_is_that_of_the_resized_images(tmp_path, monkeypatch):
    data = write_images(tmp_path / "flat", [f"{i}.png" for i in range(20)], 8, 8)
    images = open_store(str(data), image_size=8).splits["train"]
    monkeypatch.setattr(features, "BATCH", 7)
    some = torch.tensor([4, 1])
    expected = [slow_histogram(np.moveaxis(image, 0, 2)) for image in images.batch(some.numpy())]
    histogram = SIMPLE["colour_histogram"]
    np.testing.assert_allclose(histogram.extract(images, 8, some), np.stack(expected), atol=2e-6)
    assert histogram.extract(images, 8).shape == (len(images), 216)
    assert torch.equal(histogram.extract(images, 100), histogram.extract(images, 64))
