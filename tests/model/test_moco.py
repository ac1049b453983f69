import copy
import math
from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import normalize

from mocokit.model.heads import create_head, create_predictor
from mocokit.model.losses import info_nce
from mocokit.model.moco import MoCoV2, MoCoV3, Queue, momentum_at, momentum_copy, momentum_update
from mocokit.model.norm import split_batch_norm
from tests import reference

B, D, K = 8, 4, 32


def backbone(splits=1):
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return split_batch_norm(nn.Sequential(*layers), splits)


def make(symmetric=False, splits=1):
    head = create_head("linear", 6, 6, D)
    return MoCoV2(backbone(splits), head, dim=D, K=K, tau=0.2, symmetric=symmetric)


def make_v3(kind="v3-resnet", symmetric=True):
    head, predictor = create_head(kind, 6, 12, D), create_predictor(kind, 12, D)
    return MoCoV3(backbone(), head, predictor, tau=0.2, symmetric=symmetric)


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
    contrast = moco(x1, x2, ids, torch.randperm(B), 0.9)
    q1, k2 = (normalize(e(x), dim=1) for e, x in ((before.encoder_q, x1), (before.encoder_k, x2)))
    expected = info_nce(q1, k2, before.queue.keys, 0.2).loss
    if symmetric:
        q2, k1 = (normalize(e(x), dim=1) for e, x in ((before.encoder_q, x2), (before.encoder_k, x1)))
        expected = (expected + info_nce(q2, k1, before.queue.keys, 0.2).loss) / 2
    torch.testing.assert_close(contrast.loss, expected)
    held = torch.cat([k2, k1]) if symmetric else k2
    torch.testing.assert_close(moco.queue.keys[: len(held)], held.detach())
    assert torch.equal(moco.queue.keys[len(held) :], before.queue.keys[len(held) :])
    contrast.loss.backward()  # the queue has moved on; the gradient must not notice


def test_a_compiled_step_has_the_gradients_of_a_plain_one():
    """Compiled code computes again in backward what it did not keep, when the queue has moved on."""
    moco = MoCoV2(nn.Linear(6, 6), nn.Linear(6, D), dim=D, K=2 * B, tau=0.2)
    (x1, x2), ids = torch.randn(2, B, 6), torch.arange(B)
    moco(x2, x1, ids, None, 0.9)  # the queue has keys of these very images
    plain = copy.deepcopy(moco)
    losses = [model(x1, x2, ids, None, 0.9).loss for model in (torch.compile(moco, backend="aot_eager"), plain)]
    torch.testing.assert_close(losses[0], losses[1])
    for loss in losses:
        loss.backward()
    for found, expected in zip(moco.encoder_q.parameters(), plain.encoder_q.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)
    torch.testing.assert_close(moco.state_dict(), plain.state_dict())


def test_the_queue_can_be_trained_with_after_a_step_of_inference():
    moco, ids = make(), torch.arange(B)
    with torch.inference_mode():
        moco(*views(), ids, None, 1.0)
    moco(*views(), ids, None, 0.9).loss.backward()
    moco.load_state_dict(make().state_dict())


@pytest.mark.parametrize("loaded", [lambda moco: moco, lambda moco: nn.ModuleList([moco]), lambda moco: moco.backbone])
def test_the_key_encoder_follows_parameters_that_were_assigned(loaded):
    """To it, to a module around it or to one inside."""
    moco, ids = make(), torch.arange(B)
    moco(*views(), ids, None, 0.9)
    module = loaded(moco)
    module.load_state_dict({name: value.clone() for name, value in module.state_dict().items()}, assign=True)
    with torch.no_grad():
        moco.backbone[0].weight.add_(1)
    before = moco.encoder_k[0][0].weight.clone()
    moco(*views(), ids, None, 0.9)
    torch.testing.assert_close(moco.encoder_k[0][0].weight, before + 0.1 * (moco.backbone[0].weight - before))


