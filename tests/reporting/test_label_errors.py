"""Changed labels of well separated classes are found; own classes, small classes and missing labels are respected."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mocokit.reporting.label_errors import FEWEST, LEAST, K, LabelErrors, label_errors
from mocokit.reporting.neighbours import Neighbours, neighbours


def blobs(sizes: list[int], seed: int = 0, spread: float = 0.3) -> tuple[np.ndarray, Neighbours]:
    """Labels, and neighbours by features around one direction a class."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    centres = rng.normal(size=(len(sizes), 16))
    features = centres[labels] + spread * rng.normal(size=(len(labels), 16))
    return labels, neighbours(torch.from_numpy(features.astype(np.float32)))


@pytest.mark.parametrize("sizes", [[200] * 5, [100, 400, 150]])
@pytest.mark.parametrize("seed", range(3))
def test_changed_labels_are_found_and_few_others(sizes, seed):
    true, near = blobs(sizes, seed)
    rng = np.random.default_rng(seed)
    changed = rng.choice(len(true), len(true) // 20, replace=False)
    labels = true.copy()
    labels[changed] = (labels[changed] + rng.integers(1, len(sizes), len(changed))) % len(sizes)
    found = label_errors(labels, near)
    hits = np.isin(found.rows, changed)
    assert hits.sum() >= 0.9 * len(changed)
    assert hits.mean() >= 0.95
    assert (found.suggested[hits] == true[found.rows[hits]]).all()
    assert (np.diff(found.share) <= 0).all()


def test_without_errors_none_is_found():
    labels, near = blobs([100, 100, 30])
    assert len(label_errors(labels, near).rows) == 0


def test_images_without_a_label_are_neither_listed_nor_counted():
    labels, near = blobs([200, 200])
    labels[::2] = -1
    labels[1] = 1
    found = label_errors(labels, near)
    assert (found.rows.tolist(), found.suggested.tolist()) == ([1], [0])
    assert found.k == K
    # Of 90 neighbours about 45 have a label; the image is now the only one of its class without any.
    assert found.share[0] > 0.95
    assert len(label_errors(np.full(400, -1), near).rows) == 0


def test_a_class_of_few_images_is_not_wrong_by_its_size():
    """Five images among their likes have 45 neighbours of another class."""
    labels, near = blobs([100, 5])
    assert len(label_errors(labels, near).rows) == 0
    labels[104] = 2  # the only one of its class: nothing is known of that
    assert len(label_errors(labels, near).rows) == 0
    labels[0] = 1  # one of them is elsewhere
    assert label_errors(labels, near).rows.tolist() == [0]


def test_few_neighbours_say_nothing():
    labels = np.array([1, *[0] * 20, *[1] * 20])
    for count, listed in ((LEAST, True), (LEAST - 1, False)):
        rows = torch.arange(1, count + 1).repeat(len(labels), 1)
        assert (0 in label_errors(labels, Neighbours(rows, torch.ones(rows.shape))).rows) == listed


@pytest.mark.parametrize("size", [12, 8, 5])
def test_in_small_classes_fewer_neighbours_count(size):
    labels, near = blobs([size] * 4)
    labels[3] = 2
    found = label_errors(labels, near)
    assert (found.rows.tolist(), found.suggested.tolist(), found.k) == ([3], [0], size)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_classes_of_hardly_any_images_say_nothing(size):
    labels = np.arange(60) // size
    rows = torch.stack([torch.randperm(60, generator=torch.Generator().manual_seed(n))[:20] for n in range(60)])
    assert len(label_errors(labels, Neighbours(rows, torch.ones(rows.shape))).rows) == 0


def slow(labels: list[int], rows: list[list[int]]) -> list[tuple[int, int, float, float]]:
    """As `label_errors`, image by image."""
    sizes = {label: labels.count(label) for label in set(labels) - {-1}}
    of_images = sorted(sizes[label] for label in labels if label >= 0)
    k = min(K, of_images[(len(of_images) - 1) // 2]) if sizes else 0
    found = []
    for row, label in enumerate(labels):
        near = [labels[other] for other in rows[row] if labels[other] >= 0][:k]
        others = [other for other in near if other != label]
        if label < 0 or len(near) < min(LEAST, max(FEWEST, k)) or not others or sizes[label] == 1:
            continue
        suggested = max(sorted(set(others)), key=others.count)
        own, count = near.count(label), others.count(suggested)
        possible = min(len(near), sizes[label] - 1)
        if 2 * count >= len(near) and count * possible >= 10 * own * len(near):
            found.append((row, suggested, count / len(near), own / len(near)))
    return sorted(found, key=lambda image: (-image[2], image[0]))


@given(st.integers(2, 4), st.integers(30, 200), st.floats(0, 0.5), st.integers(0, 2**32 - 1))
def test_equals_a_slow_search(classes, count, missing, seed):
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(count) < missing, -1, np.minimum(rng.geometric(0.4, count) - 1, classes - 1))
    width = min(90, count - 1)
    rows = np.stack([rng.permutation(count)[:width] for _ in range(count)])
    rows[: count // 3] = np.argsort(labels == labels[: count // 3, None], axis=1, kind="stable")[:, :width]
    found = label_errors(labels, Neighbours(torch.from_numpy(rows), torch.ones(rows.shape)))
    assert isinstance(found, LabelErrors)
    expected = slow(labels.tolist(), rows.tolist())
    assert found.rows.tolist() == [image[0] for image in expected]
    assert found.suggested.tolist() == [image[1] for image in expected]
    np.testing.assert_allclose(found.share, [image[2] for image in expected], rtol=1e-6)
    np.testing.assert_allclose(found.own, [image[3] for image in expected], rtol=1e-6)
