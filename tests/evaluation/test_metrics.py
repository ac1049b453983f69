"""Classification metrics against scikit-learn, and intervals against closed forms and their coverage."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from mocokit.evaluation.metrics import (
    MAX_CONFUSION_CLASSES,
    balanced_interval,
    classification_metrics,
    rank_of_class,
    recalls,
    repeated_interval,
    wilson_interval,
)


def problem(seed: int, images: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores without ties that are often right, and labels of which some classes may have none."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, draw.integers(1, classes + 1), images)
    scores = draw.normal(size=(images, classes)) + 1.5 * np.eye(classes)[labels]
    return torch.from_numpy(scores), torch.from_numpy(labels)


def names(classes: int) -> tuple[str, ...]:
    return tuple(map(str, range(classes)))


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), images=st.integers(1, 60), classes=st.integers(2, 12))
@pytest.mark.filterwarnings("ignore::UserWarning")  # scikit-learn on classes without images
def test_equals_scikit_learn(seed, images, classes):
    scores, labels = problem(seed, images, classes)
    found = classification_metrics(scores, labels, names(classes))
    predicted, everyone = scores.argmax(dim=1), range(classes)
    assert found["top1"] == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert found["balanced"] == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))
    if classes > 5:
        top5 = metrics.top_k_accuracy_score(labels, scores, k=5, labels=everyone)
        assert found["top5"] == pytest.approx(top5)
    else:
        assert found["top5"] is None


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), images=st.integers(1, 60), classes=st.integers(2, 12))
def test_figures_of_classes_are_counts(seed, images, classes):
    scores, labels = problem(seed, images, classes)
    found = classification_metrics(scores, labels, names(classes))
    predicted = scores.argmax(dim=1)
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    for true, guess in zip(labels, predicted, strict=True):
        counts[true, guess] += 1
    assert found["confusion"] == counts.tolist()
    right, true, guessed = counts.diagonal().tolist(), counts.sum(dim=1).tolist(), counts.sum(dim=0).tolist()
    for i, figures in enumerate(found["per_class"].values()):
        assert figures["images"] == true[i]
        assert figures["recall"] == (pytest.approx(right[i] / true[i]) if true[i] else None)
        assert figures["precision"] == (pytest.approx(right[i] / guessed[i]) if guessed[i] else None)


@pytest.mark.parametrize("classes", [6, 7])
def test_a_class_that_is_never_scored_is_never_predicted(classes):
    scores = torch.full((3, classes), -torch.inf)
    scores[:, :2] = torch.tensor([2.0, 1.0])
    found = classification_metrics(scores, torch.tensor([0, 1, classes - 1]), names(classes))
    assert (found["top1"], found["top5"]) == pytest.approx((1 / 3, 2 / 3))


def test_of_equal_scores_the_first_class_is_predicted():
    found = classification_metrics(torch.zeros(7, 7), torch.arange(7), names(7))
    assert (found["top1"], found["top5"]) == pytest.approx((1 / 7, 5 / 7))
    assert [row[0] for row in found["confusion"]] == [1] * 7


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), images=st.integers(1, 20), classes=st.integers(2, 12))
def test_rank_is_the_place_in_the_sorted_scores(seed, images, classes):
    draw = np.random.default_rng(seed)
    scores = torch.from_numpy(draw.integers(0, 4, (images, classes)))  # with ties
    labels = torch.from_numpy(draw.integers(0, classes, images))
    order = scores.argsort(dim=1, descending=True, stable=True)
    assert rank_of_class(scores.float(), labels).tolist() == (order == labels[:, None]).nonzero()[:, 1].tolist()


def test_json_is_whole_and_strict():
    scores, labels = torch.eye(3)[[0, 0, 1]], torch.tensor([0, 1, 1])
    value = classification_metrics(scores, labels, ("a", "b", "c"))
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert value["per_class"] == {
        "a": {"precision": 0.5, "recall": 1.0, "images": 1},
        "b": {"precision": 1.0, "recall": 0.5, "images": 2},
        "c": {"precision": None, "recall": None, "images": 0},
    }
    assert value["confusion"] == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]


def test_top5_is_among_the_classes_that_train():
    scores, labels = torch.eye(7), torch.arange(7)
    assert [classification_metrics(scores, labels, names(7), trained)["top5"] for trained in (3, 6)] == [None, 1]


def test_thousands_of_classes():
    classes = 5000
    value = classification_metrics(torch.eye(classes), torch.arange(classes), names(classes))
    assert value["top1"] == value["balanced"] == 1
    assert (value["confusion"], len(value["per_class"])) == (None, classes)
    assert classes > MAX_CONFUSION_CLASSES


@pytest.mark.parametrize(
    ("accuracy", "images"),
    [(0.45, 1000), (0.9, 300), (0.1, 100), (0.98, 60), (0.99, 30), (0.99, 100), (0.99, 359), (0.999, 2000)],
)
def test_interval_covers_the_truth_as_often_as_it_says(accuracy, images):
    """Exactly, over all counts of right images: Wilson's intervals cover 95 % on average. A bootstrap's, a point where
    all images are right, cover 0.99 in 27 % of tests on 30 images."""
    counts = np.arange(images + 1)
    low, high = wilson_interval(counts / images, images)
    probability = stats.binom.pmf(counts, images, accuracy)
    assert 0.91 < probability[(low <= accuracy) & (accuracy <= high)].sum() <= 1


@settings(max_examples=30)
@given(images=st.integers(1, 10_000), share=st.floats(0, 1))
def test_interval_is_wilsons(images, share):
    right = round(share * images)
    expected = stats.binomtest(right, images).proportion_ci(0.95, method="wilson")
    assert wilson_interval(right / images, images) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_interval_at_the_ends_is_not_a_point():
    z = stats.norm.ppf(0.975) ** 2
    assert wilson_interval(0.0, 200) == pytest.approx((0, z / (200 + z)))
    assert wilson_interval(1.0, 200) == pytest.approx((200 / (200 + z), 1))


@pytest.mark.parametrize("recalls", [(0.99, 0.99), (0.5, 0.9, 0.99), (0.9,) * 20])
@pytest.mark.parametrize("images", [12, 60])
def test_interval_of_the_balanced_accuracy_covers_it(recalls, images):
    """Classes of ``images``, twice as many, three times as many ..., measured 2,000 times."""
    counts, draw = images * np.arange(1, len(recalls) + 1), np.random.default_rng(0)
    measured = draw.binomial(counts, recalls, (2000, len(recalls))) / counts
    intervals = np.array([balanced_interval(one, counts) for one in measured])
    covered = (intervals[:, 0] <= np.mean(recalls)) & (np.mean(recalls) <= intervals[:, 1])
    assert 0.9 < covered.mean() <= 1  # 95 % on average; few classes have few possible means


def test_interval_of_one_class_is_wilsons():
    assert balanced_interval([0.75], [40]) == pytest.approx(wilson_interval(0.75, 40))


@pytest.mark.parametrize(("accuracy", "images"), [(0.99, 30), (0.99, 359), (0.8, 359)])
@pytest.mark.parametrize("spread", [0.0, 0.5])  # of the trainings' log-odds
def test_interval_of_several_trainings_covers_their_mean(accuracy, images, spread):
    """Five trainings on the same images, some of which are hard for all: 1,000 times, of a million images' mean."""
    draw = np.random.default_rng(1)

    def probabilities(shape, trainings):
        hard = draw.normal(size=(shape, 1)) * 1.5 + 2.5 * stats.norm.ppf(accuracy)
        return 1 / (1 + np.exp(-(hard + spread * draw.normal(size=trainings))))

    truth = np.mean([probabilities(2000, (1, 5)).mean() for _ in range(500)])
    covered = 0
    for _ in range(1000):
        p = probabilities(images, (1, 5))
        accuracies = (draw.random(p.shape) < p).mean(axis=0)
        intervals = np.stack(wilson_interval(accuracies, images), axis=1)
        low, high = repeated_interval(accuracies, intervals)
        covered += low <= truth <= high
    assert 930 < covered <= 1000


