"""A sheet shows images as the encoder gets them, whatever their channels, sizes and number."""

import numpy as np
import pytest
import torch

from mocokit.data.arrays import ImageListSource
from mocokit.data.store import ImageSet, open_store
from mocokit.model.encoder import EncoderSpec
from mocokit.reporting.contact_sheet import GAP, as_seen, contact_sheet, thumbnails


def stored(images: list[np.ndarray], size: int, cache) -> ImageSet:
    return open_store(ImageListSource(images), image_size=size, cache=cache).splits["train"]


def spec(channels: int, size: int) -> EncoderSpec:
    """With statistics that are far from those of the images."""
    return EncoderSpec("resnet18", size, channels, (0.3,) * channels, (0.1,) * channels)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_images_are_those_of_the_encoder_without_its_normalisation(channels, tmp_path):
    draw = np.random.default_rng(0)
    pictures = [draw.integers(0, 256, (side, 2 * side, channels), dtype=np.uint8) for side in (9, 12, 16)]
    images, encoder = stored(pictures, 8, tmp_path), spec(channels, 8)
    rows = np.array([2, 0])
    seen = as_seen(images, rows, encoder)
    assert (seen.dtype, seen.shape) == (np.uint8, (2, channels, 8, 8))
    view = encoder.view(torch.from_numpy(images.batch(rows)), torch.from_numpy(images.sizes[rows])).numpy()
    np.testing.assert_allclose(seen / 255, view * 0.1 + 0.3, atol=0.51 / 255)


@pytest.mark.parametrize(
    ("count", "side", "across", "down", "shown"),
    [(3, 8, 3, 1, 64), (10, 8, 8, 2, 64), (200, 8, 8, 8, 64), (20, 300, 4, 4, 300), (70, 150, 6, 6, 150)],
)
def test_number_and_size(count, side, across, down, shown, tmp_path):
    images = stored([np.full((side, side), 1 + number, np.uint8) for number in range(count)], side, tmp_path)
    sheet = np.asarray(contact_sheet(images, spec(1, side), seed=0))
    step = shown + GAP
    assert sheet.shape == (down * step - GAP, across * step - GAP, 3)
    centres = sheet[shown // 2 :: step, shown // 2 :: step, 0].ravel()[: min(count, across * down)]
    assert (np.diff(centres.astype(int)) > 0).all()  # each another image, in their order
    if count > across * down:
        other = np.asarray(contact_sheet(images, spec(1, side), seed=1))
        assert not np.array_equal(sheet, other)
        np.testing.assert_array_equal(sheet, np.asarray(contact_sheet(images, spec(1, side), seed=0)))


@pytest.mark.parametrize(("size", "shown"), [(8, 8), (48, 32)])
def test_thumbnails_are_small_and_in_order(size, shown, tmp_path):
    images = stored([np.full((size, size), 2 * number, np.uint8) for number in range(100)], size, tmp_path)
    rows = np.arange(99, 20, -1)
    found = thumbnails(images, rows, spec(1, size))
    assert (found.dtype, found.shape) == (np.uint8, (79, shown, shown, 3))
    np.testing.assert_array_equal(found, np.broadcast_to(2 * rows[:, None, None, None], found.shape))
