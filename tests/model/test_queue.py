from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mocokit.model.queue import Queue


@settings(deadline=None, max_examples=60)
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
