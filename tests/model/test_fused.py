"""Batch norm, sum and ReLU at once: gradients, where it is used, and threads."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from mocokit.model import fused
from mocokit.model.norm import SplitBatchNorm2d


def images(shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("chunk", [fused.CHUNK, 500])
@pytest.mark.parametrize("shape", [(8, 16, 5, 7), (4, 6, 3, 3), (4, 300, 2, 2), (12, 20, 1, 1)])
@pytest.mark.parametrize("splits", [1, 2, 4])
def test_derivatives_are_those_of_torch(monkeypatch, shape, splits, chunk):
    monkeypatch.setattr(fused, "CHUNK", chunk)
    if shape[0] // splits * shape[2] * shape[3] < 2:
        pytest.skip("one value a channel")
    x, shortcut, target = (images(shape, seed=seed).requires_grad_() for seed in range(3))
    weight, bias = (nn.Parameter(torch.rand(shape[1]) + 0.5) for _ in range(2))
    leaves = x, weight, bias, shortcut
    y, statistics = fused.normalise(x, weight, bias, shortcut, splits, 1e-5, relu=True)
    groups = [nn.functional.batch_norm(g, None, None, weight, bias, True) for g in x.chunk(splits)]
    expected = (torch.cat(groups) + shortcut).relu()
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert y.is_contiguous(memory_format=torch.channels_last)
    moments = [torch.stack([f(g, dim=(0, 2, 3)) for g in x.chunk(splits)]).mean(0) for f in (torch.mean, torch.var)]
    torch.testing.assert_close(statistics, torch.stack(moments), rtol=1e-4, atol=1e-5)
    found, truth = (torch.autograd.grad(out, leaves, target.detach()) for out in (y, expected))
    for ours, theirs in zip(found, truth, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_gradient_may_lie_in_memory_as_it_likes():
    """As that of a mean over pixels, which is one number a channel seen many times."""
    x = images((4, 8, 3, 3), torch.bfloat16).requires_grad_()
    weight, bias = (nn.Parameter(torch.ones(8)) for _ in range(2))
    y, _ = fused.normalise(x, weight, bias, None, 2, 1e-5, relu=True)
    dy = torch.randn(4, 8, 1, 1).bfloat16().expand(4, 8, 3, 3)
    one = torch.autograd.grad(y, (x, weight, bias), dy, retain_graph=True)
    other = torch.autograd.grad(y, (x, weight, bias), dy.contiguous(memory_format=torch.channels_last))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_shortcut_of_another_kind_is_taken_too():
    x, shortcut = images((4, 8, 3, 3), torch.bfloat16), torch.randn(4, 8, 3, 3, requires_grad=True)
    y, _ = fused.normalise(x, torch.ones(8), torch.zeros(8), shortcut, 2, 1e-5, relu=True)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert shortcut.grad.dtype == torch.float32
    assert torch.equal(shortcut.grad, (y > 0).float())


def test_there_is_no_second_derivative():
    x = images((4, 8, 3, 3)).requires_grad_()
    y, _ = fused.normalise(x, torch.ones(8), torch.zeros(8), None, 2, 1e-5, relu=False)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.square().sum().backward()


@pytest.mark.parametrize(
    ("x", "splits", "possible"),
    [
        (images((8, 4, 3, 3)), 4, True),
        (images((8, 4, 3, 3), torch.bfloat16), 1, True),
        (images((8, 4, 3, 3), torch.float64), 4, False),
        (images((9, 4, 3, 3)), 4, False),  # unequal groups
        (torch.randn(8, 4, 3, 3), 4, False),  # channels first
        (torch.empty(8, 4, 3, 3, device="meta").contiguous(memory_format=torch.channels_last), 4, False),
    ],
)
def test_what_is_taken(monkeypatch, x, splits, possible):
    weight = torch.ones(4)
    assert fused.can_fuse(x, weight, splits) is possible
    assert not fused.can_fuse(x, None, splits)
    assert not fused.can_fuse(x, weight.double(), splits)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not fused.can_fuse(x, weight, splits)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("batch", [8, 9])
def test_a_norm_gives_the_same_either_way(monkeypatch, batch, relu):
    """Of groups of equal size by the kernels, of others by torch."""
    norms = [SplitBatchNorm2d(4) for _ in range(2)]
    x, shortcut = images((batch, 4, 3, 3)), images((batch, 4, 3, 3), seed=1)
    calls, real = [], fused.normalise
    monkeypatch.setattr(fused, "normalise", lambda *a: calls.append(a) or real(*a))
    for norm, possible in zip(norms, (True, False), strict=True):
        norm.splits = 4
        if not possible:
            monkeypatch.setattr(fused, "can_fuse", lambda *a: False)
    y = norms[1](x, shortcut if relu else None, relu)
    assert not calls
    monkeypatch.undo()
    ours = norms[0](x, shortcut if relu else None, relu)
    torch.testing.assert_close(ours, y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norms[0].state_dict(), norms[1].state_dict(), rtol=1e-4, atol=1e-5)


def test_kernels_have_torchs_threads(monkeypatch):
    asked, before = [], torch.get_num_threads()
    monkeypatch.setattr(fused._kernels().numba, "set_num_threads", asked.append)
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            fused._kernels()
    finally:
        torch.set_num_threads(before)
    most = fused._kernels().numba.config.NUMBA_NUM_THREADS
    assert asked[:2] == [1, min(2, most)]


@pytest.mark.parametrize("threads", [1, 2])
def test_torch_keeps_its_threads(threads):
    """Which Numba sets to the number of cores when it starts its own."""
    program = (
        f"import torch; torch.set_num_threads({threads})\n"
        "from mocokit.model import fused\n"
        "x = torch.randn(4, 8, 3, 3).contiguous(memory_format=torch.channels_last)\n"
        "fused.normalise(x, torch.ones(8), torch.zeros(8), None, 2, 1e-5, False)\n"
        f"assert torch.get_num_threads() == {threads}, torch.get_num_threads()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_several_threads_may_train_at_once():
    def one(seed):
        x = images((8, 16, 9, 9), seed=seed).requires_grad_()
        for _ in range(20):
            y, _ = fused.normalise(x, torch.ones(16), torch.zeros(16), None, 4, 1e-5, relu=True)
            (dx,) = torch.autograd.grad(y.square().sum(), x)
        return y, dx

    alone = [one(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(one, range(4)))
    for pair, other in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(pair, other, strict=True))
