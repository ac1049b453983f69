"""The fast linear probe: what it trains on, and that the encoder stays as it is."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import mocokit
from mocokit.data.store import open_store
from mocokit.errors import UserError
from mocokit.evaluation.baselines import features_of, simple_features
from mocokit.evaluation.features import extract
from mocokit.evaluation.logistic import logistic_path
from mocokit.evaluation.probe import COMPONENTS, L2_GRID, choose_l2, fast, frozen, reduced
from mocokit.evaluation.splits import LabelledSplits, Subset, split_labelled
from mocokit.model.encoder import Encoder
from tests.tiny_runs import TinyRun


@pytest.fixture(scope="module")
def encoder(tiny_run: TinyRun) -> Encoder:
    return mocokit.load(tiny_run.path)


@pytest.fixture(scope="module")
def labelled(tiny_run: TinyRun) -> LabelledSplits:
    store = open_store(str(tiny_run.data), image_size=8)
    return split_labelled(store, seed=0)


def right(classifier, encoder, part) -> float:
    scores = classifier.scores(extract(encoder, part.images, part.indices))
    return float((scores.argmax(dim=1) == part.labels).double().mean())


def test_fast_learns_from_both_parts_with_the_strength_chosen_between_them(encoder, labelled):
    found = fast(features_of(encoder), labelled.train, labelled.val, 3, seed=0)
    x, val = (extract(encoder, part.images, part.indices) for part in (labelled.train, labelled.val))
    l2 = choose_l2([((x, labelled.train.labels), (val, labelled.val.labels))], 3)
    labels = torch.cat([labelled.train.labels, labelled.val.labels])
    (expected,) = logistic_path(torch.cat([x, val]), labels, 3, [l2])
    assert found.l2 == l2
    torch.testing.assert_close(found.weight, expected.weight)
    assert right(found, encoder, labelled.test) > 0.5  # of three colours


def test_fast_on_few_labels_looks_at_no_others(encoder, labelled):
    few = labelled.few_shot(4, None, seed=0, repeat=0)
    seen = []

    def watched(part):
        seen.extend(part.indices.tolist())
        return features_of(encoder)(part)

    assert fast(watched, few, None, 3, seed=0).l2 in L2_GRID
    assert seen == few.indices.tolist()


@pytest.mark.parametrize("per_class", [1, 2])
def test_fast_on_hardly_any_labels(encoder, labelled, per_class):
    few = labelled.few_shot(per_class, None, seed=0, repeat=0)
    assert right(fast(features_of(encoder), few, None, 3, seed=0), encoder, few) == 1


def test_the_encoder_is_left_as_it_was(tiny_run, labelled):
    """Also one that is handed over in training mode, in which batch norm would learn."""
    encoder = mocokit.load(tiny_run.path).train()
    with frozen(encoder):
        fast(features_of(encoder), labelled.train, labelled.val, 3, seed=0)
    assert encoder.training


@pytest.mark.parametrize("kind", ["weight", "running_mean"])
def test_a_changed_encoder_is_noticed(tiny_run, kind):
    encoder = mocokit.load(tiny_run.path)
    norm = next(m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d))
    tensor = getattr(norm, kind).data
    with pytest.raises(AssertionError, match=rf"the probe changed backbone\..*{kind}"), frozen(encoder):
        tensor[0] = torch.nextafter(tensor[0], torch.tensor(math.inf))  # by the last bit


def test_an_encoder_of_weights_that_are_no_numbers_is_refused(tiny_run, labelled):
    encoder = mocokit.load(tiny_run.path)
    next(encoder.parameters()).data.fill_(math.nan)
    with frozen(encoder), pytest.raises(UserError, match="infinite or not a number"):
        fast(features_of(encoder), labelled.train, labelled.val, 3, seed=0)


def test_many_features_become_principal_components_of_the_training_images(labelled, monkeypatch):
    monkeypatch.setattr("mocokit.evaluation.probe.COMPONENTS", 5)
    pixels = simple_features(8)["raw_pixels"]  # 192
    found = reduced(pixels, labelled.train)
    x, test = (pixels(part).double().numpy() for part in (labelled.train, labelled.test))
    _, _, axes = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    expected = (test - x.mean(axis=0)) @ axes[:5].T
    np.testing.assert_allclose(np.abs(found(labelled.test)), np.abs(expected), atol=1e-3)
    assert torch.equal(found(labelled.test), reduced(pixels, labelled.train)(labelled.test))


def test_folds_are_of_whole_groups(labelled, monkeypatch):
    """Of images that stay together none is trained on where another chooses the penalty."""
    found, groups = [], np.arange(len(labelled.train.images)) // 4
    monkeypatch.setattr(labelled.train.images, "groups", groups)
    monkeypatch.setattr("mocokit.evaluation.probe.choose_l2", lambda folds, *_: found.extend(folds) or 1.0)
    part = labelled.train_val

    def numbers(some):
        return some.indices[:, None].float()

    fast(numbers, part, None, 3, seed=0)
    assert len(found) == 5
    assert len({tuple(val[0].flatten().tolist()) for _, val in found}) > 1
    for train, val in found:
        rows = [set(groups[x[:, 0].long()]) for x in (train[0], val[0])]
        assert len(train[0]) + len(val[0]) == len(part)
        assert len(val[0])
        assert not rows[0] & rows[1]


@pytest.mark.filterwarnings("error")
def test_images_that_are_all_alike_have_components_of_zero(labelled):
    found = reduced(lambda part: torch.full((len(part), COMPONENTS + 1), 0.25), labelled.train)
    assert not found(labelled.test).any()


def test_few_features_stay_as_they_are_and_one_image_has_no_components(labelled):
    def few(part):
        return torch.ones(len(part), COMPONENTS)

    pixels = simple_features(8)["raw_pixels"]
    assert reduced(few, labelled.train) is few
    assert reduced(pixels, Subset(labelled.train.images, labelled.train.indices[:1])) is pixels
