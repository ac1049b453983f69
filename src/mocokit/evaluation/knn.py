"""Weighted k-nearest-neighbour classification: how well features group classes, without training anything."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mocokit.data.sampler import random_subset
from mocokit.data.store import ImageSet, Store

CHUNK_FLOATS = 2**24  # similarities held at once: 64 MB


class Accuracy(NamedTuple):
    """Fractions from 0 to 1."""

    top1: float
    top5: float


@torch.inference_mode()
def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor | None,
    query_labels: Tensor | None,
    *,
    k: int = 200,
    temperature: float = 0.1,
) -> Accuracy:
    """Accuracy of the vote of the k nearest, each weighted exp(cosine / temperature) (Wu et al. 2018, section 3.4).

    Args:
        bank: features [N, D] of labelled images; need not be unit vectors.
        bank_labels: [N] int64 from 0.
        queries, query_labels: features [M, D] and labels [M]; None asks for each image of the bank in turn,
            leaving it out of its own vote.
        k: neighbours; at most all of the bank are used.
        temperature: of the weights.
    """
    alone = queries is None
    if queries is None or query_labels is None:
        queries, query_labels = bank, bank_labels
    bank, queries = normalize(bank.float(), dim=1), normalize(queries.float(), dim=1)
    classes = int(torch.maximum(bank_labels.max(), query_labels.max())) + 1
    k = min(k, len(bank) - alone)
    chunk = max(1, CHUNK_FLOATS // len(bank))
    hits = torch.zeros(2, dtype=torch.int64)
    for start in range(0, len(queries), chunk):
        similarity = queries[start : start + chunk] @ bank.T  # [chunk, N]
        if alone:
            similarity.diagonal(start).fill_(-torch.inf)
        nearest, index = similarity.topk(k, dim=1)
        votes = torch.zeros(len(nearest), classes, dtype=nearest.dtype, device=nearest.device)
        votes.scatter_add_(1, bank_labels.to(index.device)[index], (nearest / temperature).exp())
        ranking = votes.argsort(dim=1, descending=True, stable=True)[:, :5]  # equal votes: the first class
        right = ranking == query_labels[start : start + chunk, None].to(ranking.device)
        hits += torch.stack([right[:, :1].any(dim=1).sum(), right.any(dim=1).sum()]).cpu()
    top1, top5 = (hits.double() / len(queries)).tolist()
    return Accuracy(top1, top5)


@dataclass(frozen=True)
class KnnEvaluator:
    """Which labelled images vote and which ask: the same for everything that is compared.

    The training split votes; the test split asks, else the validation split, else each training image in turn,
    left out of its own vote. ``votes`` and ``asks`` are indices into these, or None for all.
    """

    store: Store
    k: int
    temperature: float
    votes: Tensor | None = None
    asks: Tensor | None = None

    def sample(self, votes: int, asks: int, seed: int) -> "KnnEvaluator":
        """The same test on at most that many images."""
        few = random_subset(len(self.bank), votes, seed)
        some = None if self.queries is None else random_subset(len(self.queries), asks, seed)
        return KnnEvaluator(self.store, self.k, self.temperature, few, some)

    @property
    def bank(self) -> ImageSet:
        """The images that vote."""
        return self.store.splits["train"]

    @property
    def queries(self) -> ImageSet | None:
        """The images that ask, or None if those are the bank's own."""
        return self.store.splits.get("test") or self.store.splits.get("val")

    @property
    def asked(self) -> int:
        """How many images ask."""
        if self.queries is None:
            return len(self.bank if self.votes is None else self.votes)
        return len(self.queries if self.asks is None else self.asks)

    @property
    def images_read(self) -> int:
        """How many images' features one test takes."""
        votes = len(self.bank if self.votes is None else self.votes)
        return votes + (0 if self.queries is None else self.asked)

    def accuracy(self, features: Callable[[ImageSet, Tensor | None], Tensor]) -> Accuracy:
        """Accuracy of ``features(images, indices)`` [N, D]."""
        k, temperature, asking = self.k, self.temperature, self.queries
        bank, bank_labels = features(self.bank, self.votes), labels_of(self.bank, self.votes)
        if asking is None:
            return knn_accuracy(bank, bank_labels, None, None, k=k, temperature=temperature)
        queries, labels = features(asking, self.asks), labels_of(asking, self.asks)
        return knn_accuracy(bank, bank_labels, queries, labels, k=k, temperature=temperature)


def labels_of(images: ImageSet, indices: Tensor | None = None) -> Tensor:
    """Labels [N] int64 of labelled images, of all or of those at ``indices``."""
    assert images.labels is not None
    labels = torch.from_numpy(images.labels)
    return labels if indices is None else labels[indices]
