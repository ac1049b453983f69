"""Which images a step sees, and other seeded choices: drawn on the CPU, so that every device gets the same."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mocokit.seeding import derive_seed

_one_thread = threading.RLock()


def generator(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """A CPU generator for one purpose at one step."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, step))


@contextmanager
def torch_seeded(seed: int, purpose: str) -> Iterator[None]:
    """Inside, what draws from torch's own generator, as new layers do, is a function of seed and purpose; afterwards
    that is as it was. A process has only one, so threads take turns."""
    with _one_thread, torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, purpose))
        yield


def random_subset(count: int, most: int, seed: int) -> Tensor:
    """At most ``most`` of ``count`` indices, seeded random, in ascending order."""
    if count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=generator(seed, "subset"))[:most].sort().values


class StepSampler:
    """The images of every step: shuffled anew each epoch, incomplete last batches left out as in the papers.

    ``rows`` [N] int64 are the images to use. Fewer than a batch are one batch.
    """

    def __init__(self, rows: Tensor, batch_size: int, seed: int) -> None:
        self.rows, self.seed = rows, seed
        self.batch_size = min(batch_size, len(rows))
        self.per_epoch = len(rows) // self.batch_size
        self._epoch, self._order = -1, torch.empty(0)

    def ids(self, step: int) -> Tensor:
        """Which images step ``step`` (from 0) sees, in all processes together: [B] int64."""
        epoch, batch = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            order = torch.randperm(len(self.rows), generator=generator(self.seed, "order", epoch))
            self._epoch, self._order = epoch, self.rows[order]
        return self._order[batch * self.batch_size :][: self.batch_size]
