"""Splits and labels follow from the folders that images lie in."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mocokit.data.image_index import ImageIndex, index_by_folders
from mocokit.data.sources import open_source
from tests.helpers import archive, encode, noise

PNG = encode(noise(0))


def index_of(path: Path) -> ImageIndex:
    return open_source(str(path)).read_index()


def classes_of(image_index: ImageIndex, split: str) -> list[str]:
    assert image_index.labels is not None
    assert image_index.label_names is not None
    return [image_index.label_names[label] for label in image_index.labels[image_index.splits[split]]]


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
        (["cat/a.png", "dog/b.png", "readme.png"], {"train": 3}, None, 0),
        (["train/cat/a.png", "train/dog/b.png"], {"train": 2}, ("cat", "dog"), 0),
        (["train/cat/a.png", "train/dog/b.png", "test/cat/c.png"], {"train": 2, "test": 1},
         ("cat", "dog"), 0),
        (["w/train/cat/a.png", "w/train/dog/b.png", "w/test/elk/c.png"], {"train": 2, "test": 1},
         ("cat", "dog", "elk"), 0),
        (["Training/a.png", "Validation/b.png"], {"train": 1, "val": 1}, None, 0),
        (["TRAIN/a.png", "valid/b.png", "test/c.png"], {"train": 1, "val": 1, "test": 1}, None, 0),
        (["train/x/a.png", "train/y/b.png", "val/c.png"], {"train": 2, "val": 1}, None, 0),
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
    assert image_index.ignored == ignored
    if label_names:
        for split in splits:
            folders = [Path(name).parent.name for name in names_of(image_index, split)]
            assert classes_of(image_index, split) == folders


@given(st.lists(st.lists(st.sampled_from(["train", "test", "Val", "a", "b"]), max_size=4), min_size=1, max_size=12))
def test_any_layout_uses_each_image_at_most_once(folders: list[list[str]]) -> None:
    names = {"/".join([*parts, f"{number}.png"]) for number, parts in enumerate(folders)}
    image_index = index_by_folders(names, [], Path("data"))
    used = np.concatenate(list(image_index.splits.values()))
    assert len(set(used.tolist())) == len(used) == len(names) - image_index.ignored
    assert len(image_index.splits["train"]) > 0
    if image_index.labels is not None:
        assert (image_index.labels[used] >= 0).all()
        assert set(image_index.labels[used].tolist()) == set(range(len(image_index.label_names or ())))


def test_only_visible_images_count(tmp_path: Path) -> None:
    names = ["a.JPG", "b.jfif", "c.TiFf", ".hidden.png", ".git/d.png", "__MACOSX/e.png", "notes.txt", "Thumbs.db"]
    for name in names:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(PNG)
    for path in (tmp_path / "data", archive(tmp_path / "data", tmp_path / "data.zip")):
        image_index = index_of(path)
        assert image_index.names == ["a.JPG", "b.jfif", "c.TiFf"]
        assert not image_index.refused
