"""Clusters: the groups that there are, largest first, the most typical image first."""

import numpy as np
import pytest
import torch

from mocokit.reporting.clusters import class_mix, cluster, cluster_count
from tests.reporting.made import blobs


def test_separate_groups_are_found():
    x, of = blobs(30, 4)
    keep = np.r_[0:30, 30:50, 60:70, 90:95]  # of 30, 20, 10 and 5
    x, of = x[keep], of[keep]
    found = cluster(x, 4, 0)
    assert [len(rows) for rows in found.typical] == [30, 20, 10, 5]
    for number, rows in enumerate(found.typical):
        assert set(found.of[rows]) == {number}
        assert len(set(of[rows])) == 1
        unit = torch.nn.functional.normalize(x[rows], dim=1)
        distance = (unit - unit.mean(dim=0)).norm(dim=1)
        assert distance.tolist() == pytest.approx(sorted(distance.tolist()), abs=1e-5)


def test_the_rule_and_its_limits():
    assert [cluster_count(n) for n in (1, 3, 30, 1000, 4000, 50_000)] == [1, 2, 2, 10, 20, 20]


@pytest.mark.parametrize("k", [None, 1, 7, 100])
def test_no_more_clusters_than_different_images(k):
    x = torch.eye(3)[[0, 0, 1, 1, 2]]
    found = cluster(x, k, 0)
    assert sorted(np.concatenate(found.typical)) == [0, 1, 2, 3, 4]
    assert len(found.typical) == {None: 2, 1: 1, 7: 3, 100: 3}[k]


def test_the_same_for_the_same_seed():
    x, _ = blobs(30, 4, spread=1.0)
    assert np.array_equal(cluster(x, 5, 0).of, cluster(x, 5, 0).of)


def test_the_mix_of_classes():
    found = cluster(torch.eye(2)[[0, 0, 0, 0, 1, 1]], 2, 0)
    labels = np.array([1, 1, 0, -1, -1, -1])
    assert class_mix(found, labels, 2) == [[(1, 2 / 3), (0, 1 / 3)], []]
