"""Batch norm of groups with the sum and the ReLU after it, forward and back, as loops that Numba compiles for this CPU.

torch makes a pass over memory for each of them, in bfloat16 slow ones. Here a number is read, widened to float32,
taken through all of it and written once (docs/LOG.md has both beside what memory allows).

Arrays hold the bits of their numbers, uint16 of bfloat16 and uint32 of float32. Activations are [G, R, W]: G groups of
R rows, each row some pixels with the C channels of each next to each other, so that a row's column j is of channel
j % C. ``mean`` and ``rstd``, the reciprocal deviation, are [G, C], ``weight`` and ``bias`` [C], all float32. Groups are
worked on in ``chunks`` each, which do not depend on the threads: nor do the results.
"""

import os
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import njit, prange

if "NUMBA_THREADING_LAYER_PRIORITY" not in os.environ:
    numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]  # type: ignore[attr-defined]  # torch has omp
LOOPS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract"}}


def _compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Numba's compiler, which takes seconds and keeps what it made where it can write."""

    def compile_loops(function: Callable[..., Any]) -> Any:
        try:
            return njit(function, cache=True, **LOOPS, **options)
        except RuntimeError:  # neither beside this file nor in the user's directory
            return njit(function, **LOOPS, **options)

    return compile_loops


@njit(inline="always")
def _number(bits, size):  # type: ignore[no-untyped-def]
    """The float32 of ``bits`` of ``size`` bytes."""
    if size == 2:
        return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)
    return np.uint32(bits).view(np.float32)


@njit(inline="always")
def _bits(number, size):  # type: ignore[no-untyped-def]
    """The bits of ``size`` bytes nearest to the float32 ``number``; of two as near the even ones, as torch rounds."""
    bits = np.float32(number).view(np.uint32)
    if size == 2:
        even = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
        return np.uint32(np.uint32(bits + np.uint32(0x7FFF) + even) >> np.uint32(16))
    return bits


@_compiled()
def _add_up(x, first, last, total, squares):  # type: ignore[no-untyped-def]
    """Sums over the rows from ``first`` to ``last`` of one group, of differences from its first pixel: of those a large
    mean costs no digits."""
    width, C, size = x.shape[1], len(total), x.itemsize
    start, sums, sums2 = np.empty(width, np.float32), np.zeros(width, np.float32), np.zeros(width, np.float32)
    for j in range(width):
        start[j] = _number(x[0, j % C], size)
    for r in range(first, last):
        for j in range(width):
            d = _number(x[r, j], size) - start[j]
            sums[j] += d
            sums2[j] += d * d
    total[:], squares[:] = 0, 0
    for j in range(width):
        total[j % C] += sums[j]
        squares[j % C] += sums2[j]


@_compiled()
def _estimate(x, total, squares, eps, mean, rstd, statistics, G):  # type: ignore[no-untyped-def]
    """One group's ``mean`` and ``rstd`` from the sums of its chunks; its share in the mean of ``statistics``."""
    C, size = len(mean), x.itemsize
    n = x.size // C
    for c in range(C):
        m, v = 0.0, 0.0
        for chunk in range(len(total)):
            m += total[chunk, c]
            v += squares[chunk, c]
        m /= n
        v = max(v / n - m * m, 0.0)
        mean[c], rstd[c] = m + _number(x[0, c], size), 1 / np.sqrt(v + eps)
        statistics[0, c] += mean[c] / G
        statistics[1, c] += v * n / max(1, n - 1) / G


@_compiled()
def _transform(x, shortcut, y, first, last, mean, rstd, weight, bias, add, relu):  # type: ignore[no-untyped-def]
    """Write the rows from ``first`` to ``last`` of one group's ``y``."""
    width, C, size = x.shape[1], len(mean), x.itemsize
    low = np.float32(0) if relu else np.float32(-np.inf)
    m, scale, shift = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
    for j in range(width):
        m[j], scale[j], shift[j] = mean[j % C], rstd[j % C] * weight[j % C], bias[j % C]
    for r in range(first, last):
        if add:
            for j in range(width):
                f = (_number(x[r, j], size) - m[j]) * scale[j] + shift[j] + _number(shortcut[r, j], size)
                y[r, j] = _bits(low if f < low else f, size)
        else:
            for j in range(width):
                f = (_number(x[r, j], size) - m[j]) * scale[j] + shift[j]
                y[r, j] = _bits(low if f < low else f, size)  # what is not a number stays so


