import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mocokit.evaluation.scorecard import alignment, rankme, retrieval, uniformity


def features(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_rankme_counts_equal_directions():
    assert rankme(torch.eye(6)) == pytest.approx(6, rel=1e-4)
    assert rankme(torch.eye(8)[:, :3]) == pytest.approx(3, rel=1e-4)
    assert rankme(torch.ones(50, 20)) == pytest.approx(1, abs=1e-3)


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 30), st.integers(1, 10), st.integers(0, 99))
def test_rankme_is_the_formula(n, d, seed):
    x = features(n, d, seed)
    s = np.linalg.svd(x.double().numpy(), compute_uv=False)
    p = s / s.sum() + 1e-7
    assert rankme(x) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)


def test_alignment_has_closed_forms():
    x = features(10, 4)
    assert alignment(x, 3 * x) == pytest.approx(0, abs=1e-6)
    assert alignment(x, -x) == pytest.approx(4)
    assert alignment(torch.eye(4)[:2], torch.eye(4)[2:]) == pytest.approx(2)


def test_uniformity_is_the_log_mean_potential_of_pairs():
    x = features(12, 3)
    z = (x / x.norm(dim=1, keepdim=True)).double().numpy()
    pairs = [np.exp(-2 * np.sum((z[i] - z[j]) ** 2)) for i in range(12) for j in range(12) if i != j]
    assert uniformity(x) == pytest.approx(np.log(np.mean(pairs)), rel=1e-6)
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-9)
    assert uniformity(torch.tensor([[1.0, 0], [-1, 0]])) == pytest.approx(-8)


def test_retrieval_counts_images_that_find_themselves():
    x = torch.eye(4)
    assert retrieval(x, x) == 1
    assert retrieval(x, x.roll(1, dims=0)) == 0
    swapped = x[[1, 0, 2, 3]]
    assert retrieval(x, swapped) == 0.5
    assert retrieval(torch.ones(4, 3), torch.ones(4, 3)) == 0  # collapsed features tie
