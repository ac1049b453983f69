"""Features of stored images, and the raw pixels they are compared with."""

import torch
from torch import Tensor

from mocokit.data.augment import center_view
from mocokit.data.store import ImageSet
from mocokit.model.encoder import Encoder
from mocokit.model.encoding import batch_size, encode

BATCH = 256


def extract(encoder: Encoder, images: ImageSet, indices: Tensor | None = None) -> Tensor:
    """Features [N, D] float32 on the CPU, in order, of all images or of those at ``indices``."""
    indices = torch.arange(len(images)) if indices is None else indices
    count, cpu = len(indices), torch.device("cpu")
    batches = (rows_of(images, rows, cpu) for rows in indices.split(batch_size(encoder.device, count)))
    return torch.cat(list(encode(encoder, batches, images=count)))


def pixels(images: ImageSet, size: int, indices: Tensor | None = None) -> Tensor:
    """The images themselves as features: [N, C * size * size] float32, resized, each channel zero-centered
    by its mid-gray."""
    indices = torch.arange(len(images)) if indices is None else indices
    flat = [0.5] * images.channels, [0.5] * images.channels
    return torch.cat(
        [
            center_view(*rows_of(images, rows, torch.device("cpu")), size, *flat).flatten(1)
            for rows in indices.split(BATCH)
        ]
    )


def rows_of(images: ImageSet, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """What an encoder takes in: pixels [B, C, H, W] uint8 on ``device`` and true sizes [B, 2] on the CPU."""
    index = rows.numpy()
    return torch.from_numpy(images.batch(index)).to(device), torch.from_numpy(images.sizes[index])
