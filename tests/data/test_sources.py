"""What the user may name, how it is laid out, and what hostile folders and archives get."""

import io
import os
import pickle
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mocokit.data.decode import MAX_FILE_BYTES, BadImage, decode
from mocokit.data.image_index import ImageIndex, index_by_folders
from mocokit.data.sources import open_source
from mocokit.errors import UserError
from tests.helpers import archive, class_folders, encode, noise, write_images

PNG = encode(noise(0))
SUFFIXES = [".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2"]


def index_of(path: Path) -> ImageIndex:
    return open_source(str(path)).read_index()


def classes_of(image_index: ImageIndex, split: str) -> list[str]:
    assert image_index.labels is not None
    assert image_index.label_names is not None
    return [image_index.label_names[label] for label in image_index.labels[image_index.splits[split]]]


def names_of(image_index: ImageIndex, split: str) -> list[str]:
    return [image_index.names[index] for index in image_index.splits[split]]


# Bundled data --------------------------------------------------------------------------------------------


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
            self.data = (
                np.full((4, 32, 32, 3), [1, 2, 3], np.uint8) if train else np.zeros((2, 32, 32, 3), np.uint8)
            )
            self.targets = [0, 1, 0, 1] if train else [1, 0]

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Local)
    source = open_source("cifar10")
    image_index = source.read_index()
    assert capsys.readouterr().out == ""
    assert [len(image_index.splits[split]) for split in ("train", "test")] == [4, 2]
    assert classes_of(image_index, "test") == ["dog", "cat"]
    assert source.read(0)[:, 0, 0].tolist() == [1, 2, 3]


# Layout --------------------------------------------------------------------------------------------------


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
    tmp_path: Path,
    names: list[str],
    splits: dict[str, int],
    label_names: tuple[str, ...] | None,
    ignored: int,
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


@given(
    st.lists(
        st.lists(st.sampled_from(["train", "test", "Val", "a", "b"]), max_size=4), min_size=1, max_size=12
    )
)
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
    names = [
        "a.JPG",
        "b.jfif",
        "c.TiFf",
        ".hidden.png",
        ".git/d.png",
        "__MACOSX/e.png",
        "notes.txt",
        "Thumbs.db",
    ]
    for name in names:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(PNG)
    for path in (tmp_path / "data", archive(tmp_path / "data", tmp_path / "data.zip")):
        image_index = index_of(path)
        assert image_index.names == ["a.JPG", "b.jfif", "c.TiFf"]
        assert not image_index.refused


# What is not there or not usable -------------------------------------------------------------------------


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


def test_other_kinds_of_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(PNG)
    (tmp_path / "data.rar").write_bytes(b"Rar!")
    os.mkfifo(tmp_path / "pipe.zip")
    for name in ("one.png", "data.rar", "pipe.zip"):
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


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("damage", ["empty", "text", "truncated"])
def test_a_damaged_archive_is_one_line(tmp_path: Path, suffix: str, damage: str) -> None:
    """Half an archive must not pass for a smaller one."""
    path = archive(class_folders(tmp_path / "data", train=40), tmp_path / f"data{suffix}")
    whole = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "text": b"hello" * 400, "truncated": whole[: len(whole) * 2 // 3]}[damage]
    )
    with pytest.raises(UserError, match=r"cannot be read as an archive") as caught:
        index_of(path)
    assert "\n" not in str(caught.value)


