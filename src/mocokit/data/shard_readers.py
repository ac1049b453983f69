"""One shard, a Parquet file or a tar file in webdataset layout: its labels and its images."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mocokit.data.image_index import IMAGE_SUFFIXES, Skipped, is_image_name, reading, split_word
from mocokit.data.labels import LABELS, label_column, label_values
from mocokit.data.notes import listed
from mocokit.data.tar import TarMember, tar_members
from mocokit.errors import UserError

PARQUET, TAR = ".parquet", ".tar"
LABEL_MEMBERS = ("cls", "json")  # ends of the names of members that hold the label of an image

_OWN = b"mocokit"  # in the metadata of feature files
_TEXT_BYTES = {"cls": 2**16, "json": 2**22}  # the most that is read of a label's member in a tar file
_TAR_BLOCK, _TAR_BYTES = 256, 2**26  # the most of a tar shard that is read in one go: images, bytes if they are several
_WAITS = (1, 4, 16)  # seconds before each new try to read a remote file
T = TypeVar("T")


@dataclass(frozen=True)
class ShardIndex:
    """What is in one shard."""

    blocks: np.ndarray  # int64 [n], counted from 0: of each image the block, which is what is read together
    fetch: Callable[[int], list[bytes | None]]  # reads the image files of a block, in order; None where there is none
    sizes: np.ndarray  # int64: the bytes of each image, or the rows of each block and the bytes of their images
    labels: pa.Array | pa.ChunkedArray | None = None  # int64 or text of each image, null where it has none
    classes: tuple[str, ...] | None = None  # the name of each label value, if the shard states it
    folders: list[str | None] | None = None  # of each image in a tar without labels, where it may be the class
    splits: list[str | None] | None = None  # of each image in a tar the folder that is named as a split
    refused: list[Skipped] = field(default_factory=list)  # members that must not be read
    notes: tuple[str, ...] = ()  # which labels or images were left out and why


def shard_kind(place: str) -> str:
    """The suffix of a path or address: `PARQUET`, `TAR`, or that of a file which is no shard."""
    return os.path.splitext(place)[1].lower()


def open_shard(place: str) -> ShardIndex:
    """Read the index of the shard at a path or address."""
    return persistently(place, lambda: (_open_parquet if shard_kind(place) == PARQUET else _open_tar)(place))


def _open_parquet(place: str) -> ShardIndex:
    """A block is a row group."""
    with open_file(place) as file:
        parquet = pq.ParquetFile(file)
        schema, metadata = parquet.schema_arrow, parquet.metadata
        if _OWN in (schema.metadata or {}):
            note = f"{Path(place).name} left out: a feature file that mocokit wrote"
            return ShardIndex(np.empty(0, np.int64), lambda block: [], np.empty(0, np.int64), notes=(note,))
        column, left = _image_column(schema, place)
        label, labels, notes = _labels(parquet, column)
        if left:
            notes = (f"images are from the column {column}, not {listed(left)}; call the one of images image", *notes)
        classes = _class_names(schema, label) if label else None
    groups = list(map(metadata.row_group, range(metadata.num_row_groups)))
    rows = [group.num_rows for group in groups]
    sizes = np.array([[group.num_rows, _nbytes(group, column)] for group in groups], dtype=np.int64)

    def fetch(block: int) -> list[bytes | None]:
        with open_file(place) as file:
            values = pq.ParquetFile(file).read_row_group(block, [column])[column].to_pylist()
        files = [value.get("bytes") if isinstance(value, dict) else value for value in values]
        return [file if isinstance(file, bytes) else None for file in files]

    return ShardIndex(np.repeat(np.arange(len(rows)), rows), fetch, sizes, labels, classes, notes=notes)


def _nbytes(group: pq.RowGroupMetaData, column: str) -> int:
    """How large a column is before it is compressed, with all that is nested in it."""
    chunks = map(group.column, range(group.num_columns))
    return sum(c.total_uncompressed_size for c in chunks if f"{c.path_in_schema}.".startswith(f"{column}."))


def _image_column(schema: pa.Schema, place: str) -> tuple[str, list[str]]:
    """The column of image files, and others that might be: of structures with ``bytes``, as `datasets` writes, or else
    of bytes; with a usual name, or else the first. It is the same in all shards of one schema."""
    files = [part.name for part in schema if pa.types.is_struct(part.type) and part.type.get_field_index("bytes") >= 0]
    plain = [part.name for part in schema if pa.types.is_binary(part.type) or pa.types.is_large_binary(part.type)]
    found: list[str] = files + plain
    if not found:
        raise UserError(
            f"{place} has no column of image files among {', '.join(schema.names)}; move it away if it is no shard"
        )
    column = next((name for name in found if name.lower() in ("image", "img", "jpg", "png")), found[0])
    return column, [name for name in found if name != column and name.lower() not in LABELS]


def _labels(parquet: pq.ParquetFile, image: str) -> tuple[str | None, Any, tuple[str, ...]]:
    """The column of labels and its values, and a line on what was not taken; (None, None, ...) if there is none."""
    others = [name for name in parquet.schema_arrow.names if name != image]
    refused: list[str] = []
    split = "column split is not used: put splits into files named train-... and test-..., or give --labels"
    unused = (split,) if "split" in others else ()
    for name in label_column(others):
        values = label_values(parquet.read([name])[name])
        if not isinstance(values, str):
            taken = f"labels are from the column {name}"
            return name, values, (*refused, *((taken,) if refused or name != LABELS[0] else ()), *unused)
        refused.append(f"column {name} is not used: {values}")
    if others and not refused:
        refused.append(f"no labels among the columns {listed(others)}; call the one with classes {LABELS[0]}")
    return None, None, (*refused, *unused)


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """The names of the values of ``label``, as `datasets` stores them in the schema."""
    with suppress(KeyError, TypeError, ValueError):
        info = json.loads((schema.metadata or {})[b"huggingface"])
        return tuple(map(str, info["info"]["features"][label]["names"]))
    return None


def _open_tar(place: str) -> ShardIndex:
    """In webdataset layout: KEY.cls or KEY.json holds the label of KEY.jpg. A block is 256 images, or 64 MiB."""
    found: dict[TarMember, tuple[str, str]] = {}  # images, their keys and ends
    texts: dict[str, str] = {}
    objects: dict[str, dict[str, Any]] = {}
    refused = []
    with open_file(place) as file:
        for member in tar_members(file):
            folder, _, base = member.name.rpartition("/")
            stem, _, end = base.partition(".")
            key = f"{folder}/{stem}"
            if is_image_name(member.name):
                if member.refusal:
                    refused.append(Skipped(f"{Path(place).name}/{member.name}", member.refusal))
                else:
                    found[member] = key, end.lower()
            elif end in LABEL_MEMBERS and not member.refusal:
                file.seek(member.offset)
                text = file.read(min(member.size, _TEXT_BYTES[end])).decode("utf-8-sig", "replace").strip()
                if end == "cls":
                    texts[key] = text
                else:
                    objects[key] = _object(text)
    images, left = _one_each(found)
    extents = np.array([member[1:3] for member in images], dtype=np.int64).reshape(-1, 2)
    labels, notes = _tar_labels(list(images.values()), texts, objects)
    notes = (*left, *notes)
    names = [member.name for member in images]
    folders = None if labels is not None else _class_folders(names, place)
    splits = _split_folders(names)
    blocks = _tar_blocks(extents)

    def fetch(block: int) -> list[bytes | None]:
        extent = extents[blocks == block]
        start, end = int(extent[0, 0]), int(extent[-1].sum())
        with open_file(place) as file:
            file.seek(start)
            content = file.read(end - start)
        return [content[offset : offset + size] for offset, size in (extent - [start, 0]).tolist()]

    return ShardIndex(blocks, fetch, extents[:, 1], labels, None, folders, splits, refused, notes)


def _one_each(found: dict[TarMember, tuple[str, str]]) -> tuple[dict[TarMember, str], list[str]]:
    """Of image members with keys and ends, such as seg.png, those to learn from, and their keys; a line on the others.

    Beside KEY.jpg or KEY.image.jpg what has the same key is no image of its own, but maybe its mask. Of several such
    ends the most frequent counts, then the most usual. Numbers are of other images: 1.jpg, 1.2.jpg.
    """
    ends = Counter(end for _, end in found.values())
    kept = max(
        (before + suffix[1:] for before in ("", "image.") for suffix in IMAGE_SUFFIXES), key=lambda end: ends[end]
    )
    keys = {key for key, end in found.values() if end == kept}
    beside = {member for member, (key, end) in found.items() if end != kept and key in keys and not end[0].isdigit()}
    images = {member: key for member, (key, _) in found.items() if member not in beside}
    others = listed(sorted({f".{found[member][1]}" for member in beside}))
    return images, [f"images are the members .{kept}, not {others} beside them"] if beside else []


def _tar_blocks(extents: np.ndarray) -> np.ndarray:
    """The block of each member, int64 [n], of their offsets and sizes, int64 [n, 2]."""
    firsts = np.zeros(len(extents), dtype=np.int64)  # 1 where a block begins
    first = 0
    for row, end in enumerate(extents.sum(axis=1).tolist()):
        if row - first == _TAR_BLOCK or (row > first and end - int(extents[first, 0]) > _TAR_BYTES):
            first = row
            firsts[row] = 1
    return np.cumsum(firsts)


def _object(text: str) -> dict[str, Any]:
    """What a JSON text describes, of fields that are no labels the names alone; empty if it is damaged or something
    else."""
    with suppress(ValueError, RecursionError):
        value = json.loads(text)
        if isinstance(value, dict):
            labels = label_column(value)
            return {name: value[name] if name in labels else None for name in value}
    return {}


def _tar_labels(
    keys: list[str], texts: dict[str, str], objects: dict[str, dict[str, Any]]
) -> tuple[pa.Array | pa.ChunkedArray | None, tuple[str, ...]]:
    """The labels of the images with these ``keys``, and a line on what was not taken."""
    if texts:
        labels = pa.array([texts.get(key) or None for key in keys], pa.large_string())
        with suppress(pa.ArrowInvalid):  # texts
            numbers = labels.cast(pa.int64())
            if numbers.cast(labels.type).equals(labels):  # else 0 and 00 would be one class
                return numbers, ()
        return labels, ()
    found = [objects.get(key, {}) for key in keys]
    fields = dict.fromkeys(field for its in found for field in its)
    refused: list[str] = []
    for field_name in label_column(fields):
        try:
            values = label_values(pa.array([its.get(field_name) for its in found]))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            values = "values of several kinds"
        if not isinstance(values, str):
            return values, (*refused, f"labels are from {field_name} in the .json files")
        refused.append(f"{field_name} in the .json files is not used: {values}")
    if fields and not refused:
        refused.append(f"no labels among {listed(list(fields))} in the .json files; call the class {LABELS[0]}")
    return None, tuple(refused)


def _class_folders(names: Iterable[str], place: str) -> list[str | None] | None:
    """The folder that each image is in, where it may be a class; None unless that is half of them.

    Those at the depth of most images; not one that is named as a split or as the shard.
    """
    paths = [[part for part in name.split("/") if part not in ("", ".")][:-1] for name in names]
    ((depth, _),) = Counter(map(len, paths)).most_common(1) or [(0, 0)]
    no_class = {"", Path(place).name.split(".")[0]}
    found = [path[-1] if path and len(path) == depth else "" for path in paths]
    folders = [None if name in no_class or split_word(name) == name.lower() else name for name in found]
    return folders if 2 * sum(name is not None for name in folders) >= len(folders) > 0 else None


def _split_folders(names: Iterable[str]) -> list[str | None] | None:
    """The first folder of each image whose name is a word for a split; None without any."""
    paths = (name.lower().split("/")[:-1] for name in names)
    found = [next((folder for folder in path if folder and split_word(folder) == folder), None) for path in paths]
    return found if any(found) else None


def is_remote(place: str) -> bool:
    """Whether this is an address, not a path."""
    return "://" in place


def open_file(place: str) -> Any:
    """The shard, open for reading."""
    return fsspec.open(place, "rb") if is_remote(place) else open(place, "rb")


def persistently(place: str, read: Callable[[], T]) -> T:
    """What ``read`` gives; a remote file is tried a few times. UserError if it cannot be read."""
    with reading(place):
        for wait in _WAITS if is_remote(place) else ():
            try:
                return read()
            except UserError:
                raise
            except Exception:  # of as many libraries as there are kinds of storage
                time.sleep(wait)
        return read()
