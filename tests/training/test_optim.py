import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mocokit.training.optim import lr_factor


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


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_warm_up_is_linear_to_the_peak(schedule):
    factors = [lr_factor(s, steps=100, warmup=10, schedule=schedule) for s in range(11)]
    assert factors == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1])
    assert lr_factor(99, steps=100, warmup=10, schedule=schedule) < 0.02
