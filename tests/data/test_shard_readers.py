"""A shard gives the images and labels in it, read block by block; what is wrong with it is named."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from mocokit.data import shard_readers
from mocokit.data import shards as shards_module
from mocokit.data.decode import BadImage
from mocokit.data.sources import open_source
from mocokit.data.store import TooManySkipped, open_store
from mocokit.errors import UserError
from tests.data.shard_sets import FILES, KINDS, write_parquet, write_shards, write_tar


@pytest.fixture(autouse=True)
def _hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(shard_readers, "_WAITS", ())


@pytest.fixture
def bucket() -> Iterator[Any]:
    """An object storage in memory."""
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


def test_text_labels_are_classes(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": FILES[:3], "label": ["dog", "cat", "eel"]})
    image_index = open_source(str(tmp_path / "a.parquet")).read_index()
    assert image_index.label_names == ("cat", "dog", "eel")
    np.testing.assert_array_equal(image_index.labels, [1, 0, 2])


@pytest.mark.parametrize("labels", [[0, None, 1], [0.5, 0.1, 1.0], [0, -1, 1]])
def test_what_is_no_label_is_left(tmp_path: Path, labels: list[Any]) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": FILES[:3], "label": labels})
    assert open_source(str(tmp_path / "a.parquet")).read_index().labels is None


def test_one_image_without_a_label(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"1.cls": b"0", "1.png": FILES[0], "2.png": FILES[1]})
    assert open_source(str(tmp_path / "a.tar")).read_index().labels is None


def test_structures_without_files_are_skipped(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": [{"bytes": 3}, {"bytes": None}]})
    with pytest.raises(TooManySkipped, match=r"2 of 2 .* the first is a\.parquet/00000000: no image in this row"):
        open_store(str(tmp_path / "a.parquet"), image_size=8, workers=0)


def test_bad_rows_are_skipped_with_a_reason(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": [FILES[0], None, b"", b"no image", *FILES[1:5]]})
    store = open_store(str(tmp_path), image_size=8, workers=0, max_skipped=0.5)
    assert len(store.splits["train"]) == 5
    assert [skipped.name for skipped in store.skipped] == [f"a.parquet/{row:08d}" for row in (1, 2, 3)]
    assert store.skipped[0].reason == "no image in this row"
    with pytest.raises(TooManySkipped, match=r"37\.5%"):
        open_store(str(tmp_path), image_size=8, workers=0, max_skipped=0.1)


@pytest.mark.parametrize("kind", ["struct", "tar"])
def test_a_damaged_shard_is_named(tmp_path: Path, kind: str) -> None:
    folder = write_shards(tmp_path / "set", kind)
    shard = max(folder.iterdir())
    shard.write_bytes(shard.read_bytes()[:-700] if kind == "struct" else shard.read_bytes()[:700])
    with pytest.raises(UserError, match=rf"{shard.name} cannot be read"):
        open_source(str(folder)).read_index()


def test_no_images_among_the_columns(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"width": [1, 2], "text": ["a", "b"]})
    with pytest.raises(UserError, match=r"a\.parquet has no column of image files among width, text"):
        open_source(str(tmp_path)).read_index()


def test_storage_is_tried_again(tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that fails twice succeeds at the third try; one that goes on failing names the shard."""
    (file,) = write_shards(tmp_path / "set", "bytes", shards=1).iterdir()
    bucket.pipe("/bucket/a.parquet", file.read_bytes())
    source = open_source("memory://bucket")
    source.read_index()
    monkeypatch.setattr(shard_readers, "_WAITS", (0, 0, 0))
    real, failures = fsspec.open, [0, 2]

    def unsteady(*args: Any) -> Any:
        failures[0] += 1
        if failures[0] <= failures[1]:
            raise OSError("connection reset")
        return real(*args)

    monkeypatch.setattr(fsspec, "open", unsteady)
    assert source.read(0) == FILES[0]
    assert failures[0] == 3
    failures[:] = [0, 4]
    with pytest.raises(UserError, match=r"a\.parquet cannot be read \(connection reset\)"):
        source.read(5)


@pytest.mark.parametrize("kind", KINDS)
def test_runs_are_read_once(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, each row group or block of tar members is fetched a single time."""
    monkeypatch.setattr(shard_readers, "_TAR_BLOCK", 2)
    source = open_source(str(write_shards(tmp_path / "set", kind, shards=1)))
    blocks = source.read_index().blocks
    assert blocks is not None
    np.testing.assert_array_equal(blocks, [0, 0, 1, 1, 2, 2])
    opened: list[str] = []
    real = shard_readers.open_file
    monkeypatch.setattr(shard_readers, "open_file", lambda place: opened.append(place) or real(place))
    for index in range(6):
        source.read(index)
    assert len(opened) == 3


def test_a_row_beyond_the_most_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "MAX_FILE_BYTES", 10)
    write_parquet(tmp_path / "a.parquet", {"image": FILES[:2]})
    source = open_source(str(tmp_path))
    source.read_index()
    with pytest.raises(BadImage, match="larger"):
        source.read(0)


def test_members_that_must_not_be_read_are_listed(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"1.png": FILES[0], "1.cls": b"0", "2.png": FILES[1], "2.cls": b"1"})
    link = tarfile.TarInfo("3.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "a.tar", "a") as archive:
        archive.addfile(link)
    image_index = open_source(str(tmp_path / "a.tar")).read_index()
    assert len(image_index.names) == 2
    assert image_index.refused == [("a.tar/3.png", "a link, device or sparse file in the archive")]
