"""ReLU in bfloat16 on a CPU as a comparison of integers, with the same numbers.

A bfloat16 read as an integer of 16 bits has its sign, and zero where it is zero. torch turns each into a float32 and
back, in so many instructions that 32 MB take 8.4 ms where the comparison takes 1.6 (docs/LOG.md).
"""

from typing import Any

import torch
from torch import Tensor, nn

MUCH = 2**20  # numbers, 2 MB: what is less stays near the cores, and the way here costs as much


class _Rectify(torch.autograd.Function):
    """max(x, 0) in place, but that a NaN may become 0: the gradient of a batch norm before it is NaN all the same."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        x.view(torch.int16).clamp_min_(0)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        bits = [t.view(torch.int16) for t in (gradients[0], y)]
        return torch.ops.aten.threshold_backward(*bits, 0).view(torch.bfloat16)


class IntegerReLU(nn.ReLU):
    """`torch.nn.ReLU` in place that, in training, compares integers where it gets much bfloat16 on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        much = x.numel() >= MUCH and x.dtype == torch.bfloat16 and x.device.type == "cpu"
        if not (self.training and much) or torch.compiler.is_compiling():
            return super().forward(x)
        y: Tensor = _Rectify.apply(x)
        return y


def rectify_integers(module: nn.Module) -> nn.Module:
    """Let each ReLU of ``module`` that works in place be an `IntegerReLU`; the rest stays."""
    for relu in module.modules():
        if type(relu) is nn.ReLU and relu.inplace:
            relu.__class__ = IntegerReLU
    return module
