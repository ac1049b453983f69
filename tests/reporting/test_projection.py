"""The map: the same for the same features, and groups stay together on it."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from mocokit.errors import UserError
from mocokit.reporting import projection
from mocokit.reporting.neighbours import neighbours
from mocokit.reporting.projection import check_installed, project
from tests.reporting.made import blobs


def test_groups_stay_together():
    x, of = blobs(30, 5)
    found = project(x, neighbours(x), 0)
    assert found.shape == (150, 2)
    assert found.dtype == np.float32
    nearest = KNeighborsClassifier(6).fit(found, of)
    assert nearest.score(found, of) == 1


def test_the_same_features_give_the_same_map():
    x, _ = blobs(20, 3)
    one, again = (project(x, neighbours(x), 0) for _ in range(2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, project(x, neighbours(x), 1))


@pytest.mark.parametrize("count", [2, 3, 9, 12])
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_a_few_images_have_places_too(count, dim, caplog):
    x = torch.arange(count * dim).reshape(count, dim).float().cos()
    found = project(x, neighbours(x), 0)
    assert found.shape == (count, 2)
    assert np.isfinite(found).all()
    assert caplog.messages == []  # of openTSNE, which would correct the perplexity


def test_equal_images_have_places():
    x = torch.ones(40, 4)
    assert np.isfinite(project(x, neighbours(x), 0)).all()


def test_the_start_is_the_principal_components():
    x = np.random.default_rng(0).normal(size=(50, 6)) * [5, 1, 3, 1, 1, 1]
    found = projection._principal(x)
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    expected = u[:, :2] * s[:2]
    assert np.abs(found) == pytest.approx(np.abs(expected), abs=1e-8)


def test_without_its_packages_one_line_says_which(monkeypatch):
    monkeypatch.setattr(projection.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^--map needs more packages: pip install 'mocokit\[report\]'$"):
        check_installed("--map")
