"""Batch norm of groups with the sum and the ReLU after it, forward and back, as loops that Numba compiles for this CPU.

torch makes a pass over memory for each of them, in bfloat16 slow ones. Here there are two, for the sums and for all
the rest, in float32 whatever is read and written (docs/LOG.md has both beside what memory allows).

Activations are [G, R, W]: G groups of R rows, each row some pixels with the C channels of each next to each other, so
that a row's column j is of channel j % C. They are given as addresses, which costs a tenth of what arrays do, and as
the bits of their numbers: uint16 of bfloat16, uint32 of float32. All else but a count is float32. Groups are worked on
in ``chunks`` each, which do not depend on the threads: nor do the results.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numba
import numpy as np
from numba import carray, njit, prange, types
from numba.extending import intrinsic

if "NUMBA_THREADING_LAYER_PRIORITY" not in os.environ:
    numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]  # type: ignore[attr-defined]  # torch has omp
LOOPS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract"}}
BITS = {2: np.empty(0, np.uint16), 4: np.empty(0, np.uint32)}  # by bytes: of which type a kernel takes addresses
_NUMBERS, _COUNTS = np.empty(0, np.float32), np.empty(0, np.int64)


def _forgiving(loops: Any) -> Any:
    """Compiled again where a kept file is damaged, as by a power cut, and not kept where there is no room: at both
    Numba itself would fail."""
    cache = loops._cache
    load, save, flush = cache.load_overload, cache.save_overload, cache.flush

    def load_or_forget(*of: Any) -> Any:
        try:
            return load(*of)
        except Exception:
            with suppress(Exception):
                flush()
            return None

    def try_to_save(*of: Any) -> None:
        with suppress(Exception):
            save(*of)

    cache.load_overload, cache.save_overload = load_or_forget, try_to_save
    return loops


def _compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Numba's compiler, which takes seconds and keeps what it made where it can write."""

    def compile_loops(function: Callable[..., Any]) -> Any:
        try:
            return _forgiving(njit(function, cache=True, **LOOPS, **options))
        except RuntimeError:  # neither beside this file nor in the user's directory
            return njit(function, **LOOPS, **options)

    return compile_loops


@intrinsic
def _pointer(typing, address, like):  # type: ignore[no-untyped-def]
    """An address as a pointer to numbers ``like`` those of an array."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(address, like), generate


@njit(inline="always")
def _array(address, like, shape):  # type: ignore[no-untyped-def]
    return carray(_pointer(address, like), shape)


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
def _repeat(vector, width):  # type: ignore[no-untyped-def]
    """[C] repeated to the columns of a row, [W]."""
    C = len(vector)
    row = np.empty(width, np.float32)
    for p in range(0, width, C):
        for c in range(C):
            row[p + c] = vector[c]
    return row


@_compiled()
def _collect(row, total):  # type: ignore[no-untyped-def]
    """The inverse: sums of the columns [W] of each channel, in ``total`` [C]."""
    C = len(total)
    total[:] = 0
    for p in range(0, len(row), C):
        for c in range(C):
            total[c] += row[p + c]


@_compiled()
def _first_pixel(x, C):  # type: ignore[no-untyped-def]
    pixel, size = np.empty(C, np.float32), x.itemsize
    for c in range(C):
        pixel[c] = _number(x[0, c], size)
    return pixel


@_compiled()
def _add_up(x, first, last, total, squares):  # type: ignore[no-untyped-def]
    """Sums over the rows from ``first`` to ``last`` of one group, of differences from its first pixel: of those a large
    mean costs no digits."""
    width, size = x.shape[1], x.itemsize
    start = _repeat(_first_pixel(x, len(total)), width)
    sums, sums2 = np.zeros(width, np.float32), np.zeros(width, np.float32)
    for r in range(first, last):
        for j in range(width):
            d = _number(x[r, j], size) - start[j]
            sums[j] += d
            sums2[j] += d * d
    _collect(sums, total)
    _collect(sums2, squares)


@_compiled()
def _estimate(x, total, squares, eps, mean, rstd, var):  # type: ignore[no-untyped-def]
    """One group's ``mean`` and ``rstd`` from the sums of its chunks, and its unbiased variance."""
    C = len(mean)
    pixel, n = _first_pixel(x, C), x.size // C
    for c in range(C):
        m, v = 0.0, 0.0
        for chunk in range(len(total)):
            m += total[chunk, c]
            v += squares[chunk, c]
        m /= n
        v = max(v / n - m * m, 0.0)
        mean[c], rstd[c], var[c] = m + pixel[c], 1 / np.sqrt(v + eps), v * n / max(1, n - 1)


