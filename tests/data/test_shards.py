"""Parquet files and tar shards give the images and labels that were written into them, wherever they lie."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from mocokit.data import shard_readers, shards
from mocokit.data.decode import decode
from mocokit.data.folder import FolderSource
from mocokit.data.shards import ShardSource
from mocokit.data.sources import open_source
from mocokit.data.store import open_store
from mocokit.errors import UserError
from tests.data.shard_sets import FILES, IMAGES, KINDS, write_parquet, write_shards, write_tar


@pytest.fixture(autouse=True)
def _hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(shard_readers, "_WAITS", ())


def assert_as_written(source: Any, order: tuple[int, ...] = (5, 0, 3, 1, 2, 4)) -> None:
    image_index = source.read_index()
    assert len(image_index.names) == 6
    for index in order:
        np.testing.assert_array_equal(decode(source.read(index)).transpose(1, 2, 0), IMAGES[index])
    np.testing.assert_array_equal(image_index.labels, [0, 1, 0, 1, 0, 1])
    assert image_index.label_names == ("0", "1")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shards", [1, 2])
def test_images_and_labels_come_out_as_written(tmp_path: Path, kind: str, shards: int) -> None:
    folder = write_shards(tmp_path / "set", kind, shards=shards)
    assert_as_written(open_source(str(folder)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_file(tmp_path: Path, kind: str) -> None:
    (file,) = write_shards(tmp_path / "set", kind, shards=1).iterdir()
    assert_as_written(open_source(str(file)))


@pytest.mark.parametrize("kind", KINDS)
def test_by_address(tmp_path: Path, kind: str) -> None:
    folder = write_shards(tmp_path / "set", kind)
    assert_as_written(open_source(folder.as_uri()))


@pytest.fixture
def bucket() -> Iterator[Any]:
    """An object storage in memory."""
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


@pytest.mark.parametrize("kind", KINDS)
def test_object_storage(tmp_path: Path, bucket: Any, kind: str) -> None:
    for file in write_shards(tmp_path / "set", kind).iterdir():
        bucket.pipe(f"/bucket/set/{file.name}", file.read_bytes())
    assert_as_written(open_source("memory://bucket/set"))


@pytest.mark.parametrize("kind", KINDS)
def test_of_the_hub(tmp_path: Path, kind: str) -> None:
    """The hub's client takes a local folder in a name's place, by the same code."""
    pytest.importorskip("datasets")
    folder = write_shards(tmp_path / "set", kind, stem="train")
    assert_as_written(open_source(f"hf:{folder}"))


def test_the_hub_names_classes_and_splits(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    for split, rows in (("train", range(4)), ("test", range(4, 6))):
        columns = {"image": [{"bytes": FILES[i], "path": None} for i in rows], "label": [i % 2 for i in rows]}
        made = datasets.Dataset.from_dict(columns, features=features)
        (tmp_path / "set").mkdir(exist_ok=True)
        made.to_parquet(str(tmp_path / "set" / f"{split}-00000-of-00001.parquet"))
    for name in (f"hf:{tmp_path / 'set'}", str(tmp_path / "set")):
        image_index = open_source(name).read_index()
        assert image_index.label_names == ("cat", "dog")
        assert {split: len(rows) for split, rows in image_index.splits.items()} == {"train": 4, "test": 2}


def test_what_the_hub_lacks_is_told(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="no Parquet or tar shards of a train"):
        open_source(f"hf:{tmp_path / 'set'}")
    with pytest.raises(UserError, match=r"hf:\./nowhere/at/all cannot be read"):
        open_source("hf:./nowhere/at/all")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"mocokit\[hf\]"):
        open_source("hf:somebody/something")


@pytest.mark.parametrize("kind", KINDS)
def test_splits_are_the_same_from_inside_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    folder = tmp_path / "set"
    for stem in ("train", "test"):
        write_shards(folder, kind, stem, shards=1)
    monkeypatch.chdir(folder)
    for place in (str(folder), ".", "../set", "./"):
        splits = open_source(place).read_index().splits
        assert {split: len(rows) for split, rows in splits.items()} == {"train": 6, "test": 6}
    (file,) = folder.glob("test*")
    for place in (file.name, file.as_uri()):
        assert list(open_source(place).read_index().splits) == ["test"]


def test_splits_by_file_and_folder(tmp_path: Path) -> None:
    write_shards(tmp_path / "set", "bytes", stem="train")
    write_shards(tmp_path / "set" / "validation", "bytes", stem="part", shards=1)
    image_index = open_source(str(tmp_path / "set")).read_index()
    assert {split: len(rows) for split, rows in image_index.splits.items()} == {"train": 6, "val": 6}
    assert "splits by name: train is train-0.parquet, train-1.parquet; val is part-0.parquet" in image_index.all_notes()


def test_files_of_the_same_name_have_their_folders_in_names(tmp_path: Path) -> None:
    """As in the hub's own copies of sets, default/train/0000.parquet and so on."""
    for split in ("train", "test"):
        write_shards(tmp_path / "set" / "default" / split, "bytes", stem="part", shards=1)
    image_index = open_source(str(tmp_path / "set")).read_index()
    assert [image_index.names[row] for row in (0, 6)] == [
        "test/part-0.parquet/00000000",
        "train/part-0.parquet/00000000",
    ]
    assert len(set(image_index.names)) == 12
    told = "splits by name: train is train/part-0.parquet; test is test/part-0.parquet"
    assert told in image_index.all_notes()


