import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mocokit.model.momentum import momentum_at, momentum_copy, momentum_update
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


@given(st.integers(1, 1000), st.floats(0, 1), st.floats(0, 1), st.data())
def test_momentum_is_the_formula(steps, start, end, data):
    step = data.draw(st.integers(0, steps - 1))
    got = momentum_at(step, steps, start, end)
    assert momentum_at(step, steps, start, start) == start  # v1, v2: exactly constant
    assert min(start, end) - 1e-9 <= got <= max(start, end) + 1e-9
    in_v3 = momentum_at(step, steps, start, 1.0)
    assert in_v3 == pytest.approx(1 - (1 - start) * (math.cos(math.pi * step / steps) + 1) / 2)


def test_momentum_starts_and_ends_where_it_should():
    assert momentum_at(0, 100, 0.99, 0.999) == pytest.approx(0.99)
    assert momentum_at(50, 100, 0.9, 1.0) == pytest.approx(0.95)
    assert momentum_at(100, 100, 0.99, 0.999) == pytest.approx(0.999)
