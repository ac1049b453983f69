"""Chunks of embedded images: each image is in one, as a row or as skipped, and in order."""

import numpy as np
import pytest

from mocokit.config import EmbedConfig
from mocokit.data.sources import open_source
from mocokit.deploy.embedding import embed_images
from mocokit.deploy.feature_file import feature_matrix
from mocokit.model.encoder import Encoder, EncoderSpec
from tests.helpers import encode, noise

BAD = {2, 3, 7, 9}


@pytest.fixture
def folder(tmp_path):
    for i in range(10):
        (tmp_path / f"{i}.png").write_bytes(b"no image" if i in BAD else encode(noise(i, 8, 5 + i)))
    return tmp_path


@pytest.mark.parametrize(("size", "start"), [(1, 0), (2, 0), (3, 4), (100, 0), (2, 10)])
def test_every_image_once_and_in_order(folder, size, start):
    encoder = Encoder.create(EncoderSpec("resnet18_narrow", 8, 3, (0.5,) * 3, (0.2,) * 3)).eval()
    source = open_source(str(folder))
    index = source.read_index()
    config = EmbedConfig(run="", data="", output="", batch_size=size, workers=0)
    chunks = list(embed_images(encoder, source, index, np.arange(10), start, config))
    assert [chunk.images for chunk in chunks] == [min(size, 10 - i) for i in range(start, 10, size)]
    good = [i for i in range(start, 10) if i not in BAD]
    assert [p for chunk in chunks for p in chunk.rows["path"].to_pylist()] == [f"{i}.png" for i in good]
    skipped = [skipped.name for chunk in chunks for skipped in chunk.skipped]
    assert skipped == [f"{i}.png" for i in range(start, 10) if i in BAD]
    found = [feature for chunk in chunks for feature in feature_matrix(chunk.rows)]
    if good:
        expected = encoder.embed([folder / f"{i}.png" for i in good])
        assert np.allclose(found, expected, rtol=0, atol=1e-5)