def test_the_key_encoder_follows_a_head_that_was_replaced():
    moco, ids = make(), torch.arange(B)
    moco(*views(), ids, None, 0.9)
    moco.encoder_q[1] = copy.deepcopy(moco.encoder_q[1])
    moco.encoder_k[1] = copy.deepcopy(moco.encoder_k[1])
    name, theta_q = next(iter(moco.encoder_q[1].named_parameters()))
    with torch.no_grad():
        theta_q.add_(1)
    before = moco.encoder_k[1].get_parameter(name).clone()
    moco(*views(), ids, None, 0.9)
    found = moco.encoder_k[1].get_parameter(name)
    torch.testing.assert_close(found, before + 0.1 * (theta_q.detach() - before))


def test_parameters_that_layers_share_move_once_a_step():
    layer = nn.Linear(4, 4)
    moco, x = MoCoV2(layer, layer, dim=4, K=K, tau=0.2), torch.ones(2, 4)
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.add_(1)
    moco(x, x, torch.arange(2), None, 0.9)
    torch.testing.assert_close(moco.encoder_k[0].weight, before + 0.1)


def test_no_image_is_its_own_negative():
    moco = make()
    ids = torch.arange(B)
    for seed in range(3):
        moco(*views(seed), ids, torch.arange(B), 0.9)  # the queue now holds keys of these very images
    x1, x2 = views(9)
    others = moco.queue.ids != 0
    before = copy.deepcopy(moco)
    got = moco(x1[:2], x2[:2], ids[:2], torch.arange(2), 0.9).loss
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
    moco = make()
    with torch.no_grad():
        for p in moco.encoder_q.parameters():
            p.add_(1)
    start = [p.clone() for p in moco.encoder_k.parameters()]
    moco(*views(), torch.arange(B), torch.arange(B), 0.9).loss.backward()
    for p, k, q in zip(moco.encoder_k.parameters(), start, moco.encoder_q.parameters(), strict=True):
        torch.testing.assert_close(p, 0.9 * k + 0.1 * q)
        assert p.grad is None


def embed(*modules):
    """Modules after one another, then unit length, in float64 NumPy."""

    def run(x):
        return normalize(nn.Sequential(*modules)(x), dim=1).detach().double().numpy()

    return run


@pytest.mark.parametrize("kind", ["v3-resnet", "v3-vit"])
def test_v3_is_the_papers_algorithm(kind):
    """Keys come from the momentum encoder without prediction head, queries with it; both halves are summed."""
    moco = make_v3(kind)
    with torch.no_grad():
        for p in moco.encoder_q.parameters():
            p.add_(0.1 * torch.randn_like(p))
    before = copy.deepcopy(moco)
    x1, x2 = views()
    contrast = moco(x1, x2, torch.arange(B), torch.randperm(B), 0.7)
    with torch.no_grad():
        pairs = zip(before.encoder_k.parameters(), before.encoder_q.parameters(), strict=True)
        for k, q in pairs:
            k.copy_(0.7 * k + 0.3 * q)
    f_q, f_k = embed(before.encoder_q, before.predictor), embed(before.encoder_k)
    expected = reference.moco_v3_loss(f_q(x1), f_q(x2), f_k(x1), f_k(x2), 0.2)
    assert float(contrast.loss) == pytest.approx(expected, rel=1e-5)


def test_v3_trains_all_of_the_query_encoder_and_nothing_else():
    moco = make_v3()
    moco(*views(), torch.arange(B), torch.arange(B), 0.9).loss.backward()
    for module in (moco.encoder_q, moco.predictor):
        assert all(p.grad is not None and p.grad.any() for p in module.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in moco.encoder_k.parameters())
    assert len(list(moco.encoder_k.parameters())) == len(list(moco.encoder_q.parameters()))  # no prediction head


def test_v3_is_symmetric_in_its_views():
    losses = [make_v3()(*pair, torch.arange(B), torch.arange(B), 0.9).loss for pair in (views(), views()[::-1])]
    torch.testing.assert_close(*losses)
    one_way = make_v3(symmetric=False)(*views(), torch.arange(B), torch.arange(B), 0.9).loss
    assert float(one_way) < float(losses[0])


