"""The compiled loops against float64 and against torch's own rounding."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from mocokit.model import kernels
from mocokit.model.kernels import _bits, _number

EPS = 1e-5


@njit
def rounded(numbers, size):
    bits = np.empty(len(numbers), np.uint32)
    for i in range(len(numbers)):
        bits[i] = _bits(numbers[i], size)
    return bits


@njit
def widened(bits, size):
    numbers = np.empty(len(bits), np.float32)
    for i in range(len(bits)):
        numbers[i] = _number(bits[i], size)
    return numbers


def test_every_bfloat16_is_widened_and_kept():
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)
    numbers = torch.from_numpy(widened(bits.numpy(), 2))
    expected = bits.view(torch.bfloat16).float()
    torch.testing.assert_close(numbers, expected, rtol=0, atol=0, equal_nan=True)
    finite = ~expected.isnan()
    again = torch.from_numpy(rounded(numbers.numpy(), 2)).to(torch.int32)
    assert torch.equal(again[finite], torch.arange(2**16, dtype=torch.int32)[finite])
    assert torch.from_numpy(rounded(numbers[~finite].numpy(), 2)).to(torch.uint16).view(torch.bfloat16).isnan().all()


def test_float32_is_rounded_as_torch_does():
    """All exponents, ties, infinities and what overflows to them among these."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (200_000,), generator=generator, dtype=torch.int64)
    bits[:50_000] = (bits[:50_000] & ~0xFFFF) | 0x8000  # halfway between two
    numbers = bits.to(torch.int32).view(torch.float32)
    numbers = torch.cat([numbers[~numbers.isnan()], torch.tensor([torch.inf, -torch.inf, 3.4e38, -0.0])])
    ours = torch.from_numpy(rounded(numbers.numpy(), 2)).to(torch.uint16)
    assert torch.equal(ours.view(torch.int16), numbers.bfloat16().view(torch.int16))
    assert np.array_equal(rounded(numbers.numpy(), 4), numbers.numpy().view(np.uint32))


def run(x, shortcut, dy, weight, bias, chunks, relu):
    """What both kernels write for [G, R, W] tensors, in float64, by name."""
    (G, R, W), C, add, bits = x.shape, len(weight), shortcut is not None, kernels.BITS[x.itemsize]
    y, dx, dsum = (torch.full_like(x, torch.nan) for _ in range(3))
    moments, running, count = torch.empty(2, G, C), torch.full((2, C), 7.0), torch.zeros((), dtype=torch.int64)
    weight, bias = (torch.as_tensor(v) for v in (weight, bias))
    dweight, dbias = torch.empty(2, C)
    tensors = [t.data_ptr() for t in (x, shortcut if add else x, y, weight, bias, moments)]
    buffers = running[0].data_ptr(), running[1].data_ptr(), count.data_ptr()
    kernels.normalise(bits, *tensors, buffers, (G, R, W, C), chunks, EPS, 1.0, add, relu)
    tensors = x, y if add else x, dy, dx, dsum if add else dx, weight, bias, moments, dweight, dbias
    kernels.differentiate(bits, *[t.data_ptr() for t in tensors], (G, R, W, C), chunks, add, relu)
    assert int(count) == 1
    found = {"y": y, "dx": dx, "dweight": dweight, "dbias": dbias, "statistics": running}
    found |= {"dsum": dsum} if add else {}
    return {name: value.double() for name, value in found.items()}


def expected(x, shortcut, dy, weight, bias, relu):
    """The same by torch's autograd in float64, from the definition."""
    G, C = len(x), len(weight)
    leaves = [torch.as_tensor(t).double().requires_grad_() for t in (x, weight, bias)]
    pixels = leaves[0].view(G, -1, C)
    var, mean = torch.var_mean(pixels, dim=1, correction=0, keepdim=True)
    y = (pixels - mean) / (var + EPS).sqrt() * leaves[1] + leaves[2]
    if shortcut is not None:
        leaves.append(shortcut.double().requires_grad_())
        y = y + leaves[3].view(G, -1, C)
    y = y.relu() if relu else y
    gradients = torch.autograd.grad(y, leaves, dy.double().view(G, -1, C))
    statistics = torch.stack([mean, pixels.var(dim=1, keepdim=True)]).mean(1).view(2, C).detach()
    found = dict(zip(("dx", "dweight", "dbias", "dsum"), gradients, strict=False))
    return {"y": y.detach().view_as(x), "statistics": statistics} | found


@settings(max_examples=80, deadline=None)
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    groups=st.integers(1, 5),
    height=st.integers(8, 40),
    channels=st.sampled_from([1, 3, 16, 24, 300]),
    together=st.integers(1, 9),
    add=st.booleans(),
    relu=st.booleans(),
    chunks=st.integers(1, 7),
    offset=st.sampled_from([0.0, 20.0]),
    seed=st.integers(0, 2**31),
)
def test_what_they_write_is_what_float64_has(
    dtype, groups, height, channels, together, add, relu, chunks, offset, seed
):
    torch.manual_seed(seed)
    shape = groups, height, together * channels
    x, shortcut, dy = ((torch.randn(shape) + d).to(dtype) for d in (offset, 0, 0))
    weight, bias = (torch.randn(channels).numpy() for _ in range(2))
    shortcut = shortcut if add else None
    true = expected(x, shortcut, dy, weight, bias, False)
    if relu:  # what rounding could put on the other side has a gradient of 0, that either way does not count
        dy[(true["y"].abs() < 2e-2 * true["y"].abs().max()).view_as(dy)] = 0
    true = expected(x, shortcut, dy, weight, bias, relu)
    found = run(x, shortcut, dy, weight, bias, chunks, relu)
    assert set(found) == set(true)
    tolerance = 3e-4 if dtype == torch.float32 else 1.6e-2
    for name, truth in true.items():
        scale = float(truth.abs().max().clamp_min(1))
        torch.testing.assert_close(found[name], truth, rtol=tolerance, atol=tolerance * scale, msg=name)


