"""Splits and labels follow from the folders that images lie in."""

import shlex
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mocokit.data.image_index import ImageIndex, index_by_folders
from mocokit.data.sources import open_source
from mocokit.errors import UserError
from tests.helpers import archive, encode, noise

PNG = encode(noise(0))


def index_of(path: Path) -> ImageIndex:
    return open_source(str(path)).read_index()


def classes_of(image_index: ImageIndex, split: str) -> list[str]:
    assert image_index.labels is not None
    assert image_index.label_names is not None
    names = (*image_index.label_names, "-")  # of an image without a label
    return [names[label] for label in image_index.labels[image_index.splits[split]]]


def names_of(image_index: ImageIndex, split: str) -> list[str]:
    return [image_index.names[index] for index in image_index.splits[split]]


@pytest.mark.parametrize(
    ("names", "splits", "label_names", "ignored"),
    [
        (["a.png", "b.png"], {"train": 2}, None, 0),
        (["a.png", "x/b.png"], {"train": 2}, None, 0),
        (["pictures/a.png", "pictures/b.png"], {"train": 2}, None, 0),
        (["x/1/a.png", "x/2/b.png", "y/c.png"], {"train": 3}, None, 0),
        (["cat/a.png", "dog/b.png"], {"train": 2}, ("cat", "dog"), 0),
        (["set/cat/a.png", "set/dog/b.png"], {"train": 2}, ("cat", "dog"), 0),
        (["s/t/cat/a.png", "s/t/dog/b.png"], {"train": 2}, ("cat", "dog"), 0),
        (["cat/a.png", "dog/b.png", "readme.png"], {"train": 3}, ("cat", "dog"), 0),
        (["cat/a.png", "dog/b.png", "dog/more/c.png"], {"train": 3}, ("cat", "dog"), 0),
        (["set/cat/a.png", "set/dog/b.png", "cover.png"], {"train": 3}, ("cat", "dog"), 0),
        (["a.png", "b.png", "c.png", "old/d.png", "new/e.png"], {"train": 5}, None, 0),
        (["cat/a.png", "dog/b.png", *(f"unlabeled/{i}.png" for i in range(9))], {"train": 11}, ("cat", "dog"), 0),
        (["train/cat/a.png", "train/dog/b.png"], {"train": 2}, ("cat", "dog"), 0),
        (["train/cat/a.png", "train/dog/b.png", "test/cat/c.png"], {"train": 2, "test": 1},
         ("cat", "dog"), 0),
        (["w/train/cat/a.png", "w/train/dog/b.png", "w/test/elk/c.png"], {"train": 2, "test": 1},
         ("cat", "dog", "elk"), 0),
        (["Training/a.png", "Validation/b.png"], {"train": 1, "val": 1}, None, 0),
        (["TRAIN/a.png", "valid/b.png", "test/c.png"], {"train": 1, "val": 1, "test": 1}, None, 0),
        (["train/x/a.png", "train/y/b.png", "val/c.png"], {"train": 2, "val": 1}, ("x", "y"), 0),
        (["train/a.png", "test/x/b.png", "test/y/c.png"], {"train": 1, "test": 2}, ("x", "y"), 0),
        (["train/x/a.png", "test/x/b.png", "unlabeled/c.png"], {"train": 2, "test": 1}, None, 0),
        (["train/a.png", "eval/b.png"], {"train": 1, "test": 1}, None, 0),
        (["train/a.png", "eval/b.png", "test/c.png"], {"train": 1, "val": 1, "test": 1}, None, 0),
        (["train/a.png", "dev/b.png", "evaluation/c.png"], {"train": 1, "val": 1, "test": 1}, None, 0),
        (["training_set/x/a.png", "training_set/y/b.png", "test_set/x/c.png"], {"train": 2, "test": 1}, ("x", "y"), 0),
        (["train2017/a.png", "val2017/b.png"], {"train": 1, "val": 1}, None, 0),
        (["train station/a.png", "test tube/b.png"], {"train": 2}, ("test tube", "train station"), 0),
        (["test/x/a.png", "test/y/b.png"], {"test": 2}, ("x", "y"), 0),
        (["a.png", "b.png", "test/c.png"], {"train": 2, "test": 1}, None, 0),
        (["val/a.png", "test/b.png"], {"val": 1, "test": 1}, None, 0),
        (["train/a.png", "test/b.png", "extra/c.png", "cover.png"], {"train": 1, "test": 1}, None, 2),
        (["train/a.png", "bus/b.png", "car/c.png"], {"train": 3}, ("bus", "car", "train"), 0),
        (["train/a.png"], {"train": 1}, None, 0),
    ],
)  # fmt: skip
def test_layouts(
    tmp_path: Path, names: list[str], splits: dict[str, int], label_names: tuple[str, ...] | None, ignored: int
) -> None:
    root = tmp_path / "data"
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PNG)
    image_index = index_of(root)
    assert image_index.names == sorted(names)
    assert {split: len(indices) for split, indices in image_index.splits.items()} == splits
    assert image_index.label_names == label_names
    assert len(names) - sum(splits.values()) == ignored
    assert ignored == 0 or f"{ignored} images outside the folders of splits" in " ".join(image_index.all_notes())
    if label_names:
        for split in splits:
            folders = [Path(name).parent.name for name in names_of(image_index, split)]
            assert classes_of(image_index, split) == [name if name in label_names else "-" for name in folders]


