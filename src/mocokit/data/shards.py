"""Parquet files and tar shards in webdataset layout as image sources: local, in object storage, or of the hub.

Shards are read where they lie and in their own order, a row group or a block of tar members at a time.
"""

import bisect
import hashlib
import json
import os
import re
import tarfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, overload

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mocokit.data.archives import StrictTarInfo
from mocokit.data.decode import MAX_FILE_BYTES, BadImage
from mocokit.data.image_index import SPLIT_FOLDERS, SPLITS, ImageIndex, is_hidden, is_image_name
from mocokit.errors import UserError

HUB = "hf:"
PARQUET, TAR = ".parquet", ".tar"

_LABELS = ("label", "labels", "cls", "fine_label", "class")
_TAR_BLOCK = 256  # images of a tar shard that are read in one go
_PEEKED_MEMBERS = 8
_KEPT_BYTES = 2**30  # of blocks that were read last
_OPENERS = 16  # shards whose indices are read at once: far away, each takes a while
_WAITS = (1, 4, 16)  # seconds before each new try to read what lies elsewhere
_DAMAGE = (OSError, ValueError, EOFError, tarfile.TarError, pa.ArrowException)
T = TypeVar("T")


class Shard(NamedTuple):
    """One file of a set: its path or address, and the split that its images belong to."""

    place: str
    split: str


def local_shards(path: Path) -> list[Shard]:
    """The Parquet file itself, a tar file with labels, or the shards below a folder without images; or none."""
    if path.is_file():
        is_shard = path.suffix.lower() == PARQUET or (path.suffix.lower() == TAR and _has_labels(path))
        return [Shard(str(path), _split(path.name))] if is_shard else []
    files: list[str] = []
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not is_hidden(name)]
        if any(map(is_image_name, names)):
            return []
        files += [str(Path(folder, name)) for name in names]
    return _shards(files, str(path))


def remote_shards(address: str) -> list[Shard]:
    """The shards below an address that fsspec knows, such as ``s3://bucket/folder``.

    Raises:
        UserError: nothing can be listed there, or there are no shards.
    """
    try:
        system, path = fsspec.url_to_fs(address)
        files = [system.unstrip_protocol(name) for name in system.find(path)]
    except Exception as error:  # of as many libraries as there are kinds of storage
        raise _unreadable(address, error) from error
    if shards := _shards(files, address):
        return shards
    raise UserError(f"no shards in {address}; files of these kinds are shards: {PARQUET} {TAR}")


