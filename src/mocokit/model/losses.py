"""Contrastive losses as pure functions of tensors, computed in float32."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


class LossOutput(NamedTuple):
    """A loss to minimise, and two detached figures to watch: mean similarity to positives and negatives."""

    loss: Tensor
    positive: Tensor
    negative: Tensor


def info_nce(q: Tensor, k: Tensor, queue: Tensor, temperature: float, own: Tensor | None = None) -> LossOutput:
    """InfoNCE of each query against its key and the queue (MoCo v1, equation 1), mean over the batch.

    Args:
        q: queries [B, D], unit vectors.
        k: keys [B, D], unit vectors; row i is the positive of query i. No gradient flows into keys.
        queue: negatives [K, D], unit vectors.
        temperature: tau.
        own: [B, K] bool, true where an entry of the queue came from the query's own image; left out.

    The loss of embeddings that tell nothing apart is log(K + 1).
    """
    with torch.autocast(q.device.type, enabled=False):
        q, k, queue = q.float(), k.detach().float(), queue.detach().float()
        positive = torch.einsum("bd,bd->b", q, k)  # [B]
        negative = torch.einsum("bd,kd->bk", q, queue)  # [B, K]
        mean_negative = negative.detach().mean()
        if own is not None:
            negative = negative.masked_fill(own, -math.inf)
        logits = torch.cat([positive[:, None], negative], dim=1) / temperature  # [B, 1 + K]
        loss = (logits.logsumexp(dim=1) - logits[:, 0]).mean()
    return LossOutput(loss, positive.detach().mean(), mean_negative)


def info_nce_in_batch(q: Tensor, k: Tensor, temperature: float, first: int = 0) -> LossOutput:
    """InfoNCE of each query against all keys of the batch (MoCo v3, algorithm 1, ``ctr`` without its 2 tau).

    Args:
        q: queries [B, D], unit vectors.
        k: keys [N, D], unit vectors, of the whole batch: at least 2. No gradient flows into keys.
        temperature: tau.
        first: the row of ``k`` with the positive of query 0; those of the others follow.

    The loss of embeddings that tell nothing apart is log(N).
    """
    with torch.autocast(q.device.type, enabled=False):
        q, k = q.float(), k.detach().float()
        similarity = torch.einsum("bd,nd->bn", q, k)  # [B, N]
        labels = first + torch.arange(len(q), device=q.device)
        loss = cross_entropy(similarity / temperature, labels)
        positive = similarity.detach().gather(1, labels[:, None]).mean()
        mean = similarity.detach().mean()
    return LossOutput(loss, positive, (mean * len(k) - positive) / (len(k) - 1))
