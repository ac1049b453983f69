"""Classification figures against scikit-learn, and the interval against what it promises."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from mocokit.evaluation.classification import MATRIX_CLASSES, bootstrap_interval, classify


def problem(seed: int, images: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores without ties that are often right, and labels of which some classes may have none."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, draw.integers(1, classes + 1), images)
    scores = draw.normal(size=(images, classes)) + 1.5 * np.eye(classes)[labels]
    return torch.from_numpy(scores), torch.from_numpy(labels)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), images=st.integers(1, 60), classes=st.integers(2, 12))
@pytest.mark.filterwarnings("ignore::UserWarning")  # scikit-learn on classes without images
def test_equals_scikit_learn(seed, images, classes):
    scores, labels = problem(seed, images, classes)
    found = classify(scores, labels)
    predicted, everyone = scores.argmax(dim=1), range(classes)
    precision, recall, _, support = metrics.precision_recall_fscore_support(
        labels, predicted, labels=everyone, zero_division=np.nan
    )
    np.testing.assert_allclose(found.precision, precision)
    np.testing.assert_allclose(found.recall, recall)
    np.testing.assert_array_equal(found.images, support)
    np.testing.assert_array_equal(
        found.confusion, metrics.confusion_matrix(labels, predicted, labels=everyone)
    )
    assert found.top1 == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert found.balanced == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))
    if classes > 5:
        top5 = metrics.top_k_accuracy_score(labels, scores, k=5, labels=everyone)
        assert found.top5 == pytest.approx(top5)
    else:
        assert found.top5 == 1


def test_a_class_that_is_never_scored_is_never_predicted():
    scores = torch.full((3, 7), -torch.inf)
    scores[:, :2] = torch.tensor([2.0, 1.0])
    found = classify(scores, torch.tensor([0, 1, 6]))
    assert (found.top1, found.top5) == pytest.approx((1 / 3, 2 / 3))


def test_json_is_whole_and_strict():
    scores, labels = torch.eye(3)[[0, 0, 1]], torch.tensor([0, 1, 1])
    value = classify(scores, labels).as_dict(("a", "b", "c"))
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert value["per_class"] == {
        "a": {"precision": 0.5, "recall": 1.0, "images": 1},
        "b": {"precision": 1.0, "recall": 0.5, "images": 2},
        "c": {"precision": None, "recall": None, "images": 0},
    }
    assert value["confusion"] == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]


def test_thousands_of_classes():
    classes = 5000
    labels = torch.arange(classes)
    value = classify(torch.eye(classes), labels).as_dict(tuple(map(str, range(classes))))
    assert value["top1"] == value["balanced"] == 1
    assert (value["confusion"], len(value["per_class"])) == (None, classes)
    assert classes > MATRIX_CLASSES


@pytest.mark.parametrize(("accuracy", "images"), [(0.45, 1000), (0.9, 300), (0.1, 100)])
def test_interval_covers_the_truth_as_often_as_it_says(accuracy, images):
    draw = np.random.default_rng(0)
    covered = 0
    for repeat in range(1000):
        low, high = bootstrap_interval(draw.binomial(images, accuracy) / images, images, repeat)
        covered += low <= accuracy <= high
    assert 0.925 < covered / 1000 < 0.97  # percentile intervals are a little short for few images


def test_interval_is_that_of_resampled_images():
    right = np.random.default_rng(1).random(200) < 0.7
    draw = np.random.default_rng(2)
    slow = [right[draw.integers(0, 200, 200)].mean() for _ in range(10_000)]
    found = bootstrap_interval(right.mean(), 200, seed=3)
    assert found == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.006)
    assert found == bootstrap_interval(right.mean(), 200, seed=3)
    assert bootstrap_interval(1.0, 200, seed=0) == (1, 1)
