"""Labels and splits of a file on stored images: nothing is decoded again, and fingerprints follow what changes."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from mocokit.data.folder import FolderSource
from mocokit.data.labelled import grouped, lay_over_index, lay_over_sample, open_labelled
from mocokit.data.labels_file import LabelsFile, read_labels
from mocokit.data.store import ImageSet, Store
from mocokit.errors import UserError
from tests.data.stores import ragged
from tests.helpers import class_folders, write_images


def table(folder: Path, text: str) -> LabelsFile:
    (folder / "table.csv").write_text(text)
    return read_labels(str(folder / "table.csv"))


def opened(data: Path, labels: LabelsFile | None, **options: object) -> Store:
    plain = {"limit": None, "seed": 0, "to_train": True, "image_size": 8, "workers": 0}
    return open_labelled(FolderSource(data), labels, **plain | options)  # type: ignore[arg-type]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve images of as many sizes in a flat folder."""
    return ragged(tmp_path / "data")


ROWS = [f"{number:02d}.png,{'xyz'[number % 3]}" for number in range(12)]


def test_labels_are_laid_over_the_images_that_are_there(data, tmp_path):
    plain = opened(data, None)
    store = opened(data, table(tmp_path, "file,label\n" + "\n".join([*ROWS[1:], "q.png,x"])))
    images = store.splits["train"]
    assert store.from_cache
    assert (store.path, store.label_names) == (plain.path, ("x", "y", "z"))
    assert images.labels.tolist() == [-1, *(number % 3 for number in range(1, 12))]
    assert images.names == plain.splits["train"].names
    np.testing.assert_array_equal(images.batch(range(12)), plain.splits["train"].batch(range(12)))
    assert store.summary().splitlines()[1:] == [
        f"labels from {tmp_path / 'table.csv'}: 12 rows, columns file, label",
        "1 row of the labels is of no image; the first is q.png",
        "1 of 12 images has no label, first 00.png: left out of kNN, probe and fine-tuning",
    ]


def test_a_column_moves_images_to_other_splits(data, tmp_path):
    splits = ["test" if n in (3, 7) else "val" if n == 5 else "" for n in range(12)]
    rows = [f"{row},{split}" for row, split in zip(ROWS, splits, strict=True)]
    store = opened(data, table(tmp_path, "file,label,split\n" + "\n".join(rows)))
    assert {split: len(images) for split, images in store.splits.items()} == {"train": 9, "val": 1, "test": 2}
    everything = opened(data, None).splits["train"]
    for split, rows in (("train", [0, 1, 2, 4, 6, 8, 9, 10, 11]), ("val", [5]), ("test", [3, 7])):
        images = store.splits[split]
        assert images.names == [everything.names[row] for row in rows]
        assert images.labels.tolist() == [row % 3 for row in rows]
        np.testing.assert_array_equal(images.sizes, everything.sizes[rows])
        height, width = images.canvas
        np.testing.assert_array_equal(images.batch([-1]), everything.batch(rows[-1:])[:, :, :height, :width])
        other = pickle.loads(pickle.dumps(images))
        np.testing.assert_array_equal(other.batch(range(len(rows))), images.batch(range(len(rows))))
        assert (other.labels.tolist(), other.names, other.split) == (images.labels.tolist(), images.names, split)


@pytest.mark.parametrize("splits", [False, True])
def test_what_is_said_of_an_index_is_what_is_said_of_its_store(data, tmp_path, splits):
    rows = [f"{row},{('train', 'test')[n % 2]}" if splits else row for n, row in enumerate(ROWS[1:])]
    (data / "cat").mkdir()
    (data / "cat" / "00.png").symlink_to(tmp_path / "nowhere.png")  # refused, and has a row; 00.png has none
    rows.append("cat/00.png,w,train" if splits else "cat/00.png,w")
    labels = table(tmp_path, "\n".join(["image,label,split" if splits else "image,label", *rows]))
    index, store = lay_over_index(FolderSource(data).read_index(), labels), opened(data, labels, max_skipped=0.1)
    assert index.label_names == store.label_names
    assert list(index.splits) == list(store.splits)
    for split, images in store.splits.items():
        assert [index.names[row] for row in index.splits[split]] == list(images.names)
        assert index.labels[index.splits[split]].tolist() == images.labels.tolist()


def test_rows_of_one_size_are_gathered(tmp_path):
    write_images(tmp_path / "data", [f"{n}.png" for n in range(6)])
    store = opened(tmp_path / "data", table(tmp_path, "file,label,split\n0,x,test\n1,y,train\n3,x,test\n"))
    everything = opened(tmp_path / "data", None).splits["train"]
    for split, rows in (("train", [1, 2, 4, 5]), ("test", [0, 3])):
        images = store.splits[split]
        assert images._uniform is not None
        np.testing.assert_array_equal(images.batch(range(len(rows))), everything.batch(rows))
    with pytest.raises(IndexError):
        store.splits["test"].batch([2])


def test_what_a_fingerprint_says(data, tmp_path):
    plain = opened(data, None)
    labels = [table(tmp_path, "file,label\n" + "\n".join(rows)) for rows in (ROWS, ROWS[::-1], ROWS[1:])]
    stores = [plain, *(opened(data, each) for each in labels)]
    assert len({store.fingerprint for store in stores}) == 3  # the order of rows says nothing
    assert stores[1].fingerprint == stores[2].fingerprint
    assert {store.train_fingerprint for store in stores} == {plain.fingerprint}
    moved = opened(data, table(tmp_path, "file,label,split\n00,x,test\n01,y,\n"))
    few = opened(data, labels[0], limit=6)
    assert len({each.train_fingerprint for each in (plain, moved, few)}) == 3
    again = opened(data, table(tmp_path, "file,label,split\n00,y,test\n01,x,\n"))
    assert again.train_fingerprint == moved.train_fingerprint
    assert again.fingerprint != moved.fingerprint


