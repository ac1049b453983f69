"""Which images to label first: the rule against one written plainly, and what must hold of any features."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

import mocokit.reporting.selection as module
from mocokit.reporting.selection import Choice, choose, typiclust


def blobs(sizes: list[int], spread: float = 0.01, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Features around orthogonal directions, so many around each, mixed and of any length; and which are of which."""
    draw = np.random.default_rng(seed)
    of = draw.permutation(np.repeat(np.arange(len(sizes)), sizes))
    x = np.eye(len(sizes), 16)[of] + spread * draw.normal(size=(len(of), 16))
    return torch.from_numpy(x * draw.uniform(0.1, 10, (len(of), 1))).float(), of


def plainly(clusters: list[int], typicality: list[float], count: int, labelled: set[int]) -> list[int]:
    """Algorithm 1 step by step; once all clusters hold a label, those that hold the fewest are next. Clusters of five
    or fewer come when nothing else is left, if there are ten or more images for each cluster."""
    labelled, chosen = set(labelled), []
    few = 5 if len(clusters) / len(set(clusters)) >= 10 else 0
    for _ in range(count):
        left = [row for row in range(len(clusters)) if row not in labelled]

        def rank(cluster: int) -> tuple[bool, int, int, int]:
            labels, size = sum(clusters[row] == cluster for row in labelled), clusters.count(cluster)
            return size <= few, labels, -size, cluster

        cluster = min({clusters[row] for row in left}, key=rank)
        best = min((row for row in left if clusters[row] == cluster), key=lambda row: (-typicality[row], row))
        labelled.add(best)
        chosen.append(best)
    return chosen


@given(st.data())
def test_the_rule_is_that_of_the_paper(data):
    sizes = [*data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=5)), data.draw(st.integers(1, 40))]
    clusters = data.draw(st.permutations(np.repeat(np.arange(len(sizes)), sizes).tolist()))
    n = len(clusters)
    typicality = data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=n, max_size=n))
    labelled = data.draw(st.sets(st.integers(0, n - 1), max_size=n - 1))
    count = data.draw(st.integers(1, n - len(labelled)))
    chosen = choose(np.array(clusters), np.array(typicality), count, labelled)
    rows = plainly(clusters, typicality, count, labelled)
    assert chosen == [Choice(row, clusters[row], clusters.count(clusters[row]), typicality[row]) for row in rows]


def test_typicality_is_the_inverse_mean_distance_to_twenty_neighbours():
    features, of = blobs([24, 9, 5, 1], spread=0.02)
    x = features.double().numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    chosen = typiclust(features, 4, seed=0)
    for choice, (blob, size) in zip(chosen, enumerate([24, 9, 5, 1]), strict=True):
        members = np.flatnonzero(of == blob)
        distances = np.sort(np.linalg.norm(x[members, None] - x[members], axis=2), axis=1)[:, 1:21]
        expected = 1 / distances.mean(axis=1) if size > 1 else np.zeros(1)  # the only one has no neighbours
        assert (choice.row, choice.cluster, choice.cluster_size) == (members[expected.argmax()], blob, size)
        assert choice.typicality == pytest.approx(expected.max(), rel=1e-4)


def test_what_is_odd_comes_last_unless_most_is():
    """As in the authors' code, which leaves clusters of five or fewer out, but all are chosen once no other is left."""
    clusters = np.repeat(np.arange(4), [30, 20, 5, 2])
    chosen = choose(clusters, np.zeros(57), 57)
    assert [choice.cluster for choice in chosen[:4]] == [0, 1, 0, 1]
    assert [choice.cluster for choice in chosen[-7:]] == [2, 3, 2, 3, 2, 2, 2]
    assert len({choice.row for choice in chosen}) == 57
    small = np.repeat(np.arange(6), [9, 5, 5, 4, 3, 2])
    assert [choice.cluster for choice in choose(small, np.zeros(28), 6)] == [0, 1, 2, 3, 4, 5]


@given(sizes=st.lists(st.integers(3, 9), min_size=2, max_size=6), seed=st.integers(0, 2**31), more=st.integers(0, 6))
@settings(max_examples=20)
def test_separate_kinds_are_all_covered(sizes, seed, more):
    features, of = blobs(sizes, seed=seed)
    chosen = typiclust(features, len(sizes), seed)
    assert sorted(of[[choice.row for choice in chosen]]) == list(range(len(sizes)))
    assert [choice.cluster_size for choice in chosen] == sorted(sizes, reverse=True)
    rows = [choice.row for choice in typiclust(features, len(sizes) + more, seed)]
    assert set(of[rows]) == set(range(len(sizes)))
    assert len(set(rows)) == len(rows)


def test_kinds_that_are_labelled_come_last():
    sizes = [9, 8, 7, 6, 5]
    features, of = blobs(sizes)
    labelled = [int(np.flatnonzero(of == blob)[0]) for blob in (0, 2)]
    rows = [choice.row for choice in typiclust(features, 3, 0, labelled)]
    assert of[rows].tolist() == [1, 3, 4]
    rest = [choice.row for choice in typiclust(features, sum(sizes) - 2, 0, labelled)]
    assert sorted(rest + labelled) == list(range(sum(sizes)))  # all that is left, each once


@pytest.mark.parametrize("many", [10, 10_000])
def test_the_same_to_the_bit_whatever_the_threads(monkeypatch, many):
    monkeypatch.setattr("mocokit.reporting.clusters.MANY_IMAGES", many)  # in batches, or all at once
    features = torch.randn(600, 16, generator=torch.Generator().manual_seed(0))
    with threadpool_limits(1):
        alone = typiclust(features, 30, seed=5, given=[1, 2])
    with threadpool_limits(2):
        assert typiclust(features, 30, seed=5, given=[2, 1]) == alone
    assert typiclust(features, 30, seed=6, given=[1, 2]) != alone


def test_neither_lengths_nor_most_clusters_limit_what_is_chosen(monkeypatch):
    features, _ = blobs([10, 10, 10])
    longer = features * torch.rand(30, 1).add(0.5)
    assert [c.row for c in typiclust(longer, 3, 0)] == [c.row for c in typiclust(features, 3, 0)]
    monkeypatch.setattr(module, "MOST_CLUSTERS", 3)
    chosen = typiclust(features, 7, 0)
    assert [choice.cluster for choice in chosen] == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_images_that_are_all_alike(value):
    chosen = typiclust(torch.full((6, 4), value), 5, seed=0)
    assert [choice.row for choice in chosen] == [0, 1, 2, 3, 4]
    assert all(choice.cluster_size == 6 and np.isfinite(choice.typicality) for choice in chosen)


def test_a_single_image():
    assert typiclust(torch.ones(1, 3), 1, seed=0) == [Choice(0, 0, 1, 0.0)]
