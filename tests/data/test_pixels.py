"""Decoded images become 8-bit images with the channels that are wanted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from mocokit.data.pillow import BadImage
from mocokit.data.pixels import convert, convertible, pad, stored_side
from tests.helpers import noise

IMAGES = arrays.arrays(np.uint8, st.tuples(st.sampled_from([1, 3]), st.integers(1, 6), st.integers(1, 6)))


@given(IMAGES)
def test_bytes_with_the_right_channels_stay(image: np.ndarray) -> None:
    np.testing.assert_array_equal(convert(image, len(image), None), image)
    np.testing.assert_array_equal(convert(image, len(image), (0.0, 9.0)), image)


@given(IMAGES)
def test_gray_is_what_pillow_makes_of_colour(image: np.ndarray) -> None:
    gray = convert(image, 1, None)
    assert gray.dtype == np.uint8
    if len(image) == 3:
        expected = np.asarray(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).convert("L"))
        np.testing.assert_allclose(gray[0].astype(int), expected, atol=1)
    np.testing.assert_array_equal(convert(gray, 3, None), np.repeat(gray, 3, axis=0))


@given(
    arrays.arrays(np.float32, (1, 3, 4), elements=st.floats(-1e6, 1e6, width=32)),
    st.floats(-1e5, 1e5),
    st.floats(1e-2, 1e5),
)
def test_deep_images_keep_their_order_within_the_range(image: np.ndarray, low: float, width: float) -> None:
    pixels = convert(image, 1, (low, low + width)).ravel()
    order = np.argsort(image, axis=None)
    assert (np.diff(pixels[order].astype(int)) >= 0).all()
    exact = image.ravel().astype(float)
    assert (pixels[exact <= low] == 0).all()
    assert (pixels[exact >= low + width] == 255).all()


def test_a_bound_that_is_no_float32_clips() -> None:
    """Rounded to float32, this one is smaller than it is; the difference must not become 255."""
    assert convert(np.zeros((1, 1, 1), np.float32), 1, (65536.39453125, 65537.5)).item() == 0


@pytest.mark.parametrize(
    ("channels", "target", "expected"), [(1, 3, True), (3, 1, True), (5, 5, True), (5, 3, False), (1, 2, False)]
)
def test_only_gray_and_colour_become_each_other(channels: int, target: int, expected: bool) -> None:
    assert convertible(channels, target) == expected


def test_images_are_kept_twice_as_large_as_the_model_takes_them() -> None:
    assert stored_side(32) == 64


def test_pad():
    images = [noise(i, *size).transpose(2, 0, 1) for i, size in enumerate([(3, 9), (5, 2), (4, 4)])]
    pixels, sizes = pad(images)
    assert (pixels.shape, pixels.dtype, sizes.tolist()) == ((3, 3, 5, 9), np.uint8, [[3, 9], [5, 2], [4, 4]])
    for row, image in zip(pixels, images, strict=True):
        assert np.array_equal(row[:, : image.shape[1], : image.shape[2]], image)
    assert pixels.sum() == sum(int(image.sum()) for image in images)


def test_pad_nothing():
    pixels, sizes = pad([])
    assert (pixels.shape, sizes.shape) == ((0, 0, 0, 0), (0, 2))


@pytest.mark.parametrize("most", [1, 65535])
def test_without_a_range_the_depth_says_what_is_white(most: float) -> None:
    image = noise(0, channels=1)[None]
    image[0, 0, :2] = 0, 255
    np.testing.assert_array_equal(convert(image.astype(np.float32) / 255 * np.float32(most), 1, None), image)
    rounded = np.array([[[0, most * (1 + 1e-6)]]], np.float32)
    assert convert(rounded, 1, None).ravel().tolist() == [0, 255]


@pytest.mark.parametrize("bad", [-0.5, 1.5, 255, 70_000])
def test_values_that_are_neither_0_to_1_nor_16_bits_are_refused(bad: float) -> None:
    with pytest.raises(BadImage, match="where 0 to 1 or all of 16 bits are expected"):
        convert(np.array([[[0, bad]]], np.float32), 1, None)
