"""Weighted k-nearest-neighbour classification: how well features separate classes, without any training."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mocokit.console import progress
from mocokit.data.notes import count
from mocokit.evaluation.metrics import rank_of_class, top_shares, wilson_interval
from mocokit.evaluation.splits import LabelledSplits, Subset

CHUNK_FLOATS = 2**24  # similarities held at once: 64 MB


class Accuracy(NamedTuple):
    """Fractions from 0 to 1 of so many ``images``; ``top5`` is None for five classes or fewer that train."""

    top1: float
    top5: float | None
    images: int

    @classmethod
    def of(cls, ranks: Tensor, classes: int) -> "Accuracy":
        """From the rank of each image's class [M] among so many ``classes`` that train, by `knn_ranks`."""
        return cls(*top_shares(ranks, classes), len(ranks))

    def figures(self) -> dict[str, Any]:
        """``{top1, top5, ci95}``, the last one being the interval of top1: plain values for JSON."""
        return {"top1": self.top1, "top5": self.top5, "ci95": list(wilson_interval(self.top1, self.images))}


@torch.inference_mode()
def knn_ranks(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, *, k: int = 200, temperature: float = 0.1
) -> Tensor:
    """kNN with votes weighted by exp(cosine / temperature) (Wu et al. 2018, section 3.4).

    Args:
        bank, bank_labels: features [N, D], not necessarily unit vectors, and labels [N] int64 from 0.
        queries, query_labels: features [M, D] and labels [M].
        k: number of neighbours; at most all of the bank are used. A class that none of them is of is not predicted,
            not even as fifth.

    Cosines are float32: of features that all but coincide (RankMe near 1, collapse) the order is chance.

    Returns:
        [M] int64: how many classes are predicted before the true one of each query, 0 if it is right.
    """
    bank, queries = normalize(bank.float(), dim=1), normalize(queries.float(), dim=1)
    classes = int(torch.maximum(bank_labels.max(), query_labels.max())) + 1
    k = min(k, len(bank))
    chunk = max(1, CHUNK_FLOATS // len(bank))
    ranks = []
    with progress("comparing images") as report:
        for start in range(0, len(queries), chunk):
            similarity = queries[start : start + chunk] @ bank.T  # [chunk, N]
            nearest, index = similarity.topk(k, dim=1)
            votes = _log_votes((nearest - nearest[:, :1]) / temperature, bank_labels.to(index.device)[index], classes)
            ranks.append(rank_of_class(votes, query_labels[start : start + chunk].to(votes.device)).cpu())
            report(start + len(similarity), len(queries))
    return torch.cat(ranks)


def _log_votes(logits: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Log of the sum of exp(``logits``) [B, k] for each class: [B, classes], -inf for one without a neighbour.

    The largest of each class is taken out before, since exp(1 / temperature) has no room in float32 below 1/89.
    """
    largest = logits.new_full((len(logits), classes), -torch.inf).scatter_reduce_(1, labels, logits, "amax")
    rest = (logits - largest.gather(1, labels)).exp()
    return largest + torch.zeros_like(largest).scatter_add_(1, labels, rest).log()


@dataclass(frozen=True)
class KnnEvaluator:
    """kNN of the same labelled images whatever the features are: ``queries`` by the ``bank``."""

    bank: Subset
    queries: Subset
    classes: int
    k: int
    temperature: float

    @classmethod
    def of(cls, splits: LabelledSplits, k: int, temperature: float) -> "KnnEvaluator":
        """The test images by all training images: nothing is chosen, so none of them have to validate."""
        return cls(splits.train_val, splits.test, splits.trained, k, temperature)

    def sample(self, bank: int, queries: int, seed: int) -> "KnnEvaluator":
        """The same evaluator with at most that many images in the bank and the queries."""
        return replace(self, bank=self.bank.sample(bank, seed), queries=self.queries.sample(queries, seed))

    def largest_class(self) -> Tensor:
        """Of which images a classifier is right that always predicts the largest class of the bank: [M] bool."""
        return self.queries.labels == int(self.bank.labels.bincount().argmax())

    def describe(self) -> str:
        """Which images are classified by which."""
        tested = count(len(self.queries), "test image", "test images")
        return f"{tested} by {count(len(self.bank), 'training image', 'training images')}"

    def all_vote(self, flag: str) -> str:
        """That k is not below the number of training images, and the ``flag`` by which fewer vote; empty if it is."""
        if not self.k >= len(self.bank) > 1:
            return ""
        fewer = max(1, min(10, len(self.bank) // 10))
        return f"k {self.k}: all {len(self.bank):,} training images vote; {flag} {fewer} may say more"

    @property
    def images_read(self) -> int:
        return len(self.bank) + len(self.queries)

    def ranks(self, features: Callable[[Subset], Tensor]) -> Tensor:
        """As `knn_ranks`, of the queries in order, with the features [N, D] that ``features`` gives of some images."""
        bank, queries = ((features(part), part.labels) for part in (self.bank, self.queries))
        return knn_ranks(*bank, *queries, k=self.k, temperature=self.temperature)
