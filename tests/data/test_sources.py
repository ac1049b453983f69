"""What the user may name, and what is said of the rest."""

import os
from pathlib import Path

import numpy as np
import pytest

from mocokit.data.image_index import ImageIndex
from mocokit.data.sources import check_there, open_source
from mocokit.errors import UserError
from tests.helpers import archive, encode, noise, write_images

PNG = encode(noise(0))


SUFFIXES = [".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2"]


def index_of(path: Path) -> ImageIndex:
    return open_source(str(path)).read_index()


def classes_of(image_index: ImageIndex, split: str) -> list[str]:
    assert image_index.labels is not None
    assert image_index.label_names is not None
    return [image_index.label_names[label] for label in image_index.labels[image_index.splits[split]]]


def test_digits() -> None:
    source = open_source("digits")
    image_index = source.read_index()
    train, test = image_index.splits["train"], image_index.splits["test"]
    assert sorted([*train, *test]) == list(range(1797))
    assert image_index.label_names == tuple("0123456789")
    assert image_index.labels is not None
    for split, share in ((train, 0.8), (test, 0.2)):
        counts = np.bincount(image_index.labels[split])
        np.testing.assert_allclose(counts, np.bincount(image_index.labels) * share, atol=0.5)
    pixels = np.stack([source.read(index) for index in range(1797)])
    assert pixels.shape == (1797, 1, 8, 8)
    assert pixels.dtype == np.uint8
    assert (pixels.min(), pixels.max()) == (0, 255)
    again = open_source("digits").read_index()
    np.testing.assert_array_equal(again.splits["test"], test)


def test_cifar10_offline_is_one_line_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    def no_network(*_: object, download: bool = False, **__: object) -> None:
        raise OSError("no route\nto host") if download else RuntimeError("not found")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", no_network)
    source = open_source("cifar10")
    with pytest.raises(UserError, match=r"no route to host.*folder or archive") as caught:
        source.read_index()
    assert "\n" not in str(caught.value)


def test_cifar10_that_is_there_needs_no_network(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    import torchvision.datasets

    class Local:
        classes = ("cat", "dog")

        def __init__(self, root: Path, train: bool, download: bool = False) -> None:
            assert not download
            print("Files already downloaded and verified")
            self.data = np.full((4, 32, 32, 3), [1, 2, 3], np.uint8) if train else np.zeros((2, 32, 32, 3), np.uint8)
            self.targets = [0, 1, 0, 1] if train else [1, 0]

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Local)
    source = open_source("cifar10")
    image_index = source.read_index()
    assert capsys.readouterr().out == ""
    assert [len(image_index.splits[split]) for split in ("train", "test")] == [4, 2]
    assert classes_of(image_index, "test") == ["dog", "cat"]
    assert source.read(0)[:, 0, 0].tolist() == [1, 2, 3]


def test_a_folder_named_like_a_data_set_is_asked_for_by_its_path(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "cifar10"):
        write_images(tmp_path / name, ["a.png"])
        why = rf"{name}: is both a data set .* and the folder {tmp_path / name}; write \./{name} for the folder"
        with pytest.raises(UserError, match=why):
            open_source(name)
        assert open_source(f"./{name}").read_index().names == ["a.png"]


def test_a_missing_path_suggests_a_near_name(tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    with pytest.raises(UserError, match=r"did you mean .*/photographs\?"):
        open_source(str(tmp_path / "photograph"))
    with pytest.raises(UserError, match=r"did you mean cifar10\?"):
        open_source("cifar-10")
    with pytest.raises(UserError, match="no such data: /nowhere/at/all; accepted are digits, cifar10"):
        open_source("/nowhere/at/all")
    for odd in ("\0", "x" * 5000):
        with pytest.raises(UserError):
            open_source(odd)


def test_a_link_that_leads_nowhere_is_not_suggested_for_itself(tmp_path: Path) -> None:
    for name, target in (("loop", "loop"), ("dangling", "gone")):
        (tmp_path / name).symlink_to(tmp_path / target)
        with pytest.raises(UserError, match=rf"no such data: .*/{name} \(a link that leads nowhere\); accepted"):
            open_source(str(tmp_path / name))


def test_a_folder_that_may_not_be_entered_suggests_nothing(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "data").mkdir()

    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(UserError, match=r"no such data: .*/data; accepted"):
        open_source(str(tmp_path / "data"))


def test_images_that_the_user_has_not_named_are_told_by_what_was_made_of_them(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for there in ("data", "./data", str(tmp_path / "data"), "digits", "cifar10", "hf:ylecun/mnist", "s3://bucket/x"):
        check_there(there, "run", "mocokit report run DATA")
    for gone in ("im", "/gone/images", "~/gone/images", "\0"):
        with pytest.raises(UserError, match=r"^run was made of .*, which is not there; name the images: say which$"):
            check_there(gone, "run", "say which")


def test_other_kinds_of_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(PNG)
    with pytest.raises(UserError, match=r"one\.png is one image; name the folder of the images: "):
        open_source(str(tmp_path / "one.png"))
    with pytest.raises(UserError, match=rf"\*\.png is a pattern of files; name the folder: {tmp_path}"):
        open_source(str(tmp_path / "*.png"))
    (tmp_path / "data.rar").write_bytes(b"Rar!")
    os.mkfifo(tmp_path / "pipe.zip")
    for name in ("data.rar", "pipe.zip"):
        with pytest.raises(UserError, match=r"neither a folder nor an archive; accepted are .*\.tar\.xz"):
            open_source(str(tmp_path / name))


@pytest.mark.parametrize("suffix", ["", *SUFFIXES])
def test_nothing_to_see(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "notes.txt").write_text("no image")
    path = archive(folder, tmp_path / f"data{suffix}") if suffix else folder
    with pytest.raises(UserError, match="no images in"):
        index_of(path)


def test_folders_said_to_be_splits_are_another_source(tmp_path):
    folder = write_images(tmp_path / "data", ["a/x/1.png", "a/y/2.png", "b/x/3.png", "b/y/4.png"])
    packed = archive(folder, tmp_path / "data.zip")
    for data in (folder, packed):
        sources = [
            open_source(str(data), train=train, test=test) for train, test in ((None, None), ("a", "b"), ("b", "a"))
        ]
        assert len({source.fingerprint() for source in sources}) == 3
        found = sources[2].read_index()
        assert {s: [found.names[row] for row in rows] for s, rows in found.splits.items()} == {
            "train": ["b/x/3.png", "b/y/4.png"],
            "test": ["a/x/1.png", "a/y/2.png"],
        }
    with pytest.raises(UserError, match="--test b: names a folder inside a folder or archive of images, which"):
        open_source("digits", test="b")
    with pytest.raises(UserError, match="--train a: is --test, too"):
        open_source(str(folder), train="a", test="a")
