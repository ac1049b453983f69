"""Batches: each image once an epoch, the same from whatever step and by whatever way they are read."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mocokit.data.loader import Batches, StepSampler
from mocokit.data.sampler import generator, random_subset
from mocokit.data.statistics import channel_statistics
from mocokit.data.store import ImageSet, open_store
from tests.helpers import encode, noise, write_images

CPU = torch.device("cpu")
SIZES = [(6, 6), (4, 9), (9, 3), (8, 8), (1, 5)]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> ImageSet:
    """Twenty-three images of different sizes."""
    folder = tmp_path_factory.mktemp("batches") / "data"
    folder.mkdir()
    for i in range(23):
        (folder / f"{i:02d}.png").write_bytes(encode(noise(i, *SIZES[i % len(SIZES)])))
    return open_store(str(folder), image_size=8).splits["train"]


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.step == y.step
        assert torch.equal(x.ids, y.ids)
        assert torch.equal(x.sizes, y.sizes)
        assert torch.equal(x.images, y.images)


@settings(deadline=None)
@given(st.integers(1, 23), st.integers(0, 5), st.integers(0, 4))
def test_an_epoch_sees_each_image_at_most_once(images, batch_size, seed, epoch):
    steps = StepSampler(images, batch_size, seed)
    assert steps.per_epoch == 23 // batch_size
    ids = torch.cat([steps.ids(epoch * steps.per_epoch + i) for i in range(steps.per_epoch)])
    assert len(ids) == steps.per_epoch * batch_size > 23 - batch_size
    assert len(set(ids.tolist())) == len(ids)
    assert set(ids.tolist()) <= set(range(23))


def test_epochs_and_seeds_shuffle_differently(images):
    orders = {
        tuple(StepSampler(images, 23, seed).ids(epoch).tolist()) for seed in range(3) for epoch in range(3)
    }
    assert len(orders) == 9
    assert tuple(range(23)) not in orders


@settings(deadline=None)
@given(st.permutations(range(12)))
def test_a_batch_depends_on_its_step_alone(images, order):
    fresh = [StepSampler(images, 5, 0)[step] for step in order]
    used = StepSampler(images, 5, 0)
    assert_same([used[step] for step in order], fresh)


@pytest.mark.parametrize("start", [0, 3, 4, 7, 11])
def test_iteration_may_start_at_any_step(images, start):
    whole = list(Batches(StepSampler(images, 5, 0), 11, CPU, workers=0))
    assert [batch.step for batch in whole] == list(range(11))
    resumed = Batches(StepSampler(images, 5, 0), 11, CPU, workers=0)
    resumed.start = start
    assert_same(list(resumed), whole[start:])


def test_batches_hold_the_images_and_their_sizes(images):
    for batch in Batches(StepSampler(images, 7, 0), 6, CPU, workers=0):
        assert batch.images.shape == (7, 3, 9, 9)
        assert batch.images.dtype == torch.uint8
        for row, (height, width), i in zip(
            batch.images, batch.sizes.tolist(), batch.ids.tolist(), strict=True
        ):
            assert (height, width) == SIZES[i % len(SIZES)]
            expected = torch.from_numpy(noise(i, height, width)).permute(2, 0, 1)
            assert torch.equal(row[:, :height, :width], expected)
            assert row.sum() == expected.sum()  # zeros elsewhere


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_equals_direct(images, workers):
    batches = Batches(StepSampler(images, 5, 0), 9, CPU, workers)
    assert_same(list(batches._streamed(range(2, 9))), list(batches)[2:])


def test_resident_equals_direct(images):
    batches = Batches(StepSampler(images, 5, 0), 9, CPU, workers=0)
    direct = list(batches)
    batches.resident = torch.from_numpy(images.batch(np.arange(23)))
    assert_same(list(batches), direct)


def test_streams_where_the_device_is_not_the_host(images):
    """The meta device holds shapes only: enough to see which way is taken."""
    batches = list(Batches(StepSampler(images, 5, 0), 9, torch.device("meta"), workers=1))
    assert {batch.images.device.type for batch in batches} == {"meta"}
    assert {batch.sizes.device.type for batch in batches} == {"cpu"}
    assert [batch.ids.tolist() for batch in batches] == [
        StepSampler(images, 5, 0).ids(s).tolist() for s in range(9)
    ]


def test_statistics_do_not_count_padding(images):
    pixels = [noise(i, *SIZES[i % len(SIZES)]).reshape(-1, 3) / 255 for i in range(23)]
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, np.concatenate(pixels).mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(std, np.concatenate(pixels).std(axis=0), rtol=1e-9)


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


@given(st.integers(0, 300), st.integers(1, 300), st.integers(0, 9))
def test_random_subset(count, most, seed):
    subset = random_subset(count, most, seed).tolist()
    assert len(subset) == min(count, most)
    assert subset == sorted(set(subset))
    assert all(0 <= index < count for index in subset)
    assert subset == random_subset(count, most, seed).tolist()


def test_random_subset_is_spread_and_seeded():
    assert random_subset(1000, 100, 0).tolist() != random_subset(1000, 100, 1).tolist()
    drawn = torch.bincount(torch.cat([random_subset(10, 5, seed) for seed in range(400)]))
    assert drawn.min() > 150  # expected 200 each, standard deviation 10
    assert drawn.max() < 250


def test_generators_differ_by_seed_purpose_and_step():
    draws = {
        torch.rand(1, generator=generator(seed, purpose, step)).item()
        for seed in (0, 1)
        for purpose in ("view 1", "view 2")
        for step in (0, 1)
    }
    assert len(draws) == 8


def test_steps_over_some_rows(images):
    """Batches of chosen images only, all of them in an epoch; fewer than a batch are one batch."""
    rows = torch.arange(1, len(images), 2)
    steps = StepSampler(images, 5, 0, rows)
    seen = torch.cat([steps.ids(step) for step in range(steps.per_epoch)])
    assert set(seen.tolist()) <= set(rows.tolist())
    assert len(set(seen.tolist())) == len(seen) == len(rows) // 5 * 5
    few = StepSampler(images, 50, 0, rows[:3])
    assert few.per_epoch == 1
    assert sorted(few.ids(7).tolist()) == rows[:3].tolist()