def test_a_limit_is_balanced_by_the_labels_of_the_file(data, tmp_path):
    rows = [f"{number:02d},{'x' if number < 9 else 'y'}" for number in range(12)]
    store = opened(data, table(tmp_path, "file,label\n" + "\n".join(rows)), limit=6)
    assert np.bincount(store.splits["train"].labels).tolist() == [3, 3]
    assert opened(data, None).from_cache  # all images are in the cache


@pytest.mark.parametrize("limit", [None, 11, 7, 3])
def test_what_is_odd_about_labels_is_of_the_images_that_are_used(data, tmp_path, limit):
    """Not of those that a limit leaves out, whose classes and missing labels were told."""
    kinds = ["x", "x", "x", "y", "y", "y", "", "", "", "", "x", "z"]
    rows = [f"{n:02d},{kind},{'test' if n > 9 else 'train'}" for n, kind in enumerate(kinds)]
    store = opened(data, table(tmp_path, "file,label,split\n" + "\n".join(rows)), limit=limit)
    images = store.splits["train"]
    without, used = int((images.labels < 0).sum()), len(images) + 2
    single = [name for name, n in zip("xyz", np.bincount(images.labels[images.labels >= 0]), strict=False) if n == 1]
    notes = "\n".join(store.label_notes)
    assert (f"{without} of {used} images " in notes) == bool(without)
    assert ("a single training image" in notes) == bool(single)
    assert "in test only: z" in notes


def test_an_imbalance_takes_training_images_only_and_decodes_nothing_again(tmp_path):
    root = class_folders(tmp_path / "data", classes=3, train=16, test=5)
    plain = opened(root, None)
    store = opened(root, None, imbalance=16)
    assert store.from_cache
    assert sorted(np.bincount(store.splits["train"].labels)) == [1, 4, 16]
    assert set(store.splits["train"].names) < set(plain.splits["train"].names)
    assert store.splits["test"].names == plain.splits["test"].names
    assert (
        len({store.train_fingerprint, plain.train_fingerprint, opened(root, None, imbalance=4).train_fingerprint}) == 3
    )
    assert [note[:-1] for note in store.label_notes] == ["1 class has a single training image: class"]
    with pytest.raises(UserError, match="--imbalance 2: needs labels"):
        opened(ragged(tmp_path / "flat"), None, imbalance=2)


def test_nothing_left_to_train_on_is_refused(data, tmp_path):
    rows = "\n".join(f"{row},test" for row in ROWS)
    with pytest.raises(UserError, match="has no images to train on"):
        opened(data, table(tmp_path, f"file,label,split\n{rows}\n"))


def test_a_sample_of_the_images(data, tmp_path):
    """Names are compared with those of all images, of which the store has some."""
    names = ["other.png", *(f"{number:02d}.png" for number in range(12)), "more.png"]
    store = opened(data, None)
    laid = lay_over_sample(store, table(tmp_path, "file,label\nmore.png,x\n05.png,y\nother,y\nanother,x\n"), names)
    assert laid.splits["train"].labels.tolist() == [-1] * 5 + [1] + [-1] * 6
    assert "1 row of the labels is of no image; the first is another" in laid.notes
    assert laid.label_notes[0].startswith("in the sample: 11 of 12 images have no label")
    with pytest.raises(UserError, match="--stream reads the training images by their folders"):
        lay_over_sample(store, table(tmp_path, "file,label,split\n03,y,train\n04,x,\n"), names)


def test_pickles_stay_small(data, tmp_path):
    store = opened(data, table(tmp_path, "file,label\n" + "\n".join(ROWS)))
    assert isinstance(store.splits["train"], ImageSet)
    assert len(pickle.dumps(store.splits["train"])) < 1000


def test_groups_by_a_column_or_by_folders(data, tmp_path):
    rows = [f"{row},{'test' if n > 9 else ''},{'' if n == 4 else n // 3}" for n, row in enumerate(ROWS)]
    labels = table(tmp_path, "file,label,split,patient\n" + "\n".join(rows))
    store = grouped(opened(data, labels), "patient", labels)
    groups = store.splits["train"].groups.tolist()
    together = [[n for n in range(10) if groups[n] == group] for group in sorted(set(groups), key=groups.index)]
    assert together == [[0, 1, 2], [3, 5], [4], [6, 7, 8], [9]]
    assert "1 image has no patient, so each is a group; the first is 04.png" in store.notes
    folders = write_images(tmp_path / "folders", ["a/1.png", "a/2.png", "b/1.png"])
    assert grouped(opened(folders, None), "parent", None).splits["train"].groups.tolist() == [0, 0, 1]
    limited = grouped(opened(data, labels, limit=5), "patient", labels).splits["train"]
    whole = dict(zip(store.splits["train"].names, groups, strict=True))
    pairs = {(whole[name], group) for name, group in zip(limited.names, limited.groups.tolist(), strict=True)}
    assert len(pairs) == len({group for group, _ in pairs}) == len({group for _, group in pairs})
