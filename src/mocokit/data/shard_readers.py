"""One shard, a Parquet file or a tar file in webdataset layout: its labels and its images."""

import json
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mocokit.data.image_index import Skipped, is_image_name, reading
from mocokit.data.tar import TarMember, tar_members
from mocokit.errors import UserError

PARQUET, TAR = ".parquet", ".tar"
LABELS = ("label", "labels", "cls", "fine_label", "class")

_TAR_BLOCK = 256  # images of a tar shard that are read in one go
_WAITS = (1, 4, 16)  # seconds before each new try to read a remote file
T = TypeVar("T")


@dataclass(frozen=True)
class ShardIndex:
    """What is in one shard."""

    blocks: np.ndarray  # int64 [n], counted from 0: of each image the block, which is what is read together
    fetch: Callable[[int], list[bytes | None]]  # reads the image files of a block, in order; None where there is none
    labels: np.ndarray | None = None  # number or text of each image
    classes: tuple[str, ...] | None = None  # the name of each label value, if the shard states it
    refused: list[Skipped] = field(default_factory=list)  # members that must not be read


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
        column = _image_column(schema, place)
        label = next((name for name in LABELS if name in schema.names), None)
        labels = _label_values(parquet.read([label])[label]) if label else None
        classes = _class_names(schema, label) if label else None
    groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    def fetch(block: int) -> list[bytes | None]:
        with open_file(place) as file:
            rows = pq.ParquetFile(file).read_row_group(block, [column])[column].to_pylist()
        files = [row.get("bytes") if isinstance(row, dict) else row for row in rows]
        return [file if isinstance(file, bytes) else None for file in files]

    return ShardIndex(np.repeat(np.arange(len(groups)), groups), fetch, labels, classes)


def _image_column(schema: pa.Schema, place: str) -> str:
    """The column of image files: a binary one, or one of structures with ``bytes``, as `datasets` writes."""

    def holds_files(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return any(part.name == "bytes" for part in kind)
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    found: list[str] = [entry.name for entry in schema if holds_files(entry.type)]
    if not found:
        raise UserError(f"{place} has no column of image files among {', '.join(schema.names)}")
    return next((name for name in found if name in ("image", "img", "jpg", "png")), found[0])


def _label_values(column: pa.ChunkedArray) -> np.ndarray | None:
    """Labels as numbers or texts, or None if some are missing or they are something else."""
    if column.null_count or not (pa.types.is_integer(column.type) or pa.types.is_string(column.type)):
        return None
    return np.asarray(column.to_numpy())


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """The names of the values of ``label``, as `datasets` stores them in the schema."""
    with suppress(KeyError, TypeError, ValueError):
        notes = json.loads((schema.metadata or {})[b"huggingface"])
        return tuple(map(str, notes["info"]["features"][label]["names"]))
    return None


def _open_tar(place: str) -> ShardIndex:
    """In webdataset layout: KEY.cls holds the label of KEY.jpg. A block is 256 images."""
    images: dict[TarMember, str] = {}  # and their keys
    texts: dict[str, str] = {}
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
                    images[member] = key
            elif end == "cls" and not member.refusal:
                file.seek(member.offset)
                texts[key] = file.read(min(member.size, 2**16)).decode(errors="replace").strip()
    extents = np.array([member[1:3] for member in images], dtype=np.int64).reshape(-1, 2)
    labels = None
    if texts and all(key in texts for key in images.values()):
        labels = np.array([texts[key] for key in images.values()])
        if all(re.fullmatch(r"-?\d{1,9}", label) for label in labels):
            labels = labels.astype(np.int64)
    per_block = _TAR_BLOCK

    def fetch(block: int) -> list[bytes | None]:
        extent = extents[block * per_block : (block + 1) * per_block]
        start, end = int(extent[0, 0]), int(extent[-1].sum())
        with open_file(place) as file:
            file.seek(start)
            content = file.read(end - start)
        return [content[offset : offset + size] for offset, size in (extent - [start, 0]).tolist()]

    return ShardIndex(np.arange(len(extents)) // per_block, fetch, labels, None, refused)


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