@given(st.lists(st.lists(st.sampled_from(["train", "test", "Val", "a", "b"]), max_size=4), min_size=1, max_size=12))
def test_any_layout_uses_each_image_at_most_once(folders: list[list[str]]) -> None:
    names = {"/".join([*parts, f"{number}.png"]) for number, parts in enumerate(folders)}
    image_index = index_by_folders(names, [], Path("data"))
    used = np.concatenate(list(image_index.splits.values()))
    assert len(set(used.tolist())) == len(used)
    assert len(used) == len(names) or "outside the folders of splits not used" in " ".join(image_index.all_notes())
    assert all(len(rows) > 0 for rows in image_index.splits.values())
    if image_index.labels is not None:
        assert set(image_index.labels[used].tolist()) - {-1} == set(range(len(image_index.label_names or ())))


def test_only_visible_images_count(tmp_path: Path) -> None:
    names = ["a.JPG", "b.jfif", "c.TiFf", ".hidden.png", ".git/d.png", "__MACOSX/e.png", "notes.txt", "Thumbs.db"]
    for name in names:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(PNG)
    for path in (tmp_path / "data", archive(tmp_path / "data", tmp_path / "data.zip")):
        image_index = index_of(path)
        assert image_index.names == ["a.JPG", "b.jfif", "c.TiFf"]
        assert not image_index.refused


CLASSES = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(3)]


@pytest.mark.parametrize(
    ("names", "notes"),
    [
        (CLASSES, []),
        ([*CLASSES, "cover.png"],
         ["1 of 7 images has no label, first cover.png: left out of kNN, probe and fine-tuning"]),
        ([*(f"train/{name}" for name in CLASSES), "test/a.png", "test/b.png"],
         ["2 of 8 images have no label, first test/a.png: left out of kNN, probe and fine-tuning"]),
        ([f"{split}/{name}" for split in ("train", "test") for name in CLASSES], []),
        ([f"{split}/{name}" for split in ("Train", "eval") for name in CLASSES],
         ["splits by name: train is Train/; test is eval/"]),
        (["a.png", "b.png", "test/c.png"], ["splits by name: train is the images beside them; test is test/"]),
        ([*CLASSES, "train/1.png", "train/2.png"],
         ["a class, not a split, as other folders are beside it: train"]),
        ([*CLASSES, "cat/@eaDir/1.png", "thumbnails/2.png"],
         ["2 images in folders of copies such as thumbnails left out, first cat/@eaDir/1.png"]),
        ([*CLASSES, "dodo/1.png"], ["1 class has a single training image: dodo"]),
        ([*(f"train/{name}" for name in CLASSES), "test/cat/1.png", "test/elk/1.png"],
         ["1 class in test only: elk", "1 class in train only, not in test: dog"]),
        (["thumbnails/1.png", "thumbnails/2.png"], []),
    ],
)  # fmt: skip
def test_what_is_guessed_or_left_out_is_said(names: list[str], notes: list[str]) -> None:
    assert index_by_folders(names, [], Path("data")).all_notes() == notes


def test_names_of_classes_in_either_unicode_form_are_one() -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    image_index = index_by_folders(
        ["train/a/1.png", f"train/{composed}/1.png", f"test/{decomposed}/1.png"], [], Path("data")
    )
    assert image_index.label_names == ("a", composed)
    assert classes_of(image_index, "test") == [composed]
    assert image_index.names[0] == f"test/{decomposed}/1.png"  # a path stays what it is


