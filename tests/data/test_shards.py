"""Parquet files and tar shards give the images and labels that were written into them."""

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mocokit.data.decode import decode
from mocokit.data.sources import open_source
from mocokit.data.store import open_store
from mocokit.errors import UserError
from tests.helpers import encode, noise

pytest.importorskip("datasets")
IMAGES = [noise(seed) for seed in range(6)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOCOKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def write_shards(folder: Path, kind: str) -> Path:
    folder.mkdir()
    for shard in range(2):
        rows = range(3 * shard, 3 * shard + 3)
        if kind == "tar":
            with tarfile.open(folder / f"part-{shard}.tar", "w") as archive:
                for row in rows:
                    for end, content in (("png", encode(IMAGES[row])), ("cls", str(row % 2).encode())):
                        member = tarfile.TarInfo(f"{row:04d}.{end}")
                        member.size = len(content)
                        archive.addfile(member, io.BytesIO(content))
            continue
        files = [encode(IMAGES[row]) for row in rows]
        column = files if kind == "bytes" else [{"bytes": file, "path": None} for file in files]
        table = pa.table({"image": column, "label": [row % 2 for row in rows]})
        pq.write_table(table, folder / f"part-{shard}.parquet", row_group_size=2)
    return folder


@pytest.mark.parametrize("kind", ["bytes", "struct", "tar"])
def test_images_and_labels_come_out_as_written(tmp_path: Path, kind: str) -> None:
    source = open_source(str(write_shards(tmp_path / "set", kind)))
    listing = source.scan()
    assert len(listing.names) == 6
    for index in (5, 0, 3):
        np.testing.assert_array_equal(decode(source.read(index)).transpose(1, 2, 0), IMAGES[index])
    assert listing.labels is not None
    np.testing.assert_array_equal(listing.labels, [0, 1, 0, 1, 0, 1])


def test_into_the_store(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set", "struct")
    store = open_store(str(folder), image_size=8, image_size_cap=8, workers=0)
    assert len(store.splits["train"]) == 6
    assert store.label_names == ("0", "1")


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set", "struct")
    (folder / "part-1.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match=r"part-1\.parquet"):
        open_source(str(folder)).scan()


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"mocokit\[hf\]"):
        open_source("hf:somebody/something").scan()
