"""SGD and the papers' learning-rate schedules, as functions of the step."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from mocokit.config import PretrainConfig

MILESTONES = (0.6, 0.8)  # of the run; MoCo v1 divides the rate by 10 at epochs 120 and 160 of 200


def lr_factor(step: int, *, steps: int, warmup: int, schedule: str) -> float:
    """Share of the peak learning rate at ``step`` (from 0) of ``steps``.

    cosine: (1 + cos(pi t)) / 2 with t the share of the run that is done (v2); step: a tenth from each of
    `MILESTONES` on (v1). Linear warm-up before, from 1/warmup to 1.
    """
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    if schedule == "step":
        return float(0.1 ** sum(done >= milestone for milestone in MILESTONES))
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def create_optimizer(
    parameters: Iterable[nn.Parameter], config: PretrainConfig
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """SGD over all parameters, biases and norms decayed like the rest as in the papers' code, and its schedule."""
    optimizer = torch.optim.SGD(
        parameters, lr=config.lr, momentum=config.sgd_momentum, weight_decay=config.weight_decay
    )

    def factor(step: int) -> float:
        return lr_factor(step, steps=config.steps, warmup=config.warmup_steps, schedule=config.schedule)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
