"""The sizes of views grow evenly, and times are averaged as they do."""

import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mocokit.auto.view_sizes import VIEW_STEP, VIEW_STEPS, mean_over_views, view_size_at, view_sizes


@given(st.integers(4, 64), st.integers(0, 200), st.integers(1, 300))
def test_views_grow_evenly_from_start_to_end(start, growth, steps):
    end = start + growth
    sizes = [view_size_at(step, steps, start, end) for step in range(steps)]
    assert sizes[0] == start
    assert sizes == sorted(sizes)
    assert sizes[-1] <= end
    assert len(set(sizes)) <= 1 + VIEW_STEPS
    assert all((size - start) % VIEW_STEP == 0 or size == end for size in sizes)
    for step, size in enumerate(sizes):  # near the line
        assert abs(size - (start + growth * step / steps)) < 1.5 * VIEW_STEP * max(1, math.ceil(growth / 16))
    if steps > 40:
        assert sizes[-1] == end


@given(st.integers(4, 64), st.integers(0, 200), st.integers(0, 9))
def test_the_mean_over_a_run_is_that_of_its_steps(start, growth, seed):
    config = SimpleNamespace(view_size=start, view_size_end=start + growth)
    times = {size: 1.0 + (size * 7919 + seed) % 13 for size in view_sizes(start, start + growth)}
    steps = 4800  # a multiple of twice as many as there are stretches
    mean = sum(times[view_size_at(step + 0.5, steps, start, start + growth)] for step in range(steps)) / steps
    assert mean_over_views(times, config) == pytest.approx(mean)
