"""Pattern, light and sharpness of images of any size equal slow formulas, and blur lowers sharpness alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from mocokit.reporting.quality import Quality, quality
from tests.reporting.pictures import picture, report_images


def slow(image: np.ndarray) -> tuple[float, ...]:
    """The fields of `Quality` of one image, pixel by pixel."""
    gray = np.rint(image.astype(np.float32).mean(axis=0)).astype(float)
    low, high = np.sort(gray.ravel())[[-(-percent * gray.size // 100) - 1 for percent in (1, 99)]]
    laplacian, gradient = [], []
    for y in range(1, gray.shape[0] - 1):
        for x in range(1, gray.shape[1] - 1):
            up, down, left, right = gray[y - 1, x], gray[y + 1, x], gray[y, x - 1], gray[y, x + 1]
            laplacian.append((up + down + left + right - 4 * gray[y, x]) ** 2)
            gradient.append((down - up) ** 2 + (right - left) ** 2)
    sharpness = sum(laplacian) / sum(gradient) if sum(gradient) else np.nan
    return gray.std(), low, high, np.mean(laplacian) if laplacian else 0, sharpness


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=5),
    st.sampled_from([1, 3, 5]),
    st.integers(1, 255),
    st.integers(0, 2**32 - 1),
)
def test_equals_slow_formulas(sizes, channels, levels, seed):
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, levels + 1, (channels, *size), dtype=np.uint8) for size in sizes]
    found = np.stack(quality(report_images(images)))
    np.testing.assert_allclose(found.T, [slow(image) for image in images], rtol=2e-4, atol=1e-3)


def test_blocks_of_images_are_in_order(monkeypatch):
    images = [picture(seed) for seed in range(7)]
    splits = ["train"] * 4 + ["test"] * 3
    whole = quality(report_images(images))
    monkeypatch.setattr("mocokit.reporting.quality.CHUNK_FLOATS", 2000)
    np.testing.assert_array_equal(quality(report_images(images, splits=splits)), whole)


@pytest.mark.parametrize("contrast", [0.2, 1])
def test_blur_lowers_sharpness_and_contrast_does_not(contrast):
    image = picture(0, 64)[0]
    blurred = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(2)))
    seen = quality(report_images([np.rint(x * contrast).astype(np.uint8)[None] for x in (image, blurred)]))
    assert isinstance(seen, Quality)
    assert seen.sharpness[0] > 3 * seen.sharpness[1]
    assert seen.sharpness[0] == pytest.approx(quality(report_images([image[None]])).sharpness[0], rel=0.1)
