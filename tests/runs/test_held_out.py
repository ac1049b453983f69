"""Which images test: the same ones in every verb, said in one line and in the result."""

import dataclasses
import re
import shutil

import pytest

import mocokit
from mocokit.config import FinetuneConfig, KnnConfig, ProbeConfig
from mocokit.data.store import open_store
from mocokit.errors import UserError
from mocokit.evaluation.splits import Subset
from mocokit.runs.held_out import about_test, labelled_parts, other_held_out, other_subset, tell_test
from tests.helpers import class_folders, encode, noise
from tests.tiny_runs import TINY, coloured_data

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


@pytest.mark.parametrize(
    ("train", "share", "said"),
    [
        (3, 0.2, "2 of 6 images are held out for testing (about a fifth of each class, one image at least, seed 0)"),
        (9, 0.3, "6 of 18 images are held out for testing (about 0.3 of each class, one image at least, seed 0)"),
        (10, 0.2, "4 of 20 images are held out for testing (a fifth of each class, seed 0)"),
        (11, 0.2, "4 of 22 images are held out for testing (a fifth of each class, seed 0)"),
    ],
)
def test_a_share_that_few_images_cannot_have_is_told_so(tmp_path, capfd, train, share, said):
    store = open_store(str(class_folders(tmp_path, train=train) / "train"), image_size=8)
    config = KnnConfig(run="", data="", test_share=share)
    tell_test(labelled_parts(store, config), store, config, seen=False)
    assert said in capfd.readouterr().err


def test_every_verb_tests_on_the_same_held_out_images(run, photos, capfd):
    path, result = run
    about = {
        "images": 18,
        "split": "train",
        "held_out": {"share": 0.25, "seed": 0, "by": None},
        "near_duplicates": None,
    }
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


@pytest.mark.parametrize("by_file", [False, True])
def test_an_encoder_that_knows_labels_of_test_images_is_told_of(run, photos, flat, tmp_path, capfd, by_file):
    """Where the data has no test images of its own, which of them test depends on options."""
    (path, _), short = run, {"epochs": 1, "batch_size": 16, "device": "cpu", "baseline": False}
    data, labels = (flat / "images", {"labels": str(flat / "labels.csv")}) if by_file else (photos, {})
    tuned, given = str(tmp_path / "tuned"), {"baseline": False, **labels}
    mocokit.finetune(str(path), str(data), seed=1, test_share=0.3, out=tuned, **short, **labels)
    capfd.readouterr()
    mocokit.knn(tuned, str(data), **given)
    told = capfd.readouterr().err
    assert "it knows labels of some that test; give --seed 1 --test-share 0.3" in told
    assert "without labels" not in told
    mocokit.knn(tuned, str(data), **given, seed=1, test_share=0.3)
    assert "it knows labels" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("tuned", "told"),
    [
        (None, ""),
        ({"share": 0.25, "seed": 0, "by": "patient"}, ""),
        ({"share": 0.25, "seed": 4, "by": "image"}, "--seed 4 no --split-by"),
        ({"share": 0.2, "seed": 0, "by": "the site"}, "--test-share 0.2 --split-by 'the site'"),
    ],
)
def test_options_that_hold_the_same_images_out(tuned, told):
    assert other_held_out(tuned, KnnConfig(run="", data="", test_share=0.25, split_by="patient")) == told


@pytest.mark.parametrize(
    ("tuned", "given", "told"),
    [
        ({"limit": None}, {"limit": 80}, "no --limit"),
        ({"limit": 60, "imbalance": 10}, {}, "--limit 60 --imbalance 10"),
        ({"limit": 60}, {"limit": 60}, ""),
        ({"limit": 60, "held_out": None}, {}, ""),
    ],
)
def test_options_that_choose_the_same_images(tuned, given, told):
    assert other_subset({"held_out": {"seed": 0}} | tuned, KnnConfig(run="", data="", **given)) == told


def test_another_seed_of_a_subset_is_told_of(run, photos, tmp_path, capfd):
    """It draws other images, so the training images are not those of the fine-tuning."""
    out, options = str(tmp_path / "tuned"), {"limit": 48, "test_share": 0.25, "baseline": False}
    mocokit.finetune(str(run[0]), str(photos), epochs=1, out=out, **options)
    capfd.readouterr()
    mocokit.knn(out, str(photos), seed=1, **options)
    assert "knows labels of some that test; give --seed 0\n" in capfd.readouterr().err


