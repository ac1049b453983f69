"""The evaluation of an encoder: repeatable, on a fixed sample, with kNN only where there are labels."""

from dataclasses import replace

import pytest
import torch

import mocokit
from mocokit.data.store import open_store
from mocokit.data.view_params import AUGMENTATIONS
from mocokit.evaluation.evaluator import Evaluator, Metrics
from mocokit.evaluation.features import SIMPLE, extract
from mocokit.evaluation.knn import Accuracy, KnnEvaluator, knn_ranks
from mocokit.evaluation.metrics import wilson_interval
from mocokit.evaluation.scorecard import SCORES
from mocokit.evaluation.splits import split_labelled
from tests.tiny_runs import TinyRun


@pytest.fixture(scope="module")
def encoder(tiny_run: TinyRun):
    return mocokit.load(tiny_run.path)


@pytest.fixture(scope="module")
def store(tiny_run: TinyRun):
    return open_store(str(tiny_run.data), image_size=8)


def evaluator(store, seed=0, score_images=20, labels=True):
    knn = KnnEvaluator.of(split_labelled(store, 0), k=5, temperature=0.1) if labels else None
    return Evaluator(store.splits["train"], (AUGMENTATIONS["v2"],) * 2, seed, knn, score_images)


def test_the_same_encoder_has_the_same_metrics(encoder, store):
    first = evaluator(store).evaluate(encoder)
    torch.manual_seed(99)
    assert evaluator(store).evaluate(encoder.train()) == first
    assert encoder.training  # left as it was
    other = evaluator(store, seed=1).evaluate(encoder)
    assert other.knn == first.knn
    assert other.scores != first.scores


def test_knn_is_that_of_the_extracted_features(encoder, store):
    train, test = store.splits["train"], store.splits["test"]
    bank, queries = extract(encoder, train), extract(encoder, test)
    labels = torch.from_numpy(train.labels), torch.from_numpy(test.labels)
    ranks = knn_ranks(bank, labels[0], queries, labels[1], k=5)
    found = evaluator(store).evaluate(encoder)
    assert found.knn == Accuracy.of(ranks, classes=3)
    assert torch.equal(found.right, ranks == 0)


def test_a_sample_is_a_part_of_the_images(encoder, store):
    few = evaluator(store).sample(bank=10, queries=7)
    assert (len(few.knn.bank), len(few.evaluate(encoder).right)) == (10, 7)
    assert few.images_read == 3 * 20 + 17
    whole = evaluator(store).sample(10**6, 10**6)
    assert whole.evaluate(encoder) == evaluator(store).evaluate(encoder)


def test_rows_are_flat(encoder, store):
    metrics = evaluator(store, labels=False).evaluate(encoder)
    assert metrics.knn is None
    assert list(metrics.row()) == [score.name for score in SCORES]
    assert metrics.scores["retrieval"] == pytest.approx(metrics.right.double().mean().item())
    assert metrics.retrieval_ci95 == pytest.approx(wilson_interval(metrics.scores["retrieval"], 20))
    low, high = wilson_interval(0.5, 8)
    row = Metrics(Accuracy(0.5, 1.0, 8), {"rankme": 3.0}, 20, torch.ones(8, dtype=torch.bool)).row()
    assert row == {"knn_top1": 0.5, "knn_low": low, "knn_high": high, "knn_top5": 1.0, "rankme": 3.0}
    few = Metrics(Accuracy(0.5, None, 8), {"rankme": 3.0}, 20, torch.ones(8, dtype=torch.bool)).row()
    assert few == {name: value for name, value in row.items() if name != "knn_top5"}


def test_simple_features_are_evaluated_on_the_same_images(store):
    """Those of the augmented views, too: of views that leave images as they are they are those of the images."""
    images, size = store.splits["train"], 8
    off = dict.fromkeys(("flip_p", "jitter_p", "gray_p", "blur_p"), 0.0)
    still = replace(AUGMENTATIONS["v2"], crop_scale=(1, 1), crop_ratio=(1, 1), **off)
    for measured in (evaluator(store), replace(evaluator(store), augmentations=(still, still))):
        found = measured.evaluate_simple(size)
        assert list(found) == ["raw_pixels", "colour_histogram"]
        for key, simple in SIMPLE.items():
            bank, queries = simple.extract(images, size), simple.extract(store.splits["test"], size)
            labels = torch.from_numpy(images.labels), torch.from_numpy(store.splits["test"].labels)
            ranks = knn_ranks(bank, labels[0], queries, labels[1], k=5)
            assert torch.equal(found[key].right, ranks == 0)
            assert found[key].images == 20
            assert (found[key].scores["alignment"] < 1e-3) == (measured.augmentations[0] is still)
            assert (found[key].scores["retrieval"] == 1) == (measured.augmentations[0] is still)