def test_several_trainings_add_students_t_to_the_images():
    values, intervals = [0.7, 0.8, 0.75], [(0.6, 0.8), (0.7, 0.9), (0.65, 0.82)]
    half_width = 0.75 - stats.t.interval(0.95, 2, 0.75, stats.sem(values))[0]
    expected = 0.75 - np.hypot(half_width, 0.1), 0.75 + np.hypot(half_width, 0.09)
    assert repeated_interval(values, intervals) == pytest.approx(expected)
    assert repeated_interval(values[:1], intervals[:1]) == pytest.approx(intervals[0])
    assert repeated_interval([1.0, 1.0], [(0.9, 1.0)] * 2) == pytest.approx((0.9, 1.0))


@given(st.integers(0, 99), st.integers(2, 7), st.integers(1, 40))
def test_recalls_are_those_of_the_scores(seed, classes, count):
    draw = torch.Generator().manual_seed(seed)
    scores = torch.rand(count, classes, generator=draw)
    labels = torch.randint(classes, (count,), generator=draw)
    expected = classification_metrics(scores, labels, names(classes))
    found = recalls(scores.argmax(dim=1) == labels, labels, names(classes))
    assert found["balanced"] == pytest.approx(expected["balanced"])
    for name, row in expected["per_class"].items():
        assert found["per_class"][name]["images"] == row["images"]
        assert found["per_class"][name]["recall"] == pytest.approx(row["recall"])
