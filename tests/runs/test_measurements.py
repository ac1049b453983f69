"""What a run's own images are measured with: some during training, all at the end, and for how long."""

import dataclasses
import time
from unittest import mock

import pytest

from mocokit.auto.defaults import Facts, defaults
from mocokit.config import FIELDS
from mocokit.data.store import Store, open_store
from mocokit.options import validate
from mocokit.runs import measurements
from mocokit.runs.measurements import RunMeasurements, check_evaluator, final_evaluator, knn_checks
from mocokit.training.loop import NonFiniteLoss
from tests.tiny_runs import TINY, coloured_data


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return open_store(str(coloured_data(tmp_path_factory.mktemp("measured"))), image_size=8, workers=0)


@pytest.fixture(scope="module")
def config(store):
    facts = Facts("x", len(store.splits["train"]), 8, 12, 3, "cpu", False, 1)
    return defaults(validate({"data": "x", **TINY}, FIELDS), facts).config


def test_at_the_end_all_images_unless_the_configuration_says_less(store, config):
    bank, queries = len(store.splits["train"]), len(store.splits["test"])
    scored = 3 * min(1000, bank)
    assert final_evaluator(store, config).images_read == scored + bank + queries
    few = dataclasses.replace(config, knn_images=5)
    assert final_evaluator(store, few).images_read == 3 * 10 + 10
    assert final_evaluator(store, dataclasses.replace(config, knn_images=500)).images_read == scored + bank + queries
    assert check_evaluator(store, config).images_read <= final_evaluator(store, config).images_read
    measure = RunMeasurements(store, store.splits["train"])
    assert measure.images_of_final(few) == 40 + 5 // 2  # those for TensorBoard are encoded once
    assert measure.images_of_final(dataclasses.replace(few, histograms=False)) == 40
    assert measure.images_of_final(config) == scored + bank + queries + bank // 2
    assert measure.images_of_final(dataclasses.replace(few, evaluate=False)) == 0
    assert measure.images_of_check(config) == check_evaluator(store, config).images_read


def test_the_search_for_near_duplicates_takes_what_thumbnails_of_some_images_tell(store, config, monkeypatch):
    """On a clock by which a thumbnail takes 10 ms, and of 60,000 and 10,000 images at most."""
    now, measure = [0.0], RunMeasurements(store, store.splits["train"])

    def thumbnails(part):
        now[0] += 0.01 * len(part)

    monkeypatch.setattr(measurements, "thumbnails", thumbnails)
    monkeypatch.setattr(measurements, "time", mock.Mock(perf_counter=lambda: now[0]))
    bank, queries = len(store.splits["train"]), len(store.splits["test"])
    assert measure.seconds_of_search(config) == pytest.approx(0.01 * (bank + queries))
    monkeypatch.setattr(measurements, "MOST_TRAIN", 50)
    monkeypatch.setattr(measurements, "MOST_TEST", 5)
    assert measure.seconds_of_search(config) == pytest.approx(0.55)
    assert measure.seconds_of_search(dataclasses.replace(config, evaluate=False)) == 0.0
    unlabelled = dataclasses.replace(store, label_names=None)
    assert RunMeasurements(unlabelled, store.splits["train"]).seconds_of_search(config) == 0.0


def test_without_labels_there_is_no_knn(store, config):
    assert final_evaluator(dataclasses.replace(store, label_names=None), config).knn is None


def test_checks_are_the_rows_with_knn(tmp_path):
    (tmp_path / "metrics.csv").write_text(
        "step,loss,knn_top1,knn_low,knn_high\n0,,0.5,0.4,0.6\n1,2.5,,,\n2,2.25,0.7,0.6,0.8\n"
    )
    assert knn_checks(tmp_path / "metrics.csv") == [(0.5, 0.4, 0.6), (0.7, 0.6, 0.8)]
    (tmp_path / "metrics.csv").write_text("step,loss\n1,2.5\n")
    assert knn_checks(tmp_path / "metrics.csv") == []


def test_times_are_those_of_this_machine(store, config):
    measure = RunMeasurements(store, store.splits["train"])
    begun = time.perf_counter()
    (step,), image = measure.step_times(config, 0.0).values(), measure.seconds_per_image(config)
    wall = time.perf_counter() - begun
    assert 0 < step < wall
    assert 0 < image * measure.images_of_final(config) < wall


def test_graphs_of_a_trial_are_forgotten_even_if_it_fails(store, config, monkeypatch):
    forgotten = mock.Mock()
    monkeypatch.setattr(measurements, "forget_cuda_graphs", forgotten)
    monkeypatch.setattr(measurements, "step_times", mock.Mock(side_effect=[{8: 1.0}, RuntimeError, {8: 1.0}]))
    measure = RunMeasurements(store, store.splits["train"])
    recorded = dataclasses.replace(config, compile=True, cuda_graphs=True)
    measure.step_times(recorded, 0.0)
    with pytest.raises(RuntimeError):
        measure.step_times(recorded, 0.0)
    assert forgotten.call_count == 2
    measure.step_times(config, 0.0)
    assert forgotten.call_count == 2


def test_views_of_another_size_are_tried(store, config):
    measure = RunMeasurements(store, store.splits["train"])
    growing = dataclasses.replace(config, image_size=16, view_size=8, view_size_end=16)
    assert measure.takes_views(growing)
    assert not measure.takes_views(dataclasses.replace(growing, backbone="vit_narrow"))
    assert measure.takes_views(dataclasses.replace(growing, backbone="vit_narrow", view_size=16))


def test_views_are_scored_by_training_images_alone_and_once(store, config, monkeypatch, tmp_path):
    monkeypatch.setenv("MOCOKIT_CACHE", str(tmp_path))
    images = store.splits["train"]
    score = RunMeasurements(store, images).view_score(config)
    assert score >= 1
    assert RunMeasurements(store, images).view_score(dataclasses.replace(config, steps=40)) != score
    train = mock.Mock(side_effect=AssertionError("measured again"))
    monkeypatch.setattr(measurements, "train_briefly", train)
    assert RunMeasurements(store, images).view_score(config) == score
    with pytest.raises(AssertionError, match="measured again"):
        RunMeasurements(dataclasses.replace(store, fingerprint="other"), images).view_score(config)
    monkeypatch.undo()
    monkeypatch.setenv("MOCOKIT_CACHE", str(tmp_path / "empty"))
    blind = dataclasses.replace(store, label_names=None, splits={"train": images, "test": images})
    assert RunMeasurements(blind, images).view_score(config) == score  # whatever tests, and without labels


def test_views_that_diverge_are_worse_than_any(store, config, monkeypatch, tmp_path):
    monkeypatch.setenv("MOCOKIT_CACHE", str(tmp_path))
    diverge = mock.Mock(side_effect=NonFiniteLoss("the loss is", 3, ""))
    monkeypatch.setattr(measurements, "train_briefly", diverge)
    assert RunMeasurements(store, store.splits["train"]).view_score(config) == 0
