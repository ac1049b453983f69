"""Features and pixels of stored images: any subset, in order, whatever the batches."""

import pytest
import torch

import mocokit
from mocokit.data.store import open_store
from mocokit.evaluation import features
from mocokit.evaluation.features import extract, pixels, rows_of
from tests.helpers import write_images
from tests.runs import TinyRun


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
    torch.testing.assert_close(pixels(images, 8, some), expected, atol=1e-5, rtol=0)
    assert pixels(images, 8).shape == (len(images), 3 * 8 * 8)
