"""Momentum Contrast (He et al. 2020, arXiv 1911.05722, algorithm 1; v2: arXiv 2003.04297).

Letters as in the papers: q queries, k keys, K queue size, m momentum, tau temperature. B batch, D embedding.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mocokit.model.losses import Contrast, info_nce
from mocokit.model.momentum import momentum_copy, momentum_update
from mocokit.model.queue import Queue


class MoCo(nn.Module):
    """Query encoder, momentum encoder and queue. v1 and v2 differ in head, views and schedule, not here."""

    def __init__(
        self, backbone: nn.Module, head: nn.Module, *, dim: int, K: int, m: float, tau: float, symmetric: bool
    ) -> None:
        super().__init__()
        self.encoder_q = nn.Sequential(backbone, head)
        self.encoder_k = momentum_copy(self.encoder_q)
        self.queue = Queue(K, dim)
        self.m, self.tau, self.symmetric = m, tau, symmetric

    @property
    def backbone(self) -> nn.Module:
        """The query encoder's backbone: what pretraining is for."""
        return self.encoder_q[0]

    def forward(self, x1: Tensor, x2: Tensor, ids: Tensor, shuffle: Tensor) -> Contrast:
        """One step of MoCo: update the key encoder, contrast, then feed the queue.

        Args:
            x1, x2: two views [B, C, S, S] of the same images, float32.
            ids: [B] int64, which image each row is, so that no image is its own negative.
            shuffle: [B] int64, a random permutation for ShuffleBN.
        """
        momentum_update(self.encoder_k, self.encoder_q, self.m)
        own = ids[:, None] == self.queue.ids[None]  # [B, K]
        negatives = self.queue.keys.clone()  # [K, D]; backward needs them after the queue has moved on
        if self.symmetric:
            k1, k2 = self.keys(x1, shuffle), self.keys(x2, shuffle)
            a = info_nce(self.queries(x1), k2, negatives, self.tau, own)
            b = info_nce(self.queries(x2), k1, negatives, self.tau, own)
            contrast = Contrast(*((u + v) / 2 for u, v in zip(a, b, strict=True)))
            keys, ids = torch.cat([k1, k2]), torch.cat([ids, ids])
        else:
            keys = self.keys(x2, shuffle)
            contrast = info_nce(self.queries(x1), keys, negatives, self.tau, own)
        self.queue.enqueue(keys, ids)
        return contrast

    def queries(self, x: Tensor) -> Tensor:
        """Unit query embeddings [B, D]."""
        return normalize(self.encoder_q(x).float(), dim=1)

    @torch.no_grad()
    def keys(self, x: Tensor, shuffle: Tensor) -> Tensor:
        """Unit key embeddings [B, D]; ShuffleBN (v1, section 3.3): encoded in another order, then put back."""
        k = normalize(self.encoder_k(x[shuffle]).float(), dim=1)
        return torch.empty_like(k).index_copy_(0, shuffle, k)
