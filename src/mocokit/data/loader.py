"""Batches of stored images on the device, each a function of (seed, step), so a run can start at any step."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mocokit import distributed
from mocokit.data.sampler import generator
from mocokit.data.store import ImageSet

RESIDENT_SHARE = 0.5  # of the free device memory that images may fill; the model needs the rest


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


class StepSampler(Dataset[Batch]):
    """The batch of every step: shuffled anew each epoch, incomplete last batches left out as in the papers.

    ``rows`` [N] int64 are the images to use, or None for all. Fewer than a batch are one batch.
    """

    def __init__(self, images: ImageSet, batch_size: int, seed: int, rows: Tensor | None = None) -> None:
        self.images, self.seed = images, seed
        self.rows = torch.arange(len(images)) if rows is None else rows
        self.batch_size = min(batch_size, len(self.rows))
        self.per_epoch = len(self.rows) // self.batch_size
        self.part = distributed.local_slice(
            self.batch_size
        )  # kept: a worker process of the loader has no peers
        self._epoch, self._order = -1, torch.empty(0)

    def ids(self, step: int) -> Tensor:
        """Which images step ``step`` (from 0) sees, in all processes together: [B] int64."""
        epoch, batch = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            order = torch.randperm(len(self.rows), generator=generator(self.seed, "order", epoch))
            self._epoch, self._order = epoch, self.rows[order]
        return self._order[batch * self.batch_size :][: self.batch_size]

    def __getitem__(self, step: int) -> Batch:
        own, sizes = self.share(step)
        return Batch(torch.from_numpy(self.images.batch(own.numpy())), sizes, own, step)

    def share(self, step: int) -> tuple[Tensor, Tensor]:
        """Of step ``step`` this process's ids [b], and the sizes [B, 2] of the whole batch."""
        ids = self.ids(step)
        return ids[self.part], torch.from_numpy(self.images.sizes[ids.numpy()])


class Batches:
    """Iterates over the batches of steps ``start`` to ``steps``.

    The whole set lives on the device where it fits; where it does not, ``workers`` processes read it ahead.
    On a CPU the memory-mapped store is the device's memory already.
    """

    def __init__(self, steps: StepSampler, total: int, device: torch.device, workers: int) -> None:
        self.steps, self.total, self.device, self.workers = steps, total, device, workers
        self.start = 0
        self.resident: Tensor | None = None
        if device.type != "cpu" and fits(steps.images.nbytes, device):
            self.resident = torch.from_numpy(steps.images.batch(np.arange(len(steps.images)))).to(device)

    @property
    def per_epoch(self) -> int:
        """Batches of an epoch."""
        return self.steps.per_epoch

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[Batch]:
        remaining = range(self.start, self.total)
        if self.resident is not None:
            return (self._resident_batch(step) for step in remaining)
        if self.device.type == "cpu":
            return (self.steps[step] for step in remaining)
        return self._streamed(remaining)

    def _streamed(self, remaining: range) -> Iterator[Batch]:
        loader: DataLoader[Batch] = DataLoader(
            self.steps,
            batch_size=None,
            sampler=remaining,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )
        return (batch._replace(images=batch.images.to(self.device, non_blocking=True)) for batch in loader)

    def _resident_batch(self, step: int) -> Batch:
        assert self.resident is not None
        own, sizes = self.steps.share(step)
        return Batch(self.resident[own.to(self.device, non_blocking=True)], sizes, own, step)


def fits(nbytes: int, device: torch.device) -> bool:
    """Whether ``nbytes`` of images may live on ``device``."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return nbytes < RESIDENT_SHARE * free
