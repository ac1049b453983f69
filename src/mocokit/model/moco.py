"""Momentum Contrast: v1 (He et al. 2020, arXiv 1911.05722), v2 (arXiv 2003.04297), v3 (arXiv 2104.02057).

Letters as in the papers: q queries, k keys, K queue size, m momentum, tau temperature. B batch, D embedding.

All three pull a query to the key of the same image's other view and away from keys of other images; the key
encoder starts as an exact copy of the query encoder and follows it by momentum. Where they differ:

    |                  | v1            | v2            | v3                                               |
    |------------------|---------------|---------------|--------------------------------------------------|
    | negatives        | queue of keys | queue of keys | the batch's other keys (no queue)                |
    | queries and keys | x1, x2        | x1, x2        | x1, x2 and x2, x1 (symmetric)                    |
    | loss             | InfoNCE       | InfoNCE       | 2 tau InfoNCE, the sum of both halves            |
    | projection head  | linear        | MLP           | MLP with batch norm                              |
    | prediction head  | none          | none          | MLP with batch norm, in the query encoder alone  |
    | momentum         | constant      | constant      | on a cosine to 1                                 |
    | batch norm       | shuffled      | shuffled      | plain (over all processes together)              |

Where several processes share a batch, B is the whole batch and b the share of one; the keys of all are gathered, so
every process has the same queue.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mocokit import distributed
from mocokit.model.losses import LossOutput, info_nce, info_nce_in_batch
from mocokit.model.momentum import momentum_copy, momentum_update
from mocokit.model.queue import Queue


class MoCo(nn.Module):
    """Query encoder, momentum encoder, and a queue of ``K`` keys for v1 and v2, or none (``K`` = 0) for v3.

    ``backbone`` and ``head`` make both encoders; the ``predictor`` maps queries on, the identity in v1 and v2.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        predictor: nn.Module,
        *,
        dim: int,
        K: int,
        tau: float,
        symmetric: bool,
    ) -> None:
        super().__init__()
        self.encoder_q = nn.Sequential(backbone, head)
        self.predictor = predictor
        self.encoder_k = momentum_copy(self.encoder_q)
        self.queue = Queue(K, dim) if K else None
        self.tau, self.symmetric = tau, symmetric
        # Of the loss, which is the mean of the halves in v1 and v2 and 2 tau times their sum in v3 (algorithm 1).
        self.scale = 1.0 if K else 2 * tau * (1 + symmetric)

    @property
    def backbone(self) -> nn.Module:
        """The query encoder's backbone: what pretraining is for."""
        return self.encoder_q[0]

    def forward(self, x1: Tensor, x2: Tensor, ids: Tensor, shuffle: Tensor | None, m: float) -> LossOutput:
        """One step of MoCo: update the key encoder, contrast, then feed the queue.

        Args:
            x1, x2: two views [b, C, S, S] of the same images, float32.
            ids: [b] int64, which image each row is, so that no image is its own negative.
            shuffle: [B] int64 on the CPU, a random permutation for ShuffleBN, or None for none.
            m: momentum of this step.
        """
        momentum_update(self.encoder_k, self.encoder_q, m)
        pairs = [(x1, x2), (x2, x1)] if self.symmetric else [(x1, x2)]
        keys = [self.keys(x, shuffle) for _, x in pairs]
        halves = [self.contrast(self.queries(x), k, ids) for (x, _), k in zip(pairs, keys, strict=True)]
        if self.queue is not None:
            self.queue.enqueue(torch.cat(keys), distributed.all_gather(ids).repeat(len(keys)))
        loss, positive, negative = (sum(part) / len(halves) for part in zip(*halves, strict=True))
        return LossOutput(loss * self.scale, positive, negative)

    def contrast(self, q: Tensor, k: Tensor, ids: Tensor) -> LossOutput:
        """InfoNCE of queries [b, D] of images ``ids`` with the keys [B, D] of the whole batch."""
        share = distributed.local_slice(len(k))
        if self.queue is None:
            return info_nce_in_batch(q, k, self.tau, share.start)
        own = ids[:, None] == self.queue.ids[None]  # [b, K]
        negatives = self.queue.keys.clone()  # [K, D]; backward needs them after the queue has moved on
        return info_nce(q, k[share], negatives, self.tau, own)

    def queries(self, x: Tensor) -> Tensor:
        """Unit query embeddings [b, D]."""
        return normalize(self.predictor(self.encoder_q(x)).float(), dim=1)

    @torch.no_grad()
    def keys(self, x: Tensor, shuffle: Tensor | None) -> Tensor:
        """Unit key embeddings [B, D] of the whole batch, of which this process has the views ``x`` [b, C, S, S].

        ShuffleBN (v1, section 3.3): encoded in another order, with images of all processes, then put back.
        """
        if shuffle is not None:
            x = distributed.shuffle_rows(x, shuffle)
        k = distributed.all_gather(normalize(self.encoder_k(x).float(), dim=1))
        if shuffle is None:
            return k
        return torch.empty_like(k).index_copy_(0, shuffle.to(k.device, non_blocking=True), k)

    def chance_level(self, batch_size: int) -> float:
        """The loss of embeddings that tell nothing apart: log of the number of keys a query chooses from."""
        keys = batch_size if self.queue is None else len(self.queue.keys) + 1
        return self.scale * math.log(keys)
