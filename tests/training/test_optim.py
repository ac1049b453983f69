import dataclasses
import functools
import math

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

from mocokit.auto.defaults import Facts, defaults
from mocokit.training import optim
from mocokit.training.optim import create_optimizer, lr_factor
from tests import reference


@given(st.integers(1, 500), st.data())
def test_cosine_is_the_formula(steps, data):
    step = data.draw(st.integers(0, steps - 1))
    got = lr_factor(step, steps=steps, warmup=0, schedule="cosine")
    assert got == pytest.approx(0.5 * (1 + math.cos(math.pi * step / steps)))


def test_cosine_equals_torchs_scheduler():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    for step in range(50):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(
            lr_factor(step, steps=50, warmup=0, schedule="cosine"), abs=1e-9
        )
        optimizer.step()
        theirs.step()


def test_step_drops_tenfold_at_epochs_120_and_160_of_200():
    factors = [lr_factor(e, steps=200, warmup=0, schedule="step") for e in (0, 119, 120, 159, 160, 199)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_a_restart_is_that_of_sgdr():
    """Loshchilov & Hutter 2017, by torch's scheduler: 12 steps of a run and the next 12 of its extension."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 12)
    for step in range(24):
        restart = step // 12 * 12
        config = dataclasses.replace(configuration(lr=0.3), warmup_steps=0, schedule="cosine", steps=restart + 12)
        _, scheduler = create_optimizer(parameters(), config, restart)
        assert scheduler.lr_lambdas[0](step) * 0.3 == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_a_restart_begins_with_the_warm_up_and_ends_with_the_run(schedule):
    config = dataclasses.replace(configuration(schedule=schedule), warmup_steps=4, steps=100)
    later = dataclasses.replace(config, steps=300)
    (_, first), (_, second) = create_optimizer(parameters(), config), create_optimizer(parameters(), later, 200)
    for step in range(100):
        assert second.lr_lambdas[0](200 + step) == first.lr_lambdas[0](step)


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_warm_up_is_linear_to_the_peak(schedule):
    factors = [lr_factor(s, steps=100, warmup=10, schedule=schedule) for s in range(11)]
    assert factors == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1])
    assert max(lr_factor(8 + s / 9, steps=100, warmup=10, schedule=schedule) for s in range(19)) == 1
    assert lr_factor(99, steps=100, warmup=10, schedule=schedule) < 0.02


def configuration(**values):
    facts = Facts(name="x", images=5000, image_size=16, longest=32, channels=3, device="cpu", bf16=False, cpus=1)
    return defaults({"data": "x", "steps": 10, **values}, facts).config


def parameters(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=draw)) for shape in ((4, 3), (2, 3, 3, 3), (5,))]


def give_gradients(params, seed):
    for p, g in zip(params, parameters(seed), strict=True):
        p.grad = g.detach().clone()


@pytest.mark.parametrize("decay", [0.0, 1e-6, 0.1])
def test_lars_adapts_and_decays_matrices_and_leaves_vectors_alone(decay):
    config = configuration(optimizer="lars", lr=0.3, weight_decay=decay, schedule="step")
    params = parameters()
    optimizer, _ = create_optimizer(params, config)
    expected = [p.detach().double().numpy() for p in params]
    buffers = [np.zeros_like(p) for p in expected]
    for step in range(1, 4):
        give_gradients(params, step)
        grads = [p.grad.double().numpy() for p in params]
        optimizer.step()
        for i, (p, grad) in enumerate(zip(params, grads, strict=True)):
            if p.ndim > 1:
                expected[i], buffers[i] = reference.lars_step(
                    expected[i], grad, buffers[i], lr=0.3, momentum=0.9, decay=decay, trust=0.001
                )
            else:  # plain SGD
                buffers[i] = 0.9 * buffers[i] + grad
                expected[i] = expected[i] - 0.3 * buffers[i]
    for p, e in zip(params, expected, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), e, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 1e-6])
def test_lars_without_a_gradient_moves_by_the_decay_alone(decay):
    """As in a residual branch that starts at zero: by trust |p| / |decay p| times the decay, however small that is.
    Without a decay, and where the weights are zero, there is nothing to divide by."""
    params = [torch.nn.Parameter(torch.full((4, 3), 2.0)), torch.nn.Parameter(torch.zeros(4, 3))]
    optimizer, _ = create_optimizer(params, configuration(optimizer="lars", lr=0.5, weight_decay=decay))
    params[0].grad, params[1].grad = torch.zeros(4, 3), torch.ones(4, 3)
    optimizer.step()
    expected = 2.0 * (1 - 0.5 * 0.001) if decay else 2.0
    torch.testing.assert_close(params[0].detach(), torch.full((4, 3), expected))
    torch.testing.assert_close(params[1].detach(), torch.full((4, 3), -0.5))


@pytest.mark.parametrize("trust", [0.001, 10.0])
def test_larc_steps_no_faster_than_sgd(trust):
    """min(trust |p| / |g|, lr) along the gradient."""
    params = parameters()[:1]
    config = configuration(optimizer="larc", lr=0.3, weight_decay=0.0, trust=trust)
    optimizer, _ = create_optimizer(params, config)
    params[0].grad = torch.ones(4, 3)
    before = params[0].detach().clone()
    rate = min(trust * float(before.norm()) / 12**0.5, 0.3)
    optimizer.step()
    torch.testing.assert_close(params[0].detach(), before - rate)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars", "muon"])
def test_frozen_parameters_are_left_out(name):
    params = parameters()
    params[1].requires_grad_(False)
    optimizer, _ = create_optimizer(params, configuration(optimizer=name))
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in held] == [id(params[0]), id(params[2])]


def test_adamw_equals_torchs_on_all_parameters():
    ours, theirs = parameters(), parameters()
    optimizer, _ = create_optimizer(ours, configuration(optimizer="adamw", lr=0.01, weight_decay=0.1))
    reference_optimizer = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1)
    for params, o in ((ours, optimizer), (theirs, reference_optimizer)):
        give_gradients(params, 3)
        o.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_muon_steps_along_the_momentum_with_singular_values_near_one():
    """Singular vectors by NumPy; steps are as large as those of AdamW: 0.2 times the root of the larger side."""
    weight = torch.nn.Parameter(torch.randn(8, 4, 3, 3).contiguous(memory_format=torch.channels_last))
    norm = torch.nn.Parameter(torch.randn(8))
    start = norm.detach().clone()
    optimizer, _ = create_optimizer([weight, norm], configuration(optimizer="muon", lr=0.01, weight_decay=0.1))
    momentum = np.zeros((8, 36))
    for _ in range(3):
        weight.grad, norm.grad = torch.randn_like(weight), torch.tensor([1.0, -1.0] * 4)
        gradient, before = (t.detach().double().numpy().reshape(8, 36).copy() for t in (weight.grad, weight))
        momentum = 0.9 * momentum + 0.1 * gradient
        optimizer.step()
        moved = before * (1 - 0.01 * 0.1) - weight.detach().double().numpy().reshape(8, 36)
        u, _, v = np.linalg.svd(0.1 * gradient + 0.9 * momentum, full_matrices=False)
        sizes = u.T @ moved @ v.T / (0.01 * 0.2 * 36**0.5)
        assert np.abs(sizes - np.diag(np.diag(sizes))).max() < 0.1  # in bfloat16
        assert 0.5 < np.diag(sizes).min() <= np.diag(sizes).max() < 1.4
    against = (start - norm.detach()) * norm.grad
    assert 0.02 < against.min() <= against.max() < 0.06  # in three steps


@pytest.mark.parametrize("at_once", [optim.AT_ONCE, 2 * 8 * 72, 1])
def test_muon_in_batches_is_timms(monkeypatch, at_once):
    """In float64, where padding with zeros must change nothing; shapes wide, tall, square, and such as AdamW has."""
    exact = functools.partial(timm.optim.muon.zeropower_via_newtonschulz, dtype=torch.float64)
    monkeypatch.setattr(timm.optim.muon, "zeropower_via_newtonschulz", exact)
    monkeypatch.setattr(optim, "PRECISION", torch.float64)
    monkeypatch.setattr(optim, "AT_ONCE", at_once)
    shapes = [(8, 3, 3, 3), (8, 8, 3, 3), (8, 8, 3, 3), (16, 8, 1, 1), (16, 16), (64, 8), (8,), (6, 1, 3, 3), ()]
    for _ in range(2):
        shapes = shapes[::-1]
        start = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
        start = [t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in start]
        ours, theirs = ([torch.nn.Parameter(t.clone()) for t in start] for _ in range(2))
        unused = torch.nn.Parameter(torch.ones(8, 8))  # without a gradient
        optimizer, _ = create_optimizer([*ours, unused], configuration(optimizer="muon", lr=0.01, weight_decay=0.1))
        settings = {"lr": optimizer.param_groups[0]["lr"], "weight_decay": 0.1, "momentum": 0.9, "nesterov": True}
        reference = timm.optim.Muon(theirs, **settings)
        for _ in range(4):
            for a, b in zip(ours, theirs, strict=True):
                a.grad = torch.randn_like(a)
                b.grad = a.grad.clone()
            optimizer.step()
            reference.step()
            assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))
        for a, b, before in zip(ours, theirs, start, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
            assert not torch.equal(a, before)
        assert torch.equal(unused, torch.ones(8, 8))
        kept, theirs = optimizer.state_dict(), reference.state_dict()
        assert [s.keys() for s in kept["state"].values()] == [s.keys() for s in theirs["state"].values()]


def test_warm_up_then_cosine_reaches_the_optimizer():
    config = dataclasses.replace(configuration(optimizer="adamw", lr=1.0), warmup_steps=4, steps=14)
    optimizer, scheduler = create_optimizer(parameters(), config)
    rates = []
    for _ in range(14):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4:] == pytest.approx([0.5 * (1 + math.cos(math.pi * t / 10)) for t in range(10)])