def test_a_subset_of_images_whose_labels_were_learned_is_told_of(run, photos, tmp_path, capfd):
    options = {"epochs": 1, "baseline": False, "out": str(tmp_path / "tuned"), "test_share": 0.25}
    mocokit.finetune(str(run[0]), str(photos), **options)
    capfd.readouterr()
    mocokit.knn(options["out"], str(photos), limit=30)
    assert "knows labels of some that test; give no --limit" in capfd.readouterr().err


def test_images_of_other_data_are_not_said_to_be_in_pretraining(run, tmp_path, capfd):
    other = coloured_data(tmp_path, train=12) / "train"
    mocokit.knn(str(run[0]), str(other), test_share=0.25)
    err = capfd.readouterr().err
    assert re.search(r"9 of 36 images are held out for testing \(0.25 of each class, seed 0\)\n", err)


def test_a_split_of_the_data_is_named(tiny_run, capfd):
    store = open_store(str(tiny_run.data), image_size=8)
    config = KnnConfig(run="", data="")
    parts = labelled_parts(store, config)
    tell_test(parts, store, config, seen=True)
    assert (
        about_test(parts, config)
        == {"images": 48, "split": "test", "held_out": None, "near_duplicates": None}
        == tiny_run.result["test"]
    )
    assert capfd.readouterr().err == "tested on 48 images of test; 72 of train have labels\n"
    one = dataclasses.replace(parts, test=Subset(parts.test.images, parts.test.indices[:1]))
    tell_test(one, store, config, seen=True)
    assert capfd.readouterr().err.startswith("tested on 1 image of test; ")


@pytest.fixture(scope="module")
def flat(photos, tmp_path_factory):
    """The same images in one folder, and a table of their labels, some of them test images."""
    folder = tmp_path_factory.mktemp("flat")
    rows = []
    (folder / "images").mkdir()
    for number, file in enumerate(sorted(photos.rglob("*.png"))):
        name = f"{file.parent.name}-{file.name}"
        (folder / "images" / name).write_bytes(file.read_bytes())
        rows.append((name, file.parent.name, "test" if number % 4 == 0 else "train", f"patient{number // 6}"))
    for name, columns in {"labels": (0, 1), "splits": (0, 1, 2), "groups": (0, 1, 3)}.items():
        header = ("image", "label", "split", "patient")
        lines = [";".join(row[column] for column in columns) for row in [header, *rows]]
        (folder / f"{name}.csv").write_text("\n".join(lines))
    return folder


def test_labels_of_a_file_do_in_every_verb_what_folders_do(run, photos, flat):
    labels = {"labels": str(flat / "labels.csv"), "test_share": 0.25}
    data = str(flat / "images")
    for verb in (mocokit.knn, mocokit.probe):
        by_folders, by_file = verb(str(run[0]), str(photos), test_share=0.25), verb(str(run[0]), data, **labels)
        assert by_file["encoder"] | {"wall_s": 0} == by_folders["encoder"] | {"wall_s": 0}
        assert by_file["data_fingerprint"] != by_folders["data_fingerprint"]
    tuned = mocokit.finetune(str(run[0]), data, epochs=1, from_scratch=True, overwrite=True, **labels)
    assert list(tuned["encoder"]["per_class"]) == ["class0", "class1", "class2"]
    scored = mocokit.scorecard(str(run[0]), data, labels=str(flat / "splits.csv"))
    assert scored["images"] == 54  # those that are to train on


