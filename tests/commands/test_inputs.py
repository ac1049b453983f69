"""The inputs of the evaluating verbs: the run's own encoder and initialisation, and images that suit it."""

import pytest
import torch

import mocokit
from mocokit.commands.inputs import open_inputs
from mocokit.config import KnnConfig
from mocokit.errors import UserError
from mocokit.model.encoder import Encoder
from tests.helpers import write_images
from tests.runs import TinyRun


def test_encoder_and_initialisation_are_those_of_the_run(tiny_run: TinyRun):
    inputs = open_inputs(KnnConfig(run=str(tiny_run.path), data=str(tiny_run.data), device="cpu"))
    trained, initial = (mocokit.load(tiny_run.path), Encoder.create(inputs.spec, tiny_run.result["config"]["seed"]))
    for name, parameter in inputs.encoder.named_parameters():
        assert torch.equal(parameter, trained.get_parameter(name))
        assert torch.equal(inputs.random_init.get_parameter(name), initial.get_parameter(name))
    assert not inputs.encoder.training
    assert not inputs.random_init.training


def test_images_suit_the_encoder(tiny_run: TinyRun):
    """Gray digits for an encoder of small colour images."""
    inputs = open_inputs(KnnConfig(run=str(tiny_run.path), data="digits", limit=20))
    assert (inputs.store.channels, inputs.store.image_size) == (3, inputs.spec.image_size)
    assert len(inputs.store.splits["train"]) == 20


def test_missing_labels_are_named(tiny_run: TinyRun, tmp_path):
    data = write_images(tmp_path / "flat", ["a.png", "b.png"])
    config = KnnConfig(run=str(tiny_run.path), data=str(data))
    with pytest.raises(UserError, match="kNN needs labels"):
        open_inputs(config, labels_for="kNN")
    assert open_inputs(config).store.label_names is None
