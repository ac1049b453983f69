"""The two protocols of the linear probe: what they learn, from what, and that the encoder stays as it is."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import mocokit
from mocokit.config import ProbeConfig
from mocokit.data.classifier_views import training_view
from mocokit.data.loader import StepSampler
from mocokit.data.sampler import generator
from mocokit.data.store import open_store
from mocokit.errors import UserError
from mocokit.evaluation.features import extract, rows_of
from mocokit.evaluation.logistic import logistic_path
from mocokit.evaluation.probe import L2_GRID, choose_l2, fast, frozen, sgd
from mocokit.evaluation.splits import LabelledSplits, split_labelled
from mocokit.model.encoder import Encoder
from tests.runs import TinyRun

CPU = torch.device("cpu")
CONFIG = ProbeConfig(run="", data="", protocol="sgd", epochs=3, batch_size=16, lr=0.5)


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
    found = fast(encoder, labelled.train, labelled.val, 3, seed=0)
    x, val = (extract(encoder, part.images, part.indices) for part in (labelled.train, labelled.val))
    l2 = choose_l2([((x, labelled.train.labels), (val, labelled.val.labels))], 3, CPU)
    labels = torch.cat([labelled.train.labels, labelled.val.labels])
    (expected,) = logistic_path(torch.cat([x, val]), labels, 3, [l2], CPU)
    assert found.l2 == l2
    torch.testing.assert_close(found.weight, expected.weight)
    assert right(found, encoder, labelled.test) > 0.5  # of three colours


def test_fast_on_few_labels_looks_at_no_others(encoder, labelled, monkeypatch):
    few = labelled.few(4, None, seed=0, repeat=0)
    seen = []

    def watched(encoder, images, indices):
        seen.extend(indices.tolist())
        return extract(encoder, images, indices)

    monkeypatch.setattr("mocokit.evaluation.probe.extract", watched)
    assert fast(encoder, few, None, 3, seed=0).l2 in L2_GRID
    assert seen == few.indices.tolist()


@pytest.mark.parametrize("per_class", [1, 2])
def test_fast_on_hardly_any_labels(encoder, labelled, per_class):
    few = labelled.few(per_class, None, seed=0, repeat=0)
    assert right(fast(encoder, few, None, 3, seed=0), encoder, few) == 1


def test_sgd_is_a_plain_training_loop(encoder, labelled):
    """The protocol spelled out with torch's own parts."""
    train, spec = labelled.train, encoder.spec
    layer = nn.Linear(encoder.dim, 3)
    with torch.no_grad():
        layer.weight.copy_(0.01 * torch.randn(3, encoder.dim, generator=generator(0, "probe weights")))
        layer.bias.zero_()
    steps = StepSampler(train.images, 16, 0, train.indices)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    total, losses = 3 * steps.per_epoch, []
    for step in range(total):
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * (1 + math.cos(math.pi * step / total)) / 2
        ids = steps.ids(step)
        draw = generator(0, "probe view", step)
        view = training_view(*rows_of(train.images, ids, CPU), 8, spec.mean, spec.std, draw, 0.5)
        with torch.no_grad():
            features = encoder.backbone(view)
        loss = cross_entropy(layer(features), torch.from_numpy(train.images.labels[ids.numpy()]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    epochs = list(sgd(encoder, train, labelled.val, 3, CONFIG))
    assert [epoch.number for epoch in epochs] == [1, 2, 3]
    last = epochs[-1]
    torch.testing.assert_close(last.classifier.weight, layer.weight.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(last.classifier.bias, layer.bias.detach(), atol=1e-5, rtol=1e-4)
    assert last.loss == pytest.approx(sum(losses[-steps.per_epoch :]) / steps.per_epoch, rel=1e-4)
    assert last.val_top1 == right(last.classifier, encoder, labelled.val)


def test_sgd_is_a_function_of_the_seed(encoder, labelled):
    def weights(seed):
        *_, last = sgd(encoder, labelled.train, None, 3, replace(CONFIG, seed=seed, epochs=1))
        assert last.val_top1 is None
        return last.classifier.weight

    first = weights(0)
    torch.manual_seed(99)
    assert torch.equal(weights(0), first)
    assert not torch.equal(weights(1), first)


def test_sgd_on_fewer_images_than_a_batch_takes_one_step_an_epoch(encoder, labelled):
    few = labelled.few(1, None, seed=0, repeat=0)
    epochs = list(sgd(encoder, few, None, 3, replace(CONFIG, epochs=4)))
    assert len(epochs) == 4
    assert len({epoch.loss for epoch in epochs}) == 4


@pytest.mark.parametrize("protocol", ["fast", "sgd"])
def test_the_encoder_leaves_as_it_came(tiny_run, labelled, protocol):
    """Also one that is handed over in training mode, in which batch norm would learn."""
    encoder = mocokit.load(tiny_run.path).train()
    with frozen(encoder):
        if protocol == "fast":
            fast(encoder, labelled.train, labelled.val, 3, seed=0)
        else:
            list(sgd(encoder, labelled.train, labelled.val, 3, CONFIG))
    assert encoder.training
    assert all(parameter.grad is None for parameter in encoder.parameters())


@pytest.mark.parametrize("kind", ["weight", "running_mean"])
def test_a_sabotaged_encoder_is_noticed(tiny_run, labelled, kind):
    encoder = mocokit.load(tiny_run.path)
    norm = next(m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d))

    def sabotage(*_):
        tensor = getattr(norm, kind).data
        tensor[0] = torch.nextafter(tensor[0], torch.tensor(math.inf))  # by the last bit

    norm.register_forward_hook(sabotage)
    with pytest.raises(AssertionError, match=rf"the probe changed backbone\..*{kind}"), frozen(encoder):
        list(sgd(encoder, labelled.train, None, 3, replace(CONFIG, epochs=1)))


def test_an_encoder_of_weights_that_are_no_numbers_is_refused(tiny_run, labelled):
    encoder = mocokit.load(tiny_run.path)
    next(encoder.parameters()).data.fill_(math.nan)
    with frozen(encoder), pytest.raises(UserError, match="infinite or not a number"):
        fast(encoder, labelled.train, labelled.val, 3, seed=0)
    with frozen(encoder), pytest.raises(UserError, match="infinite or not a number"):
        list(sgd(encoder, labelled.train, None, 3, CONFIG))
