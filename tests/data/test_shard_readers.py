"""A shard gives the images and labels in it, read block by block; what is wrong with it is named."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mocokit.data import shard_readers
from mocokit.data import shards as shards_module
from mocokit.data.pillow import BadImage
from mocokit.data.sources import open_source
from mocokit.data.store import TooManySkipped, open_store
from mocokit.deploy.feature_file import METADATA_KEY
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


@pytest.mark.parametrize(
    ("labels", "numbers", "names"),
    [
        ([0, None, 1], [0, -1, 1], ("0", "1")),
        ([0, -1, 1], [0, -1, 1], ("0", "1")),
        ([-1, 1, -1], [0, 1, 0], ("-1", "1")),  # the two classes of a binary problem
        ([1, 3, 2], [0, 2, 1], ("1", "2", "3")),
        ([1_000_000_007, 5, 5], [1, 0, 0], ("5", "1000000007")),
        ([2.0, float("nan"), 10.0], [0, -1, 1], ("2", "10")),
        ([True, False, True], [1, 0, 1], ("False", "True")),
        (["b", "", "a"], [1, -1, 0], ("a", "b")),
        (["caf\u00e9", "cafe\u0301", "a"], [1, 1, 0], ("a", "caf\u00e9")),
        (pa.array(["b", "a", None], pa.large_string()), [1, 0, -1], ("a", "b")),
        (pa.array(["b", "a", "b"]).dictionary_encode(), [1, 0, 1], ("a", "b")),
        (pa.array([b"b", b"a", b"b"]), [1, 0, 1], ("a", "b")),
        (pa.array([1, 0, 1], pa.uint8()), [1, 0, 1], ("0", "1")),
        (pa.array([1, 0, 1], pa.float16()), [1, 0, 1], ("0", "1")),
    ],
)
def test_labels_of_any_kind(tmp_path: Path, labels: Any, numbers: list[int], names: tuple[str, ...]) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": pa.array(FILES[:3]), "label": labels})
    image_index = open_source(str(tmp_path / "a.parquet")).read_index()
    assert image_index.label_names == names
    np.testing.assert_array_equal(image_index.labels, numbers)


@pytest.mark.parametrize(
    ("columns", "note"),
    [
        ({"label": [0.5, 0.1, 1.0]}, "column label is not used: double with fractions, which are no classes"),
        ({"label": [[0], [1], [0]]}, "column label is not used: list<element: int64>, where a number or a text for"),
        (
            {"id": [1, 2, 3], "text": list("abc")},
            "no labels among the columns id, text; call the one with classes label",
        ),
    ],
)
def test_a_column_that_is_left_out_is_named(tmp_path: Path, columns: dict[str, Any], note: str) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": FILES[:3], **columns})
    image_index = open_source(str(tmp_path / "a.parquet")).read_index()
    assert image_index.labels is None
    (line,) = image_index.all_notes()
    assert line.startswith(note)


def test_a_column_of_splits_is_named_as_not_used(tmp_path: Path) -> None:
    """As in tables of labels, where it is."""
    write_parquet(tmp_path / "a.parquet", {"image": FILES[:3], "label": [0, 1, 0], "split": ["train", "test", "train"]})
    image_index = open_source(str(tmp_path / "a.parquet")).read_index()
    np.testing.assert_array_equal(image_index.labels, [0, 1, 0])
    assert "column split is not used: put splits into files named" in "".join(image_index.all_notes())
    assert not any("labels are from" in line for line in image_index.all_notes())


def test_a_column_by_another_name(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": FILES[:3], "Category": list("aab"), "label": [0.5, 0.1, 1.0]})
    image_index = open_source(str(tmp_path / "a.parquet")).read_index()
    assert image_index.label_names == ("a", "b")
    assert "labels are from the column Category" in image_index.all_notes()


def test_one_image_without_a_label(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar", {"1.cls": b"0", "1.png": FILES[0], "2.png": FILES[1], "3.cls": b"7", "3.png": FILES[2]}
    )
    image_index = open_source(str(tmp_path / "a.tar")).read_index()
    np.testing.assert_array_equal(image_index.labels, [0, -1, 1])
    assert "1 of 3 images has no label, first a.tar/00000001" in " ".join(image_index.all_notes())


def test_labels_in_json_members(tmp_path: Path) -> None:
    members = {"1.png": FILES[0], "1.json": b'{"label": 4}', "2.png": FILES[1], "2.json": b"damaged"}
    members |= {"3.png": FILES[2], "3.json": b'{"label": 7, "width": 8}'}
    write_tar(tmp_path / "a.tar", members)
    for path in (tmp_path, tmp_path / "a.tar"):
        image_index = open_source(str(path)).read_index()
        assert image_index.label_names == ("4", "7")
        np.testing.assert_array_equal(image_index.labels, [0, -1, 1])
        assert "labels are from label in the .json files" in image_index.all_notes()
    write_tar(tmp_path / "a.tar", {"1.png": FILES[0], "1.json": b'{"width": 8}'})
    assert (
        "no labels among width in the .json files; call the class label"
        in open_source(str(tmp_path / "a.tar")).read_index().all_notes()
    )


def test_labels_in_large_json_members_and_behind_byte_order_marks(tmp_path: Path) -> None:
    large = json.dumps({"caption": "x" * 100_000, "label": 4}).encode()
    members = {"1.png": FILES[0], "1.json": large, "2.png": FILES[1], "2.json": b'\xef\xbb\xbf{"label": 7}'}
    write_tar(tmp_path / "a.tar", members)
    write_tar(tmp_path / "b.tar", {"1.png": FILES[0], "1.cls": b"\xef\xbb\xbf4\n", "2.png": FILES[1], "2.cls": b"7"})
    for name in ("a.tar", "b.tar"):
        image_index = open_source(str(tmp_path / name)).read_index()
        assert image_index.label_names == ("4", "7")
        np.testing.assert_array_equal(image_index.labels, [0, 1])


@pytest.mark.parametrize(
    ("shards", "names"),
    [
        ([["00", "0"], ["1", "0"]], ("0", "00", "1")),
        ([["00", "01"], ["00", "x"]], ("00", "01", "x")),
        ([["2", "10"], ["10", "7"]], ("2", "7", "10")),
        ([["2", "10"], ["10", "x"]], ("10", "2", "x")),
        ([["2", "-1"], ["+2", "3"]], ("+2", "-1", "2", "3")),
        ([["2", "-1"], ["1", "3"]], ("1", "2", "3")),
        ([["1", ""], ["2", "1"]], ("1", "2")),
    ],
)
def test_class_members_are_numbers_only_where_that_loses_nothing(
    tmp_path: Path, shards: list[list[str]], names: tuple[str, ...]
) -> None:
    """The same in every shard: 00 is not one class in this one and another in that."""
    for number, labels in enumerate(shards):
        members: dict[str, bytes] = {}
        for row, label in enumerate(labels):
            members |= {f"{row}.png": FILES[row], f"{row}.cls": label.encode()}
        write_tar(tmp_path / f"{number}.tar", members)
    image_index = open_source(str(tmp_path)).read_index()
    assert image_index.label_names == names
    assert image_index.labels is not None
    texts = [names[label] if label >= 0 else None for label in image_index.labels.tolist()]
    assert texts == [label if label in names else None for labels in shards for label in labels]


@pytest.mark.parametrize(
    ("ends", "kept", "left"),
    [
        (["jpg", "seg.png"], "jpg", ".seg.png"),
        (["depth.png", "png", "seg.png"], "png", ".depth.png, .seg.png"),
        (["png", "JPG"], "JPG", ".png"),
        (["mask.png", "image.png"], "image.png", ".mask.png"),
        (["left.png", "right.png"], None, None),
        (["png", "1.png", "2.jpg"], None, None),  # as copies are called, or the third of something
    ],
)
def test_masks_beside_images_are_not_learned_from(
    tmp_path: Path, ends: list[str], kept: str | None, left: str | None
) -> None:
    members: dict[str, bytes] = {}
    for row in range(3):
        members |= {f"{row}.{end}": f"{row} {end}".encode() for end in ends} | {f"{row}.cls": str(row).encode()}
    write_tar(tmp_path / "a.tar", members)
    source = open_source(str(tmp_path / "a.tar"))
    image_index = source.read_index()
    taken = [end for end in ends if kept in (None, end)]
    expected = [(f"{row} {end}".encode(), row) for row in range(3) for end in taken]
    assert image_index.labels is not None
    assert [(source.read(i), label) for i, label in enumerate(image_index.labels.tolist())] == expected
    notes = [note for note in image_index.all_notes() if note.startswith("images are")]
    assert notes == ([] if kept is None else [f"images are the members .{kept.lower()}, not {left} beside them"])


def test_an_image_in_another_format_has_no_other_beside_it(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"1.jpg": FILES[0], "2.png": FILES[1], "3.jpg": FILES[2], "3.cls": b"0"})
    assert len(open_source(str(tmp_path / "a.tar")).read_index().names) == 3


def test_class_folders_in_tars(tmp_path: Path) -> None:
    for split, folders in (("train", ("cat", "dog", "cat")), ("test", ("dog", "cat"))):
        members = {f"./{split}/{folder}/{i}.png": FILES[i] for i, folder in enumerate(folders)}
        write_tar(tmp_path / f"{split}.tar", members)
    image_index = open_source(str(tmp_path)).read_index()
    assert image_index.label_names == ("cat", "dog")
    assert {split: image_index.labels[rows].tolist() for split, rows in image_index.splits.items()} == {  # type: ignore[index]
        "train": [0, 1, 0], "test": [1, 0],
    }  # fmt: skip


def test_folders_of_how_tars_were_packed_are_no_classes(tmp_path: Path) -> None:
    for shard in ("a", "b"):
        write_tar(tmp_path / f"{shard}.tar", {f"pack-{shard}/{i}.png": FILES[i] for i in range(3)})
    assert open_source(str(tmp_path)).read_index().labels is None


def test_a_lone_tar_in_a_folder_may_hold_splits(tmp_path: Path) -> None:
    names = [f"{split}/{name}/1.png" for split in ("train", "test") for name in ("cat", "dog")]
    write_tar(tmp_path / "all.tar", dict(zip(names, FILES, strict=False)))
    image_index = open_source(str(tmp_path)).read_index()
    assert {split: len(rows) for split, rows in image_index.splits.items()} == {"train": 2, "test": 2}
    assert image_index.label_names == ("cat", "dog")


def test_splits_inside_of_several_tars(tmp_path: Path) -> None:
    names = [f"{split}/{name}/1.png" for split in ("Train", "eval") for name in ("cat", "dog")]
    for shard in "ab":
        write_tar(tmp_path / f"{shard}.tar", dict(zip(names, FILES, strict=False)))
    image_index = open_source(str(tmp_path)).read_index()
    assert {split: rows.tolist() for split, rows in image_index.splits.items()} == {
        "train": [0, 1, 4, 5], "test": [2, 3, 6, 7],
    }  # fmt: skip
    np.testing.assert_array_equal(image_index.labels, [0, 1] * 4)
    assert image_index.all_notes() == ["splits by name: train is train/; test is eval/"]


def test_feature_files_among_shards_are_left_out(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": FILES[:3], "label": list("aba")})
    table = pa.table({"path": ["x"], "feature": [[1.0]]}).replace_schema_metadata({METADATA_KEY: "{}"})
    pq.write_table(table, tmp_path / "features.parquet")
    image_index = open_source(str(tmp_path)).read_index()
    assert len(image_index.names) == 3
    assert image_index.all_notes()[0] == "features.parquet left out: a feature file that mocokit wrote"


def test_structures_without_files_are_skipped(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": [{"bytes": 3}, {"bytes": None}]})
    with pytest.raises(TooManySkipped, match=r"2 of 2 .* the first is a\.parquet/00000000: no image in this row"):
        open_store(str(tmp_path / "a.parquet"), image_size=8, workers=0)


def test_bad_rows_are_skipped_with_a_reason(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": [FILES[0], None, b"", b"no image", *FILES[1:5]]})
    store = open_store(str(tmp_path), image_size=8, workers=0, max_skipped=0.5)
    assert len(store.splits["train"]) == 5
    assert [skipped.name for skipped in store.skipped] == [f"a.parquet/{row:08d}" for row in (1, 2, 3)]
    assert store.skipped[0].reason.startswith("no image in this row; if rows hold paths of files, name the folder")
    with pytest.raises(TooManySkipped, match=r"37\.5%"):
        open_store(str(tmp_path), image_size=8, workers=0, max_skipped=0.1)


@pytest.mark.parametrize("kind", ["struct", "tar"])
def test_a_damaged_shard_is_named(tmp_path: Path, kind: str) -> None:
    folder = write_shards(tmp_path / "set", kind)
    shard = max(folder.iterdir())
    shard.write_bytes(shard.read_bytes()[:-700] if kind == "struct" else shard.read_bytes()[:700])
    with pytest.raises(UserError, match=rf"{shard.name} cannot be read"):
        open_source(str(folder)).read_index()


def structs(files: list[bytes | None]) -> list[dict[str, Any]]:
    return [{"bytes": file, "path": None} for file in files]


DIGESTS = [b"\x01" * 16, b"\x02" * 16, b"\x03" * 16]


@pytest.mark.parametrize(
    ("columns", "taken", "left"),
    [
        ({"sha": DIGESTS, "photo": structs(FILES[:3])}, "photo", "sha"),
        ({"mask": FILES[3:], "photo": structs(FILES[:3])}, "photo", "mask"),
        ({"sha": DIGESTS, "photo": FILES[:3]}, "sha", "photo"),  # and so in every shard, whatever its first file is
        ({"mask": FILES[3:], "Image": FILES[:3]}, "Image", "mask"),
        ({"sound": structs(DIGESTS), "image": FILES[:3]}, "image", "sound"),
        ({"mask": FILES[3:], "photo": FILES[:3]}, "mask", "photo"),
        ({"mask": structs(FILES[3:]), "img": structs(FILES[:3]), "sha": DIGESTS}, "img", "mask, sha"),
        ({"photo": FILES[:3], "label": [b"a", b"b", b"a"]}, "photo", None),
    ],
)
def test_of_several_columns_of_bytes_the_one_of_images(
    tmp_path: Path, columns: dict[str, Any], taken: str, left: str | None
) -> None:
    write_parquet(tmp_path / "a.parquet", columns)
    source = open_source(str(tmp_path / "a.parquet"))
    notes = [note for note in source.read_index().all_notes() if note.startswith("images are from")]
    assert notes == (
        [] if left is None else [f"images are from the column {taken}, not {left}; call the one of images image"]
    )
    expected = columns[taken][2]
    assert source.read(2) == (expected["bytes"] if isinstance(expected, dict) else expected)


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


def test_blocks_are_kept_up_to_a_size_which_is_not_summed_up_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": [bytes(10 + row) for row in range(60)]})  # thirty row groups
    source = open_source(str(tmp_path / "a.parquet"))
    source.read_index()
    counted = 0

    def nbytes(files: list[bytes | None]) -> int:
        nonlocal counted
        counted += 1
        return sum(map(len, filter(None, files)))

    monkeypatch.setattr(shards_module, "_nbytes", nbytes)
    monkeypatch.setattr(shards_module, "_KEPT_BYTES", 500)
    assert isinstance(source, shards_module.ShardSource)
    for row in [*range(60), 3, 50, 4, 59]:
        assert len(source.read(row)) == 10 + row
        kept = [sum(map(len, filter(None, files))) for files in source._recent.values()]
        assert sum(kept) == source._recent_bytes <= 500
    assert sum(kept) > 300
    assert counted < 2 * 34


def test_blocks_of_a_tar_end_by_their_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read in one go, with what lies between, is within the limit but for one large image."""
    sizes = [700, 100, 100, 5000, 100, 100, 100, 3000, 900, *[10] * 20]
    members: dict[str, bytes] = {}
    for number, size in enumerate(sizes):
        members |= {f"{number:02}.png": bytes([number]) * size, f"{number:02}.txt": bytes(300)}
    write_tar(tmp_path / "a.tar", members)
    monkeypatch.setattr(shard_readers, "_TAR_BLOCK", 8)
    monkeypatch.setattr(shard_readers, "_TAR_BYTES", 6000)
    with tarfile.open(tmp_path / "a.tar") as archive:
        extents = [(m.offset_data, m.offset_data + m.size) for m in archive if m.name.endswith(".png")]
    index = shard_readers.open_shard(str(tmp_path / "a.tar"))
    assert index.blocks[0] == 0
    assert set(np.diff(index.blocks)) == {0, 1}
    for block in range(index.blocks[-1] + 1):
        (rows,) = np.nonzero(index.blocks == block)
        assert index.fetch(block) == [members[f"{row:02}.png"] for row in rows]
        assert len(rows) <= 8
        assert len(rows) == 1 or extents[rows[-1]][1] - extents[rows[0]][0] <= 6000
        if rows[-1] + 1 < len(sizes):  # the next one would be too many
            assert len(rows) == 8 or extents[rows[-1] + 1][1] - extents[rows[0]][0] > 6000


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
