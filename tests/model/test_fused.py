"""Batch norm, sum and ReLU at once: gradients, where it is used, and threads."""

import copy
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from mocokit.model import fused
from mocokit.model.norm import SplitBatchNorm2d


def images(shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)


def norm_of(channels):
    norm = nn.BatchNorm2d(channels)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias, -0.5, 0.5)
    return norm


@pytest.mark.parametrize("chunk", [fused.CHUNK, 500])
@pytest.mark.parametrize("shape", [(8, 16, 5, 7), (4, 6, 3, 3), (8, 300, 2, 2), (12, 20, 1, 1)])
@pytest.mark.parametrize("splits", [1, 2, 4])
def test_derivatives_are_those_of_torch(monkeypatch, shape, splits, chunk):
    monkeypatch.setattr(fused, "CHUNK", chunk)
    norm = norm_of(shape[1])
    x, shortcut, target = (images(shape, seed=seed).requires_grad_() for seed in range(3))
    leaves = x, norm.weight, norm.bias, shortcut
    norm.momentum = 1.0
    y = fused.normalise(norm, x, shortcut, splits, relu=True)
    groups = [nn.functional.batch_norm(g, None, None, norm.weight, norm.bias, True) for g in x.chunk(splits)]
    sums = torch.cat(groups) + shortcut
    expected = sums.relu()
    target = target.detach() * (sums.abs() > 1e-3)  # what rounding could take past the ReLU does not count
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert y.is_contiguous(memory_format=torch.channels_last)
    moments = [torch.stack([f(g, dim=(0, 2, 3)) for g in x.chunk(splits)]).mean(0) for f in (torch.mean, torch.var)]
    statistics = torch.stack([norm.running_mean, norm.running_var])
    torch.testing.assert_close(statistics, torch.stack(moments), rtol=1e-4, atol=1e-5)
    found, truth = (torch.autograd.grad(out, leaves, target) for out in (y, expected))
    for ours, theirs in zip(found, truth, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_gradient_may_lie_in_memory_as_it_likes():
    """As that of a mean over pixels, which is one number a channel seen many times."""
    norm, x = norm_of(8), images((4, 8, 3, 3), torch.bfloat16).requires_grad_()
    y = fused.normalise(norm, x, None, 2, relu=True)
    dy, leaves = torch.randn(4, 8, 1, 1).bfloat16().expand(4, 8, 3, 3), (x, *norm.parameters())
    one = torch.autograd.grad(y, leaves, dy, retain_graph=True)
    other = torch.autograd.grad(y, leaves, dy.contiguous(memory_format=torch.channels_last))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("pixels", [3, 1])
def test_a_shortcut_of_another_kind_is_taken_too(pixels):
    x, shortcut = images((4, 8, 3, 3), torch.bfloat16), torch.randn(4, 8, pixels, pixels, requires_grad=True)
    y = fused.normalise(norm_of(8), x, shortcut, 2, relu=True)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert shortcut.grad.dtype == torch.float32
    expected = (y > 0).float() if pixels == 3 else (y > 0).float().sum((2, 3), keepdim=True)
    assert torch.equal(shortcut.grad, expected)


def test_what_is_kept_may_come_back_otherwise():
    """Hooks on saved tensors need not keep how they lie in memory."""
    norm, x, shortcut = norm_of(8), images((4, 8, 3, 3)).requires_grad_(), images((4, 8, 3, 3), seed=1)
    found = []
    for kept in (lambda t: t, lambda t: t.contiguous()):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, kept):
            y = fused.normalise(norm, x, shortcut, 2, relu=True)
            found.append(torch.autograd.grad(y.square().sum(), (x, *norm.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_needs_no_gradient_gets_none():
    norm, x = norm_of(8), images((4, 8, 3, 3)).requires_grad_()
    norm.requires_grad_(False)
    fused.normalise(norm, x, None, 2, relu=True).sum().backward()
    assert x.grad is not None
    assert norm.weight.grad is None
    norm.requires_grad_(True)
    fused.normalise(norm, x.detach(), None, 2, relu=True).sum().backward()
    assert norm.weight.grad is not None


@pytest.mark.parametrize("added", [False, True])
def test_what_it_gives_may_be_changed_in_place(added):
    """As by a ReLU that follows in a network of another kind."""
    norm, x = norm_of(8), images((4, 8, 3, 3)).requires_grad_()
    y = fused.normalise(norm, x, x.detach() if added else None, 2, relu=False)
    expected = torch.autograd.grad(y.relu().square().sum(), x, retain_graph=True)
    found = torch.autograd.grad(y.relu_().square().sum(), x)
    torch.testing.assert_close(found, expected)


def test_there_is_no_second_derivative():
    x = images((4, 8, 3, 3)).requires_grad_()
    y = fused.normalise(norm_of(8), x, None, 2, relu=False)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.square().sum().backward()


@pytest.mark.parametrize(
    ("x", "splits", "possible"),
    [
        (images((8, 4, 3, 3)), 4, True),
        (images((8, 4, 3, 3), torch.bfloat16), 8, True),
        (images((8, 4, 128, 128)), 1, True),
        (images((8, 4, 128, 127)), 1, False),  # in one group so few that torch is as fast
        (images((8, 4, 3, 3), torch.float64), 4, False),
        (images((9, 4, 3, 3)), 4, False),  # unequal groups
        (torch.randn(8, 4, 3, 3), 4, False),  # channels first
        (torch.empty(8, 4, 3, 3, device="meta").contiguous(memory_format=torch.channels_last), 4, False),
        (images((8, 5, 3, 3)), 4, False),  # of another number of channels, which torch refuses
        (images((0, 4, 3, 3)), 1, False),
        (images((4, 4, 1, 1)), 4, False),  # one number a channel and group, which torch refuses
    ],
)
def test_what_is_taken(monkeypatch, x, splits, possible):
    assert fused.can_fuse(nn.BatchNorm2d(4), x, splits) is possible
    others = [nn.BatchNorm2d(4, **{name: False}) for name in ("affine", "bias", "track_running_stats")]
    others += [nn.BatchNorm2d(4) for _ in range(4)]
    others[3].double()
    others[4].num_batches_tracked = torch.tensor(0, dtype=torch.int32)
    others[5].running_var = torch.ones(3)
    others[6].track_running_stats = False
    assert not any(fused.can_fuse(other, x, splits) for other in others)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert not fused.can_fuse(nn.BatchNorm2d(4), x.clone(), splits)  # which has no memory
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not fused.can_fuse(nn.BatchNorm2d(4), x, splits)


@pytest.mark.parametrize("momentum", [0.1, 0.0, None])
@pytest.mark.parametrize("splits", [1, 2])
def test_running_statistics_are_those_of_torch(splits, momentum):
    """Of one group those of plain batch norm; without a momentum the means over batches."""
    ours, plain = (nn.BatchNorm2d(4, momentum=momentum) for _ in range(2))
    for seed in range(3):
        x = images((8, 4, 3, 3), seed=seed)
        fused.normalise(ours, x, None, splits, relu=False)
        if splits == 1:
            plain(x)
        else:
            groups = [copy.deepcopy(plain) for _ in range(splits)]
            for norm, group in zip(groups, x.chunk(splits), strict=True):
                norm(group)
            plain.load_state_dict(groups[0].state_dict())
            plain.running_mean = torch.stack([norm.running_mean for norm in groups]).mean(0)
            plain.running_var = torch.stack([norm.running_var for norm in groups]).mean(0)
    assert int(ours.num_batches_tracked) == 3
    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("batch", [8, 9])
def test_a_norm_gives_the_same_either_way(monkeypatch, batch, added, relu):
    """Of groups of equal size by the kernels, of others by torch; in evaluation by torch."""
    norms = [SplitBatchNorm2d(4) for _ in range(2)]
    x, shortcut = images((batch, 4, 3, 3)), images((batch, 4, 3, 3), seed=1) if added else None
    calls, real = [], fused.normalise
    monkeypatch.setattr(fused, "normalise", lambda *a: calls.append(a) or real(*a))
    for norm in norms:
        norm.splits = 4
    ours = norms[0](x, shortcut, relu)
    assert len(calls) == (batch == 8)
    monkeypatch.setattr(fused, "can_fuse", lambda *a: False)
    torch.testing.assert_close(ours, norms[1](x, shortcut, relu), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norms[0].state_dict(), norms[1].state_dict(), rtol=1e-4, atol=1e-5)
    plain = nn.BatchNorm2d(4).eval()
    plain.load_state_dict(norms[0].state_dict())
    expected = plain(x) + (shortcut if added else 0)
    assert torch.equal(norms[0].eval()(x, shortcut, relu), expected.relu() if relu else expected)
    assert len(calls) == (batch == 8)


def test_kernels_have_torchs_threads_and_numba_its_own_again():
    numba, before = fused._kernels().numba, torch.get_num_threads()
    most = numba.config.NUMBA_NUM_THREADS
    numba.set_num_threads(most)
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with fused._running():
                assert numba.get_num_threads() == min(threads, most)
            assert numba.get_num_threads() == most
    finally:
        torch.set_num_threads(before)


STEP = """
import os, sys, torch
from mocokit.model.norm import SplitBatchNorm2d
def step():
    torch.manual_seed(0)
    norm = SplitBatchNorm2d(8)
    norm.splits = 2
    x = torch.randn(4, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    norm(x.requires_grad_(), relu=True).square().sum().backward()
    return x.grad
torch.set_num_threads(1)
"""


def outcome(program, **environment):
    """What a program that defines `STEP` prints."""
    done = subprocess.run(
        [sys.executable, "-c", STEP + program],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""} | environment,
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_without_numba_torch_does_it(tmp_path):
    """A NumPy that is newer than it knows, for example, it refuses when it is imported."""
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs NumPy 2.5 or less')")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    program = "step(); print([round(float(x), 3) for x in step()[0, :, 0, 0]], 'numba' in sys.modules)"
    missing = outcome(program, PYTHONPATH=path)
    assert missing.stdout == outcome(program).stdout.replace("True", "False")
    assert missing.stderr.count("torch's own operations, which take longer: Numba needs NumPy 2.5 or less") == 1
    switched_off = outcome(program, NUMBA_DISABLE_JIT="1")
    assert "which take longer: NUMBA_DISABLE_JIT is set" in switched_off.stderr


def test_a_forked_process_trains_as_its_parent_did():
    """Threads of OpenMP's do not live on in it; whoever starts some there is killed."""
    program = """
expected = step()
child = os.fork()
if child == 0:
    os._exit(0 if torch.allclose(step(), expected, atol=1e-5) else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert outcome(program).stdout == "0\n"


@pytest.mark.parametrize("threads", [1, 3])
def test_torch_keeps_its_threads(threads):
    """Which Numba sets to the number of cores when it starts its own."""
    program = (
        f"import torch; torch.set_num_threads({threads})\n"
        "from mocokit.model import fused\n"
        "x = torch.randn(4, 8, 3, 3).contiguous(memory_format=torch.channels_last)\n"
        "fused.normalise(torch.nn.BatchNorm2d(8), x, None, 2, False)\n"
        f"assert torch.get_num_threads() == {threads}, torch.get_num_threads()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_several_threads_may_train_at_once():
    def one(seed):
        norm, x = nn.BatchNorm2d(16), images((8, 16, 9, 9), seed=seed).requires_grad_()
        for _ in range(20):
            y = fused.normalise(norm, x, None, 4, relu=True)
            (dx,) = torch.autograd.grad(y.square().sum(), x)
        return y, dx

    alone = [one(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(one, range(4)))
    for pair, other in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(pair, other, strict=True))


def test_other_threads_go_on_meanwhile():
    """The loops need no interpreter."""
    norm, x, counted = nn.BatchNorm2d(64), images((256, 64, 32, 32)), 0
    fused.normalise(norm, x, None, 1, relu=True)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(lambda: [fused.normalise(norm, x, None, 1, relu=True) for _ in range(3)])
        while not done.done():
            counted += 1
    assert counted > 1000