@pytest.mark.parametrize(
    ("stems", "splits"),
    [
        (["shapes-train", "shapes-test"], {"train": 3, "test": 3}),
        (["train", "dev", "eval"], {"train": 3, "val": 3, "test": 3}),
        (["train", "eval", "test"], {"train": 3, "val": 3, "test": 3}),
        (["a", "Evaluation"], {"train": 3, "test": 3}),
        (["contest", "restrained"], {"train": 6}),
    ],
)
def test_words_for_splits(tmp_path: Path, stems: list[str], splits: dict[str, int]) -> None:
    for stem in stems:
        write_parquet(tmp_path / f"{stem}-00000-of-00001.parquet", {"image": FILES[:3], "label": [0, 1, 0]})
    image_index = open_source(str(tmp_path)).read_index()
    assert {split: len(rows) for split, rows in image_index.splits.items()} == splits


def test_test_images_alone_are_no_images_to_train_on(tmp_path: Path) -> None:
    (file,) = write_shards(tmp_path / "other", "bytes", stem="test", shards=1).iterdir()
    for path in (file, file.parent):
        store = open_store(str(path), image_size=8, workers=0)
        assert (list(store.splits), len(store.main)) == (["test"], 6)
        for _ in range(2):
            with pytest.raises(UserError, match=r"no images to train on: .* all are test images; add a train folder"):
                open_store(str(path), image_size=8, workers=0, to_train=True)


def test_a_shard_without_labels(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", {"image": FILES[:4], "label": [3, 5, 3, 5]})
    write_parquet(tmp_path / "test.parquet", {"image": FILES[4:]})
    store = open_store(str(tmp_path), image_size=8, workers=0)
    assert store.label_names == ("3", "5")
    labels = {split: images.labels.tolist() for split, images in store.splits.items()}  # type: ignore[union-attr]
    assert labels == {"train": [0, 1, 0, 1], "test": [-1, -1]}
    assert "\n2 of 6 images have no label, first test.parquet/00000000: " in store.summary()


def test_shards_that_disagree_about_classes(tmp_path: Path) -> None:
    for name, classes in (("a", ["x", "y"]), ("b", ["y", "x"])):
        write_parquet(tmp_path / f"{name}.parquet", {"image": FILES[:2], "label": [0, 1]}, classes)
    with pytest.raises(UserError, match="name different classes"):
        open_source(str(tmp_path)).read_index()


def test_a_label_without_a_class(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": FILES[:2], "label": [0, 2]}, ["x", "y"])
    with pytest.raises(UserError, match="label 2 where 2 classes are named"):
        open_source(str(tmp_path)).read_index()


def test_both_kinds_together(tmp_path: Path) -> None:
    write_shards(tmp_path, "tar")
    write_shards(tmp_path, "bytes")
    with pytest.raises(UserError, match="Parquet and tar shards together"):
        open_source(str(tmp_path))


def test_an_address_that_leads_nowhere(bucket: Any) -> None:
    bucket.pipe("/bucket/readme.txt", b"text")
    with pytest.raises(UserError, match="no shards in memory://bucket"):
        open_source("memory://bucket")
    with pytest.raises(UserError, match="nosuch://bucket cannot be read"):
        open_source("nosuch://bucket")


def test_a_folder_with_images_is_a_folder(tmp_path: Path) -> None:
    write_shards(tmp_path, "tar")
    (tmp_path / "a.png").write_bytes(FILES[0])
    assert isinstance(open_source(str(tmp_path)), FolderSource)


def test_a_tar_without_labels_is_an_archive(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"x/1.png": FILES[0], "y/2.png": FILES[1]})
    assert not isinstance(open_source(str(tmp_path / "a.tar")), ShardSource)


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set", "bytes")
    before = open_source(str(folder)).fingerprint()
    assert open_source(str(folder)).fingerprint() == before
    write_parquet(folder / "part-1.parquet", {"image": FILES[:2], "label": [0, 1]})
    assert open_source(str(folder)).fingerprint() != before


@pytest.mark.parametrize("address", ["memory://bucket/set", "memory://bucket/set/part-0.parquet", "file"])
def test_the_fingerprint_follows_what_lies_at_an_address(tmp_path: Path, bucket: Any, address: str) -> None:
    """Files of the same names and sizes, too."""
    (file,) = write_shards(tmp_path / "set", "bytes", shards=1).iterdir()
    address = (tmp_path / "set").as_uri() if address == "file" else address
    bucket.pipe(f"/bucket/set/{file.name}", file.read_bytes())
    before = open_source(address).fingerprint()
    assert open_source(address).fingerprint() == before
    content = file.read_bytes()
    file.write_bytes(content[::-1])
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 10**6))
    bucket.pipe(f"/bucket/set/{file.name}", content[::-1])
    assert open_source(address).fingerprint() != before


def test_of_what_storage_says_the_hash_counts() -> None:
    """Where there is none, the time; what it says besides, or first, changes nothing."""
    say = shards._version
    assert say({"size": 9, "ETag": "a", "LastModified": 1}) == say({"LastModified": 2, "ETag": "a", "size": 9})
    assert say({"size": 9, "ETag": "a"}) != say({"size": 9, "ETag": "b"})
    assert say({"size": 9, "updated": 1, "ino": 3}) == say({"size": 9, "updated": 1, "ino": 4})
    assert len({say({"size": size, "mtime": time}) for size in (8, 9) for time in (1, 2)}) == 4
    assert say({"size": 8}) != say({"size": 9})


def test_into_the_store(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set", "struct")
    store = open_store(str(folder), image_size=8, workers=0)
    assert len(store.splits["train"]) == 6
    assert store.label_names == ("0", "1")
    assert store.splits["train"].names[4] == "part-1.parquet/00000001"
