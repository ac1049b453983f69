"""Copies are found by pixels and shape, near-duplicates by thumbnails, and no chain makes one group of all."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mocokit.reporting import duplicates
from mocokit.reporting.duplicates import Duplicates, Pairs, _apart, connected
from tests.helpers import encode
from tests.reporting.pictures import picture, report_images


def members(groups: np.ndarray) -> set[tuple[int, ...]]:
    """The groups of two or more."""
    found = (tuple(np.flatnonzero(groups == name).tolist()) for name in set(groups.tolist()))
    return {rows for rows in found if len(rows) > 1}


def jpeg(image: np.ndarray) -> np.ndarray:
    """As a JPEG file of poor quality has it."""
    with Image.open(io.BytesIO(encode(image.transpose(1, 2, 0), "JPEG", quality=30))) as opened:
        return np.asarray(opened).transpose(2, 0, 1)


def test_copies_have_the_same_pixels_and_the_same_shape():
    flat, tall = np.zeros((1, 2, 8), np.uint8), np.zeros((1, 8, 2), np.uint8)
    one_bit = flat.copy()
    one_bit[0, 1, 7] = 1
    found = Duplicates(report_images([flat, tall, one_bit, flat, one_bit]))
    assert found.first.tolist() == [0, 1, 2, 0, 2]


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_near_duplicates_are_found_and_images_that_are_alike_are_none(channels):
    images = [picture(seed, channels=channels) for seed in range(40)]
    brighter = np.clip(images[7] * 0.8 + 40, 0, 255).astype(np.uint8)
    noisy = np.clip(images[9] + np.random.default_rng(0).normal(0, 8, images[9].shape), 0, 255).astype(np.uint8)
    wider = images[3].repeat(2, 2)
    found = Duplicates(report_images([*images, brighter, noisy, wider]))
    assert members(found.near) == {(7, 40), (9, 41), (3, 42)}


def test_encoded_and_gray_copies():
    images = [picture(seed, channels=3) for seed in range(30)]
    red = (images[5] * np.array([1, 0.4, 0.2])[:, None, None]).astype(np.uint8)
    found = Duplicates(report_images([*images, jpeg(images[4]), red]))
    assert members(found.near) == {(4, 30), (5, 31)}


def test_correlation_is_that_of_centred_thumbnails():
    images = [picture(seed) for seed in range(20)]
    noisy = np.clip(images[2] + np.random.default_rng(0).normal(0, 8, images[2].shape), 0, 255).astype(np.uint8)
    found = Duplicates(report_images([*images, noisy]))
    small = [image.reshape(16, 2, 16, 2).mean((1, 3)) for image in (images[2], noisy)]
    small = [x - x.mean(1, keepdims=True) - x.mean(0, keepdims=True) + x.mean() for x in small]
    expected = np.corrcoef(small[0].ravel(), small[1].ravel())[0, 1]
    assert found.correlation[[2, 20]] == pytest.approx([expected, expected], abs=1e-5)
    assert not found.correlation[[0, 1, *range(3, 20)]].any()


def test_of_copies_the_first_stands_for_all():
    images = [picture(seed) for seed in range(20)]
    brighter = np.clip(images[3] * 0.9 + 9, 0, 255).astype(np.uint8)
    found = Duplicates(report_images([*images, images[3], brighter, images[5]]))
    assert found.first.tolist() == [*range(20), 3, 21, 5]
    assert members(found.near) == {(3, 21)}
    assert members(found.all) == {(3, 20, 21), (5, 22)}


def test_blank_and_tiny_images_are_not_near_duplicates():
    blank = [np.full((1, 32, 32), level, np.uint8) for level in (10, 11)]
    tiny = [picture(0)[:, :15], np.clip(picture(0)[:, :15] + 1.0, 0, 255).astype(np.uint8)]
    found = Duplicates(report_images([*blank, *tiny, *map(picture, range(1, 20))]))
    assert members(found.near) == set()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_images(count):
    images = [picture(0), np.clip(picture(0) * 0.9, 0, 255).astype(np.uint8), picture(2)][:count]
    assert members(Duplicates(report_images(images)).near) == ({(0, 1)} if count > 1 else set())


def film(frames: int) -> list[np.ndarray]:
    """Each frame nearly equals the one before, the last has nothing in common with the first."""
    keys = [picture(seed).astype(float) for seed in range(frames // 20 + 2)]
    shares = [divmod(frame / 20, 1) for frame in range(frames)]
    return [((1 - s) * keys[int(k)] + s * keys[int(k) + 1]).astype(np.uint8) for k, s in shares]


def test_a_film_is_not_one_group(monkeypatch):
    others = [picture(seed) for seed in range(1000, 1300)]
    twin = np.clip(others[0] * 0.9, 0, 255).astype(np.uint8)
    images = report_images([*others, twin, *film(200)])
    monkeypatch.setattr(duplicates, "MOST_IN_GROUP", 10_000)
    assert max(map(len, members(Duplicates(images).near))) > 100
    monkeypatch.setattr(duplicates, "MOST_IN_GROUP", 20)
    groups = members(Duplicates(images).near)
    assert (0, 300) in groups
    assert all(len(rows) <= 20 for rows in groups)


def test_images_that_nothing_tells_apart_stay_one_group(monkeypatch):
    monkeypatch.setattr(duplicates, "MOST_IN_GROUP", 10)
    grains = [picture(0) for _ in range(30)]
    for pixel, grain in enumerate(grains):
        grain[0, pixel, pixel] ^= 1
    found = Duplicates(report_images([*grains, *map(picture, range(100, 200))]))
    assert members(found.near) == {tuple(range(30))}


@given(st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29), st.floats(0.9, 1)), max_size=80), st.integers(2, 9))
def test_taking_apart_keeps_small_groups_and_the_nearest_pairs(pairs, most):
    rows = np.array([pair[:2] for pair in pairs], np.int64).reshape(-1, 2)
    given_pairs = Pairs(rows, np.array([pair[2] for pair in pairs], np.float32), 0.9)
    before = members(connected(rows, 30))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "MOST_IN_GROUP", most)
        kept = _apart(given_pairs, 30)
    after = members(connected(kept.rows, 30))
    assert {group for group in before if len(group) <= most} <= after
    for group in after:
        assert any(set(group) <= set(whole) for whole in before)
        inside = np.isin(kept.rows[:, 0], group)
        assert len(group) <= most or (kept.correlation[inside] >= 1 - 2e-4).all()
    same = given_pairs.correlation > 1 - 0.5e-4
    assert {tuple(pair) for pair in rows[same].tolist()} <= {tuple(pair) for pair in kept.rows.tolist()}


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=25))
def test_groups_are_those_of_a_slow_search(pairs):
    names = list(range(20))
    for _ in names:
        for one, other in pairs:
            names[one] = names[other] = min(names[one], names[other])
    assert connected(np.array(pairs, np.int64).reshape(-1, 2), 20).tolist() == names
