"""Nearest neighbours and near-duplicates by cosine, over a feature file that is read block by block.

Similarities are rounded to six decimals, which is what float32 can honestly give; equal ones are ordered by row.
So neither chunk size nor number of threads changes the order of identical images.
"""

import itertools
from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mocokit.console import progress
from mocokit.errors import UserError
from mocokit.evaluation.near_duplicates import TIMES_NEARER

if TYPE_CHECKING:  # reads files by pyarrow, which pretraining should not wait for
    from mocokit.deploy.feature_file import Features

MAX_PAIRS = 100_000  # of near-duplicates that are listed
USUAL_ROWS = 1000  # by which it is judged how near the nearest usually is
CHUNK_FLOATS = 2**22  # similarities held at once: 16 MB, and some times that for ranking them

_UNIT = 10**6
# A rank is one int64, greater for what comes first: above the similarity, below the row, the lowest first.
_ROW_BITS = 40
_LAST_ROW = (1 << _ROW_BITS) - 1


class Neighbour(NamedTuple):
    """A row of the features and its cosine to a query."""

    row: int
    similarity: float


class Pair(NamedTuple):
    """Two rows, the lower first, and their cosine."""

    rows: tuple[int, int]
    similarity: float


def unit(features: np.ndarray) -> Tensor:
    """Rows of float32 [N, D] scaled to length 1; zero vectors, which have no direction, stay zero."""
    x = torch.from_numpy(features)
    # By the largest value first, so that no square leaves the range of float32.
    x = x / x.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.nn.functional.normalize(x, dim=1)


def vectors(features: "Features", rows: Collection[int]) -> np.ndarray:
    """Features [len(rows), D] float32 of some rows; one out of range or a zero vector raises a UserError."""
    for row in rows:
        if not 0 <= row < features.rows:
            raise UserError(f"row {row}: {features.path} has rows 0 to {features.rows - 1}")
    found: dict[int, np.ndarray] = {}
    for first, block in features.blocks():
        found |= {row: block[row - first].copy() for row in rows if first <= row < first + len(block)}
    for row, vector in found.items():
        if not vector.any():
            raise UserError(f"row {row} of {features.path} is a zero vector, which resembles nothing")
    return np.stack([found[row] for row in rows])


