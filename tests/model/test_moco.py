import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from mocokit.model.losses import info_nce
from mocokit.model.moco import MoCo
from mocokit.model.norm import split_batch_norm

B, D, K = 8, 4, 32


def make(symmetric=False, splits=1, m=0.9):
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    split_batch_norm(backbone, splits)
    return MoCo(backbone, nn.Linear(6, D), dim=D, K=K, m=m, tau=0.2, symmetric=symmetric)


def views(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(B, 1, 6, 6, generator=draw), torch.randn(B, 1, 6, 6, generator=draw)


def test_encoders_are_equal_at_step_0():
    moco = make()
    pairs = zip(moco.encoder_q.state_dict().values(), moco.encoder_k.state_dict().values(), strict=True)
    assert all(torch.equal(q, k) for q, k in pairs)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_step_scores_against_the_queue_as_it_was_before(symmetric):
    """The batch's own keys are not among its negatives; a copy of the model gives the reference."""
    moco = make(symmetric)
    before = copy.deepcopy(moco)
    (x1, x2), ids = views(), torch.arange(B)
    contrast = moco(x1, x2, ids, torch.randperm(B))
    q1, k2 = (normalize(e(x), dim=1) for e, x in ((before.encoder_q, x1), (before.encoder_k, x2)))
    expected = info_nce(q1, k2, before.queue.keys, 0.2).loss
    if symmetric:
        q2, k1 = (normalize(e(x), dim=1) for e, x in ((before.encoder_q, x2), (before.encoder_k, x1)))
        expected = (expected + info_nce(q2, k1, before.queue.keys, 0.2).loss) / 2
    torch.testing.assert_close(contrast.loss, expected)
    held = torch.cat([k1, k2]) if symmetric else k2
    torch.testing.assert_close(moco.queue.keys[: len(held)], held.detach())
    assert torch.equal(moco.queue.keys[len(held) :], before.queue.keys[len(held) :])
    contrast.loss.backward()  # the queue has moved on; the gradient must not notice


def test_no_image_is_its_own_negative():
    moco = make()
    ids = torch.arange(B)
    for seed in range(3):
        moco(*views(seed), ids, torch.arange(B))  # the queue now holds keys of these very images
    x1, x2 = views(9)
    others = moco.queue.ids != 0
    before = copy.deepcopy(moco)
    got = moco(x1[:2], x2[:2], ids[:2], torch.arange(2)).loss
    q, k = (normalize(e(x[:2]), dim=1) for e, x in ((before.encoder_q, x1), (before.encoder_k, x2)))
    first = info_nce(q[:1], k[:1], before.queue.keys[others], 0.2).loss
    second = info_nce(q[1:], k[1:], before.queue.keys[before.queue.ids != 1], 0.2).loss
    torch.testing.assert_close(got, (first + second) / 2)


def test_shuffling_is_undone_and_changes_only_batch_statistics():
    moco = make().eval()
    x, shuffle = views()[0], torch.randperm(B)
    torch.testing.assert_close(moco.keys(x, shuffle), moco.keys(x, torch.arange(B)))
    split = make(splits=4)
    groups = [split.keys(x, order) for order in (torch.arange(B), torch.tensor([0, 7, 1, 6, 2, 5, 3, 4]))]
    assert not torch.allclose(*groups, atol=1e-3)


def test_the_key_encoder_moves_before_it_encodes_and_only_by_momentum():
    moco = make(m=0.9)
    with torch.no_grad():
        for p in moco.encoder_q.parameters():
            p.add_(1)
    start = [p.clone() for p in moco.encoder_k.parameters()]
    moco(*views(), torch.arange(B), torch.arange(B)).loss.backward()
    for p, k, q in zip(moco.encoder_k.parameters(), start, moco.encoder_q.parameters(), strict=True):
        torch.testing.assert_close(p, 0.9 * k + 0.1 * q)
        assert p.grad is None
