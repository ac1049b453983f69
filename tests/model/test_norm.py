import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d
from torch import nn

from mocokit.model.norm import (
    CpuSyncBatchNorm,
    _normalise_apart,
    _normalise_as_channels,
    _normalise_view,
    freeze_batch_norm,
    split_batch_norm,
)
from tests import reference


def make(splits, channels=3):
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    return split_batch_norm(norm, splits)


@settings(max_examples=30)
@given(st.integers(2, 20), st.integers(2, 6), st.booleans())
def test_each_group_is_normalised_by_itself(N, splits, channels_last):
    norm, x = make(splits), torch.randn(N, 3, 4, 5) * 3 + 2
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    weight, bias = norm.weight.detach().numpy(), norm.bias.detach().numpy()
    groups = np.array_split(x.double().numpy(), min(splits, N // 2))
    expected = np.concatenate([reference.batch_norm(g, weight, bias, norm.eps) for g in groups])
    np.testing.assert_allclose(norm(x).detach().numpy(), expected, atol=1e-4)
    means = np.mean([g.mean(axis=(0, 2, 3)) for g in groups], axis=0)
    variances = np.mean([g.var(axis=(0, 2, 3), ddof=1) for g in groups], axis=0)
    np.testing.assert_allclose(norm.running_mean.numpy(), 0.1 * means, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.running_var.numpy(), 0.9 + 0.1 * variances, rtol=1e-4, atol=1e-5)
    assert int(norm.num_batches_tracked) == 1


def test_gradients_equal_separate_batch_norms():
    norm, x = make(4), torch.randn(12, 3, 4, 4, requires_grad=True)
    plain = nn.BatchNorm2d(3)
    plain.load_state_dict(norm.state_dict())
    target = torch.randn(12, 3, 4, 4)
    (norm(x) * target).sum().backward()
    got = x.grad.clone(), norm.weight.grad.clone()
    x.grad = None
    sum((plain(g) * t).sum() for g, t in zip(x.split(3), target.split(3), strict=True)).backward()
    torch.testing.assert_close(got[0], x.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got[1], plain.weight.grad, rtol=1e-4, atol=1e-5)


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(2, 5), st.booleans(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_groups_at_once_are_groups_one_by_one(splits, each, affine, dtype):
    """The forms for compilers and GPUs against torch's own batch norm: outputs, statistics and gradients."""
    norm = nn.BatchNorm2d(3, affine=affine)
    if affine:
        norm.weight.data.uniform_(0.5, 2)
        norm.bias.data.uniform_(-1, 1)
    x = (torch.randn(splits * each, 3, 4, 5) * 3 + 2).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    target, tolerance = torch.randn(x.shape), 1e-4 if dtype == torch.float32 else 3e-2
    found = []
    for normalise in (_normalise_apart, _normalise_view, _normalise_as_channels):
        y, stats = normalise(norm, x, splits)
        assert y.dtype == dtype
        assert y.is_contiguous(memory_format=torch.channels_last)
        wanted = [x, *norm.parameters()]
        found.append([y, stats, *torch.autograd.grad((y.float() * target).sum(), wanted)])
    for one_by_one, *at_once in zip(*found, strict=True):
        scale = float(one_by_one.abs().max())
        for tensor in at_once:
            torch.testing.assert_close(tensor, one_by_one, rtol=tolerance, atol=tolerance * scale)


def test_evaluation_and_state_dict_are_those_of_plain_batch_norm():
    norm, plain = make(4), nn.BatchNorm2d(3)
    for _ in range(3):
        norm(torch.randn(16, 3, 4, 4))
    assert list(norm.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(norm.state_dict())
    x = torch.randn(5, 3, 4, 4)
    assert torch.equal(norm.eval()(x), plain.eval()(x))


def test_one_split_is_plain_batch_norm():
    assert type(split_batch_norm(nn.BatchNorm2d(2), 1)) is nn.BatchNorm2d


def test_timms_fused_norm_keeps_its_activation():
    norm = split_batch_norm(nn.Sequential(BatchNormAct2d(2)), 2)
    y = norm(torch.randn(8, 2, 3, 3))
    assert float(y.min()) == 0  # ReLU
    plain = nn.BatchNorm2d(2)
    x = torch.randn(8, 2, 3, 3)
    torch.testing.assert_close(norm(x), torch.cat([plain(g).relu() for g in x.split(4)]))


def test_other_norms_are_left_alone_and_unknown_batch_norms_refused():
    group = nn.GroupNorm(1, 4)
    assert split_batch_norm(group, 8) is group
    with pytest.raises(TypeError, match="BatchNorm1d"):
        split_batch_norm(nn.Sequential(nn.BatchNorm1d(4)), 2)
    half = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm1d(4))
    with pytest.raises(TypeError, match="1: BatchNorm1d"):
        split_batch_norm(half, 2)
    assert type(half[0]) is nn.BatchNorm2d


def test_groups_can_be_counted_anew():
    norms = split_batch_norm(nn.Sequential(nn.BatchNorm2d(2), BatchNormAct2d(2)), 4)
    for splits in (2, 1):
        assert {norm.splits for norm in split_batch_norm(norms, splits)} == {splits}
    x = torch.randn(8, 2, 3, 3)
    torch.testing.assert_close(norms[0](x), nn.BatchNorm2d(2)(x))
    for splits in (0, -3):
        with pytest.raises(ValueError, match="at least 1"):
            split_batch_norm(norms, splits)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([(6, 3), (5, 3, 4, 4), (8, 2, 1, 3)]),
    st.sampled_from([(torch.float32, 1e-5), (torch.bfloat16, 1e-2)]),
    st.sampled_from([0.0, 100.0]),
    st.booleans(),
)
def test_synchronised_batch_norm_and_its_gradients_are_batch_norms_in_float64(shape, precision, offset, affine):
    dtype, close = precision
    x = (torch.randn(shape) + offset).to(dtype)
    target = torch.randn(shape).to(dtype)
    norm = CpuSyncBatchNorm(shape[1], affine=affine)
    truth = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(shape[1], affine=affine).double()
    if affine:
        nn.init.uniform_(norm.weight, 0.5, 2)
        truth.weight.data.copy_(norm.weight.data)
    outcomes = []
    for module, images in ((norm, x.clone().requires_grad_()), (truth, x.double().requires_grad_())):
        y = module(images)
        y.backward(target.to(y.dtype))
        outcomes.append(
            [y, images.grad, *(p.grad for p in module.parameters()), module.running_mean, module.running_var]
        )
    for found, expected in zip(*outcomes, strict=True):
        scale = expected.abs().max().clamp_min(1) * (1 + offset)  # float32 keeps so many digits of the mean
        assert (found.double() - expected).abs().max() <= close * scale
    assert outcomes[0][0].dtype == outcomes[0][1].dtype == dtype


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, BatchNormAct2d])
def test_frozen_statistics_are_those_of_evaluation_and_stay(kind):
    norm = kind(3).train()
    with torch.no_grad():
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
        norm.weight.uniform_(0.5, 2)
    x = torch.randn(6, 3, 4) if kind is nn.BatchNorm1d else torch.randn(6, 3, 4, 4)
    expected = norm.eval()(x)
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    frozen = freeze_batch_norm(nn.Sequential(norm)).train()
    out = frozen(x)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)
    out.sum().backward()
    assert norm.weight.grad is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in norm.state_dict().items())
    with pytest.raises(TypeError, match="0: GroupedNorm can't be frozen"):
        freeze_batch_norm(nn.Sequential(type("GroupedNorm", (nn.BatchNorm2d,), {})(3)))
