import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mocokit.evaluation.scorecard import SCORES, alignment, effective_dimension, rankme, retrieval, uniformity


def features(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_rankme_counts_equal_directions():
    assert rankme(torch.eye(6)) == pytest.approx(6, rel=1e-4)
    assert rankme(torch.eye(8)[:, :3]) == pytest.approx(3, rel=1e-4)
    assert rankme(torch.ones(50, 20)) == pytest.approx(1, abs=1e-3)


@settings(max_examples=20)
@given(st.integers(2, 30), st.integers(1, 10), st.integers(0, 99))
def test_rankme_is_the_formula(n, d, seed):
    x = features(n, d, seed)
    s = np.linalg.svd(x.double().numpy(), compute_uv=False)
    p = s / s.sum() + 1e-7
    assert rankme(x) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)


def test_effective_dimension_counts_equal_variances():
    corners = torch.cat([torch.eye(3), -torch.eye(3)])
    assert effective_dimension(corners) == pytest.approx(3)
    assert effective_dimension(corners + 100) == pytest.approx(3, rel=1e-4)  # wherever they lie
    assert effective_dimension(corners @ torch.randn(3, 50)[:, :1]) == pytest.approx(1)
    assert effective_dimension(corners * torch.tensor([1e-20, 1e-20, 0])) == pytest.approx(2)
    # Variances 4 and 1: (4 + 1)^2 / (16 + 1).
    assert effective_dimension(corners[[0, 1, 3, 4]] * torch.tensor([2.0, 1, 1])) == pytest.approx(25 / 17)
    assert effective_dimension(torch.full((20, 5), 0.1)) == 0
    assert effective_dimension(torch.zeros(20, 5)) == 0


@settings(max_examples=20)
@given(st.integers(2, 30), st.integers(1, 40), st.integers(0, 99), st.floats(-10, 10))
def test_effective_dimension_is_the_formula(n, d, seed, shift):
    x = features(n, d, seed) * torch.linspace(0.1, 3, d) + shift
    eigenvalues = np.linalg.eigvalsh(np.cov(x.double().numpy(), rowvar=False).reshape(d, d))
    expected = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    assert effective_dimension(x) == pytest.approx(expected, rel=1e-6)
    assert 1 - 1e-9 <= effective_dimension(x) <= min(n - 1, d) + 1e-9


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


# What is said of the figures ------------------------------------------------------------------------------


def test_every_score_is_measured_by_its_function():
    plain, first, second = (features(12, 5, seed) for seed in range(3))
    measured = {score.name: score.measure(plain, first, second) for score in SCORES}
    assert measured == {
        "rankme": rankme(plain),
        "effective_dimension": effective_dimension(plain),
        "alignment": alignment(first, second),
        "uniformity": uniformity(first),
        "retrieval": retrieval(first, second),
    }


@pytest.mark.parametrize("score", SCORES, ids=lambda score: score.name)
def test_better_is_better(score):
    """Alignment and retrieval reward views that agree, the others images that differ."""
    spread, line = features(40, 8), features(40, 1) @ torch.ones(1, 8) + 0.01 * features(40, 8)
    noise = 0.01 * features(40, 8, 1)
    near, far = (spread, spread + noise), (spread, features(40, 8, 2))
    good, bad = (near, far) if score.name in ("alignment", "retrieval") else (near, (line, line + noise))
    better, worse = (score.measure(first, first, second) for first, second in (good, bad))
    assert (better > worse) == (score.better == "higher")
    assert better != worse


@pytest.mark.parametrize(
    ("name", "value", "before", "words"),
    [
        ("rankme", 1.2, 40.0, "collapsed: an effective rank of 1.2"),
        ("rankme", 1.2, 2.0, "collapsed: an effective rank of 1.2"),
        ("rankme", 1.0, 1.0, "rank of 1.0, as at random initialisation: there are two images, or all are but alike"),
        ("rankme", 1.89, 1.92, "an effective rank of 1.9, as at random initialisation: there are two"),
        ("rankme", 62.0, 40.0, "about 62.0 directions, up from 40.0 at random initialisation"),
        ("rankme", 62.0, 62.01, "as at random initialisation"),
        ("effective_dimension", 7.0, 9.0, "that of 7.0 equally strong directions, down from 9.0"),
        ("alignment", 0.3, 0.6, "a cosine of 0.85, up from 0.70"),
        ("uniformity", -2.0, -1.0, "over the sphere more evenly than at"),
        ("uniformity", -1.0, -2.0, "over the sphere less evenly than at"),
        ("uniformity", -1.0, -1.0, "over the sphere as evenly as at"),
        ("retrieval", 0.276, 0.032, "for 27.6% of the images the nearest other view is their own, up from 3.2%"),
    ],
)
def test_what_a_figure_means(name, value, before, words):
    (score,) = [score for score in SCORES if score.name == name]
    assert words in score.meaning(value, before)