def collapsed() -> nn.Module:
    """An encoder whose embeddings are all equal."""
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(36, D))
    nn.init.zeros_(encoder[1].weight)
    nn.init.ones_(encoder[1].bias)
    return encoder


def test_chance_level_is_the_loss_of_collapsed_encoders():
    """log(K + 1) with a queue of the same embeddings, 4 tau log(B) for v3's two halves."""
    v2 = MoCoV2(collapsed(), nn.Identity(), dim=D, K=K, tau=0.2, symmetric=True)
    v2.queue.keys.fill_(D**-0.5)
    v3 = MoCoV3(collapsed(), nn.Identity(), nn.Identity(), tau=0.2, symmetric=True)
    for moco, expected in ((v2, math.log(K + 1)), (v3, 4 * 0.2 * math.log(B))):
        loss = moco(*views(), torch.arange(B), torch.arange(B), 0.9).loss
        assert float(loss) == pytest.approx(expected, rel=1e-6)
        assert moco.chance_level(B) == pytest.approx(expected)


# The queue ------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(1, 12), st.lists(st.integers(1, 30), max_size=8))
def test_holds_the_last_keys_for_batches_of_any_size(K, batches):
    queue, expected, next_id = Queue(K, 2), deque(maxlen=K), 0
    for batch in batches:
        ids = torch.arange(next_id, next_id + batch)
        queue.enqueue(torch.stack([ids.float(), -ids.float()], dim=1), ids)
        expected.extend(ids.tolist())
        next_id += batch
    held = [i for i in queue.ids.tolist() if i >= 0]
    assert sorted(held) == sorted(expected)
    assert queue.keys[queue.ids >= 0, 0].tolist() == [float(i) for i in held]
    assert float(queue.fill) == pytest.approx(len(expected) / K)


def test_replaces_the_oldest_first():
    queue = Queue(4, 2)
    for i in range(6):
        queue.enqueue(torch.full((1, 2), float(i)), torch.tensor([i]))
    assert queue.ids.tolist() == [4, 5, 2, 3]


def test_starts_with_random_unit_vectors_of_nobody():
    queue = Queue(100, 16)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(100))
    assert queue.keys.unique(dim=0).shape == queue.keys.shape
    assert (queue.ids == -1).all()


def test_all_of_it_is_in_the_state_dict():
    queue, copy = Queue(8, 2), Queue(8, 2)
    queue.enqueue(torch.ones(3, 2), torch.arange(3))
    copy.load_state_dict(queue.state_dict())
    for each in (queue, copy):
        each.enqueue(torch.zeros(2, 2), torch.arange(3, 5))
    assert torch.equal(queue.keys, copy.keys)
    assert torch.equal(queue.ids, copy.ids)
    assert int(copy.pointer) == 5


# The momentum encoder --------------------------------------------------------------------------------


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


@settings(max_examples=20)
@given(st.floats(0, 1), st.integers(1, 4))
def test_follows_the_formula(m, steps):
    encoder = made()
    copy = momentum_copy(encoder)
    expected = [p.numpy().astype(np.float64) for p in copy.parameters()]
    for _ in range(steps):
        with torch.no_grad():
            for p in encoder.parameters():
                p.add_(torch.randn_like(p))
        momentum_update(list(copy.parameters()), list(encoder.parameters()), m)
        expected = reference.momentum_update(expected, [p.detach().numpy() for p in encoder.parameters()], m)
    for p, e in zip(copy.parameters(), expected, strict=True):
        np.testing.assert_allclose(p.numpy(), e, rtol=1e-5, atol=1e-5)


def test_statistics_of_the_key_encoder_are_its_own():
    encoder = made()
    copy = momentum_copy(encoder)
    encoder(torch.randn(4, 1, 5, 5) + 7)
    before = copy[1].running_mean.clone()
    momentum_update(list(copy.parameters()), list(encoder.parameters()), 0.5)
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
