import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import NTXentLoss
from torch.nn.functional import normalize

from mocokit.model.losses import info_nce, info_nce_in_batch
from tests import reference


def unit(*shape, seed=0):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=1)


@settings(max_examples=40)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(2, 5), st.floats(0.05, 2), st.booleans(), st.integers(0, 999))
def test_equals_slow_numpy(B, K, D, tau, masked, seed):
    q, k, queue = unit(B, D, seed=seed), unit(B, D, seed=seed + 1), unit(K, D, seed=seed + 2)
    own = torch.rand(B, K, generator=torch.Generator().manual_seed(seed)) < 0.3 if masked else None
    expected = reference.info_nce(*(t.double().numpy() for t in (q, k, queue)), tau, own)
    assert float(info_nce(q, k, queue, tau, own).loss) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("K", [1, 7, 4096])
@pytest.mark.parametrize("tau", [0.07, 0.2])
def test_identical_embeddings_are_at_chance_level(K, tau):
    one = unit(1, 8)
    loss = info_nce(one.expand(5, -1), one.expand(5, -1), one.expand(K, -1), tau).loss
    assert float(loss) == pytest.approx(math.log(K + 1), rel=1e-6)


def test_orthogonal_negatives_have_a_closed_form():
    q = torch.eye(4)[:1]
    loss = info_nce(q, q, torch.eye(4)[1:], 0.5).loss
    assert float(loss) == pytest.approx(math.log(1 + 3 * math.exp(-2)), rel=1e-6)


def test_an_opposite_queue_of_one_is_a_logistic_loss():
    q = unit(3, 6)
    loss = info_nce(q, q, -q[:1], 1.0).loss
    expected = np.mean([np.log1p(np.exp(float(-q[0] @ q[i]) - 1)) for i in range(3)])
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_own_keys_do_not_count():
    q, k, queue = unit(2, 4), unit(2, 4, seed=1), unit(5, 4, seed=2)
    own = torch.zeros(2, 5, dtype=torch.bool)
    own[:, 3:] = True
    assert info_nce(q, k, queue, 0.1, own).loss == pytest.approx(float(info_nce(q, k, queue[:3], 0.1).loss))


def test_gradient_is_the_papers_and_reaches_only_queries():
    q, k, queue = (unit(3, 4, seed=s).double().requires_grad_() for s in range(3))
    loss = info_nce(q, k, queue, 0.3).loss
    loss.backward()
    assert k.grad is None
    assert queue.grad is None
    # d loss / d q_i = (sum_j p_j k_j - k_i) / (tau B)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], dim=1) / 0.3
    p = logits.softmax(dim=1)
    expected = (p[:, :1] * k + p[:, 1:] @ queue - k) / (0.3 * 3)
    torch.testing.assert_close(q.grad, expected, rtol=1e-4, atol=1e-6)


def test_half_precision_inputs_are_scored_in_float32():
    q, k, queue = (unit(4, 16, seed=s).bfloat16() for s in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        loss = info_nce(q, k, queue, 0.07).loss
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(info_nce(q.float(), k.float(), queue.float(), 0.07).loss), rel=1e-6)


def test_similarities_are_reported():
    q, k, queue = unit(4, 8), unit(4, 8, seed=1), unit(6, 8, seed=2)
    contrast = info_nce(q, k, queue, 0.1)
    assert float(contrast.positive) == pytest.approx(float((q * k).sum(1).mean()), abs=1e-6)
    assert float(contrast.negative) == pytest.approx(float((q @ queue.T).mean()), abs=1e-6)


def test_equals_lightlys_loss_with_a_memory_bank():
    """Same queries, keys and bank: lightly scores before it enqueues, too."""
    q, k = unit(16, 32), unit(16, 32, seed=1)
    criterion = NTXentLoss(temperature=0.1, memory_bank_size=(64, 32))
    with torch.no_grad():
        for seed in range(2, 8):  # fills the bank
            criterion(q, unit(16, 32, seed=seed).requires_grad_())
    bank = criterion.memory_bank.bank.clone()
    queue = bank if bank.shape == (64, 32) else bank.T
    theirs = criterion(q.clone().requires_grad_(), k)
    assert float(info_nce(q, k, queue, 0.1).loss) == pytest.approx(float(theirs), rel=1e-6)


@settings(max_examples=40)
@given(st.integers(2, 9), st.integers(2, 5), st.floats(0.05, 2), st.integers(0, 999))
def test_in_batch_equals_slow_numpy(B, D, tau, seed):
    q, k = unit(B, D, seed=seed), unit(B, D, seed=seed + 1)
    expected = reference.info_nce_in_batch(q.double().numpy(), k.double().numpy(), tau)
    assert float(info_nce_in_batch(q, k, tau).loss) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("N", [2, 64])
def test_in_batch_closed_forms(N):
    same = unit(1, 8).expand(N, -1)
    assert float(info_nce_in_batch(same, same, 0.2).loss) == pytest.approx(math.log(N), rel=1e-6)
    orthogonal = torch.eye(N)
    contrast = info_nce_in_batch(orthogonal, orthogonal, 0.5)
    assert float(contrast.loss) == pytest.approx(math.log(1 + (N - 1) * math.exp(-2)), rel=1e-5)
    assert (float(contrast.positive), float(contrast.negative)) == pytest.approx((1, 0), abs=1e-6)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_parts_of_the_queries_against_all_keys_average_to_the_whole(parts):
    q, k = unit(12, 5), unit(12, 5, seed=1)
    size = 12 // parts
    halves = [info_nce_in_batch(q[i : i + size], k, 0.2, first=i) for i in range(0, 12, size)]
    for part, whole in zip(zip(*halves, strict=True), info_nce_in_batch(q, k, 0.2), strict=True):
        torch.testing.assert_close(sum(part) / parts, whole)


def test_in_batch_gradient_reaches_only_queries_and_autocast_changes_nothing():
    q, k = (unit(4, 6, seed=s).requires_grad_() for s in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        loss = info_nce_in_batch(q, k, 0.3).loss
    loss.backward()
    assert k.grad is None
    p = (q @ k.T / 0.3).softmax(dim=1)
    torch.testing.assert_close(q.grad, (p @ k - k).detach() / (0.3 * 4), rtol=1e-4, atol=1e-6)
