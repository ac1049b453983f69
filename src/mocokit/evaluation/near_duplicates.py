"""Test images that are nearly the same as a training image, found by thumbnails; no encoder is needed."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

from mocokit.console import progress
from mocokit.evaluation.splits import Subset

SIDE = 16  # of the thumbnails
LEAST, MOST = 0.9, 0.98  # correlation from which on two images may be, and are, near-duplicates
TIMES_NEARER = 5  # than the nearest training image usually is
MOST_TRAIN, MOST_TEST = 60_000, 10_000  # images that are looked at
_BLOCK = 1000
_BLOCK_FLOATS = 2**24  # of the pixels that thumbnails are made of at once: 64 MB


class NearDuplicates(NamedTuple):
    """How many of so many ``test`` images were ``found`` to have a near-duplicate among so many ``train`` images; the
    names of the ``first`` and of its duplicate."""

    found: int
    test: int
    train: int
    first: tuple[str, str] | None


def near_duplicates(train: Subset, test: Subset, seed: int) -> NearDuplicates | None:
    """Compare gray thumbnails, of which mean, rows' and columns' means are taken out, so that a horizon between sky and
    sea is not what two photographs have in common.

    Near-duplicates correlate by 0.9 and are five times nearer to 1 than the nearest training image usually is: drawn
    digits are alike without being the same. From 0.98 on all are. Of many images a random choice by ``seed`` is
    looked at, of those that are no smaller than a thumbnail; None if there are no such in both parts.
    """
    train, test = (part.where(torch.from_numpy(part.sizes.min(axis=1) >= SIDE)) for part in (train, test))
    if not (len(train) and len(test)):
        return None
    train, test = train.sample(MOST_TRAIN, seed), test.sample(MOST_TEST, seed)
    bank, asked = thumbnails(train), thumbnails(test)
    similarity = torch.cat([(block @ bank.T).amax(dim=1) for block in asked.split(_BLOCK)])
    found = similarity >= least_correlation(similarity)
    first = None
    if found.any():
        row = int(found.int().argmax())
        match = int((bank @ asked[row]).argmax())
        first = (test.images.names[int(test.indices[row])], train.images.names[int(train.indices[match])])
    return NearDuplicates(int(found.sum()), len(test), len(train), first)


def least_correlation(nearest: Tensor) -> float:
    """From which correlation on two images are near-duplicates, where those to the ``nearest`` others are [N]."""
    return min(MOST, max(LEAST, 1 - (1 - float(nearest.median())) / TIMES_NEARER))


def thumbnails(part: Subset) -> Tensor:
    """Unit vectors [N, SIDE * SIDE] float32, whose products are correlations; zeros of an image without any pattern."""
    small = torch.empty(len(part), SIDE, SIDE)
    sizes = part.sizes
    block = min(_BLOCK, max(1, _BLOCK_FLOATS // math.prod((part.images.channels, *part.images.canvas))))
    with progress("looking for near-duplicates") as report:
        for start in range(0, len(part), block):
            report(start, len(part))
            rows = part.indices[start : start + block].numpy()
            gray = torch.from_numpy(part.images.batch(rows)).float().mean(dim=1, keepdim=True)
            true = sizes[start : start + block]
            if (true == gray.shape[2:]).all():
                small[start : start + len(rows)] = adaptive_avg_pool2d(gray, SIDE)[:, 0]
                continue
            for row, (height, width) in enumerate(true.tolist()):
                small[start + row] = adaptive_avg_pool2d(gray[row, :, :height, :width], SIDE)[0]
    for dim in (1, 2):
        small -= small.mean(dim=dim, keepdim=True)
    return normalize(small.flatten(1), eps=1.0)  # below that only rounding is left
