"""Images whose neighbours have another label, and nearly none their own: possible label errors."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mocokit.deploy.nearest import CHUNK_FLOATS
from mocokit.reporting.neighbours import Neighbours

# On 5,000 images of CIFAR-10 with 3 % of the labels changed, by features of EfficientNet-Lite0, 59 % of what is listed
# is changed, and 42 % of what is changed listed. Where another class has most neighbours, whatever the own one has, it
# is 27 and 36 % from a share of 60 % on (docs/LOG.md, 2026-11-27).
K, LEAST, FEWEST = 50, 10, 5  # neighbours that count, and that there have to be, of small classes fewer
OTHER, TIMES = 0.5, 10  # share of the other class, and by how much it is greater than that of the own


class LabelErrors(NamedTuple):
    """``rows`` [M] int64, those with the greatest ``share`` first; [M] each: the ``suggested`` class, int64, its
    ``share`` of the neighbours and that of the ``own`` class, float32. ``k`` is how many neighbours were counted."""

    rows: np.ndarray
    suggested: np.ndarray
    share: np.ndarray
    own: np.ndarray
    k: int


def label_errors(labels: np.ndarray, neighbours: Neighbours) -> LabelErrors:
    """Images of which at least the share `OTHER` of the k nearest with a label are of one other class, and `TIMES` the
    share of their own class; of a class of few images its share of those that could be near.

    That hardly any neighbour has the same label says more than that most have another: cats are often among dogs.

    Args:
        labels: [N] int64, -1 of an image without a label. k is `K`, or the size of the median image's class if that is
            less.
        neighbours: of each image; those without a label are passed over. One with fewer than `LEAST` others (in
            small classes k, but never fewer than `FEWEST`), or the only one of its class, is not listed.
    """
    label, parts = torch.from_numpy(labels), []
    known = label[label >= 0]
    members = known.bincount(minlength=1)
    k = min(K, int(members[known].median())) if len(known) else 0
    for rows in torch.arange(len(label)).split(max(1, CHUNK_FLOATS // len(members))):
        parts.append(_listed(rows, label[rows], label[neighbours.rows[rows]], members, k))
    rows, suggested, share, own = (torch.cat(values).numpy() for values in zip(*parts, strict=True))
    order = np.lexsort((rows, -share))
    return LabelErrors(rows[order], suggested[order], share[order], own[order], k)


def _listed(rows: Tensor, label: Tensor, near: Tensor, members: Tensor, k: int) -> tuple[Tensor, ...]:
    """Of images with ``label`` [B] and those of their neighbours, ``near`` [B, n]: as in `LabelErrors`."""
    counted = (near >= 0) & ((near >= 0).cumsum(dim=1) <= k)
    votes = torch.zeros(len(rows), len(members)).scatter_add_(1, near.clamp(min=0), counted.float())
    number, own_class = votes.sum(dim=1), label.clamp(min=0)[:, None]
    own = votes.gather(1, own_class)[:, 0]
    other, suggested = votes.scatter(1, own_class, -1).max(dim=1)
    possible = torch.minimum(number, members[own_class[:, 0]] - 1)
    listed = (label >= 0) & (number >= min(LEAST, max(FEWEST, k))) & (possible > 0)
    listed &= (other >= OTHER * number) & (other * possible >= TIMES * own * number)
    return rows[listed], suggested[listed], (other / number)[listed], (own / number)[listed]
