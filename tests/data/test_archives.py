"""Archives give what their folder gives, and hostile or damaged ones are refused or skipped."""

import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mocokit.data.decode import MAX_FILE_BYTES, decode
from mocokit.data.image_index import ImageIndex
from mocokit.data.pillow import BadImage
from mocokit.data.sources import open_source
from mocokit.errors import UserError
from tests.helpers import archive, class_folders, encode, noise, write_images

PNG = encode(noise(0))


SUFFIXES = [".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2"]


def index_of(path: Path) -> ImageIndex:
    return open_source(str(path)).read_index()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("damage", ["empty", "text", "truncated"])
def test_a_damaged_archive_is_one_line(tmp_path: Path, suffix: str, damage: str) -> None:
    """Half an archive must not pass for a smaller one."""
    path = archive(class_folders(tmp_path / "data", train=40), tmp_path / f"data{suffix}")
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"hello" * 400, "truncated": whole[: len(whole) * 2 // 3]}[damage])
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
@settings(max_examples=60)
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


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_archive_is_like_its_folder(tmp_path: Path, suffix: str) -> None:
    folder = class_folders(tmp_path / "data", classes=3)
    path = archive(folder, tmp_path / f"data{suffix}")
    source, reference = open_source(str(path)), open_source(str(folder))
    image_index, expected = source.read_index(), reference.read_index()
    assert source.name == reference.name == f"{tmp_path.name}-data"
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
        ["../escape.png", "/etc/absolute.png", "a/../../b.png", "link.png", "hard.png", "device.png", "fifo.png"]
    )
    assert all(reasons.values())


def test_a_tar_member_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "data.tar"
    with path.open("wb") as file:
        file.write(member("huge.png", size=MAX_FILE_BYTES + 1).tobuf())
        file.seek(MAX_FILE_BYTES + 512, os.SEEK_CUR)  # a hole
        file.write(member("good.png", size=len(PNG)).tobuf() + PNG.ljust(512, b"\0") + bytes(1024))
    image_index = index_of(path)
    assert image_index.names == ["good.png"]
    assert image_index.refused == [("huge.png", "larger than 256 MiB")]


def test_a_hostile_zip(tmp_path: Path) -> None:
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in ("good.png", "../escape.png", "/absolute.png", "C:/windows.png", "a\\..\\..\\b.png", "sealed.png"):
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


def test_archives_in_an_archive_are_told(tmp_path: Path) -> None:
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("inner.zip", b"PK")
    with pytest.raises(UserError, match=r"no images in .*data\.zip, but archives: unpack it, and name .*inner\.zip"):
        index_of(path)


def test_a_zip_member_that_states_too_much_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("1.png", PNG)
        packed.writestr("2.png", PNG)
        packed.getinfo("2.png").file_size = MAX_FILE_BYTES + 1  # written into the directory on closing
    image_index = index_of(path)
    assert image_index.names == ["1.png"]
    assert image_index.refused == [("2.png", "larger than 256 MiB")]


def test_a_compressed_archive_under_the_name_of_a_plain_one(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "data", ["1.png"])
    path = archive(folder, tmp_path / "data.tar.xz").rename(tmp_path / "data.tar")
    assert index_of(path).names == ["1.png"]


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_a_name_that_comes_twice_the_last_is_read_and_that_is_told(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    contents = [("a.png", b"old"), ("b.png", PNG), ("a.png", b"older"), ("a.png", PNG)]
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as packed:
            for name, content in contents:
                packed.writestr(name, content)
    else:
        with tarfile.open(path, "w") as archived:
            for name, content in contents:
                archived.addfile(member(name, size=len(content)), io.BytesIO(content))
    source = open_source(str(path))
    image_index = source.read_index()
    assert image_index.names == ["a.png", "b.png"]
    assert [source.read(0), source.read(1)] == [PNG, PNG]
    (note,) = image_index.notes
    assert note == "2 images under a name that comes again in the archive, where the last is read; the first is a.png"


def test_opening_reads_nothing(tmp_path: Path) -> None:
    (tmp_path / "pets.zip").write_bytes(b"not a zip at all")
    assert open_source(str(tmp_path / "pets.zip")).name == "pets"
