"""Thumbnails are WebP of the right shape and small."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from mocokit.reporting.thumbnails import thumbnail
from tests.helpers import noise


def opened(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (60, 120), (300, 1), (1, 1)])
def test_any_image(channels, height, width):
    image = opened(thumbnail(np.zeros((channels, height, width), np.uint8)))
    assert image.format == "WEBP"
    assert max(image.size) == min(48, max(height, width))


def test_the_picture_is_kept():
    pixels = np.zeros((3, 40, 40), np.uint8)
    pixels[0, :20], pixels[2, 20:] = 255, 255
    found = np.asarray(opened(thumbnail(pixels)).convert("RGB")).astype(int)
    assert np.abs(found[5, 20] - [255, 0, 0]).max() < 30
    assert np.abs(found[35, 20] - [0, 0, 255]).max() < 30


def test_it_is_small():
    assert len(thumbnail(noise(0, 96, 96).transpose(2, 0, 1))) < 4000  # noise is the worst