def hub_shards(data: str) -> tuple[list[Shard], tuple[str, ...] | None]:
    """The shards of ``hf:NAME[:CONFIG][@REVISION]``, and the classes if the hub names them.

    Their addresses hold the revision's hash, so that they mean the same content for ever.

    Raises:
        UserError: the extra is missing, the hub can't be reached, or the set is not kept in shards.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{data} needs datasets: pip install 'mocokit[hf]'") from error
    name, _, revision = data.removeprefix(HUB).partition("@")
    name, _, config = name.partition(":")
    try:
        builder = datasets.load_dataset_builder(name, config or None, revision=revision or None)
    except Exception as error:  # of the many libraries below the hub's client
        raise _unreadable(data, error) from error
    shards = [
        Shard(str(place), SPLIT_FOLDERS[str(split)])
        for split, places in (builder.config.data_files or {}).items()
        if str(split) in SPLIT_FOLDERS
        for place in places
        if _kind(str(place)) in (PARQUET, TAR)
    ]
    if not shards:
        raise UserError(
            f"{data} has no Parquet or tar shards of a train, validation or test split; "
            f"the hub's own Parquet copy of many sets is {data.partition('@')[0]}@refs/convert/parquet"
        )
    features = (builder.info.features or {}).items()
    names = next((f.names for n, f in features if n in _LABELS and getattr(f, "names", None)), None)
    return shards, names and tuple(names)


class ShardSource:
    """The images of some shards, in the order of the shards and of the images in each.

    ``classes`` name the label values, where the shards themselves do not.
    """

    decoded = False

    def __init__(self, data: str, shards: list[Shard], classes: tuple[str, ...] | None = None) -> None:
        self.data, self.shards, self.classes = data, shards, classes
        path = data if data.startswith(HUB) or "://" in data else str(Path(data).resolve())
        self.name = re.sub(r"\W+", "-", path.removeprefix(HUB).rstrip("/").split("/")[-1]) or "data"
        self._readers: list[_Reader] = []
        self._starts: list[int] = []
        self._recent: OrderedDict[tuple[int, int], _Block] = OrderedDict()

    def fingerprint(self) -> str:
        """From name, size and time of each local shard; from the addresses of those that lie elsewhere."""
        digest = hashlib.blake2b(digest_size=16)
        for shard in self.shards:
            stamp: object = shard.place
            if not _is_remote(shard.place):
                status = os.stat(shard.place)
                stamp = (Path(shard.place).name, status.st_size, status.st_mtime_ns)
            digest.update(repr((stamp, shard.split)).encode())
        return f"shards/{digest.hexdigest()}"

    def read_index(self) -> ImageIndex:
        """Read the index and the labels of every shard; no images."""
        with ThreadPoolExecutor(_OPENERS) as pool:
            places = [shard.place for shard in self.shards]
            self._readers = list(pool.map(lambda p: _persistently(p, lambda: _open(p)), places))
        counts = [len(reader) for reader in self._readers]
        self._starts = np.cumsum([0, *counts]).tolist()
        if not self._starts[-1]:
            raise UserError(f"no images in {self.data}")
        members: dict[str, list[np.ndarray]] = {}
        blocks, first_block = [], 0
        for shard, reader, start in zip(self.shards, self._readers, self._starts, strict=False):
            members.setdefault(shard.split, []).append(np.arange(start, start + len(reader), dtype=np.int64))
            blocks.append(reader.blocks + first_block)
            first_block += int(reader.blocks[-1]) + 1 if len(reader) else 0
        if "train" not in members:
            raise UserError(f"{self.data} has no training images: all shards are named {', '.join(members)}")
        splits = {split: np.concatenate(members[split]) for split in SPLITS if split in members}
        labels, classes = self._labels()
        names = _Names([Path(shard.place).name for shard in self.shards], self._starts)
        return ImageIndex(names, splits, labels, classes, blocks=np.concatenate(blocks))

    def read(self, index: int) -> bytes:
        shard = bisect.bisect_right(self._starts, index) - 1
        row = index - self._starts[shard]
        content = self._block(shard, int(self._readers[shard].blocks[row])).cut(row)
        if not content:
            raise BadImage("no image in this row")
        if len(content) > MAX_FILE_BYTES:
            raise BadImage("larger than 1 GiB")
        return content

    def _block(self, shard: int, number: int) -> "_Block":
        """Read, unless it is among the latest ones: several readers may go through the images side by side."""
        key, recent = (shard, number), self._recent
        if key not in recent:
            reader, place = self._readers[shard], self.shards[shard].place
            recent[key] = _persistently(place, lambda: reader.fetch(number))
            while len(recent) > 1 and sum(block.nbytes for block in recent.values()) > _KEPT_BYTES:
                recent.popitem(last=False)
        recent.move_to_end(key)
        return recent[key]

    def _labels(self) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
        """Labels [N] int64 and classes, if every image has one; text labels become classes in their order."""
        parts = [reader.labels for reader in self._readers if len(reader)]
        if any(part is None for part in parts):
            return None, None
        values = np.concatenate([part for part in parts if part is not None])
        if values.dtype.kind not in "iu":
            classes, numbers = np.unique(values.astype(str), return_inverse=True)
            return numbers.astype(np.int64), tuple(classes.tolist())
        named = {reader.classes for reader in self._readers if len(reader)} - {None} or {self.classes}
        if len(named) > 1:
            raise UserError(f"{self.data}: its shards name different classes, so their labels do not compare")
        if values.min() < 0:  # as the hub marks the unlabelled
            return None, None
        count = int(values.max()) + 1
        known = named.pop()
        if known is not None and len(known) < count:
            raise UserError(f"{self.data}: label {count - 1} where {len(known)} classes are named")
        return values.astype(np.int64), known or tuple(map(str, range(count)))


class _Names(Sequence[str]):
    """SHARD/NUMBER for each image, made when asked for: millions of them would fill the memory."""

    def __init__(self, shards: list[str], starts: list[int]) -> None:
        self._shards, self._starts = shards, starts

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        shard = bisect.bisect_right(self._starts, index) - 1
        return f"{self._shards[shard]}/{index - self._starts[shard]:08d}"


class _Block(NamedTuple):
    """Images of a shard that were read together: how many bytes, and the file of a row of the shard."""

    nbytes: int
    cut: Callable[[int], bytes | None]


class _Reader(Protocol):
    """One shard: the label of each image, a number or a text, or None; in which of the ``blocks`` [n], counted from
    0, each image lies, that are best read together; the classes that it names itself; and its images' files."""

    labels: np.ndarray | None
    blocks: np.ndarray
    classes: tuple[str, ...] | None

    def __len__(self) -> int: ...

    def fetch(self, block: int) -> _Block: ...


def _open(place: str) -> _Reader:
    return _ParquetReader(place) if _kind(place) == PARQUET else _TarReader(place)


