"""Seeded random choices of images; everything is drawn on the CPU, so every device gets the same."""

import torch
from torch import Tensor

from mocokit.seeding import derive_seed


def generator(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """A CPU generator for one purpose at one step; drawing on the CPU gives the same draws for every device."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, step))


def random_subset(count: int, most: int, seed: int) -> Tensor:
    """At most ``most`` of ``count`` indices, seeded random, in ascending order."""
    if count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=generator(seed, "subset"))[:most].sort().values
