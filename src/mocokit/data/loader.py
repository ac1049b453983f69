"""The batches of a run on its device, from any step on: stored images or streamed ones, read ahead by torch."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mocokit.data.dataset import Batch, StoredDataset
from mocokit.data.sampler import StepSampler
from mocokit.data.store import ImageSet
from mocokit.data.streaming import StreamingDataset, StreamingImages

RESIDENT_SHARE = 0.25  # of the free device memory that images may fill; the model needs the rest


class Loader:
    """Moves batches to the device. Which images a step sees is a function of (seed, step), decided by the data set.

    A stored set lives on a GPU whole where it fits; where it does not, ``workers`` processes read it ahead. On a
    CPU the memory-mapped store is the device's memory already.

    Attributes:
        per_epoch: batches of an epoch.
    """

    def __init__(self, dataset: StoredDataset | StreamingDataset, device: torch.device, workers: int) -> None:
        self.dataset, self.device = dataset, device
        self.per_epoch = dataset.per_epoch
        self.workers = 0 if device.type == "cpu" or dataset.reads_ahead else workers
        self.resident: Tensor | None = None
        if isinstance(dataset, StoredDataset) and fits(dataset.images.nbytes, device):
            everything = np.arange(len(dataset.images))
            self.resident = torch.from_numpy(dataset.images.batch(everything)).to(device)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of the steps from ``start`` to before ``stop``."""
        if self.resident is not None:
            assert isinstance(self.dataset, StoredDataset)
            for step in range(start, stop):
                own, sizes = self.dataset.share(step)
                yield Batch(self.resident[own.to(self.device, non_blocking=True)], sizes, own, step)
            return
        loader: DataLoader[Batch] = DataLoader(
            self.dataset.from_step(start, stop),
            batch_size=None,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # its own, so that no draw of the program's is used up
        )
        for batch in loader:
            yield batch._replace(images=batch.images.to(self.device, non_blocking=True))


def create_loader(
    images: ImageSet | StreamingImages,
    *,
    batch_size: int,
    seed: int,
    device: torch.device,
    workers: int,
    rows: Tensor | None = None,
) -> Loader:
    """The loader of a run.

    Args:
        images: what to learn from, stored or streamed.
        batch_size: images a step, over all processes; all images if there are fewer.
        seed: of the order.
        device: where the batches go.
        workers: processes that read ahead.
        rows: [N] int64, the stored images to use; None for all.
    """
    if isinstance(images, StreamingImages):
        return Loader(StreamingDataset(images, batch_size, seed, workers), device, workers)
    rows = torch.arange(len(images)) if rows is None else rows
    return Loader(StoredDataset(images, StepSampler(rows, batch_size, seed)), device, workers)


def fits(nbytes: int, device: torch.device) -> bool:
    """Whether ``nbytes`` of images may live on ``device``."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own, of steps before
    return nbytes < RESIDENT_SHARE * free
