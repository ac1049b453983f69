"""The momentum encoder: an exact copy at step 0, an exponential moving average of the query encoder after."""

import copy
import math

import torch
from torch import Tensor, nn


def momentum_copy(encoder: nn.Module) -> nn.Module:
    """An exact copy, statistics included, that no gradient reaches."""
    return copy.deepcopy(encoder).requires_grad_(False)


@torch.no_grad()
def momentum_update(encoder_k: nn.Module, encoder_q: nn.Module, m: float) -> None:
    """theta_k <- m theta_k + (1 - m) theta_q (MoCo v1, equation 2).

    Buffers are left alone: the key encoder keeps the batch-norm statistics of the keys it sees.
    """
    keys: list[Tensor] = list(encoder_k.parameters())
    queries: list[Tensor] = list(encoder_q.parameters())
    torch._foreach_lerp_(keys, queries, 1.0 - m)


def momentum_at(step: int, steps: int, start: float, end: float) -> float:
    """Momentum of step ``step`` (from 0) of ``steps``: on half a cosine from ``start`` to ``end``.

    MoCo v3 has end 1: m = 1 - (1 - start) (1 + cos(pi t)) / 2, t the share of the run that is done.
    """
    return end - (end - start) * 0.5 * (1 + math.cos(math.pi * step / steps))