def test_a_run_goes_on_with_other_labels_but_not_on_other_images(flat, tmp_path):
    data, out = str(flat / "images"), str(tmp_path / "run")
    first = mocokit.pretrain(data, out=out, labels=str(flat / "labels.csv"), **TINY)
    assert first["test"]["held_out"] == {"share": 0.2, "seed": 0, "by": None}
    assert mocokit.pretrain(data, out=out, **TINY) == first  # the same images
    (tmp_path / "run" / "results" / "pretrain.json").unlink()
    again = mocokit.pretrain(data, out=out, **TINY)
    assert (again["knn"], again["config"]["labels"], again["loss"]) == (None, None, first["loss"])
    with pytest.raises(
        UserError, match=r"holds a run on other images than .*; give another --out, such as .*run-2, or"
    ):
        mocokit.pretrain(data, out=out, labels=str(flat / "splits.csv"), **TINY)
    tested = mocokit.pretrain(data, out=str(tmp_path / "other"), labels=str(flat / "splits.csv"), **TINY)
    assert (tested["images"], tested["test"]["images"], tested["test"]["split"]) == (54, 18, "test")


def test_a_streamed_run_measures_by_labels_of_a_file(flat, tmp_path):
    data = str(flat / "images")
    result = mocokit.pretrain(data, out=str(tmp_path / "run"), labels=str(flat / "labels.csv"), stream=True, **TINY)
    assert result["test"]["images"] == 15
    assert 0 <= result["knn"]["encoder"]["top1"] <= 1
    with pytest.raises(UserError, match="--stream reads the training images by their folders"):
        mocokit.pretrain(data, out=str(tmp_path / "b"), labels=str(flat / "splits.csv"), stream=True, **TINY)


def test_columns_without_a_file_are_refused(run, photos):
    with pytest.raises(UserError, match="--labels-columns a,b: needs --labels"):
        mocokit.knn(str(run[0]), str(photos), labels_columns="a,b")


def test_near_duplicates_are_told(tmp_path, capfd):
    for split, first in (("train", 0), ("test", 16)):
        for number in range(first, first + 24):  # 16 to 23 are in both
            path = tmp_path / split / "ab"[number % 2] / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(noise(number, 16, 16)))
    store = open_store(str(tmp_path), image_size=16)
    config = KnnConfig(run="", data="")
    about = about_test(labelled_parts(store, config), config)["near_duplicates"]
    assert about == {"found": 8, "test": 24, "train": 24, "first": ["test/a/16.png", "train/a/16.png"]}
    line = "8 of 24 test images are near-duplicates of training images; the first: test/a/16.png = train/a/16.png\n"
    assert capfd.readouterr().err.endswith(line)
    result = mocokit.pretrain(str(tmp_path), out=str(tmp_path / "run"), **TINY | {"image_size": 16})
    assert result["test"]["near_duplicates"] == about
    said = capfd.readouterr().err
    assert said.index("tested on 24") < said.index("chance level") < said.index(line)  # the search is not waited for


def test_folders_of_any_name_are_splits(tiny_run, tmp_path, capfd):
    for split, name in (("train", "monday"), ("test", "friday")):
        shutil.copytree(tiny_run.data / split, tmp_path / "days" / name)
    encoder = str(tiny_run.path / "encoder.safetensors")
    found = mocokit.knn(encoder, str(tmp_path / "days"), train="monday", test="friday")
    assert (found["test"]["images"], found["test"]["held_out"]) == (48, None)
    assert found["encoder"]["top1"] == pytest.approx(tiny_run.result["knn"]["encoder"]["top1"])
    assert "splits by name: train is monday/; test is friday/" in capfd.readouterr().err


def test_groups_are_kept_together(run, photos, flat, capfd):
    encoder, data = str(run[0] / "encoder.safetensors"), str(flat / "images")
    labels = {"labels": str(flat / "groups.csv")}
    found = mocokit.knn(encoder, data, split_by="patient", **labels)
    assert found["test"]["held_out"] == {"share": 0.2, "seed": 0, "by": "patient"}
    assert found["test"]["images"] in (12, 18)  # of 72 images, in groups of six
    assert "(about a fifth of each class, in whole groups by patient, seed 0)" in capfd.readouterr().err
    with pytest.raises(UserError, match=r"--split-by clinic: is neither parent, .* nor a column of .*: image, label"):
        mocokit.knn(encoder, data, split_by="clinic", **labels)
    with pytest.raises(UserError, match="nor a column of a file, which --labels names"):
        mocokit.knn(encoder, str(photos), split_by="clinic")
    with pytest.raises(UserError, match="every group has all images of a class"):
        mocokit.knn(encoder, str(photos), split_by="parent")
