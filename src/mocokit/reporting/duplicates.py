"""Images that are there more than once: with the same pixels, or nearly the same by thumbnails."""

import hashlib
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from mocokit.deploy.nearest import connected
from mocokit.evaluation.near_duplicates import LEAST, SIDE, least_correlation, thumbnails
from mocokit.reporting.images import ReportImages
from mocokit.reporting.neighbours import neighbours

COMPARED = 16  # nearest thumbnails of each image
MOST_IN_GROUP = 100
_SAME = 1e-4  # how far from 1 the correlation of thumbnails is at most that nothing tells apart


class Pairs(NamedTuple):
    """``rows`` [P, 2] int64 of near-duplicates, the ``correlation`` [P] float32 of their thumbnails, and the ``least``
    that makes a pair."""

    rows: np.ndarray
    correlation: np.ndarray
    least: float


class Duplicates:
    """Of N images those with the same pixels, and the near-duplicates among all others and the first of each of these.

    Near-duplicates are found without any features: of 26 pairs of photographs of flowers only 12 are among the 90
    nearest of each other by the features of an untrained network (docs/LOG.md, 2026-11-27).
    """

    def __init__(self, images: ReportImages) -> None:
        first: dict[bytes, int] = {}
        rows = [first.setdefault(_digest(pixels), row) for row, pixels in enumerate(images.pixels())]
        self.first = np.array(rows)  # row of each image's first copy, its own of most
        self.pairs = _apart(_near(images, np.unique(self.first)), len(images))

    @cached_property
    def near(self) -> np.ndarray:
        """Group of each image by near-duplicates alone, named by its first row: [N] int64."""
        return connected(self.pairs.rows, len(self.first))

    @cached_property
    def all(self) -> np.ndarray:
        """Group of each image by copies and near-duplicates: [N] int64."""
        copies = np.stack([np.arange(len(self.first)), self.first], axis=1)
        return connected(np.concatenate([self.pairs.rows, copies]), len(self.first))

    @cached_property
    def correlation(self) -> np.ndarray:
        """With the nearest near-duplicate of each image, 0 where there is none: [N] float32."""
        greatest = np.zeros(len(self.first), np.float32)
        np.maximum.at(greatest, self.pairs.rows, self.pairs.correlation[:, None])
        return greatest


def _digest(pixels: np.ndarray) -> bytes:
    return hashlib.blake2b(pixels.tobytes(), digest_size=16, key=repr(pixels.shape).encode()).digest()


def _near(images: ReportImages, rows: np.ndarray) -> Pairs:
    """Near-duplicates among ``rows``, by the rule of `mocokit.evaluation.near_duplicates`."""
    small = torch.cat([thumbnails(part) for part in images.parts if len(part)])[rows]
    compared = small.any(dim=1).numpy() & (images.sizes[rows].min(axis=1) >= SIDE)
    small, rows = small[compared], rows[compared]
    if len(rows) < 2:
        return Pairs(np.empty((0, 2), np.int64), np.empty(0, np.float32), LEAST)
    nearest = neighbours(small, COMPARED)
    least = least_correlation(nearest.similarity[:, 0])
    one, rank = (nearest.similarity >= least).nonzero(as_tuple=True)
    pairs = torch.stack([one, nearest.rows[one, rank]], dim=1).sort(dim=1).values.numpy()
    pairs, unique = np.unique(pairs, axis=0, return_index=True)
    return Pairs(rows[pairs], nearest.similarity[one, rank].numpy()[unique], least)


def _apart(pairs: Pairs, count: int) -> Pairs:
    """The pairs that are left when groups of more than `MOST_IN_GROUP` of ``count`` images are taken apart.

    Chains of ever so little different images, such as those of a film or of one scanner, would be a single group.
    In groups that are too large only pairs of half the distance count, then of a quarter and so on.
    """
    rows, correlation, distance = pairs.rows, pairs.correlation, 1 - pairs.least
    while distance > _SAME:
        group = connected(rows, count)
        large = np.bincount(group, minlength=count)[group] > MOST_IN_GROUP
        if not large.any():
            break
        distance /= 2
        kept = ~large[rows[:, 0]] | (1 - correlation <= distance)
        rows, correlation = rows[kept], correlation[kept]
    return Pairs(rows, correlation, pairs.least)