@_compiled()
def _transform(x, shortcut, y, first, last, mean, rstd, weight, bias, add, relu):  # type: ignore[no-untyped-def]
    """Write the rows from ``first`` to ``last`` of one group's ``y``."""
    width, size = x.shape[1], x.itemsize
    low = np.float32(0) if relu else np.float32(-np.inf)
    m, scale, shift = _repeat(mean, width), _repeat(rstd * weight, width), _repeat(bias, width)
    for r in range(first, last):
        if add:
            for j in range(width):
                f = (_number(x[r, j], size) - m[j]) * scale[j] + shift[j] + _number(shortcut[r, j], size)
                y[r, j] = _bits(low if f <= low else f, size)
        else:
            for j in range(width):
                f = (_number(x[r, j], size) - m[j]) * scale[j] + shift[j]
                y[r, j] = _bits(low if f <= low else f, size)  # what is not a number stays so


@_compiled(parallel=True, nogil=True)
def normalise(bits, x, shortcut, y, weight, bias, moments, running, sizes, chunks, eps, momentum, add, relu):  # type: ignore[no-untyped-def]
    """Batch norm of ``x``, plus the ``shortcut`` if ``add``, through a ReLU if ``relu``: written to ``y``.

    Args:
        bits: of `BITS`, the type of x, shortcut and y, which are addresses, as are all others up to ``running``.
        weight, bias: [C].
        moments: [2, G, C], where each group's mean and reciprocal deviation go.
        running: addresses of running mean and variance [C], which move by ``momentum`` towards the means over groups of
            mean and unbiased variance, and of the number of batches; a momentum below 0 makes them means of batches.
        sizes: G, R, W and C.
    """
    G, R, W, C = sizes
    X, Y, S = _array(x, bits, (G, R, W)), _array(y, bits, (G, R, W)), _array(shortcut, bits, (G, R, W))
    w, b = _array(weight, _NUMBERS, (C,)), _array(bias, _NUMBERS, (C,))
    mean_rstd = _array(moments, _NUMBERS, (2, G, C))
    mean, rstd = mean_rstd[0], mean_rstd[1]
    total, var = np.empty((G, chunks, C), np.float32), np.empty((G, C), np.float32)
    squares = np.empty_like(total)
    for i in prange(G * chunks):
        g, k = np.int64(i) // chunks, np.int64(i) % chunks
        _add_up(X[g], k * R // chunks, (k + 1) * R // chunks, total[g, k], squares[g, k])
    for g in range(G):
        _estimate(X[g], total[g], squares[g], eps, mean[g], rstd[g], var[g])
    running_mean, running_var = _array(running[0], _NUMBERS, (C,)), _array(running[1], _NUMBERS, (C,))
    count = _array(running[2], _COUNTS, (1,))
    count[0] += 1
    share = momentum if momentum >= 0 else 1 / count[0]
    for c in range(C):
        m, v = 0.0, 0.0
        for g in range(G):
            m += mean[g, c]
            v += var[g, c]
        running_mean[c] += share * (m / G - running_mean[c])
        running_var[c] += share * (v / G - running_var[c])
    for i in prange(G * chunks):
        g, k = np.int64(i) // chunks, np.int64(i) % chunks
        first, last = k * R // chunks, (k + 1) * R // chunks
        _transform(X[g], S[g], Y[g], first, last, mean[g], rstd[g], w, b, add, relu)


@_compiled()
def _add_up_back(x, y, dy, dsum, first, last, mean, rstd, weight, bias, total, along, add, relu):  # type: ignore[no-untyped-def]
    """Sums of the gradient behind the ReLU and of its product with x - mean. Where something was added the ReLU is read
    from ``y``, and that gradient kept in ``dsum``; else it is computed once more, which is less to read."""
    width, size = x.shape[1], x.itemsize
    m, scale, shift = _repeat(mean, width), _repeat(rstd * weight, width), _repeat(bias, width)
    low = np.float32(0) if relu else np.float32(-np.inf)
    sums, sums2 = np.zeros(width, np.float32), np.zeros(width, np.float32)
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
                d = _number(dy[r, j], size) if z * scale[j] + shift[j] > low else np.float32(0)
                sums[j] += d
                sums2[j] += d * z
    _collect(sums, total)
    _collect(sums2, along)


@_compiled()
def _transform_back(x, dy, dsum, dx, first, last, mean, rstd, weight, bias, slope, offset, add, relu):  # type: ignore[no-untyped-def]
    """Write the rows from ``first`` to ``last`` of one group's ``dx``: a sum of gradient, x - mean and one."""
    width, size = x.shape[1], x.itemsize
    m, scale, shift = _repeat(mean, width), _repeat(rstd * weight, width), _repeat(bias, width)
    a, b = _repeat(slope, width), _repeat(offset, width)
    low = np.float32(0) if relu else np.float32(-np.inf)
    for r in range(first, last):
        if add:
            for j in range(width):
                z = _number(x[r, j], size) - m[j]
                dx[r, j] = _bits(scale[j] * _number(dsum[r, j], size) + a[j] * z + b[j], size)
        else:
            for j in range(width):
                z = _number(x[r, j], size) - m[j]
                d = _number(dy[r, j], size) if z * scale[j] + shift[j] > low else np.float32(0)
                dx[r, j] = _bits(scale[j] * d + a[j] * z + b[j], size)


@_compiled(parallel=True, nogil=True)
def differentiate(bits, x, y, dy, dx, dsum, weight, bias, moments, dweight, dbias, sizes, chunks, add, relu):  # type: ignore[no-untyped-def]
    """Write the gradients ``dx``, ``dweight`` and ``dbias`` [C] of ``dy``, and with ``add`` the shortcut's, ``dsum``:
    batch norm's (Ioffe and Szegedy 2015, arXiv 1502.03167, section 3) of each group. All are addresses."""
    G, R, W, C = sizes
    X, Y, DY = _array(x, bits, (G, R, W)), _array(y, bits, (G, R, W)), _array(dy, bits, (G, R, W))
    DX, DS = _array(dx, bits, (G, R, W)), _array(dsum, bits, (G, R, W))
    w, b = _array(weight, _NUMBERS, (C,)), _array(bias, _NUMBERS, (C,))
    dw, db = _array(dweight, _NUMBERS, (C,)), _array(dbias, _NUMBERS, (C,))
    mean_rstd = _array(moments, _NUMBERS, (2, G, C))
    mean, rstd = mean_rstd[0], mean_rstd[1]
    n, total, slope = R * W // C, np.empty((G, chunks, C), np.float32), np.empty((G, C), np.float32)
    along, offset = np.empty_like(total), np.empty_like(slope)
    for i in prange(G * chunks):
        g, k = np.int64(i) // chunks, np.int64(i) % chunks
        first, last, t, z = k * R // chunks, (k + 1) * R // chunks, total[g, k], along[g, k]
        _add_up_back(X[g], Y[g], DY[g], DS[g], first, last, mean[g], rstd[g], w, b, t, z, add, relu)
    dw[:], db[:] = 0, 0
    for g in range(G):
        for c in range(C):
            sum_d, sum_dz = 0.0, 0.0
            for k in range(chunks):
                sum_d += total[g, k, c]
                sum_dz += along[g, k, c]
            scale = rstd[g, c] * w[c]
            dw[c] += sum_dz * rstd[g, c]
            db[c] += sum_d
            slope[g, c], offset[g, c] = -scale * rstd[g, c] * rstd[g, c] * sum_dz / n, -scale * sum_d / n
    for i in prange(G * chunks):
        g, k = np.int64(i) // chunks, np.int64(i) % chunks
        first, last = k * R // chunks, (k + 1) * R // chunks
        _transform_back(X[g], DY[g], DS[g], DX[g], first, last, mean[g], rstd[g], w, b, slope[g], offset[g], add, relu)