@_compiled(parallel=True, nogil=True)
def normalise(x, shortcut, y, weight, bias, mean, rstd, statistics, chunks, eps, add, relu):  # type: ignore[no-untyped-def]
    """Write ``y``, each group's ``mean`` and ``rstd``, and the means over groups of mean and unbiased variance,
    ``statistics`` [2, C]. With ``add`` the ``shortcut`` is added before the ReLU; ``relu`` says whether there is one.
    """
    G, R, _ = x.shape
    total = np.empty((G, chunks, len(weight)), np.float32)
    squares = np.empty_like(total)
    for i in prange(G * chunks):
        g, k = np.int64(i) // chunks, np.int64(i) % chunks
        _add_up(x[g], k * R // chunks, (k + 1) * R // chunks, total[g, k], squares[g, k])
    statistics[:] = 0
    for g in range(G):
        _estimate(x[g], total[g], squares[g], eps, mean[g], rstd[g], statistics, G)
    for i in prange(G * chunks):
        g, k = np.int64(i) // chunks, np.int64(i) % chunks
        first, last = k * R // chunks, (k + 1) * R // chunks
        _transform(x[g], shortcut[g], y[g], first, last, mean[g], rstd[g], weight, bias, add, relu)


@_compiled()
def _add_up_back(x, y, dy, dsum, first, last, mean, rstd, weight, bias, total, along, add, relu):  # type: ignore[no-untyped-def]
    """Sums of the gradient behind the ReLU and of its product with x - mean. Where something was added the ReLU is read
    from ``y``, and that gradient kept in ``dsum``; else it is computed once more, which is less to read."""
    width, C, size = x.shape[1], len(mean), x.itemsize
    m, scale, shift = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
    sums, sums2 = np.zeros(width, np.float32), np.zeros(width, np.float32)
    for j in range(width):
        m[j], scale[j] = mean[j % C], rstd[j % C] * weight[j % C]
        shift[j] = bias[j % C] if relu else np.float32(np.inf)
    for r in range(first, last):
        if add:
            for j in range(width):
                h = dy[r, j] if y[r, j] != 0 or not relu else x.dtype.type(0)
                dsum[r, j] = h
                d = _number(h, size)
                sums[j] += d
                sums2[j] += d * (_number(x[r, j], size) - m[j])
        else:
            for j in range(width):
                z = _number(x[r, j], size) - m[j]
                d = _number(dy[r, j], size) if z * scale[j] + shift[j] > 0 else np.float32(0)
                sums[j] += d
                sums2[j] += d * z
    total[:], along[:] = 0, 0
    for j in range(width):
        total[j % C] += sums[j]
        along[j % C] += sums2[j]


@_compiled()
def _transform_back(x, dy, dsum, dx, first, last, mean, rstd, weight, bias, slope, offset, add, relu):  # type: ignore[no-untyped-def]
    """Write the rows from ``first`` to ``last`` of one group's ``dx``: a sum of gradient, x - mean and one."""
    width, C, size = x.shape[1], len(mean), x.itemsize
    m, scale, shift = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
    a, b = np.empty(width, np.float32), np.empty(width, np.float32)
    for j in range(width):
        m[j], scale[j] = mean[j % C], rstd[j % C] * weight[j % C]
        shift[j] = bias[j % C] if relu else np.float32(np.inf)
        a[j], b[j] = slope[j % C], offset[j % C]
    for r in range(first, last):
        if add:
            for j in range(width):
                z = _number(x[r, j], size) - m[j]
                dx[r, j] = _bits(scale[j] * _number(dsum[r, j], size) + a[j] * z + b[j], size)
        else:
            for j in range(width):
                z = _number(x[r, j], size) - m[j]
                d = _number(dy[r, j], size) if z * scale[j] + shift[j] > 0 else np.float32(0)
                dx[r, j] = _bits(scale[j] * d + a[j] * z + b[j], size)


@_compiled(parallel=True, nogil=True)
def differentiate(x, y, dy, dx, dsum, weight, bias, mean, rstd, dweight, dbias, chunks, add, relu):  # type: ignore[no-untyped-def]
    """Write the gradients ``dx``, ``dweight`` and ``dbias`` [C] of ``dy``, and with ``add`` the shortcut's, ``dsum``:
    batch norm's (Ioffe and Szegedy 2015, arXiv 1502.03167, section 3) of each group."""
    G, R, width = x.shape
    C = len(weight)
    n = R * width // C
    total, slope = np.empty((G, chunks, C), np.float32), np.empty((G, C), np.float32)
    along, offset = np.empty_like(total), np.empty_like(slope)
    for i in prange(G * chunks):
        g, k = np.int64(i) // chunks, np.int64(i) % chunks
        first, last = k * R // chunks, (k + 1) * R // chunks
        _add_up_back(
            x[g], y[g], dy[g], dsum[g], first, last, mean[g], rstd[g], weight, bias, total[g, k], along[g, k], add, relu
        )
    dweight[:], dbias[:] = 0, 0
    for g in range(G):
        for c in range(C):
            t, z = 0.0, 0.0
            for k in range(chunks):
                t += total[g, k, c]
                z += along[g, k, c]
            scale = rstd[g, c] * weight[c]
            dweight[c] += z * rstd[g, c]
            dbias[c] += t
            slope[g, c], offset[g, c] = -scale * rstd[g, c] * rstd[g, c] * z / n, -scale * t / n
    for i in prange(G * chunks):
        g, k = np.int64(i) // chunks, np.int64(i) % chunks
        first, last = k * R // chunks, (k + 1) * R // chunks
        _transform_back(
            x[g], dy[g], dsum[g], dx[g], first, last, mean[g], rstd[g], weight, bias, slope[g], offset[g], add, relu
        )
