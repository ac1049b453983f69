"""The queue of keys: a ring buffer that takes batches of any size and remembers whose key each entry is."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize


class Queue(nn.Module):
    """The last K keys (MoCo v1, section 3.1).

    Buffers, all part of the state dict: ``keys`` [K, D] float32 unit vectors, random until real ones arrive;
    ``ids`` [K] int64, the image each key came from or -1; ``pointer`` [], where the next key goes.
    """

    keys: Tensor
    ids: Tensor
    pointer: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("ids", torch.full((size,), -1, dtype=torch.int64))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @property
    def fill(self) -> Tensor:
        """Share of entries that are real keys, from 0 to 1."""
        return (self.ids >= 0).float().mean()

    @torch.no_grad()
    def enqueue(self, keys: Tensor, ids: Tensor) -> None:
        """Replace the oldest entries by ``keys`` [B, D] of images ``ids`` [B]; of more than K the last K stay."""
        size, batch = len(self.keys), len(keys)
        first = max(0, batch - size)
        slots = (self.pointer + torch.arange(first, batch, device=self.keys.device)) % size
        self.keys.index_copy_(0, slots, keys[first:].to(self.keys.dtype))
        self.ids.index_copy_(0, slots, ids[first:])
        self.pointer.add_(batch).remainder_(size)
