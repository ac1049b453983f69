"""Features of stored images: an encoder's, and two that take no network, raw pixels and a colour histogram."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mocokit.data.augment import center_view
from mocokit.data.store import ImageSet
from mocokit.model.encoder import Encoder
from mocokit.model.encoding import batch_size, encode

BATCH = 256
# More is slower and no better: kNN of pixels on flowers 41.4 % at 16 x 16, 39.8 at 32 and 39.3 at 64; on 5,000 images
# of CIFAR-10 33.6 % at 16 and 33.4 at 32. Histograms on flowers 56.9 % at 64 and 56.6 at 32.
PIXELS_SIDE, HISTOGRAM_SIDE = 16, 64
COLOUR_BINS, LEVELS, DIRECTIONS = 6, 16, 8


def extract(encoder: Encoder, images: ImageSet, indices: Tensor | None = None) -> Tensor:
    """Features [N, D] float32 on the CPU, in order, of all images or of those at ``indices``."""
    indices = torch.arange(len(images)) if indices is None else indices
    count, cpu = len(indices), torch.device("cpu")
    batches = (rows_of(images, rows, cpu) for rows in indices.split(batch_size(encoder.device, count)))
    return torch.cat(list(encode(encoder, batches, images=count)))


def pixels(images: ImageSet, size: int, indices: Tensor | None = None) -> Tensor:
    """The images themselves, resized to ``size``, 16 at most: [N, C * S * S] float32 from -1 to 1, mid-gray is 0."""
    return _of_views(images, min(size, PIXELS_SIDE), indices, lambda x: 2 * x.flatten(1) - 1)


def histogram(images: ImageSet, size: int, indices: Tensor | None = None) -> Tensor:
    """`histograms` of the images, resized to ``size``, 64 at most."""
    return _of_views(images, min(size, HISTOGRAM_SIDE), indices, histograms)


@torch.no_grad()
def histograms(x: Tensor) -> Tensor:
    """Square roots of histograms that sum to 1, of images [B, C, H, W] from 0 to 1: [B, D] float32.

    Of colour (C = 3) the 6 x 6 x 6 bins of red, green and blue (Swain and Ballard 1991, doi 10.1007/BF00130487); of
    gray (C = 1) 16 levels and, with as much weight, 8 directions of the gradient modulo 180 degrees by its magnitude
    (as in HOG, Dalal and Triggs 2005, doi 10.1109/CVPR.2005.177); of others 16 levels of each channel.

    The cosine of two such vectors is the Hellinger kernel of their histograms (Arandjelovic and Zisserman 2012, doi
    10.1109/CVPR.2012.6248018). Without the root a few full bins decide: kNN on flowers is then 48.1 % in place of
    56.9 %, on 5,000 images of CIFAR-10 30.0 % in place of 31.8 %.
    """
    C = x.shape[1]
    values = (255 * x).round().long()  # as stored, where nothing is resized
    if C == 3:
        red, green, blue = (COLOUR_BINS * values // 256).flatten(2).unbind(1)
        bins = _sums((COLOUR_BINS * red + green) * COLOUR_BINS + blue, COLOUR_BINS**3)
    else:
        bins = _sums((LEVELS * values // 256).flatten(2), LEVELS).flatten(1)
    if C == 1:
        bins = torch.cat([normalize(bins, p=1), normalize(_directions(values[:, 0].float()), p=1)], dim=1)
    return normalize(bins, p=1).sqrt()


def _directions(gray: Tensor) -> Tensor:
    """Sums of the magnitudes of the gradients of ``gray`` [B, H, W], by direction: [B, 8]; the first is around 0."""
    down, right = torch.gradient(gray, dim=(1, 2))
    direction = (torch.atan2(down, right) * (DIRECTIONS / math.pi)).round().long() % DIRECTIONS
    return _sums(direction.flatten(1), DIRECTIONS, torch.hypot(down, right).flatten(1))


def _sums(bins: Tensor, count: int, weights: Tensor | None = None) -> Tensor:
    """Sums of ``weights``, or numbers, of pixels by bin: int64 [..., N] below ``count`` -> float32 [..., count]."""
    weights = torch.ones(bins.shape) if weights is None else weights
    return torch.zeros(*bins.shape[:-1], count).scatter_add_(-1, bins, weights)


def _of_views(images: ImageSet, size: int, indices: Tensor | None, features: Callable[[Tensor], Tensor]) -> Tensor:
    """``features`` of the central square of images at ``indices``, resized, with pixels from 0 to 1."""
    indices = torch.arange(len(images)) if indices is None else indices
    black, white, cpu = [0.0] * images.channels, [1.0] * images.channels, torch.device("cpu")
    batches = (rows_of(images, rows, cpu) for rows in indices.split(BATCH))
    return torch.cat([features(center_view(*batch, size, mean=black, std=white)) for batch in batches])


def rows_of(images: ImageSet, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """The input of an encoder: pixels [B, C, H, W] uint8 on ``device`` and true sizes [B, 2] on the CPU."""
    positions = indices.numpy()
    return torch.from_numpy(images.batch(positions)).to(device), torch.from_numpy(images.sizes[positions])