def test_the_relu_has_no_gradient_where_it_gives_nothing():
    """And what is added has one there if there is no ReLU."""
    x = torch.tensor([[[-1.0], [1.0]]])
    dy, one, zero = torch.ones_like(x), np.ones(1, np.float32), np.zeros(1, np.float32)
    for add in (False, True):
        shortcut = -x.sign() if add else None  # y is 0 but for rounding, or, without, -1 and 1
        y = run(x, shortcut, dy, one, zero, 1, True)["y"]
        assert (y >= 0).all()
    exact = torch.zeros(1, 2, 1)
    assert run(exact, exact, dy, one, zero, 1, False)["dsum"].tolist() == dy.tolist()
    assert run(exact, exact, dy, one, zero, 1, True)["dsum"].tolist() == (0 * dy).tolist()
    assert run(x, None, dy, one, zero, 1, True)["dbias"].tolist() == [1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_do_not_change_a_bit(dtype):
    torch.manual_seed(0)
    x, shortcut, dy = (torch.randn(3, 64, 256).to(dtype) for _ in range(3))
    weight, bias = (torch.randn(16).numpy() for _ in range(2))
    found, before = [], kernels.numba.get_num_threads()
    for threads in (1, kernels.numba.config.NUMBA_NUM_THREADS):
        kernels.numba.set_num_threads(threads)
        found.append(run(x, shortcut, dy, weight, bias, 4, True))
    kernels.numba.set_num_threads(before)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("chunks", [1, 3])
def test_a_large_mean_costs_no_digits(chunks):
    """Of a float32, that is: variances from sums of squares would be off by more than they are here at 1,000."""
    torch.manual_seed(0)
    x = (torch.randn(2, 4000, 16) + 1000).float()
    dy, ones = torch.randn_like(x), np.ones(16, np.float32)
    true, found = (f(x, None, dy, ones, ones, *more) for f, more in ((expected, (False,)), (run, (chunks, False))))
    torch.testing.assert_close(found["statistics"][1], true["statistics"][1], rtol=1e-4, atol=0)
    torch.testing.assert_close(found["y"], true["y"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("mode", ["plain", "relu", "sum"])
def test_what_is_not_a_number_stays_so_in_its_group_and_channel(mode):
    x, shortcut, dy = (torch.randn(2, 8, 12).bfloat16() for _ in range(3))
    x[0, 3, 4] = torch.nan  # channel 1 of 3
    weight = bias = np.ones(3, np.float32)
    found = run(x, shortcut if mode == "sum" else None, dy, weight, bias, 2, mode != "plain")
    lost = found["y"].view(2, -1, 3).isnan()
    assert lost[0, :, 1].all()
    assert int(lost.sum()) == lost.shape[1]
    assert found["dweight"].isnan().tolist() == [False, True, False]


def test_nothing_need_be_kept(tmp_path):
    """Where neither the package nor the user's directory can be written the loops are compiled for the process."""
    program = (
        "from numba.core.caching import CacheImpl\n"
        "for kind in CacheImpl._locator_classes:\n"
        "    kind.from_function = classmethod(lambda *a: None)\n"
        "from mocokit.model import kernels\n"
        "assert 'NullCache' in type(kernels.normalise._cache).__name__, kernels.normalise._cache\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)


LOOPS = """
from mocokit.model import kernels
@kernels._compiled()
def double(x):
    return 2 * x
assert double(21) == 42
print(sum(double.stats.cache_hits.values()))
"""


@pytest.mark.parametrize("damage", ["index", "code", "none", "no room"])
def test_what_is_kept_of_the_compiler_may_be_damaged_or_have_no_room(tmp_path, damage):
    """As by a power cut soon after. Numba itself would fail at it, now and ever after."""
    program, cache = tmp_path / "program.py", tmp_path / "cache"
    program.write_text(LOOPS)

    def hits(before=""):
        command = f"{before}exec {sys.executable} {program}"
        done = subprocess.run(
            ["sh", "-c", command], env=os.environ | {"NUMBA_CACHE_DIR": str(cache)}, capture_output=True, text=True,
            timeout=100, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert hits("ulimit -f 0; " if damage == "no room" else "") == 0
    kept = [*cache.rglob("*double*.nb[ic]")]
    if damage == "no room":
        assert not any(path.stat().st_size for path in kept)
        return
    assert len(kept) == 2
    for path in kept:
        if path.suffix == {"index": ".nbi", "code": ".nbc"}.get(damage):
            path.write_bytes(b"")
    assert hits() == (damage == "none")
    assert hits() == 1
