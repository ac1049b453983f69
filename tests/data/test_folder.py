"""A folder gives its images and nothing from elsewhere, whatever links and special files are in it."""

import os
import pickle
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mocokit.data.image_index import ImageIndex
from mocokit.data.pillow import BadImage
from mocokit.data.sources import open_source
from mocokit.errors import UserError
from tests.helpers import archive, encode, noise, write_images

PNG = encode(noise(0))


def index_of(path: Path) -> ImageIndex:
    return open_source(str(path)).read_index()


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
    assert sorted(reasons) == ["broken.png", "loop", "out.png", "outfolder/secret.png", "real/up", "self"]
    assert "loops" in reasons["loop"]
    assert "loops" in reasons["real/up"]
    assert "loops" in reasons["self"]
    assert "leads out of the folder; --follow-links" in reasons["out.png"]
    assert "leads out of the folder; --follow-links" in reasons["outfolder/secret.png"]


def test_links_that_lead_out_count_what_is_behind_them_or_are_followed(tmp_path: Path) -> None:
    outside = write_images(tmp_path / "outside", ["ant/1.png", "ant/more/2.png", "bee/3.png", "one.png"])
    (outside / "ant" / "back").symlink_to(outside)
    root = write_images(tmp_path / "data", ["cow/4.png"])
    for name in ("ant", "bee", "one.png"):
        (root / name).symlink_to(outside / name)
    assert [skipped.name for skipped in index_of(root).refused] == [
        "ant/1.png", "ant/more/2.png", "bee/3.png", "one.png",
    ]  # fmt: skip
    followed = open_source(str(root), follow_links=True)
    names = ["ant/1.png", "ant/more/2.png", "bee/3.png", "cow/4.png", "one.png"]
    assert set(names) <= set(followed.read_index().names)
    assert followed.fingerprint() != open_source(str(root)).fingerprint()


def test_a_snapshot_in_the_cache_of_hugging_face_needs_no_option(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    for number, kind in enumerate(("ant", "bee")):
        (blobs / f"{number:040x}").write_bytes(PNG)
        (snapshot / kind).mkdir(parents=True)
        (snapshot / kind / "1.png").symlink_to(f"../../../blobs/{number:040x}")
    for folder, names in ((snapshot, ["ant/1.png", "bee/1.png"]), (snapshot / "ant", ["1.png"])):
        found = index_of(folder)
        assert (found.names, found.refused) == (names, [])
    # By its name in the cache, each image is there once.
    assert index_of(tmp_path).names == ["snapshots/abc/ant/1.png", "snapshots/abc/bee/1.png"]


def test_images_are_found_by_content_and_others_are_counted(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", ["1.png"])
    (root / "0123abcd").write_bytes(PNG)
    (root / "2.png_large").write_bytes(PNG)
    for name in ("b.psd", "a.PSD", "LICENSE", "notes.txt"):
        (root / name).write_bytes(b"something else entirely")
    found = index_of(root)
    assert found.names == ["0123abcd", "1.png", "2.png_large"]
    line = "not read, as they are no images: 2 .psd, 1 without an ending, 1 .txt; the first is LICENSE"
    assert found.notes == (line,)
    packed = index_of(archive(root, tmp_path / "data.zip"))
    assert (packed.names, sorted(packed.notes[0])) == (found.names, sorted(found.notes[0]))
    assert index_of(archive(root, tmp_path / "data.tar")).names == found.names


def test_a_folder_of_other_files_names_them(tmp_path: Path) -> None:
    (tmp_path / "a.psd").write_bytes(b"8BPS")
    with pytest.raises(
        UserError, match=r"no images in .*; not read, as they are no images: 1 \.psd; the first is a.psd$"
    ):
        index_of(tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "images.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"to read x/images.tar.gz, name that file itself$"):
        index_of(tmp_path)


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
from mocokit.errors import UserError
from mocokit.data.pillow import BadImage
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


def test_a_folder_travels_to_another_process(tmp_path: Path) -> None:
    source = open_source(str(write_images(tmp_path / "data", ["1.png"])))
    source.read_index()
    assert pickle.loads(pickle.dumps(source)).read(0) == source.read(0)
