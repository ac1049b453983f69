"""Batches on the device: the same from whatever step and by whatever way they are read."""

import numpy as np
import pytest
import torch

from mocokit.data.dataset import Batch
from mocokit.data.loader import Loader, create_loader
from mocokit.data.sampler import StepSampler
from mocokit.data.store import ImageSet, open_store
from tests.helpers import encode, noise

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


def loader(images: ImageSet, batch_size: int, device: torch.device = CPU, workers: int = 0) -> Loader:
    return create_loader(images, batch_size=batch_size, seed=0, device=device, workers=workers)


def assert_same(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.step == y.step
        assert torch.equal(x.ids, y.ids)
        assert torch.equal(x.sizes, y.sizes)
        assert torch.equal(x.images, y.images)


@pytest.mark.parametrize("start", [0, 3, 4, 7, 11])
def test_iteration_may_start_at_any_step(images, start):
    whole = list(loader(images, 5).batches(0, 11))
    assert [batch.step for batch in whole] == list(range(11))
    assert_same(list(loader(images, 5).batches(start, 11)), whole[start:])


def test_batches_hold_the_images_and_their_sizes(images):
    for batch in loader(images, 7).batches(0, 6):
        assert batch.images.shape == (7, 3, 9, 9)
        assert batch.images.dtype == torch.uint8
        for row, (height, width), i in zip(batch.images, batch.sizes.tolist(), batch.ids.tolist(), strict=True):
            assert (height, width) == SIZES[i % len(SIZES)]
            expected = torch.from_numpy(noise(i, height, width)).permute(2, 0, 1)
            assert torch.equal(row[:, :height, :width], expected)
            assert row.sum() == expected.sum()  # zeros elsewhere


def test_worker_processes_change_nothing(images):
    ahead = loader(images, 5)
    ahead.workers = 2
    assert_same(list(ahead.batches(2, 9)), list(loader(images, 5).batches(2, 9)))


def test_images_that_live_on_the_device_change_nothing(images):
    resident = loader(images, 5)
    resident.resident = torch.from_numpy(images.batch(np.arange(23)))
    assert_same(list(resident.batches(0, 9)), list(loader(images, 5).batches(0, 9)))


def test_batches_go_where_the_device_is_not_the_host(images):
    """The meta device holds shapes only: enough to see which way is taken."""
    away = loader(images, 5, torch.device("meta"), workers=1)
    assert away.workers == 1
    batches = list(away.batches(0, 9))
    assert {batch.images.device.type for batch in batches} == {"meta"}
    assert {batch.sizes.device.type for batch in batches} == {"cpu"}
    sampler = StepSampler(torch.arange(23), 5, 0)
    assert [batch.ids.tolist() for batch in batches] == [sampler.ids(step).tolist() for step in range(9)]


def test_no_draw_of_the_program_is_used_up(images):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(loader(images, 5).batches(0, 4))
    assert torch.equal(torch.rand(3), expected)
