"""What decoded pixels become."""

import numpy as np

from mocokit.data.pixels import pad
from tests.helpers import noise


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
