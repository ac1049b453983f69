"""The sgd protocol of the linear probe: what it learns, and that the encoder stays as it is."""

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
from mocokit.evaluation.baselines import features_of
from mocokit.evaluation.features import rows_of
from mocokit.evaluation.probe import frozen, labelled_features
from mocokit.evaluation.splits import LabelledSplits, split_labelled
from mocokit.model.encoder import Encoder
from mocokit.rundir import RunDirectory
from mocokit.training.linear_probe import sgd
from tests.tiny_runs import TinyRun

CPU = torch.device("cpu")
CONFIG = ProbeConfig(run="", data="", protocol="sgd", epochs=3, batch_size=16, lr=0.5)


@pytest.fixture(scope="module")
def encoder(tiny_run: TinyRun) -> Encoder:
    return mocokit.load(tiny_run.path)


@pytest.fixture(scope="module")
def labelled(tiny_run: TinyRun) -> LabelledSplits:
    store = open_store(str(tiny_run.data), image_size=8)
    return split_labelled(store, seed=0)


def train_on(encoder, part, config):
    return sgd(encoder, part.images, part.indices, None, 3, config)


def test_sgd_is_a_plain_training_loop(encoder, labelled):
    """The protocol spelled out with torch's own parts."""
    train, spec = labelled.train, encoder.spec
    layer = nn.Linear(encoder.dim, 3)
    with torch.no_grad():
        layer.weight.copy_(0.01 * torch.randn(3, encoder.dim, generator=generator(0, "probe weights")))
        layer.bias.zero_()
    steps = StepSampler(train.indices, 16, 0)
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
    val = labelled_features(features_of(encoder), labelled.val)
    rows = []
    last = sgd(encoder, train.images, train.indices, val, 3, CONFIG, announce=rows.append)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    torch.testing.assert_close(last.weight, layer.weight.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(last.bias, layer.bias.detach(), atol=1e-5, rtol=1e-4)
    assert last.loss == pytest.approx(sum(losses[-steps.per_epoch :]) / steps.per_epoch, rel=1e-4)
    predicted = (val[0] @ last.weight.T + last.bias).argmax(dim=1)
    assert rows[-1]["val_top1"] == float((predicted == val[1]).double().mean())


def test_sgd_is_a_function_of_the_seed(encoder, labelled):
    def weights(seed):
        return train_on(encoder, labelled.train, replace(CONFIG, seed=seed, epochs=1)).weight

    first = weights(0)
    torch.manual_seed(99)
    assert torch.equal(weights(0), first)
    assert not torch.equal(weights(1), first)


def test_sgd_on_fewer_images_than_a_batch_takes_one_step_an_epoch(encoder, labelled):
    few = labelled.few_shot(1, None, seed=0, repeat=0)
    rows = []
    sgd(encoder, few.images, few.indices, None, 3, replace(CONFIG, epochs=4), announce=rows.append)
    assert len(rows) == 4
    assert len({row["loss"] for row in rows}) == 4
    assert "val_top1" not in rows[0]


def test_rows_of_two_commands_on_one_run_are_not_mixed(encoder, labelled, tmp_path):
    """The second has two epochs while the first is after its second one; who ends last has its rows there."""
    few, run, contents = labelled.few_shot(1, None, seed=0, repeat=0), RunDirectory(tmp_path), []

    def train(epochs, announce=lambda row: None):
        config = replace(CONFIG, epochs=epochs, seed=epochs)
        sgd(encoder, few.images, few.indices, None, 3, config, run=run, announce=announce)
        contents.append((tmp_path / "probe-sgd.csv").read_text())

    train(3)
    train(2)
    train(3, lambda row: train(2) if row["epoch"] == 2 else None)
    assert contents == [contents[0], contents[1], contents[1], contents[0]]
    assert [line.split(",")[0] for line in contents[0].splitlines()] == ["epoch", "1", "2", "3"]


def test_the_encoder_is_left_as_it_was(tiny_run, labelled):
    """Also one that is handed over in training mode, in which batch norm would learn."""
    encoder = mocokit.load(tiny_run.path).train()
    with frozen(encoder):
        train_on(encoder, labelled.train, CONFIG)
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
        train_on(encoder, labelled.train, replace(CONFIG, epochs=1))


def test_an_encoder_of_weights_that_are_no_numbers_is_refused(tiny_run, labelled):
    encoder = mocokit.load(tiny_run.path)
    next(encoder.parameters()).data.fill_(math.nan)
    with frozen(encoder), pytest.raises(UserError, match="infinite or not a number"):
        train_on(encoder, labelled.train, CONFIG)
