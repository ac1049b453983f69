"""Neighbours against slow NumPy, whatever blocks they are found in."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mocokit.reporting.neighbours as module
from mocokit.reporting.neighbours import neighbours


@given(st.integers(2, 40), st.integers(1, 6), st.integers(1, 45), st.integers(0, 99), st.integers(40, 400))
@settings(max_examples=60)
def test_the_nearest_by_cosine(count, dim, k, seed, chunk):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, dim)).astype(np.float32)
    x[rng.integers(0, count)] = 3 * x[0]  # an equal direction
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_FLOATS", chunk)
        found = neighbours(torch.from_numpy(x), k)
    unit = x.astype(float) / np.linalg.norm(x.astype(float), axis=1, keepdims=True)
    cosines = unit @ unit.T
    assert found.rows.shape == found.similarity.shape == (count, min(k, count - 1))
    for row in range(count):
        others = sorted((cosines[row, i] for i in range(count) if i != row), reverse=True)[: min(k, count - 1)]
        assert found.similarity[row].tolist() == pytest.approx(others, abs=2e-6)
        rows = found.rows[row].tolist()
        assert row not in rows
        assert len(set(rows)) == len(rows)
        assert [cosines[row, i] for i in rows] == pytest.approx(others, abs=2e-6)


def test_of_equal_ones_the_lower_row_is_first():
    x = torch.tensor([[1.0, 0], [0, 1], [0, 2], [0, 1], [1, 1]])
    assert neighbours(x, 4).rows[4].tolist() == [0, 1, 2, 3]
    assert neighbours(x, 4).rows[2].tolist() == [1, 3, 4, 0]


def test_a_zero_vector_resembles_nothing():
    found = neighbours(torch.tensor([[0.0, 0], [1, 0], [1, 0.1]]), 2)
    assert found.similarity[0].tolist() == [0, 0]
    assert torch.isfinite(found.similarity).all()
