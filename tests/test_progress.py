"""Whatever may take long tells how far it is, to the end: evaluation, baselines, probe, near-duplicates, timing."""

import itertools
import re

import numpy as np
import pytest
import torch

from mocokit import console
from mocokit.data.store import open_store
from mocokit.data.view_params import AUGMENTATIONS
from mocokit.evaluation.baselines import features_of, random_encoder, simple_features
from mocokit.evaluation.evaluator import Evaluator
from mocokit.evaluation.features import BATCH, extract
from mocokit.evaluation.knn import knn_ranks
from mocokit.evaluation.near_duplicates import near_duplicates
from mocokit.evaluation.probe import L2_GRID, fast
from mocokit.evaluation.splits import Subset
from mocokit.model.encoder import Encoder, EncoderSpec
from tests.helpers import noise

COUNT = 300  # images, more than a batch


@pytest.fixture(params=[1, 3, 5])
def images(request, tmp_path):
    x = np.stack([noise(seed, 16, 16, request.param) for seed in range(COUNT)])
    np.savez(tmp_path / "images.npz", x_train=x, y_train=np.arange(COUNT) % 3)
    return open_store(str(tmp_path / "images.npz"), image_size=16).splits["train"]


@pytest.fixture
def told(monkeypatch, capsys):
    """What a log has, in which each report is a line: between any two of them ten seconds pass."""
    seconds = itertools.count(0, 11)
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(seconds)))

    def lines() -> list[tuple[str, int, int]]:
        found = re.findall("^(.*): ([0-9,]+) of ([0-9,]+)$", capsys.readouterr().err, re.M)
        return [(title, int(done.replace(",", "")), int(total.replace(",", ""))) for title, done, total in found]

    return lines


def encoder_of(images) -> Encoder:
    channels = images.channels
    return Encoder.create(EncoderSpec("resnet18_narrow", 8, channels, (0.5,) * channels, (0.25,) * channels), 0)


def check_whole(lines, title, total) -> None:
    """At least two reports, rising to ``total``."""
    done = [d for t, d, n in lines if t == title and n == total]
    assert len(done) > 1
    assert done == sorted(done)
    assert done[-1] == total


def test_features(images, told):
    for indices in (None, torch.arange(COUNT - 2)):
        count = COUNT if indices is None else len(indices)
        extract(encoder_of(images), images, indices)
        check_whole(told(), "encoding images", count)
        for features in simple_features(8).values():
            features(Subset(images, torch.arange(count)))
            check_whole(told(), "encoding images", count)


def test_scores_of_encoders_and_of_what_takes_no_network(images, told):
    evaluator = Evaluator(images, (AUGMENTATIONS["v2"],) * 2, 0, None)
    evaluator.evaluate(encoder_of(images))
    lines = told()
    assert [line for line in lines if line[1] == COUNT] == [("encoding images", COUNT, COUNT)] * 3  # and two views
    evaluator.evaluate_simple(8)
    assert [line for line in told() if line[1] == COUNT] == [("encoding images", COUNT, COUNT)] * 6


def test_the_random_initialisation(images, told):
    random_encoder(encoder_of(images).spec, 0, images, "cpu")
    check_whole(told(), "statistics of the random initialisation", -(-COUNT // BATCH))


def test_knn(told, monkeypatch):
    monkeypatch.setattr("mocokit.evaluation.knn.CHUNK_FLOATS", 50)
    x, labels = torch.randn(10, 4), torch.arange(10) % 2
    knn_ranks(x, labels, x, labels)
    assert told() == [("comparing images", 5, 10), ("comparing images", 10, 10)]


def test_the_probe(images, told):
    part = Subset(images, torch.arange(60))
    fast(features_of(encoder_of(images)), part, None, 3, 0)
    tried = [(done, total) for title, done, total in told() if title == "choosing the probe's penalty"]
    assert tried == [(done, len(L2_GRID)) for done in range(1, len(tried) + 1)]
    assert len(tried) > 1


def test_near_duplicates(images, told, monkeypatch):
    monkeypatch.setattr("mocokit.evaluation.near_duplicates._BLOCK", 50)
    near_duplicates(Subset(images, torch.arange(200)), Subset(images, torch.arange(200, 300)), 0)
    assert [line[1:] for line in told()] == [(0, 200), (50, 200), (100, 200), (150, 200), (0, 100), (50, 100)]
