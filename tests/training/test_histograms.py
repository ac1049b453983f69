"""Weight histograms against NumPy's."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mocokit.training.histograms import BINS, histograms

VALUES = arrays(np.float32, st.integers(1, 200), elements=st.floats(-1e3, 1e3, width=32))


@given(st.lists(VALUES, min_size=1, max_size=4))
@example([np.array([9.512e-42, 0], np.float32)])
def test_every_value_is_counted_in_its_bin(tensors):
    named = {str(i): torch.from_numpy(values) for i, values in enumerate(tensors)}
    for histogram, values in zip(histograms(named).values(), tensors, strict=True):
        exact = values.astype(np.float64)
        assert (histogram.min, histogram.max, histogram.num) == (exact.min(), exact.max(), exact.size)
        assert histogram.sum == pytest.approx(exact.sum(), abs=1e-6 * np.abs(exact).sum())
        assert histogram.sum_squares == pytest.approx(np.square(exact).sum(), rel=1e-5)
        assert histogram.bucket_counts[0] == 0
        assert sum(histogram.bucket_counts) == exact.size
        # Rounding may move a value over the nearest limit, not further; what is less apart than normal numbers is one.
        slack = 1e-5 * (np.abs(exact).max() + exact.max() - exact.min()) + BINS * np.finfo(np.float32).tiny
        below = np.cumsum(histogram.bucket_counts)
        for limit, count in zip(histogram.bucket_limits, below, strict=True):
            assert (exact < limit - slack).sum() <= count <= (exact <= limit + slack).sum()


def test_spread_values_are_numpys_histogram():
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    found = histograms({"w": values.view(100, 10, 10)})["w"]
    counts, limits = np.histogram(values.double().numpy(), bins=BINS)
    assert np.abs(np.array(found.bucket_counts[1:]) - counts).sum() <= 4  # on a limit
    np.testing.assert_allclose(found.bucket_limits, limits, rtol=1e-5)


def test_equal_values_and_none():
    found = histograms({"ones": torch.ones(7)})["ones"]
    assert found.bucket_counts[1] == 7
    assert (found.min, found.max, found.sum) == (1, 1, 7)
    assert histograms({}) == {}


def test_what_is_no_number_does_no_harm():
    values = torch.tensor([1.0, float("nan"), float("inf"), -float("inf")])
    found = histograms({"broken": values, "whole": torch.arange(3.0)})
    assert sum(found["broken"].bucket_counts) == 4
    assert (found["whole"].min, found["whole"].max) == (0, 2)
