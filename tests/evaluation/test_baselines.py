"""The untrained baseline, with batch-norm statistics of the images; features that take no network."""

import pytest
import torch
from torch import nn

from mocokit.data.store import open_store
from mocokit.evaluation.baselines import features_of, random_encoder, row_name, simple_features
from mocokit.evaluation.features import SIMPLE, extract, rows_of
from mocokit.evaluation.splits import Subset
from mocokit.model.encoder import Encoder, EncoderSpec
from tests.tiny_runs import TinyRun

SPEC = EncoderSpec("resnet18_narrow", 8, 3, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def images(tiny_run: TinyRun):
    return open_store(str(tiny_run.data), image_size=8).splits["train"]


def test_weights_are_those_of_the_seed(images):
    found, expected = random_encoder(SPEC, 3, images, "cpu"), Encoder.create(SPEC, 3)
    for name, parameter in found.named_parameters():
        assert torch.equal(parameter, expected.get_parameter(name))
    assert not found.training


def test_statistics_are_those_of_the_images(images):
    encoder = random_encoder(SPEC, 0, images, "cpu")
    norm = next(m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d))
    seen = []
    norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    encoder(*rows_of(images, torch.arange(len(images)), encoder.device))  # fewer than a batch of calibration
    torch.testing.assert_close(norm.running_mean, seen[0].mean(dim=(0, 2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(norm.running_var, seen[0].var(dim=(0, 2, 3)), atol=1e-5, rtol=1e-4)
    assert norm.momentum == nn.BatchNorm2d(1).momentum


def test_features_are_those_of_the_images_that_are_asked_for(images):
    encoder, some = random_encoder(SPEC, 0, images, "cpu"), Subset(images, torch.tensor([1, 4]))
    assert torch.equal(features_of(encoder)(some), extract(encoder, images, some.indices))
    for key, features in simple_features(8).items():
        assert torch.equal(features(some), SIMPLE[key].extract(images, 8, some.indices))


def test_rows_are_called_by_what_there_is():
    keys = ["encoder", "random_init", *SIMPLE]
    assert [row_name(key, 3) for key in keys] == ["encoder", "random init", "raw pixels", "colour histogram"]
    assert [row_name("colour_histogram", channels) for channels in (1, 4)] == ["gray histogram", "channel histogram"]
