"""Near-duplicates are found by pixels alone, and images that are merely alike are none."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mocokit.data.store import open_store
from mocokit.evaluation.near_duplicates import least_correlation, near_duplicates, thumbnails
from mocokit.evaluation.splits import Subset, split_labelled
from tests.helpers import encode


def part(*images: np.ndarray) -> Subset:
    """Of images uint8 [H, W]."""
    canvas = np.zeros((len(images), 1, 40, 40), dtype=np.uint8)
    for row, image in zip(canvas, images, strict=True):
        row[0, : image.shape[0], : image.shape[1]] = image
    names = [f"{row}" for row in range(len(images))]
    sizes = np.array([image.shape for image in images], dtype=np.int32)
    held = SimpleNamespace(batch=lambda rows: canvas[rows], sizes=sizes, names=names, channels=1, canvas=(40, 40))
    return Subset(held, torch.arange(len(images)))  # type: ignore[arg-type]


def picture(seed: int, side: int = 32) -> np.ndarray:
    """Blobs of four by four pixels on a slope from top to bottom, as sky and sea are."""
    blobs = np.random.default_rng(seed).normal(0, 25, (side // 4, side // 4)).repeat(4, 0).repeat(4, 1)
    slope = np.linspace(200, 50, side)[:, None]
    return np.clip(blobs + slope, 0, 255).astype(np.uint8)


def testthumbnails_are_correlations_of_what_rows_and_columns_do_not_share():
    images = [picture(seed) for seed in range(3)]
    small = np.stack([image.reshape(16, 2, 16, 2).mean((1, 3)) for image in images])
    small = small - small.mean(2, keepdims=True) - small.mean(1, keepdims=True) + small.mean((1, 2), keepdims=True)
    expected = np.corrcoef(small.reshape(3, -1))
    found = thumbnails(part(*images))
    np.testing.assert_allclose((found @ found.T).numpy(), expected, atol=1e-5)


def test_copies_are_found_and_slopes_are_none():
    train = part(*map(picture, range(40)))
    brighter = np.clip(picture(7) * 0.8 + 40, 0, 255).astype(np.uint8)
    noisy = np.clip(picture(9) + np.random.default_rng(0).normal(0, 5, (32, 32)), 0, 255).astype(np.uint8)
    test = part(picture(100), brighter, picture(101), noisy, picture(3), *map(picture, range(102, 120)))
    assert near_duplicates(train, test, 0) == (3, 23, 40, ("1", "7"))


def test_images_of_other_sizes_are_compared():
    large = picture(5).repeat(2, 0)[:40, :]  # the upper part, in another shape
    train = part(picture(1), large, *map(picture, range(20, 40)))
    assert near_duplicates(train, part(large[::2, :], *map(picture, range(40, 60))), 0).first == ("0", "1")


def test_blank_images_are_no_duplicates_of_each_other():
    blank = np.full((20, 20), 90, dtype=np.uint8)
    assert near_duplicates(part(blank, picture(1)), part(blank, picture(2)), 0).found == 0


def test_tiny_images_are_not_compared():
    parts = split_labelled(open_store("digits", image_size=16), 0)
    assert near_duplicates(parts.train, parts.test, 0) is None


def test_a_tiny_image_among_others_is_left_out_alone():
    train = part(picture(0, 12), *map(picture, range(1, 30)))
    assert near_duplicates(train, part(picture(3), picture(0, 12), picture(50)), 0) == (1, 2, 29, ("0", "3"))


def test_how_near_is_near_follows_from_how_near_others_are():
    assert least_correlation(torch.tensor([0.6, 0.7, 0.95])) == pytest.approx(0.94)  # a fifth of what 0.7 lacks
    assert least_correlation(torch.tensor([0.1, 0.2, 0.95])) == 0.9
    assert least_correlation(torch.tensor([0.1, 0.97, 0.98])) == 0.98


def test_of_many_images_some_are_looked_at(monkeypatch):
    monkeypatch.setattr("mocokit.evaluation.near_duplicates.MOST_TEST", 5)
    found = near_duplicates(part(*map(picture, range(9))), part(*map(picture, range(9))), 0)
    assert found[:3] == (5, 5, 9)


def test_encoded_files(tmp_path):
    """A copy as a JPEG of poor quality."""
    for number in range(24):
        for split in ("train", "test"):
            path = tmp_path / split / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(picture(number + 100 * (split == "test"))))
    (tmp_path / "test" / "a" / "copy.jpg").write_bytes(encode(picture(4), "JPEG", quality=30))
    parts = split_labelled(open_store(str(tmp_path), image_size=32), 0)
    assert near_duplicates(parts.train_val, parts.test, 0) == (1, 25, 24, ("test/a/copy.jpg", "train/a/4.png"))
