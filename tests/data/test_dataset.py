"""The batch of a step from stored images: this process's share of the images, the sizes of the whole batch."""

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mocokit import distributed
from mocokit.data.dataset import StoredDataset
from mocokit.data.sampler import StepSampler
from mocokit.data.store import ImageSet, open_store
from tests.helpers import encode, noise

SIZES = [(6, 6), (4, 9), (9, 3)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    folder: Path = tmp_path_factory.mktemp("dataset")
    for i in range(24):
        (folder / f"{i:02d}.png").write_bytes(encode(noise(i, *SIZES[i % 3])))
    return open_store(str(folder), image_size=8).splits["train"]


def dataset(images: ImageSet, batch_size: int = 12) -> StoredDataset:
    return StoredDataset(images, StepSampler(torch.arange(24), batch_size, seed=0))


@settings(max_examples=20)
@given(st.sampled_from([1, 2, 3, 4, 6]), st.integers(0, 7))
def test_the_shares_of_all_processes_are_the_batch(images: ImageSet, processes: int, step: int) -> None:
    whole = dataset(images)[step]
    shares = []
    for rank in range(processes):
        part = slice(rank * 12 // processes, (rank + 1) * 12 // processes)
        with patch.object(distributed, "local_slice", lambda total, part=part: part):
            shares.append(dataset(images)[step])
    assert torch.equal(torch.cat([share.ids for share in shares]), whole.ids)
    assert torch.equal(torch.cat([share.images for share in shares]), whole.images)
    assert all(torch.equal(share.sizes, whole.sizes) for share in shares)


def test_steps_in_order_from_any_step(images: ImageSet) -> None:
    steps = dataset(images).from_step(3, 7)
    assert [steps[i].step for i in range(4)] == [3, 4, 5, 6]


def test_sizes_are_the_true_ones(images: ImageSet) -> None:
    batch = dataset(images)[0]
    assert [tuple(size) for size in batch.sizes.tolist()] == [SIZES[i % 3] for i in batch.ids.tolist()]
