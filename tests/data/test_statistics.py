"""Mean and standard deviation of the images against NumPy's."""

import numpy as np
import pytest
from PIL import Image

from mocokit.data.statistics import channel_statistics
from mocokit.data.store import open_store
from tests.helpers import encode, noise, write_images

SIZES = [(6, 6), (4, 9), (9, 3), (8, 8), (1, 5)]


def test_statistics_do_not_count_padding(tmp_path):
    pixels = [noise(i, *SIZES[i % len(SIZES)]) for i in range(23)]
    (tmp_path / "data").mkdir()
    for i, image in enumerate(pixels):
        (tmp_path / "data" / f"{i:02d}.png").write_bytes(encode(image))
    mean, std = channel_statistics(open_store(str(tmp_path / "data"), image_size=8).splits["train"])
    flat = np.concatenate([image.reshape(-1, 3) / 255 for image in pixels])
    np.testing.assert_allclose(mean, flat.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(std, flat.std(axis=0), rtol=1e-9)


def test_statistics_of_blank_images_do_not_vanish(tmp_path):
    (tmp_path / "data").mkdir()
    for i in range(3):
        (tmp_path / "data" / f"{i}.png").write_bytes(encode(Image.new("L", (8, 8), 51)))
    store = open_store(str(tmp_path / "data"), image_size=8)
    assert channel_statistics(store.splits["train"]) == ((pytest.approx(0.2),), (pytest.approx(1 / 255),))


def test_statistics_of_many_images_take_a_sample(tmp_path, monkeypatch):
    folder = write_images(tmp_path / "data", [f"{i:02d}.png" for i in range(20)])
    images = open_store(str(folder), image_size=8).splits["train"]
    monkeypatch.setattr("mocokit.data.statistics.STATISTICS_IMAGES", 5)
    mean, _ = channel_statistics(images)
    sample = images.batch(np.arange(0, 20, 4)) / 255
    np.testing.assert_allclose(mean, sample.mean(axis=(0, 2, 3)), rtol=1e-9)
