"""The papers' optimizers, and their learning-rate schedules as functions of the step."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from timm.optim import Lars, Muon
from timm.optim.muon import get_lr_scale, zeropower_via_newtonschulz
from torch import Tensor, nn

from mocokit.config import PretrainConfig

PRECISION, AT_ONCE = torch.bfloat16, 2**24  # of Muon's products; numbers in a batch of matrices
COEFFICIENTS = [  # of timm's five Newton-Schulz iterations, its preset "quintic"
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]
MILESTONES = (0.6, 0.8)  # of the run; MoCo v1 divides the rate by 10 at epochs 120 and 160 of 200


def lr_factor(step: float, *, steps: int, warmup: int, schedule: str) -> float:
    """Share of the peak learning rate at ``step`` (from 0) of ``steps``.

    cosine: (1 + cos(pi t)) / 2 with t the share of the run that is done (v2); step: a tenth from each of
    `MILESTONES` on (v1). Linear warm-up before, from 1/warmup to 1.
    """
    if step < warmup:
        return min(1.0, (step + 1) / warmup)  # steps of a budget that follows the clock may lie between
    done = (step - warmup) / max(1, steps - warmup)
    if schedule == "step":
        return float(0.1 ** sum(done >= milestone for milestone in MILESTONES))
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class AuthorsLars(Lars):
    """LARS as in the code of MoCo v3: trust |p| / |u| times u, the gradient plus ``decay`` times p.

    timm adds the norms of gradient and decay up, which differs wherever they have different directions; most where
    there is no gradient yet, as in a residual branch that starts at zero: the authors' rule then moves by the decay
    alone, scaled up to trust |p|.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Decay joins the gradients first, so that timm, which is told of none, takes the norm of both."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if group["decay"] and params:
                torch._foreach_add_([p.grad for p in params], params, alpha=group["decay"])
        return super().step(closure)


class BatchedMuon(Muon):
    """timm's Muon with Nesterov's momentum, but that matrices of as many rows are orthogonalised together.

    The products are fewer and larger. Matrices lie, the short side up, and get columns of zeros to be equally long,
    which stay so and change no other.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """timm tells at the first step which parameters are matrices to it, and moves the others at each."""
        matrices = []
        for group in self.param_groups:
            own = [p for p in group["params"] if p.grad is not None and self.state[p].get("use_muon")]
            matrices += [(p, p.grad) for p in own]
            if own:
                self._move(own, group)
        for p, _ in matrices:
            p.grad = None
        loss = super().step(closure)
        for p, gradient in matrices:
            p.grad = gradient
        return loss

    def _move(self, params: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [p.grad for p in params if p.grad is not None]
        momenta = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        by_rows = defaultdict(list)
        for p, update in zip(params, torch._foreach_lerp(gradients, momenta, group["momentum"]), strict=True):
            matrix = update.movedim(1, -1).flatten(1)  # columns in the order of memory: the result has the same
            lying = matrix.mT if len(matrix) > matrix.shape[1] else matrix
            by_rows[len(lying)].append((p, lying))
        for rows, equal in by_rows.items():
            columns = max(lying.shape[1] for _, lying in equal)
            most = max(1, AT_ONCE // (rows * columns))
            for some in (equal[start : start + most] for start in range(0, len(equal), most)):
                batch = gradients[0].new_zeros(len(some), rows, columns, dtype=PRECISION)
                for place, (_, lying) in zip(batch, some, strict=True):
                    place[:, : lying.shape[1]] = lying
                batch = zeropower_via_newtonschulz(batch, len(COEFFICIENTS), COEFFICIENTS, dtype=PRECISION)
                for (p, lying), update in zip(some, batch, strict=True):
                    update = update[:, : lying.shape[1]]
                    target = p.movedim(1, -1)
                    update = (update if rows == len(p) else update.mT).reshape(target.shape)
                    target.add_(update, alpha=-group["lr"] * get_lr_scale(lying.shape))


def create_optimizer(
    parameters: Iterable[nn.Parameter],
    config: PretrainConfig,
    restart: int = 0,
    place: Callable[[int], tuple[float, int]] | None = None,
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """The configured optimizer over the parameters that are not frozen, and its schedule.

    One fused kernel updates all weights (LARS, LARC and Muon have none). SGD, AdamW and Muon decay biases and norms
    like the rest, as in the papers' code; LARS and LARC leave their rate and their decay alone (v3, implementation
    details). Muon (Jordan et al. 2024) moves a matrix, or a convolution as one, by its gradient's momentum with all
    singular values near one, sized as steps of AdamW (Liu et al. 2025, arXiv 2502.16982), which moves the rest.
    The schedule begins anew at step ``restart``, with its warm-up, and covers the steps that remain: a warm restart
    (SGDR, Loshchilov & Hutter 2017). ``place`` says where in a schedule of how many steps a step is, if that is not
    what the configuration says.
    """
    free = [p for p in parameters if p.requires_grad]
    lr, decay, momentum = config.lr, config.weight_decay, config.sgd_momentum
    optimizer: torch.optim.Optimizer
    if config.optimizer == "adamw":
        optimizer = torch.optim.AdamW(free, lr=lr, weight_decay=decay, fused=True)
    elif config.optimizer == "muon":
        optimizer = BatchedMuon(free, lr=lr, weight_decay=decay, momentum=momentum, nesterov=True)
    elif config.optimizer == "sgd":
        optimizer = torch.optim.SGD(free, lr=lr, momentum=momentum, weight_decay=decay, fused=True)
    else:
        larc = config.optimizer == "larc"
        name = "weight_decay" if larc else "decay"
        groups = [
            {"params": [p for p in free if p.ndim > 1], name: decay, "always_adapt": True},
            {"params": [p for p in free if p.ndim <= 1], name: 0.0},
        ]
        kind = partial(Lars, trust_clip=True) if larc else partial(AuthorsLars, eps=0.0)
        optimizer = kind(groups, lr=lr, momentum=momentum, trust_coeff=config.trust)

    def factor(step: int) -> float:
        at, steps = place(step) if place else (step, config.steps)
        since = max(0, at - restart)
        return lr_factor(since, steps=steps - restart, warmup=config.warmup_steps, schedule=config.schedule)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