def test_a_damaged_header_within_a_tar_is_not_its_end(tmp_path: Path) -> None:
    path = archive(class_folders(tmp_path / "data", train=10), tmp_path / "data.tar")
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as packed:
        header = packed.getmembers()[7].offset
    content[header : header + 100] = b"\xff" * 100
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as an archive"):
        index_of(path)


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_damaged_archives_never_crash(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    suffix = data.draw(st.sampled_from([".zip", ".tar", ".tar.gz", ".tar.xz", ".tar.bz2"]))
    path = archive(write_images(folder / "data", [f"{i}.png" for i in range(4)]), folder / f"data{suffix}")
    content = bytearray(path.read_bytes())
    place = st.floats(0, 1, exclude_max=True)
    for position, value in data.draw(st.lists(st.tuples(place, st.integers(0, 255)), max_size=5)):
        content[int(position * len(content))] = value
    path.write_bytes(content[: int(data.draw(st.just(1.0) | place) * len(content))])
    source = open_source(str(path))
    try:
        image_index = source.read_index()
    except UserError:
        return
    for index in range(len(image_index.names)):
        try:
            decode(source.read(index))
        except BadImage:
            continue


# Folders -------------------------------------------------------------------------------------------------


def test_symbolic_links(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", ["real/1.png", "real/2.png", ".store/3.png"])
    outside = write_images(tmp_path / "outside", ["secret.png"])
    (root / "loop").symlink_to(root)
    (root / "real" / "up").symlink_to("..")
    (root / "self").symlink_to("self")
    (root / "alias").symlink_to("real")
    (root / "other").symlink_to("real")
    (root / "hidden").symlink_to(".store")
    (root / "file.png").symlink_to("real/1.png")
    (root / "broken.png").symlink_to("nothing")
    (root / "notes").symlink_to("nothing")
    (root / "out.png").symlink_to(outside / "secret.png")
    (root / "outfolder").symlink_to(outside)
    (root / "list.txt").symlink_to("/etc/hostname")
    image_index = index_of(root)
    assert image_index.names == ["file.png", "hidden/3.png", "real/1.png", "real/2.png"]
    reasons = dict(image_index.refused)
    assert sorted(reasons) == ["broken.png", "loop", "out.png", "outfolder", "real/up", "self"]
    assert "loops" in reasons["loop"]
    assert "loops" in reasons["real/up"]
    assert "loops" in reasons["self"]
    assert "leads out" in reasons["out.png"]
    assert "leads out" in reasons["outfolder"]


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    write_images(tmp_path / "data", ["1.png"])
    (tmp_path / "link").symlink_to("data")
    assert index_of(tmp_path / "link").names == ["1.png"]


def test_special_files_are_never_opened(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", ["1.png"])
    os.mkfifo(root / "2.png")
    source = open_source(str(root))
    image_index = source.read_index()
    assert image_index.names == ["1.png"]
    assert image_index.refused == [("2.png", "not a regular file")]
    (root / "1.png").unlink()
    os.mkfifo(root / "1.png")  # after it was listed
    start = time.perf_counter()
    with pytest.raises(BadImage, match="not a regular file"):
        source.read(0)
    assert time.perf_counter() - start < 1


def test_a_vanished_file_is_a_reason(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", ["1.png"])
    source = open_source(str(root))
    source.read_index()
    (root / "1.png").unlink()
    with pytest.raises(BadImage, match="cannot be read: No such file"):
        source.read(0)


def test_unreadable_files_and_folders(tmp_path: Path) -> None:
    """In a process without privileges, for root reads everything."""
    root = write_images(tmp_path / "data", ["1.png", "2.png", "closed/3.png"])
    (root / "2.png").chmod(0)
    (root / "closed").chmod(0)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder != folder.parent:
            folder.chmod(folder.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
    program = """
import os, sys
from mocokit.data.sources import open_source
from mocokit.data.decode import BadImage
if os.geteuid() == 0:
    os.setegid(65534); os.seteuid(65534)
source = open_source(sys.argv[1])
image_index = source.read_index()
assert image_index.names == ["1.png", "2.png"], image_index.names
assert image_index.refused == [("closed", "folder cannot be read: Permission denied")], image_index.refused
source.read(0)
try:
    source.read(1)
except BadImage as error:
    assert str(error) == "cannot be read: Permission denied", error
else:
    raise SystemExit("it was read")
"""
    done = subprocess.run([sys.executable, "-c", program, str(root)], capture_output=True, text=True)
    (root / "closed").chmod(0o755)
    assert done.returncode == 0, done.stderr


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    root = os.fsencode(write_images(tmp_path / "data", ["a/1.png", "b/1.png"]))
    with open(os.path.join(root, b"a", b"caf\xe9.png"), "wb") as file:
        file.write(PNG)
    source = open_source(os.fsdecode(root))
    assert source.fingerprint()
    image_index = source.read_index()
    assert image_index.names == ["a/1.png", "a/caf\udce9.png", "b/1.png"]
    assert source.read(1) == PNG
    packed = index_of(archive(Path(os.fsdecode(root)), tmp_path / "data.tar.gz"))
    assert packed.names == image_index.names


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    def fingerprint() -> str:
        return open_source(str(root)).fingerprint()

    root = write_images(tmp_path / "data", ["1.png", "2.png"])
    first = fingerprint()
    assert fingerprint() == first
    os.utime(root / "1.png", ns=(1, 1))
    second = fingerprint()
    (root / "1.png").rename(root / "3.png")
    third = fingerprint()
    (root / "2.png").unlink()
    assert len({first, second, third, fingerprint()}) == 4
    moved = fingerprint()
    root = root.rename(tmp_path / "elsewhere")
    assert fingerprint() == moved


# Archives ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_archive_is_like_its_folder(tmp_path: Path, suffix: str) -> None:
    folder = class_folders(tmp_path / "data", classes=3)
    path = archive(folder, tmp_path / f"data{suffix}")
    source, reference = open_source(str(path)), open_source(str(folder))
    image_index, expected = source.read_index(), reference.read_index()
    assert source.name == "data"
    assert image_index.names == expected.names
    assert image_index.label_names == expected.label_names
    np.testing.assert_array_equal(image_index.labels, expected.labels)
    for index in reversed(range(len(image_index.names))):  # not in the order of the archive
        assert source.read(index) == reference.read(index)
    before = source.fingerprint()
    archive(write_images(folder, ["train/class0/new.png"]), path)
    assert open_source(str(path)).fingerprint() != before
    assert list((tmp_path / "cache").glob("*")) == [], "nothing may stay behind"


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_hostile_tar(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("data.tar" if mode == "w" else "data.tar.gz")
    with tarfile.open(path, mode) as packed:  # type: ignore[call-overload]
        for name in ("./good.png", "../escape.png", "/etc/absolute.png", "a/../../b.png"):
            packed.addfile(member(name, size=len(PNG)), io.BytesIO(PNG))
        packed.addfile(member("link.png", tarfile.SYMTYPE, linkname="/etc/passwd"))
        packed.addfile(member("hard.png", tarfile.LNKTYPE, linkname="good.png"))
        packed.addfile(member("device.png", tarfile.CHRTYPE, devmajor=1, devminor=5))
        packed.addfile(member("fifo.png", tarfile.FIFOTYPE))
        packed.addfile(member("twice.png", size=3), io.BytesIO(b"old"))
        packed.addfile(member("twice.png", size=len(PNG)), io.BytesIO(PNG))
    source = open_source(str(path))
    image_index = source.read_index()
    assert image_index.names == ["good.png", "twice.png"]
    assert [source.read(index) for index in range(2)] == [PNG, PNG]
    reasons = dict(image_index.refused)
    assert sorted(reasons) == sorted(
        [
            "../escape.png",
            "/etc/absolute.png",
            "a/../../b.png",
            "link.png",
            "hard.png",
            "device.png",
            "fifo.png",
        ]
    )
    assert all(reasons.values())


def test_a_tar_member_larger_than_a_gibibyte_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "data.tar"
    with path.open("wb") as file:
        file.write(member("huge.png", size=MAX_FILE_BYTES + 1).tobuf())
        file.seek(MAX_FILE_BYTES + 512, os.SEEK_CUR)  # a hole
        file.write(member("good.png", size=len(PNG)).tobuf() + PNG.ljust(512, b"\0") + bytes(1024))
    image_index = index_of(path)
    assert image_index.names == ["good.png"]
    assert image_index.refused == [("huge.png", "larger than 1 GiB")]


def test_a_hostile_zip(tmp_path: Path) -> None:
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in (
            "good.png",
            "../escape.png",
            "/absolute.png",
            "C:/windows.png",
            "a\\..\\..\\b.png",
            "sealed.png",
        ):
            packed.writestr(name, PNG)
        packed.writestr("damaged.png", PNG)
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed.writestr(link, "/etc/passwd")
        huge = packed.getinfo("sealed.png")
        offset = packed.getinfo("damaged.png").header_offset
    content = bytearray(path.read_bytes())
    content[offset + 45] ^= 0xFF
    entry = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 4)
    while not content[entry + 46 :].startswith(b"sealed.png"):
        entry = content.index(b"PK\x01\x02", entry + 4)
    content[entry + 8] |= 1  # the flag "encrypted" in the directory
    path.write_bytes(content)
    assert huge.file_size == len(PNG)
    source = open_source(str(path))
    image_index = source.read_index()
    assert image_index.names == ["damaged.png", "good.png"]
    with pytest.raises(BadImage, match="cannot be unpacked"):
        source.read(0)
    assert source.read(1) == PNG
    reasons = dict(image_index.refused)
    assert reasons["sealed.png"] == "encrypted"
    assert len(reasons) == 6


def test_a_zip_member_that_states_too_much_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("1.png", PNG)
        packed.writestr("2.png", PNG)
        packed.getinfo("2.png").file_size = MAX_FILE_BYTES + 1  # written into the directory on closing
    image_index = index_of(path)
    assert image_index.names == ["1.png"]
    assert image_index.refused == [("2.png", "larger than 1 GiB")]


def test_a_compressed_archive_under_the_name_of_a_plain_one(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "data", ["1.png"])
    path = archive(folder, tmp_path / "data.tar.xz").rename(tmp_path / "data.tar")
    assert index_of(path).names == ["1.png"]


def test_opening_reads_nothing(tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(b"not a zip at all")
    assert open_source(str(tmp_path / "data.zip")).name == "data"


def test_a_folder_travels_to_another_process(tmp_path: Path) -> None:
    source = open_source(str(write_images(tmp_path / "data", ["1.png"])))
    source.read_index()
    assert pickle.loads(pickle.dumps(source)).read(0) == source.read(0)
