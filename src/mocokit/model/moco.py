"""Momentum Contrast: v1 (He et al. 2020, arXiv 1911.05722), v2 (arXiv 2003.04297), v3 (arXiv 2104.02057).

Letters as in the papers: q queries, k keys, K queue size, m momentum, tau temperature. B batch, D embedding.

All three pull a query to the key of the same image's other view and away from keys of other images; the key
encoder starts as an exact copy of the query encoder and follows it by momentum. Where they differ:

    |                  | v1 (`MoCoV2`) | v2 (`MoCoV2`) | v3 (`MoCoV3`)                                    |
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

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mocokit import distributed
from mocokit.model.losses import LossOutput, info_nce, info_nce_in_batch


class MoCo(nn.Module):
    """What all versions share: a query encoder, a momentum encoder, and the order of a step.

    ``backbone`` and ``head`` make both encoders; the ``predictor`` maps queries on, the identity in v1 and v2.
    With ``symmetric`` both views are the query in turn.
    """

    def __init__(
        self, backbone: nn.Module, head: nn.Module, predictor: nn.Module, *, tau: float, symmetric: bool
    ) -> None:
        super().__init__()
        self.encoder_q = nn.Sequential(backbone, head)
        self.predictor = predictor
        self.encoder_k = momentum_copy(self.encoder_q)
        self.tau, self.symmetric = tau, symmetric
        self._children: list[nn.Module] = []
        self._holders: list[list[nn.Module]] = [[], []]

    @property
    def backbone(self) -> nn.Module:
        """The query encoder's backbone: what pretraining is for."""
        return self.encoder_q[0]

    def forward(self, x1: Tensor, x2: Tensor, ids: Tensor, shuffle: Tensor | None, m: float) -> LossOutput:
        """One step: update the key encoder, contrast, then feed the queue if there is one.

        Args:
            x1, x2: two views [b, C, S, S] of the same images, float32.
            ids: [b] int64, which image each row is, so that no image is its own negative.
            shuffle: [B] int64 on the CPU, a random permutation for ShuffleBN, or None for none.
            m: momentum of this step.
        """
        theta_k, theta_q = self._thetas()
        momentum_update(theta_k, theta_q, m)
        pairs = [(x1, x2), (x2, x1)] if self.symmetric else [(x1, x2)]
        keys = [self.keys(x, shuffle) for _, x in pairs]
        halves = [self.contrast(self.queries(x), k, ids) for (x, _), k in zip(pairs, keys, strict=True)]
        self.enqueue(keys, ids)
        loss, positive, negative = (sum(part) / len(halves) for part in zip(*halves, strict=True))
        return LossOutput(loss * self.loss_scale, positive, negative)

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

    def _thetas(self) -> list[list[Tensor]]:
        """Parameters of key and query encoder, each once. To look for them at each step would cost the host of a GPU a
        millisecond, so the modules that have some are listed, anew where a backbone or head is another than before;
        not the parameters themselves, which ``load_state_dict(assign=True)`` of any module replaces."""
        children: list[nn.Module] = [*self.encoder_k.children(), *self.encoder_q.children()]
        if self._children != children:
            self._children = children
            self._holders = [[m for m in e.modules() if m._parameters] for e in (self.encoder_k, self.encoder_q)]
        of_modules = ((p for module in holders for p in module._parameters.values()) for holders in self._holders)
        return [[p for p in dict.fromkeys(parameters) if p is not None] for parameters in of_modules]

    loss_scale = 1.0

    def contrast(self, q: Tensor, k: Tensor, ids: Tensor) -> LossOutput:
        """The loss of queries [b, D] of images ``ids`` with the keys [B, D] of the whole batch."""
        raise NotImplementedError

    def enqueue(self, keys: list[Tensor], ids: Tensor) -> None:
        """Remember the keys of this step, [B, D] of each half."""

    def chance_level(self, batch_size: int) -> float:
        """The loss of embeddings that tell nothing apart: of a guess among all keys that a query chooses from."""
        raise NotImplementedError


