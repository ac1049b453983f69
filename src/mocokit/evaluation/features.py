"""Features of stored images, and raw pixels as the features to compare them with."""

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
    """The resized images themselves as features: [N, C * size * size] float32 from -1 to 1, mid-gray is 0."""
    indices = torch.arange(len(images)) if indices is None else indices
    half, cpu = [0.5] * images.channels, torch.device("cpu")
    batches = (rows_of(images, rows, cpu) for rows in indices.split(BATCH))
    return torch.cat([center_view(*batch, size, mean=half, std=half).flatten(1) for batch in batches])


def rows_of(images: ImageSet, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """The input of an encoder: pixels [B, C, H, W] uint8 on ``device`` and true sizes [B, 2] on the CPU."""
    positions = indices.numpy()
    return torch.from_numpy(images.batch(positions)).to(device), torch.from_numpy(images.sizes[positions])