@torch.inference_mode()
def nearest(
    features: "Features", queries: np.ndarray, k: int, exclude: list[int | None], device: str = "cpu"
) -> list[list[Neighbour]]:
    """The k rows of greatest cosine to each of ``queries`` [Q, D] float32, exactly; all rows if there are fewer.

    ``exclude`` has for each query a row that is left out, or None.
    """
    unit_queries = unit(queries).to(device)
    excluded = torch.tensor([-1 if row is None else row for row in exclude], device=device)
    best = torch.empty(len(queries), 0, dtype=torch.int64, device=device)
    step = max(1, CHUNK_FLOATS // len(queries))
    with progress("searching") as report:
        for first, block in features.blocks():
            for start in range(0, len(block), step):
                bank = unit(block[start : start + step]).to(device)
                rows = torch.arange(first + start, first + start + len(bank), device=device)
                ranks = (_rounded(unit_queries @ bank.T) << _ROW_BITS) + (_LAST_ROW - rows)
                ranks[rows == excluded[:, None]] = torch.iinfo(torch.int64).min
                best = torch.cat([best, ranks], dim=1)
                best = best.topk(min(k, best.shape[1]), dim=1).values
            report(first + len(block), features.rows)
    return _neighbours(best)


def _rounded(similarity: Tensor) -> Tensor:
    """Cosines in whole millionths, int64."""
    return (similarity.double().clamp(-1, 1) * _UNIT).round().long()


def _neighbours(ranks: Tensor) -> list[list[Neighbour]]:
    """Back from ranks, in descending order, leaving out what was left out."""
    rows = _LAST_ROW - (ranks & _LAST_ROW)
    kept = ranks != torch.iinfo(torch.int64).min
    return [
        [Neighbour(r, s / _UNIT) for r, s, keep in zip(*columns, strict=True) if keep]
        for columns in zip(rows.tolist(), (ranks >> _ROW_BITS).tolist(), kept.tolist(), strict=True)
    ]


def least_cosine(features: "Features", device: str = "cpu") -> float:
    """From which cosine on two rows are near-duplicates: `TIMES_NEARER` times nearer to 1 than the nearest other row
    usually is, the median over rows at equal distances; rounded to six decimals."""
    rows = np.unique(np.linspace(0, features.rows - 1, USUAL_ROWS, dtype=np.int64)).tolist()
    queries = np.concatenate([block[_within(rows, first, len(block))] for first, block in features.blocks()])
    found = nearest(features, queries, 1, rows, device)
    usual = np.median([neighbours[0].similarity for neighbours in found if neighbours] or [1.0])
    return round(1 - (1 - float(usual)) / TIMES_NEARER, 6)


def _within(rows: list[int], first: int, count: int) -> list[int]:
    return [row - first for row in rows if first <= row < first + count]


@torch.inference_mode()
def duplicates(features: "Features", threshold: float, device: str = "cpu") -> tuple[list[Pair], int]:
    """The pairs of rows whose cosine is at least ``threshold``, most similar first, and how many there are.

    At most `MAX_PAIRS` are in the list. Zero vectors are in no pair.
    """
    least, side, count = round(threshold * _UNIT), int(CHUNK_FLOATS**0.5), 0
    best = torch.empty(0, 3, dtype=torch.int64)  # minus the similarity, and the rows: sorted as tuples are
    with progress("looking for duplicates") as report:
        for first, block in features.blocks():
            left = unit(block).to(device)
            for second, other in features.blocks(first):
                right = left if second == first else unit(other).to(device)
                for i, j in itertools.product(range(0, len(left), side), range(0, len(right), side)):
                    if first + i < second + j + side:  # not below the diagonal
                        pairs = _pairs(left[i : i + side], right[j : j + side], first + i, second + j, least)
                        count += len(pairs)
                        best = torch.cat([best, pairs.cpu()])
                    if len(best) > 2 * MAX_PAIRS:
                        best = _most_similar(best)
            report(first + len(block), features.rows)
    return [Pair((i, j), -similarity / _UNIT) for similarity, i, j in _most_similar(best).tolist()], count


def _pairs(left: Tensor, right: Tensor, first: int, second: int, least: int) -> Tensor:
    """[P, 3] of the pairs i < j: minus the similarity in millionths, i, j."""
    similarity = left @ right.T
    # A slightly lower threshold in float32 first, so that only few values are rounded, in rows that have any.
    near = (least - 1) / _UNIT
    rows = (similarity.amax(dim=1) >= near).nonzero().squeeze(1)
    i, j = (similarity[rows] >= near).nonzero(as_tuple=True)
    i = rows[i]
    rounded = _rounded(similarity[i, j])
    directed = left.any(dim=1)[i] & right.any(dim=1)[j]
    keep = (rounded >= least) & (first + i < second + j) & directed
    return torch.stack([-rounded[keep], first + i[keep], second + j[keep]], dim=1)


def _most_similar(pairs: Tensor) -> Tensor:
    array = pairs.numpy()
    order = np.lexsort(array.T[::-1])[:MAX_PAIRS]
    return torch.from_numpy(array[order])


def groups(pairs: list[Pair]) -> list[list[int]]:
    """The rows that pairs connect, largest group first."""
    if not pairs:
        return []
    rows, ends = np.unique([pair.rows for pair in pairs], return_inverse=True)
    of_row = connected(ends.reshape(-1, 2), len(rows))
    found = [rows[of_row == group].tolist() for group in np.unique(of_row)]
    return sorted(found, key=len, reverse=True)


def connected(pairs: np.ndarray, count: int) -> np.ndarray:
    """First row of the group of each of ``count`` images, which ``pairs`` [P, 2] make: [count] int64."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, first, group = np.unique(connected_components(graph, directed=False)[1], return_index=True, return_inverse=True)
    return first[group]
