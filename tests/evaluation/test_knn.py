import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

import mocokit.evaluation.knn as module
from mocokit.data.store import open_store
from mocokit.evaluation.knn import Accuracy, KnnEvaluator, knn_ranks
from mocokit.evaluation.metrics import wilson_interval
from mocokit.evaluation.splits import split_labelled
from tests import reference
from tests.helpers import write_images


def accuracy(*data, **options) -> Accuracy:
    return Accuracy.of(knn_ranks(*data, **options), classes=6)


def made(seed, bank, queries, dim, classes):
    rng = np.random.default_rng(seed)
    centres = 1.5 * rng.normal(size=(classes, dim))
    labels = [np.append(np.arange(classes), rng.integers(0, classes, n))[:n] for n in (bank, queries)]
    return [(centres[y] + rng.normal(size=(len(y), dim)), y) for y in labels]


@settings(max_examples=25)
@given(
    seed=st.integers(0, 99),
    bank=st.integers(3, 40),
    queries=st.integers(1, 20),
    classes=st.integers(2, 9),
    k=st.integers(1, 50),
    temperature=st.sampled_from([0.003, 0.01, 0.1, 1.0]),
)
def test_equals_slow_numpy(seed, bank, queries, classes, k, temperature):
    (x, y), (q, r) = made(seed, bank, queries, 5, classes)
    expected = reference.knn_top(x, y, q, r, min(k, len(x)), temperature)
    got = accuracy(*map(torch.from_numpy, (x, y, q, r)), k=k, temperature=temperature)
    assert got[:2] == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0.1, 0.0112, 0.01, 0.001])  # exp(1 / 0.0112) is too large for float32
def test_at_any_temperature_near_neighbours_count_more(temperature):
    """Cosines are all near 1, as those of most encoders; five neighbours of another class are further away."""
    angles = torch.tensor([0.0, 0.3, 0.3, 0.3, 0.3, 0.3], dtype=torch.float64)
    bank = torch.stack([angles.cos(), angles.sin()], dim=1)
    right = accuracy(bank, torch.tensor([1, 0, 0, 0, 0, 0]), bank[:1], torch.tensor([1]), temperature=temperature)
    near_wins = 5 * np.exp((np.cos(0.3) - 1) / temperature) < 1
    assert right == (near_wins, 1.0, 1)
    assert near_wins == (temperature < 0.02)


def test_a_class_without_a_vote_is_not_among_the_five():
    """With one neighbour top-5 is top-1; noise in ten classes, of which five would be right half of the time."""
    draw = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(500, 8, generator=draw), torch.randn(400, 8, generator=draw)
    labels = torch.arange(500) % 10, torch.arange(400) % 10
    nearest = accuracy(bank, labels[0], queries, labels[1], k=1)
    assert nearest.top5 == nearest.top1 < 0.2
    assert 0.2 < accuracy(bank, labels[0], queries, labels[1], k=5).top5 < 0.5  # four or so of ten classes


def test_equals_scikit_learn():
    (x, y), (q, r) = made(1, 400, 300, 16, 10)
    unit = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, q)]
    # On unit vectors cosine = 1 - distance^2 / 2, so their nearest and our nearest are the same.
    theirs = KNeighborsClassifier(20, weights=lambda d: np.exp((1 - d**2 / 2) / 0.1)).fit(unit[0], y)
    ours = accuracy(*map(torch.from_numpy, (x, y, q, r)), k=20, temperature=0.1)
    assert ours.top1 == pytest.approx(theirs.score(unit[1], r))


def test_memory_is_bounded_by_chunks_without_changing_the_result(monkeypatch):
    (x, y), (q, r) = made(2, 60, 50, 4, 3)
    tensors = [torch.from_numpy(a) for a in (x, y, q, r)]
    whole = accuracy(*tensors, k=9)
    monkeypatch.setattr(module, "CHUNK_FLOATS", 60 * 7)
    assert accuracy(*tensors, k=9) == whole


def test_the_scale_of_features_does_not_matter():
    (x, y), (q, r) = made(3, 60, 50, 4, 3)
    a = accuracy(*map(torch.from_numpy, (x, y, q, r)), k=9)
    assert a == accuracy(*map(torch.from_numpy, (x * 100, y, q * 0.01, r)), k=9)


def test_figures_have_wilsons_interval():
    ranks = torch.tensor([0, 0, 0, 4, 5, 2**63 - 1])
    found = Accuracy.of(ranks, classes=7)
    assert found == (0.5, 4 / 6, 6)
    figures = found.figures()
    assert (figures["top1"], figures["top5"]) == (0.5, 4 / 6)
    assert figures["ci95"] == pytest.approx(wilson_interval(0.5, 6))


@pytest.mark.parametrize(("classes", "top5"), [(2, None), (5, None), (6, 1.0)])
def test_of_five_classes_there_is_no_top5(classes, top5):
    assert Accuracy.of(torch.tensor([0, 1]), classes).figures()["top5"] == top5


def test_classes_that_only_test_make_no_top5(tmp_path):
    """Of the three that can be predicted the true one is among the first five whatever the features are."""
    names = [f"train/{name}/{i}.png" for name in "abc" for i in range(3)] + [f"test/{name}/0.png" for name in "cdefg"]
    splits = split_labelled(open_store(str(write_images(tmp_path, names)), image_size=8), seed=0)
    assert (len(splits.names), splits.trained) == (7, 3)
    evaluator = KnnEvaluator.of(splits, 3, 0.1)
    ranks = evaluator.ranks(lambda part: torch.eye(8)[part.labels])
    assert Accuracy.of(ranks, evaluator.classes) == (0.2, None, 5)


def test_the_largest_class_is_that_of_the_bank(tmp_path):
    names = [f"train/a/{i}.png" for i in range(3)] + ["train/b/0.png", "test/a/0.png", "test/b/0.png", "test/b/1.png"]
    splits = split_labelled(open_store(str(write_images(tmp_path, names)), image_size=8), seed=0)
    evaluator = KnnEvaluator.of(splits, 3, 0.1)
    assert evaluator.largest_class().tolist() == [True, False, False]
    assert evaluator.describe() == "3 test images by 4 training images"
    assert evaluator.all_vote("--k") == ""
    all_vote = [KnnEvaluator.of(splits, k, 0.1).all_vote("--k") for k in (4, 200)]
    assert all_vote == [f"k {k}: all 4 training images vote; --k 1 may say more" for k in (4, 200)]
    assert evaluator.sample(1, 1, seed=0).describe() == "1 test image by 1 training image"
