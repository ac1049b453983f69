"""Batch norm, sum and ReLU of a residual network's training on a CPU in few passes over memory (`kernels`)."""

import functools
import threading
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ROW, CHUNK = 256, 2**17  # numbers of a row, about, and at most of a chunk, as `kernels` has them
_ONE_AT_A_TIME = threading.Lock()  # one of Numba's pools of threads can't be called by two


def can_fuse(norm: nn.BatchNorm2d, x: Tensor, splits: int) -> bool:
    """Whether ``norm`` of ``x`` [N, C, H, W] in ``splits`` groups is what the kernels take: they check nothing."""
    if x.device.type != "cpu" or x.dtype not in (torch.bfloat16, torch.float32) or torch.compiler.is_compiling():
        return False
    known = norm.affine and norm.bias is not None and norm.weight.dtype == torch.float32
    if not known or x.ndim != 4 or x.shape[1] != norm.num_features or x.numel() <= splits * x.shape[1]:
        return False
    return len(x) % splits == 0 and x.is_contiguous(memory_format=torch.channels_last)


def normalise(
    norm: nn.BatchNorm2d, x: Tensor, shortcut: Tensor | None, splits: int, relu: bool
) -> tuple[Tensor, Tensor]:
    """Batch norm of ``splits`` groups of ``x`` [N, C, H, W], plus the ``shortcut`` if there is one, then a ``relu``.

    Gives y like x, and the means over groups of mean and unbiased variance [2, C], float32.
    """
    if shortcut is not None:
        shortcut = shortcut.expand_as(x).to(x.dtype).contiguous(memory_format=torch.channels_last)
    y: Tensor
    statistics: Tensor
    y, statistics = _Normalise.apply(x, norm.weight, norm.bias, shortcut, splits, norm.eps, relu)
    return y, statistics


@functools.cache
def _loaded() -> ModuleType:
    """Imported when a network first needs them. Where Numba's threads are OpenMP's, it sets how many torch has."""
    from mocokit.model import kernels

    threads = torch.get_num_threads()
    kernels.numba.set_num_threads(1)  # starts them
    torch.set_num_threads(threads)
    return kernels


def _kernels() -> ModuleType:
    """With as many threads as torch has now."""
    kernels = _loaded()
    most: int = kernels.numba.config.NUMBA_NUM_THREADS
    kernels.numba.set_num_threads(min(torch.get_num_threads(), most))
    return kernels


def _rows(x: Tensor, splits: int) -> "np.ndarray[Any, Any]":
    """The bits of channels-last images [N, C, H, W]: [splits, R, W], a row of as many pixels as make about `ROW`."""
    N, C, H, W = x.shape
    pixels = N // splits * H * W
    together = next(p for p in range(max(1, ROW // C), 0, -1) if pixels % p == 0)
    bits = torch.uint16 if x.dtype == torch.bfloat16 else torch.uint32
    rows = x.detach().permute(0, 2, 3, 1).view(splits, pixels // together, together * C)
    return rows.view(bits).numpy()


class _Normalise(torch.autograd.Function):
    """`normalise`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, splits: int, eps: float, relu: bool
    ) -> tuple[Tensor, Tensor]:
        C, add = x.shape[1], shortcut is not None
        y, statistics = torch.empty_like(x), weight.new_empty(2, C)
        mean, rstd = weight.new_empty(2, splits, C)
        chunks = -(-x.numel() // splits // CHUNK)
        rows = _rows(x, splits)
        more = rows if shortcut is None else _rows(shortcut, splits)
        vectors = [v.detach().numpy() for v in (weight, bias, mean, rstd, statistics)]
        with _ONE_AT_A_TIME:
            _kernels().normalise(rows, more, _rows(y, splits), *vectors, chunks, eps, add, relu)
        ctx.save_for_backward(x, y if add else x, weight, bias, mean, rstd)
        ctx.chunks, ctx.add, ctx.relu = chunks, add, relu
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, bias, mean, rstd = ctx.saved_tensors
        dy = gradients[0].to(x.dtype).contiguous(memory_format=torch.channels_last)
        dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
        dsum = torch.empty_like(x) if ctx.add else dx
        rows = [_rows(t, len(mean)) for t in (x, y, dy, dx, dsum)]
        vectors = [v.detach().numpy() for v in (weight, bias, mean, rstd, dweight, dbias)]
        with _ONE_AT_A_TIME:
            _kernels().differentiate(*rows, *vectors, ctx.chunks, ctx.add, ctx.relu)
        return dx, dweight, dbias, dsum if ctx.add else None, None, None, None