def test_runs_inside_the_data_and_empty_folders_are_told(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "runs/data/neighbours.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    for name in ("config.yaml", "data.json"):
        (tmp_path / "runs/data" / name).write_text("")
    (tmp_path / "cat").mkdir()
    image_index = index_of(tmp_path)
    assert image_index.names == ["a.png", "b.png"]
    assert image_index.all_notes() == ["1 empty folder: cat", "1 run of mocokit left out: runs/data"]


SAID = ["set/hot/cat/1.png", "set/hot/dog/2.png", "set/cold/cat/3.png", "set/cold/dog/4.png", "set/warm/dog/5.png"]


@pytest.mark.parametrize(
    ("said", "splits"),
    [
        ({"hot": "train", "cold": "test"}, {"train": ["1", "2"], "test": ["3", "4"]}),
        ({"cold": "test"}, {"train": ["1", "2", "5"], "test": ["3", "4"]}),
        ({"hot": "train"}, {"train": ["1", "2"]}),
    ],
)
def test_folders_that_are_said_to_be_splits(said, splits):
    image_index = index_by_folders(SAID, [], Path("data"), said)
    names = image_index.names
    found = {split: [names[row][-5] for row in rows] for split, rows in image_index.splits.items()}
    assert found == splits
    assert image_index.label_names == ("cat", "dog")
    rows = [row for rows in image_index.splits.values() for row in rows]
    assert all(image_index.label_names[image_index.labels[row]] == names[row].split("/")[2] for row in rows)
    unused = "outside the folders of splits not used, first set/" in " ".join(image_index.notes)
    assert unused == ("train" in said.values())


def test_folders_that_are_not_there_are_refused():
    with pytest.raises(UserError, match="--train hot: data has no folder of images of that name; folders in it: pets"):
        index_by_folders(["pets/1.png"], [], Path("data"), {"hot": "train"})
    with pytest.raises(UserError, match="--train hot: data has no folder of images of that name beside ice; folders"):
        index_by_folders(SAID, [], Path("data"), {"hot": "train", "ice": "test"})


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (["Final_Training", "Final_Test", "Extra"], "--train Final_Training --test Final_Test"),
        (["TRAIN_set", "test images", "x"], "--train TRAIN_set --test 'test images'"),
        (["myTrainImages", "TestImages", "notes"], "--train myTrainImages --test TestImages"),
        (["cats", "final_test_2"], "--test final_test_2"),
        (["trainers", "contest", "attest"], None),
        (["train", "bus", "car"], None),  # the vehicle, which has a line of its own
        (["train", "test"], None),  # taken
        (["final_training", "final_test"], None),  # taken
    ],
)
@pytest.mark.parametrize("wrapped", ["", "set/"])
def test_folders_that_may_be_splits_are_named_with_the_way_to_say_so(folders, said, wrapped):
    """And what is proposed does what it says."""
    names = [f"{wrapped}{folder}/{number}.png" for folder in folders for number in range(2)]
    index = index_by_folders(names, [], Path("data"))
    lines = [note for note in index.notes if note.startswith("folders that may be splits")]
    assert lines == ([] if said is None else [f"folders that may be splits are not taken as such; if they are: {said}"])
    if said:
        words = shlex.split(said)
        options = {folder: option[2:] for option, folder in zip(words[::2], words[1::2], strict=True)}
        told = index_by_folders(names, [], Path("data"), options)
        for folder, split in options.items():
            assert {told.names[row].split("/")[-2] for row in told.splits[split]} >= {folder}
        assert not [note for note in told.notes if note.startswith("folders that may be splits")]


def test_folders_of_splits_at_different_depths_are_not_proposed_together():
    names = ["train_2019/day/0.png", "train_2020/test/0.png", "train_2020/night/0.png"]
    (line,) = [note for note in index_by_folders(names, [], Path("data")).notes if "may be splits" in note]
    assert line.endswith("if they are: --test test")
    assert len(index_by_folders(names, [], Path("data"), {"test": "test"}).splits["test"]) == 1


@pytest.mark.parametrize("below", ["", "cat/"])
def test_folders_of_splits_below_other_folders_are_told(below):
    names = [f"{site}/{split}/{below}{n}.png" for site in "ab" for split in ("test", "train") for n in range(2)]
    index = index_by_folders(names, [], Path("data"))
    line = "folders that may be splits are not taken as such; if they are: --train train --test test"
    assert line in index.notes
    told = index_by_folders(names, [], Path("data"), {"train": "train", "test": "test"})
    assert {split: len(rows) for split, rows in told.splits.items()} == {"train": 4, "test": 4}
