"""The nearest neighbours of every image in feature space, exactly; the map and all suggestions are made of them."""

from typing import NamedTuple

import torch
from torch import Tensor

from mocokit.console import progress
from mocokit.deploy.nearest import CHUNK_FLOATS, unit

SHOWN = 5  # of each image
NEIGHBOURS = 90  # three times the perplexity of the map (van der Maaten 2014, JMLR 15, section 4.1)


class Neighbours(NamedTuple):
    """Of each of N images the k others with the greatest cosine, greatest first, of equal ones the lower row.

    ``rows`` [N, k] int64; ``similarity`` [N, k] float32, cosines.
    """

    rows: Tensor
    similarity: Tensor


@torch.inference_mode()
def neighbours(features: Tensor, k: int = NEIGHBOURS) -> Neighbours:
    """Those by ``features`` [N, D] float32; N - 1 of each if there are fewer than k. A zero vector resembles nothing
    (cosine 0)."""
    x = unit(features.numpy())
    count = len(x)
    k = min(k, count - 1)
    rows, similarity = torch.empty(count, k, dtype=torch.int64), torch.empty(count, k)
    step = max(1, CHUNK_FLOATS // max(1, count))
    with progress("comparing images") as report:
        for start in range(0, count, step):
            block = (x[start : start + step] @ x.T).clamp(-1, 1)
            these = torch.arange(start, start + len(block))
            block[torch.arange(len(block)), these] = -torch.inf
            # One more digit than float32 sums agree on, so that equal images are equal neighbours, lowest row first.
            found = block.topk(k, dim=1)
            order = _order(found.values, found.indices)
            rows[these], similarity[these] = found.indices.gather(1, order), found.values.gather(1, order)
            report(start + len(block), count)
    return Neighbours(rows, similarity)


def _order(similarity: Tensor, rows: Tensor) -> Tensor:
    """Columns by similarity in millionths, greatest first, then by row."""
    by_row = rows.argsort(dim=1)
    rounded = (similarity.double() * 1e6).round().gather(1, by_row)
    return by_row.gather(1, rounded.argsort(dim=1, descending=True, stable=True))
