"""What the pixels of each image say of its quality: pattern, light and sharpness, of gray as it is stored."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mocokit.deploy.nearest import CHUNK_FLOATS
from mocokit.reporting.images import ReportImages

LEVELS = 256


class Quality(NamedTuple):
    """Of N images, [N] float32 each. Gray is the mean over channels, in whole levels from 0 to 255.

    ``deviation`` of gray; ``dark`` and ``bright``, the least levels that 1 % and 99 % of the pixels don't exceed;
    ``laplacian``, its mean square; ``sharpness``, that by the mean square of the gradient, nan where there is none.
    """

    deviation: np.ndarray
    dark: np.ndarray
    bright: np.ndarray
    laplacian: np.ndarray
    sharpness: np.ndarray


def quality(images: ReportImages) -> Quality:
    """Of all images.

    The Laplacian alone (Pech-Pacheco et al. 2000, doi 10.1109/ICPR.2000.903548) is small in sharp images of little
    contrast, too, or with much plain sky; divided by the gradient both cancel out (docs/LOG.md, 2026-11-27).
    """
    found = []
    for part in images.parts:
        step = max(1, CHUNK_FLOATS // math.prod((images.channels, *part.images.canvas)))
        for rows in part.indices.split(step):
            pixels = torch.from_numpy(part.images.batch(rows.numpy()))
            found.append(_measured(pixels, torch.from_numpy(part.images.sizes[rows.numpy()])))
    return Quality(*torch.cat(found, dim=1).numpy())


def _measured(pixels: Tensor, sizes: Tensor) -> Tensor:
    """Of images uint8 [B, C, H, W], padded with zeros, of true ``sizes`` [B, 2]: [5, B], as in `Quality`."""
    gray = pixels.float().mean(dim=1).round()  # [B, H, W]
    B, H, W = gray.shape
    counts = torch.zeros(B, LEVELS).scatter_add_(1, gray.flatten(1).long(), torch.ones(1).expand(B, H * W))
    area = sizes.prod(dim=1)
    counts[:, 0] -= H * W - area
    shares, levels = counts / area[:, None], torch.arange(LEVELS).float()
    mean = shares @ levels
    deviation = (shares * (levels - mean[:, None]).square()).sum(dim=1).sqrt()
    dark, bright = ((100 * counts.cumsum(dim=1) < percent * area[:, None]).sum(dim=1) for percent in (1, 99))

    up, down, left, right = gray[:, :-2, 1:-1], gray[:, 2:, 1:-1], gray[:, 1:-1, :-2], gray[:, 1:-1, 2:]
    laplacian = _inside((up + down + left + right - 4 * gray[:, 1:-1, 1:-1]).square(), sizes)
    gradient = _inside((down - up).square() + (right - left).square(), sizes)
    sharpness = torch.where(gradient > 0, laplacian / gradient, torch.nan)
    return torch.stack([deviation, dark, bright, laplacian, sharpness])


def _inside(values: Tensor, sizes: Tensor) -> Tensor:
    """Mean of ``values`` [B, H - 2, W - 2] where all neighbours of a pixel are of the image: [B], 0 if nowhere."""
    inner = (sizes - 2).clamp(min=0)  # [B, 2]
    down, right = (torch.arange(side) < inner[:, dim, None] for dim, side in enumerate(values.shape[1:]))
    return torch.einsum("bhw,bh,bw->b", values, down.float(), right.float()) / inner.prod(dim=1).clamp(min=1)
