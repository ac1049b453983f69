"""The rows of a report are the images of all splits, each once, in a fixed order."""

import numpy as np
import pytest
import torch

from mocokit.data.store import open_store
from mocokit.reporting.images import ReportImages
from tests.reporting.made import made_images, noisy_files


@pytest.fixture
def store(tmp_path):
    made_images(tmp_path / "d", noisy_files(6, "train/a", "train/b", "test/a", "test/b"), tmp_path / "cache")
    return open_store(str(tmp_path / "d"), image_size=16, cache=tmp_path / "cache")


def test_all_images_of_all_splits(store):
    images = ReportImages.of(store, None, seed=0)
    assert len(images) == images.total == 24
    assert images.names[:12] == store.splits["train"].names
    assert images.names[12:] == store.splits["test"].names
    assert images.splits.tolist() == ["train"] * 12 + ["test"] * 12
    assert images.labels.tolist() == ([0] * 6 + [1] * 6) * 2
    for row, (pixels, (height, width)) in enumerate(zip(images.pixels(), images.sizes, strict=True)):
        assert pixels.shape == (3, height, width)
        assert np.array_equal(pixels, images.image(row))
    with pytest.raises(IndexError):
        images.image(24)


def test_a_sample_is_the_same_for_the_same_seed_and_keeps_the_order(store):
    one, again, other = (ReportImages.of(store, None, seed, most=10) for seed in (0, 0, 1))
    assert one.names == again.names != other.names
    assert len(one) == 10
    assert one.total == 24
    order = [*store.splits["train"].names, *store.splits["test"].names]
    assert one.names == [name for name in order if name in set(one.names)]


def test_features_are_those_of_the_rows(store):
    images = ReportImages.of(store, None, 0, most=9)
    found = images.features(lambda part: torch.tensor([[float(len(part.images.names[i]))] for i in part.indices]))
    assert found[:, 0].tolist() == [len(name) for name in images.names]
    some = images.features(lambda part: torch.ones(len(part), 2) * part.indices[:, None], [1, 5, 8])
    positions = torch.cat([part.indices for part in images.parts]).tolist()
    assert some[:, 1].tolist() == [positions[row] if row in (1, 5, 8) else 0 for row in range(9)]


def test_held_out_images_are_test_images(tmp_path):
    images = made_images(tmp_path / "d", noisy_files(8, "a", "b"), tmp_path / "cache", held_out=True)
    assert (images.splits == "test").sum() == 4
    assert {images.labels[row] for row in np.flatnonzero(images.splits == "test")} == {0, 1}


def test_names_are_text(tmp_path):
    files = noisy_files(3, "a", "b") | {"a/\udcff.png": noisy_files(1, "a")["a/0.png"]}
    images = made_images(tmp_path / "d", files, tmp_path / "cache")
    assert all(name.encode() for name in images.names)
    assert "a/\\udcff.png" in images.names
