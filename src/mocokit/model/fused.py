"""Batch norm, sum and ReLU of a residual network's training on a CPU in few passes over memory (`kernels`)."""

import functools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mocokit.console import say
from mocokit.errors import reason_of

ROW, CHUNK = 256, 2**15  # numbers of a row and of a chunk, about, as `kernels` has them
MANY = 2**19  # numbers of one group: for fewer, torch's operations one by one take no longer
_ONE_AT_A_TIME = threading.Lock()  # one of Numba's pools of threads can't be called by two


def _renew_lock() -> None:
    """Another thread may hold it when a process is forked, and does not live on there."""
    global _ONE_AT_A_TIME
    _ONE_AT_A_TIME = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def can_fuse(norm: nn.BatchNorm2d, x: Tensor, splits: int) -> bool:
    """Whether ``norm`` of ``x`` [N, C, H, W] in ``splits`` groups is what the kernels take, which check nothing, and
    are faster with."""
    if type(x) is not Tensor or not x.is_cpu or x.dtype not in (torch.bfloat16, torch.float32):
        return False
    if torch.compiler.is_compiling() or not norm.track_running_stats or x.ndim != 4:
        return False
    vectors: list[Any] = [norm.weight, norm.bias, norm.running_mean, norm.running_var]
    if not all(_is_vector(v, torch.float32) and v.shape == x.shape[1:2] for v in vectors):
        return False
    if not _is_vector(norm.num_batches_tracked, torch.int64):
        return False
    few = max(MANY if splits == 1 else 0, splits * x.shape[1] + 1)  # torch refuses one number a channel and group
    fits = x.numel() >= few and len(x) % splits == 0 and x.is_contiguous(memory_format=torch.channels_last)
    return fits and _kernels() is not None


def _is_vector(v: Any, dtype: torch.dtype) -> bool:
    """Of numbers that lie next to each other in memory; subclasses of tensors may have none."""
    return type(v) in (Tensor, nn.Parameter) and v.is_cpu and v.dtype == dtype and v.is_contiguous()


def normalise(norm: nn.BatchNorm2d, x: Tensor, shortcut: Tensor | None, splits: int, relu: bool) -> Tensor:
    """Batch norm of ``splits`` groups of ``x`` [N, C, H, W], plus the ``shortcut`` if there is one, then a ``relu``.

    The running statistics move towards the means over groups of mean and unbiased variance.
    """
    if shortcut is not None:
        shortcut = shortcut.expand_as(x).to(x.dtype).contiguous(memory_format=torch.channels_last)
    y: Tensor = _Normalise.apply(x, norm.weight, norm.bias, shortcut, norm, splits, relu)
    return y


@functools.cache
def _load() -> tuple[ModuleType | None, int]:
    """`kernels`, or None where Numba does not work, which is told; and the process that has its threads."""
    threads = torch.get_num_threads()
    try:
        import numba

        if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
            raise RuntimeError("NUMBA_DISABLE_JIT is set")
        from mocokit.model import kernels

        numba.get_num_threads()  # starts them
        return kernels, os.getpid()
    except Exception as error:
        say(f"batch norm runs in torch's own operations, which take longer: {reason_of(error)}")
        return None, os.getpid()
    finally:
        torch.set_num_threads(threads)  # where Numba's are OpenMP's, it has set how many torch has


def _kernels() -> ModuleType | None:
    """Imported when a network first needs them. A process that was forked from the one with the threads has none."""
    with _ONE_AT_A_TIME:
        kernels, process = _load()
    return kernels if process == os.getpid() else None


@contextmanager
def _running() -> Iterator[ModuleType]:
    """`kernels` with as many threads as torch has now; afterwards Numba has as many as before."""
    kernels, _ = _load()
    assert kernels is not None
    numba = kernels.numba
    with _ONE_AT_A_TIME:
        before = numba.get_num_threads()
        numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
        try:
            yield kernels
        finally:
            numba.set_num_threads(before)


def _sizes(x: Tensor, splits: int) -> tuple[int, int, int, int]:
    """G, R, W and C of `kernels`: rows of as many pixels as make about `ROW` numbers."""
    N, C, H, W = x.shape
    pixels = N // splits * H * W
    together = next(p for p in range(max(1, ROW // C), 0, -1) if pixels % p == 0)
    return splits, pixels // together, together * C, C


class _Normalise(torch.autograd.Function):
    """`normalise`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        shortcut: Tensor | None,
        norm: nn.BatchNorm2d,
        splits: int,
        relu: bool,
    ) -> Tensor:
        y, moments, add = torch.empty_like(x), weight.new_empty(2, splits, x.shape[1]), shortcut is not None
        sizes, chunks = _sizes(x, splits), -(-x.numel() // splits // CHUNK)
        tensors = [t.data_ptr() for t in (x, x if shortcut is None else shortcut, y, weight, bias, moments)]
        buffers: list[Any] = [norm.running_mean, norm.running_var, norm.num_batches_tracked]
        running = tuple(t.data_ptr() for t in buffers)
        momentum = -1.0 if norm.momentum is None else float(norm.momentum)
        with _running() as kernels:
            kernels.normalise(
                kernels.BITS[x.itemsize], *tensors, running, sizes, chunks, float(norm.eps), momentum, add, relu
            )
        ctx.save_for_backward(x, y if add and relu else x, weight, bias, moments)
        ctx.sizes, ctx.chunks, ctx.add, ctx.relu = sizes, chunks, add, relu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, bias, moments = ctx.saved_tensors
        dy = dy.to(x.dtype)
        x, y, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, y, dy))
        dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
        dsum = torch.empty_like(x) if ctx.add else dx
        tensors = [t.data_ptr() for t in (x, y, dy, dx, dsum, weight, bias, moments, dweight, dbias)]
        with _running() as kernels:
            kernels.differentiate(kernels.BITS[x.itemsize], *tensors, ctx.sizes, ctx.chunks, ctx.add, ctx.relu)
        return dx, dweight, dbias, dsum if ctx.add else None, None, None, None
