"""The batch of a step, and the data set that reads it from stored images; ``streaming.py`` has the other one."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from mocokit import distributed
from mocokit.data.sampler import StepSampler
from mocokit.data.store import ImageSet


class Batch(NamedTuple):
    """This process's share of a step's batch: b of B images, all of them where there is one process.

    ``images`` [b, C, H, W] uint8, zero-padded at the bottom and right; ``ids`` [b] their positions in the set;
    ``sizes`` [B, 2] the true (height, width) of the whole batch, on the CPU, so that draws for it are the same
    however it is shared; ``step`` which optimizer step it is for.
    """

    images: Tensor
    sizes: Tensor
    ids: Tensor
    step: int


class StoredDataset(Dataset[Batch]):
    """The batch of any step, cut from stored images."""

    reads_ahead = False

    def __init__(self, images: ImageSet, sampler: StepSampler) -> None:
        self.images, self.sampler = images, sampler
        self.per_epoch = sampler.per_epoch
        self.part = distributed.local_slice(sampler.batch_size)  # kept: a worker process has no peers

    def from_step(self, start: int, stop: int) -> Dataset[Batch]:
        """The steps from ``start`` to before ``stop``, in order."""
        return Subset(self, range(start, stop))

    def __getitem__(self, step: int) -> Batch:
        own, sizes = self.share(step)
        return Batch(torch.from_numpy(self.images.batch(own.numpy())), sizes, own, step)

    def share(self, step: int) -> tuple[Tensor, Tensor]:
        """Of step ``step`` this process's ids [b], and the sizes [B, 2] of the whole batch."""
        ids = self.sampler.ids(step)
        return ids[self.part], torch.from_numpy(self.images.sizes[ids.numpy()])
