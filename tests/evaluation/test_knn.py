import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

import mocokit.evaluation.knn as module
from mocokit.evaluation.knn import knn_accuracy
from tests import reference


def made(seed, bank, queries, dim, classes):
    rng = np.random.default_rng(seed)
    centres = 1.5 * rng.normal(size=(classes, dim))
    labels = [np.append(np.arange(classes), rng.integers(0, classes, n))[:n] for n in (bank, queries)]
    return [(centres[y] + rng.normal(size=(len(y), dim)), y) for y in labels]


@settings(max_examples=25)
@given(st.integers(0, 99), st.integers(3, 40), st.integers(1, 20), st.integers(2, 7), st.integers(1, 50), st.booleans())
def test_equals_slow_numpy(seed, bank, queries, classes, k, leave_one_out):
    (x, y), (q, r) = made(seed, bank, queries, 5, classes)
    if leave_one_out:
        q, r = x, y
    expected = reference.knn_top(x, y, q, r, min(k, len(x) - leave_one_out), 0.1, leave_one_out)
    queries_or_none = (None, None) if leave_one_out else (torch.from_numpy(q), torch.from_numpy(r))
    got = knn_accuracy(torch.from_numpy(x), torch.from_numpy(y), *queries_or_none, k=k, temperature=0.1)
    assert got == pytest.approx(expected)


def test_equals_scikit_learn():
    (x, y), (q, r) = made(1, 400, 300, 16, 10)
    unit = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, q)]
    # On unit vectors cosine = 1 - distance^2 / 2, so their nearest and our nearest are the same.
    theirs = KNeighborsClassifier(20, weights=lambda d: np.exp((1 - d**2 / 2) / 0.1)).fit(unit[0], y)
    ours = knn_accuracy(*map(torch.from_numpy, (x, y, q, r)), k=20, temperature=0.1)
    assert ours.top1 == pytest.approx(theirs.score(unit[1], r))


def test_memory_is_bounded_by_chunks_without_changing_the_result(monkeypatch):
    (x, y), (q, r) = made(2, 60, 50, 4, 3)
    tensors = [torch.from_numpy(a) for a in (x, y, q, r)]
    whole = [knn_accuracy(*tensors, k=9), knn_accuracy(*tensors[:2], None, None, k=9)]
    monkeypatch.setattr(module, "CHUNK_FLOATS", 60 * 7)
    assert [knn_accuracy(*tensors, k=9), knn_accuracy(*tensors[:2], None, None, k=9)] == whole


def test_the_scale_of_features_does_not_matter():
    (x, y), (q, r) = made(3, 60, 50, 4, 3)
    a = knn_accuracy(*map(torch.from_numpy, (x, y, q, r)), k=9)
    assert a == knn_accuracy(*map(torch.from_numpy, (x * 100, y, q * 0.01, r)), k=9)