class _ParquetReader:
    """A block is a row group."""

    labels: np.ndarray | None
    classes: tuple[str, ...] | None

    def __init__(self, place: str) -> None:
        self.place = place
        with _file(place) as file:
            parquet = pq.ParquetFile(file)
            schema, metadata = parquet.schema_arrow, parquet.metadata
            self._image = _image_column(schema, place)
            groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            self.labels, self.classes = None, None
            if label := next((name for name in _LABELS if name in schema.names), None):
                self.labels = _label_values(parquet.read([label])[label])
                self.classes = _class_names(schema, label)
        self._starts: list[int] = np.cumsum([0, *groups]).tolist()
        self.blocks = np.repeat(np.arange(len(groups)), groups)

    def __len__(self) -> int:
        return self._starts[-1]

    def fetch(self, block: int) -> _Block:
        with _file(self.place) as file:
            rows = pq.ParquetFile(file).read_row_group(block, [self._image])[self._image]
        start = self._starts[block]

        def cut(row: int) -> bytes | None:
            value = rows[row - start].as_py()
            return value.get("bytes") if isinstance(value, dict) else value

        return _Block(rows.nbytes, cut)


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
    """What `datasets` notes beside the table about the values of ``label``."""
    with suppress(KeyError, TypeError, ValueError):
        notes = json.loads((schema.metadata or {})[b"huggingface"])
        return tuple(map(str, notes["info"]["features"][label]["names"]))
    return None


class _TarReader:
    """Finds the images of a tar file by their headers; KEY.cls beside KEY.jpg is a label."""

    labels: np.ndarray | None
    classes: tuple[str, ...] | None = None

    def __init__(self, place: str) -> None:
        self.place = place
        found: list[tuple[str, int, int]] = []
        texts: dict[str, str] = {}
        with (
            _file(place) as file,
            tarfile.open(fileobj=file, mode="r:", tarinfo=StrictTarInfo) as archive,
        ):
            for member in _members(archive):
                key, _, end = member.name.rpartition("/")[2].partition(".")
                key = f"{member.name.rpartition('/')[0]}/{key}"
                if end == "cls":
                    content = archive.extractfile(member)
                    assert content is not None  # it is a regular file
                    texts[key] = content.read(2**16).decode(errors="replace").strip()
                elif is_image_name(member.name):
                    found.append((key, member.offset_data, member.size))
        self._extents = np.array([extent for _, *extent in found], dtype=np.int64).reshape(-1, 2)
        self.blocks = np.arange(len(found)) // _TAR_BLOCK
        self.labels = None
        if texts and all(key in texts for key, *_ in found):
            labels = np.array([texts[key] for key, *_ in found])
            numbers = all(re.fullmatch(r"-?\d{1,9}", label) for label in labels)
            self.labels = labels.astype(np.int64) if numbers else labels

    def __len__(self) -> int:
        return len(self._extents)

    def fetch(self, block: int) -> _Block:
        extents = self._extents[block * _TAR_BLOCK : (block + 1) * _TAR_BLOCK]
        start, end = int(extents[0, 0]), int(extents[-1].sum())
        with _file(self.place) as file:
            file.seek(start)
            content = file.read(end - start)

        def cut(row: int) -> bytes:
            offset, size = self._extents[row].tolist()
            return content[offset - start : offset - start + size]

        return _Block(len(content), cut)


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The regular files, in the archive's order."""
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # of a million headers, all would be kept
        if member.isreg() and not member.issparse() and member.size <= MAX_FILE_BYTES:
            yield member


def _has_labels(path: Path) -> bool:
    """Whether a webdataset's label is among a tar's first members."""
    try:
        with tarfile.open(path, "r:") as archive:
            first = (member for member, _ in zip(_members(archive), range(_PEEKED_MEMBERS), strict=False))
            return any(member.name.endswith(".cls") for member in first)
    except (tarfile.TarError, OSError):
        return False


def _shards(files: Iterable[str], place: str) -> list[Shard]:
    """Those of the ``files`` below ``place`` that are shards, sorted."""
    names = sorted(name for name in files if _kind(name) in (PARQUET, TAR))
    if len(set(map(_kind, names))) > 1:
        raise UserError(f"{place} has Parquet and tar shards together; name a folder with one kind of them")
    return [Shard(name, _split(name[len(place) :])) for name in names]


def _kind(place: str) -> str:
    return os.path.splitext(place)[1].lower()


def _split(path: str) -> str:
    """By the first word of the file's name, as in train-00000-of-00010.parquet, else by a folder's name."""
    *folders, file = path.lower().replace("\\", "/").split("/")
    words = [re.split(r"[-_.]", file)[0], *folders]
    return next((SPLIT_FOLDERS[word] for word in words if word in SPLIT_FOLDERS), "train")


def _is_remote(place: str) -> bool:
    return "://" in place


def _file(place: str) -> Any:
    """The shard, open for reading."""
    return fsspec.open(place, "rb") if _is_remote(place) else open(place, "rb")


def _persistently(place: str, read: Callable[[], T]) -> T:
    """What ``read`` gives; what lies elsewhere is tried again a few times before it counts as unreadable."""
    for wait in _WAITS if _is_remote(place) else ():
        try:
            return read()
        except _DAMAGE:
            time.sleep(wait)
    try:
        return read()
    except _DAMAGE as error:
        raise _unreadable(place, error) from error


def _unreadable(place: str, error: BaseException) -> UserError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(f"{place} cannot be read ({reason}); is it damaged, misnamed, or out of reach?")
