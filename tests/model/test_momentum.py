import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mocokit.model.momentum import momentum_copy, momentum_update
from tests import reference


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.LazyLinear(2))


def made() -> nn.Module:
    module = small()
    module(torch.randn(4, 1, 5, 5))
    return module


def test_the_copy_is_exact_and_takes_no_gradient():
    encoder = made()
    copy = momentum_copy(encoder)
    pairs = zip(encoder.state_dict().values(), copy.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not any(p.requires_grad for p in copy.parameters())
    assert all(p.requires_grad for p in encoder.parameters())


@settings(deadline=None, max_examples=20)
@given(st.floats(0, 1), st.integers(1, 4))
def test_follows_the_formula(m, steps):
    encoder = made()
    copy = momentum_copy(encoder)
    expected = [p.numpy().astype(np.float64) for p in copy.parameters()]
    for _ in range(steps):
        with torch.no_grad():
            for p in encoder.parameters():
                p.add_(torch.randn_like(p))
        momentum_update(copy, encoder, m)
        expected = reference.momentum_update(expected, [p.detach().numpy() for p in encoder.parameters()], m)
    for p, e in zip(copy.parameters(), expected, strict=True):
        np.testing.assert_allclose(p.numpy(), e, rtol=1e-5, atol=1e-5)


def test_statistics_of_the_key_encoder_are_its_own():
    encoder = made()
    copy = momentum_copy(encoder)
    encoder(torch.randn(4, 1, 5, 5) + 7)
    before = copy[1].running_mean.clone()
    momentum_update(copy, encoder, 0.5)
    assert torch.equal(copy[1].running_mean, before)
