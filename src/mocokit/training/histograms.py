"""Weight histograms for TensorBoard, counted where the weights are: one transfer for all of them."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

BINS = 64


class Histogram(NamedTuple):
    """Of one tensor's ``num`` values: their extremes and sums, and how many lie in each of `BINS` equal bins.

    ``bucket_limits`` and ``bucket_counts`` [1 + BINS] are as TensorBoard wants them: an upper limit for each count,
    the first one that of an empty bin that ends where the values begin.
    """

    min: float
    max: float
    num: int
    sum: float
    sum_squares: float
    bucket_limits: list[float]
    bucket_counts: list[float]


@torch.no_grad()
def histograms(tensors: Mapping[str, Tensor]) -> dict[str, Histogram]:
    """The histogram of every tensor, none of them empty, all on one device; the host waits for it once."""
    if not tensors:
        return {}
    counted = torch.stack([_count(tensor.flatten().float()) for tensor in tensors.values()]).cpu()
    return {
        name: _histogram(tensor.numel(), row)
        for (name, tensor), row in zip(tensors.items(), counted, strict=True)
    }


def _count(x: Tensor) -> Tensor:
    """[4 + BINS] float64: least and greatest value, sum and sum of squares, values in each bin. x: [N] float32."""
    low, high = x.aminmax()
    width = ((high - low) / BINS).clamp(
        min=torch.finfo(x.dtype).tiny
    )  # of equal values: all in the first bin
    bins = ((x - low) / width).long().clamp_(0, BINS - 1)  # what is no number, too
    counts = torch.zeros(BINS, dtype=torch.int64, device=x.device).scatter_add_(
        0, bins, torch.ones_like(bins)
    )
    return torch.cat([torch.stack([low, high, x.sum(), x.square().sum()]).double(), counts.double()])


def _histogram(num: int, row: Tensor) -> Histogram:
    low, high, total, squares = row[:4].tolist()
    limits = torch.linspace(low, high, BINS + 1, dtype=torch.float64).tolist()
    return Histogram(low, high, num, total, squares, limits, [0.0, *row[4:].tolist()])
