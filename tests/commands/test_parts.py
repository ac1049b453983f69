"""Which images test: the same ones in every verb, said in one line and in the result."""

import re

import pytest

import mocokit
from mocokit.commands.parts import about_test, labelled_parts
from mocokit.config import FinetuneConfig, KnnConfig, ProbeConfig
from mocokit.data.store import open_store
from tests.runs import TINY, coloured_data

HELD_OUT = "no test split: 18 of 72 images are held out for testing (0.25 of each class, seed 0)"
SEEN = "; they are in pretraining, too, without labels"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes of 24 images without a test split."""
    return coloured_data(tmp_path_factory.mktemp("photos")) / "train"


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """A run on them that tests on a quarter, its result and what it said."""
    path = tmp_path_factory.mktemp("run") / "run"
    result = mocokit.pretrain(str(photos), out=str(path), test_share=0.25, **TINY)
    return path, result


def test_every_verb_tests_on_the_same_held_out_images(run, photos, capfd):
    path, result = run
    about = {"images": 18, "split": "train", "held_out": {"share": 0.25, "seed": 0}}
    assert result["test"] == about
    data = str(photos)
    results = [mocokit.knn(str(path), data, test_share=0.25), mocokit.probe(str(path), data, test_share=0.25)]
    results += [mocokit.finetune(str(path), data, test_share=0.25, epochs=1, from_scratch=True)]
    assert [each["test"] for each in results] == [about] * 3
    assert capfd.readouterr().err.count(HELD_OUT + SEEN) == 3
    assert results[0]["encoder"]["top1"] == pytest.approx(result["knn"]["encoder"]["top1"])
    for each in results[1:]:
        assert sum(map(sum, each["encoder"]["confusion"])) == each["images"]["test"] == 18
    store = open_store(data, image_size=8)
    kinds = [KnnConfig, ProbeConfig, FinetuneConfig]
    chosen = [labelled_parts(store, kind(run="", data="", test_share=0.25)).test.indices.tolist() for kind in kinds]
    assert chosen[0] == chosen[1] == chosen[2]


def test_images_of_other_data_are_not_said_to_be_in_pretraining(run, tmp_path, capfd):
    other = coloured_data(tmp_path, train=12) / "train"
    mocokit.knn(str(run[0]), str(other), test_share=0.25)
    err = capfd.readouterr().err
    assert re.search(r"9 of 36 images are held out for testing \(0.25 of each class, seed 0\)\n", err)


def test_a_split_of_the_data_is_named(tiny_run, capfd):
    store = open_store(str(tiny_run.data), image_size=8)
    config = KnnConfig(run="", data="")
    about = about_test(labelled_parts(store, config), store, config, seen=True)
    assert about == {"images": 48, "split": "test", "held_out": None} == tiny_run.result["test"]
    assert capfd.readouterr().err == "tested on 48 images of test; 72 of train have labels\n"