class MoCoV2(MoCo):
    """MoCo v1 and v2: the negatives are a queue of the last K keys.

    ``model(x1, x2, ids, shuffle, m)`` is a step without the optimizer's: the key encoder moves by momentum m, the
    result's ``loss``, a float32 scalar, is of views x1 and x2 [B, C, S, S] of images ``ids`` [B], and the keys join
    the queue. A backbone or head may be replaced between steps, in both encoders; what is inside one not after the
    first step. ``shuffle`` is a permutation [B] for ShuffleBN, or None; ``model.backbone`` is what pretraining is for.

    Args:
        backbone: from views [B, C, S, S] to features [B, F]; for several groups of `mocokit.split_batch_norm`.
        head: from features to embeddings [B, dim].
        predictor: maps queries [B, dim] on; v1 and v2 have none.
        dim: D, of the embeddings.
        K: keys in the queue; random ones at first.
        tau: temperature.
        symmetric: both views are the query in turn.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        predictor: nn.Module | None = None,
        *,
        dim: int,
        K: int,
        tau: float,
        symmetric: bool = False,
    ) -> None:
        super().__init__(backbone, head, predictor or nn.Identity(), tau=tau, symmetric=symmetric)
        self.queue = Queue(K, dim)

    def contrast(self, q: Tensor, k: Tensor, ids: Tensor) -> LossOutput:
        """InfoNCE (v1, equation 1) against the queue as it was before this batch."""
        own = ids[:, None] == self.queue.ids[None]  # [b, K]
        return info_nce(q, k[distributed.local_slice(len(k))], self.queue.keys, self.tau, own)

    def enqueue(self, keys: list[Tensor], ids: Tensor) -> None:
        """The keys of this step take the places of the oldest."""
        self.queue.enqueue(torch.cat(keys), distributed.all_gather(ids).repeat(len(keys)))

    def chance_level(self, batch_size: int) -> float:
        """log(K + 1)."""
        return math.log(len(self.queue.keys) + 1)


class MoCoV3(MoCo):
    """MoCo v3: the negatives are the other keys of the batch; the loss is 2 tau times the sum of the halves."""

    def __init__(
        self, backbone: nn.Module, head: nn.Module, predictor: nn.Module, *, tau: float, symmetric: bool
    ) -> None:
        super().__init__(backbone, head, predictor, tau=tau, symmetric=symmetric)
        self.loss_scale = 2 * tau * (1 + symmetric)  # of the mean of the halves (algorithm 1)

    def contrast(self, q: Tensor, k: Tensor, ids: Tensor) -> LossOutput:
        """InfoNCE within the batch (algorithm 1, ``ctr``)."""
        return info_nce_in_batch(q, k, self.tau, distributed.local_slice(len(k)).start)

    def chance_level(self, batch_size: int) -> float:
        """2 tau log(B) for each half."""
        return self.loss_scale * math.log(batch_size)


class Queue(nn.Module):
    """The last K keys (MoCo v1, section 3.1): a ring buffer that takes batches of any size.

    Buffers, all part of the state dict: ``keys`` [K, D] float32 unit vectors, random until real ones arrive;
    ``ids`` [K] int64, the image each key came from or -1; ``pointer`` [], where the next key goes.
    """

    keys: Tensor
    ids: Tensor
    pointer: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("ids", torch.full((size,), -1, dtype=torch.int64))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @property
    def fill(self) -> Tensor:
        """Share of entries that are real keys, from 0 to 1."""
        return (self.ids >= 0).float().mean()

    @torch.inference_mode(False)  # tensors of inference could not be trained with later
    @torch.no_grad()
    def enqueue(self, keys: Tensor, ids: Tensor) -> None:
        """Replace the oldest entries by ``keys`` [B, D] of images ``ids`` [B]; of more than K the last K stay."""
        size, batch = len(self.keys), len(keys)
        first = max(0, batch - size)
        slots = (self.pointer + torch.arange(first, batch, device=self.keys.device)) % size
        # In new tensors: backward, of compiled code too, needs the queue as it was when it was contrasted with.
        self.keys = self.keys.index_copy(0, slots, keys[first:].to(self.keys.dtype))
        self.ids = self.ids.index_copy(0, slots, ids[first:])
        self.pointer = (self.pointer + batch) % size


def momentum_copy(encoder: nn.Module) -> nn.Module:
    """The momentum encoder at step 0: an exact copy, statistics included, that no gradient reaches."""
    return copy.deepcopy(encoder).requires_grad_(False)


@torch.no_grad()
def momentum_update(theta_k: list[Tensor], theta_q: list[Tensor], m: float) -> None:
    """theta_k <- m theta_k + (1 - m) theta_q (MoCo v1, equation 2), in place.

    Of parameters alone, not of buffers: the key encoder keeps the batch-norm statistics of the keys it sees.
    """
    torch._foreach_lerp_(theta_k, theta_q, 1.0 - m)


def momentum_at(step: float, steps: int, start: float, end: float) -> float:
    """Momentum of step ``step`` (from 0) of ``steps``: on half a cosine from ``start`` to ``end``.

    MoCo v3 has end 1: m = 1 - (1 - start) (1 + cos(pi t)) / 2, t the share of the run that is done.
    """
    return end - (end - start) * 0.5 * (1 + math.cos(math.pi * step / steps))
