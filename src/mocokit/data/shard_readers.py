"""One shard, a Parquet file or a tar file in webdataset layout: its labels and its images."""

import json
import os
import re
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mocokit.data.image_index import Skipped, is_image_name
from mocokit.data.tar import TarMember, tar_members
from mocokit.errors import UserError

PARQUET, TAR = ".parquet", ".tar"
LABELS = ("label", "labels", "cls", "fine_label", "class")

_TAR_BLOCK = 256  # images of a tar shard that are read in one go
_WAITS = (1, 4, 16)  # seconds before each new try to read a remote file
_DAMAGE = (OSError, ValueError, EOFError, tarfile.TarError, pa.ArrowException)
T = TypeVar("T")


class Block(NamedTuple):
    """Images of a shard that were read together: their size in bytes, and a function from row to image file."""

    nbytes: int
    cut: Callable[[int], bytes | None]


class ShardReader(Protocol):
    """The index of one shard, and its images.

    Attributes:
        labels: number or text of each image, or None.
        blocks: int64 [n], counted from 0: the block of each image.
        classes: the name of each label value, if the shard states it.
        refused: members that must not be read.
    """

    labels: np.ndarray | None
    blocks: np.ndarray
    classes: tuple[str, ...] | None
    refused: list[Skipped]

    def __len__(self) -> int: ...

    def fetch(self, block: int) -> Block: ...


def shard_kind(place: str) -> str:
    """The suffix of a path or address: `PARQUET`, `TAR`, or that of a file which is no shard."""
    return os.path.splitext(place)[1].lower()


def open_shard(place: str) -> ShardReader:
    """Read the index of the shard at a path or address."""
    return persistently(place, lambda: ParquetReader(place) if shard_kind(place) == PARQUET else TarReader(place))


class ParquetReader:
    """A Parquet file; a block is a row group."""

    labels: np.ndarray | None
    classes: tuple[str, ...] | None

    def __init__(self, place: str) -> None:
        self.place = place
        self.refused: list[Skipped] = []
        with open_file(place) as file:
            parquet = pq.ParquetFile(file)
            schema, metadata = parquet.schema_arrow, parquet.metadata
            self._image = _image_column(schema, place)
            groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            self.labels, self.classes = None, None
            if label := next((name for name in LABELS if name in schema.names), None):
                self.labels = _label_values(parquet.read([label])[label])
                self.classes = _class_names(schema, label)
        self._starts: list[int] = np.cumsum([0, *groups]).tolist()
        self.blocks = np.repeat(np.arange(len(groups)), groups)

    def __len__(self) -> int:
        return self._starts[-1]

    def fetch(self, block: int) -> Block:
        with open_file(self.place) as file:
            rows = pq.ParquetFile(file).read_row_group(block, [self._image])[self._image]
        start = self._starts[block]

        def cut(row: int) -> bytes | None:
            value = rows[row - start].as_py()
            return value.get("bytes") if isinstance(value, dict) else value

        return Block(rows.nbytes, cut)


def _image_column(schema: pa.Schema, place: str) -> str:
    """The column of image files: a binary one, or one of structures with ``bytes``, as `datasets` writes."""

    def is_binary(kind: pa.DataType) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    found: list[str] = [
        entry.name
        for entry in schema
        if is_binary(entry.type)
        or (pa.types.is_struct(entry.type) and any(part.name == "bytes" for part in entry.type))
    ]
    if not found:
        raise UserError(f"{place} has no column of image files among {', '.join(schema.names)}")
    return next((name for name in found if name in ("image", "img", "jpg", "png")), found[0])


def _label_values(column: pa.ChunkedArray) -> np.ndarray | None:
    """Labels as numbers or texts, or None if some are missing or they are something else."""
    kinds = pa.types
    if column.null_count or not (kinds.is_integer(column.type) or kinds.is_string(column.type)):
        return None
    return np.asarray(column.to_numpy())


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """The names of the values of ``label``, as `datasets` stores them in the schema."""
    with suppress(KeyError, TypeError, ValueError):
        notes = json.loads((schema.metadata or {})[b"huggingface"])
        return tuple(map(str, notes["info"]["features"][label]["names"]))
    return None


class TarReader:
    """A tar file in webdataset layout: KEY.cls holds the label of KEY.jpg. A block is 256 images."""

    labels: np.ndarray | None
    classes: tuple[str, ...] | None = None

    def __init__(self, place: str) -> None:
        self.place = place
        self.refused: list[Skipped] = []
        found: list[TarMember] = []
        keys: list[str] = []
        texts: dict[str, str] = {}
        with open_file(place) as file:
            for member in tar_members(file):
                folder, _, base = member.name.rpartition("/")
                key, _, end = base.partition(".")
                is_image = is_image_name(member.name)
                if member.refusal and is_image:
                    self.refused.append(Skipped(f"{Path(place).name}/{member.name}", member.refusal))
                elif is_image:
                    found.append(member)
                    keys.append(f"{folder}/{key}")
                elif end == "cls" and not member.refusal:
                    file.seek(member.offset)
                    texts[f"{folder}/{key}"] = file.read(min(member.size, 2**16)).decode(errors="replace").strip()
        self._members = np.array([member[1:3] for member in found], dtype=np.int64).reshape(-1, 2)
        self.blocks = np.arange(len(found)) // _TAR_BLOCK
        self.labels = None
        if texts and all(key in texts for key in keys):
            labels = np.array([texts[key] for key in keys])
            numbers = all(re.fullmatch(r"-?\d{1,9}", label) for label in labels)
            self.labels = labels.astype(np.int64) if numbers else labels

    def __len__(self) -> int:
        return len(self._members)

    def fetch(self, block: int) -> Block:
        members = self._members[block * _TAR_BLOCK : (block + 1) * _TAR_BLOCK]
        start, end = int(members[0, 0]), int(members[-1].sum())
        with open_file(self.place) as file:
            file.seek(start)
            content = file.read(end - start)

        def cut(row: int) -> bytes:
            offset, size = self._members[row].tolist()
            return content[offset - start : offset - start + size]

        return Block(len(content), cut)


def is_remote(place: str) -> bool:
    """Whether this is an address, not a path."""
    return "://" in place


def open_file(place: str) -> Any:
    """The shard, open for reading."""
    return fsspec.open(place, "rb") if is_remote(place) else open(place, "rb")


def persistently(place: str, read: Callable[[], T]) -> T:
    """What ``read`` gives; a remote file is tried a few times.

    Raises:
        UserError: it cannot be read.
    """
    for wait in _WAITS if is_remote(place) else ():
        try:
            return read()
        except _DAMAGE:
            time.sleep(wait)
    try:
        return read()
    except _DAMAGE as error:
        raise unreadable(place, error) from error


def unreadable(place: str, error: BaseException) -> UserError:
    """The error for a shard that cannot be read, on one line."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(f"{place} cannot be read ({reason}); is it damaged, misnamed, or out of reach?")
