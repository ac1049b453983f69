"""The images of a montage: those that are named, in the channels that can be drawn."""

import numpy as np
import pytest

from mocokit.deploy.montage import TILE
from mocokit.deploy.thumbnails import images_of_files, images_of_rows
from mocokit.errors import UserError
from mocokit.model.encoder import EncoderSpec
from tests.helpers import encode, noise


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(encode(noise(i, 6, 7)))
    return tmp_path


def test_images_of_rows(folder):
    images = images_of_rows(str(folder), ["3.png", "1.png"], None)
    assert list(images) == ["3.png", "1.png"]
    for i in (1, 3):
        assert np.array_equal(images[f"{i}.png"], noise(i, 6, 7).transpose(2, 0, 1))
    with pytest.raises(UserError, match=r"no image 7\.png in .*--data"):
        images_of_rows(str(folder), ["7.png"], None)


@pytest.mark.parametrize("spec", [None, {}, 7, {"channels": "x"}])
def test_a_spec_from_elsewhere_does_no_harm(folder, spec):
    assert images_of_files([str(folder / "0.png")], spec)[str(folder / "0.png")].shape == (3, 6, 7)


def test_large_images_are_shrunk_and_gray_ones_drawn(folder):
    spec = EncoderSpec("resnet18_narrow", 8, 1, (0.5,), (0.5,)).to_dict()
    (folder / "0.png").write_bytes(encode(noise(0, 300, 600, channels=1)))
    (image,) = images_of_files([str(folder / "0.png")], spec).values()
    assert image.shape == (3, TILE, 2 * TILE)


def test_what_is_no_image_is_named(folder):
    (folder / "0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"--montage: .*0\.png: "):
        images_of_files([str(folder / "0.png")], None)
