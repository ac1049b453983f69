"""Sets of Parquet or tar shards as image sources: local, in object storage, or on the Hugging Face hub."""

import bisect
import hashlib
import os
import re
import tarfile
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import fsspec
import numpy as np

from mocokit.data.decode import MAX_FILE_BYTES, TOO_MANY_BYTES, BadImage
from mocokit.data.image_index import SPLIT_FOLDERS, SPLITS, ImageIndex, is_hidden, is_image_name, reading
from mocokit.data.shard_readers import LABELS, PARQUET, TAR, is_remote, open_shard, persistently, shard_kind
from mocokit.data.tar import tar_members
from mocokit.errors import UserError

HUB = "hf:"

_PEEKED_MEMBERS = 8
_KEPT_BYTES = 2**30  # of the blocks that were read last
_OPENERS = 16  # shards whose indices are read at once: remote ones take a while each


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
    """The shards below an address that fsspec knows, such as ``s3://bucket/folder``; UserError if there are none."""
    with reading(address):
        system, path = fsspec.url_to_fs(address)
        files = [system.unstrip_protocol(name) for name in system.find(path)]
    if shards := _shards(files, address):
        return shards
    raise UserError(f"no shards in {address}; files of these kinds are shards: {PARQUET} {TAR}")


def hub_shards(data: str) -> tuple[list[Shard], tuple[str, ...] | None]:
    """The shards of ``hf:NAME[:CONFIG][@REVISION]``, and the classes if the hub names them.

    Their addresses hold the revision's hash, so that they mean the same content for ever. UserError: the extra is
    missing, the hub can't be reached, or the set is not kept in shards.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{data} needs datasets: pip install 'mocokit[hf]'") from error
    name, _, revision = data.removeprefix(HUB).partition("@")
    name, _, config = name.partition(":")
    with reading(data):
        builder = datasets.load_dataset_builder(name, config or None, revision=revision or None)
    shards = [
        Shard(str(place), SPLIT_FOLDERS[str(split)])
        for split, places in (builder.config.data_files or {}).items()
        if str(split) in SPLIT_FOLDERS
        for place in places
        if shard_kind(str(place)) in (PARQUET, TAR)
    ]
    if not shards:
        raise UserError(
            f"{data} has no Parquet or tar shards of a train, validation or test split; "
            f"the hub's own Parquet copy of many sets is {data.partition('@')[0]}@refs/convert/parquet"
        )
    features = (builder.info.features or {}).items()
    names = next((f.names for n, f in features if n in LABELS and getattr(f, "names", None)), None)
    return shards, names and tuple(names)


class ShardSource:
    """The images of some shards, in their order; ``classes`` name the label values where the shards do not."""

    decoded = False

    def __init__(self, data: str, shards: list[Shard], classes: tuple[str, ...] | None = None) -> None:
        self.data, self.shards, self.classes = data, shards, classes
        path = data if data.startswith(HUB) or is_remote(data) else str(Path(data).resolve())
        self.name = re.sub(r"\W+", "-", path.removeprefix(HUB).rstrip("/").split("/")[-1]) or "data"
        self._recent: OrderedDict[tuple[int, int], list[bytes | None]] = OrderedDict()

    def fingerprint(self) -> str:
        """From name, size and time of each local shard; from the addresses of remote ones."""
        digest = hashlib.blake2b(digest_size=16)
        for shard in self.shards:
            stamp: object = shard.place
            if not is_remote(shard.place):
                status = os.stat(shard.place)
                stamp = (Path(shard.place).name, status.st_size, status.st_mtime_ns)
            digest.update(repr((stamp, shard.split)).encode())
        return f"shards/{digest.hexdigest()}"

    def read_index(self) -> ImageIndex:
        """Read the index and the labels of every shard; no images."""
        with ThreadPoolExecutor(_OPENERS) as pool:
            self._indices = list(pool.map(open_shard, [shard.place for shard in self.shards]))
        counts = [len(index.blocks) for index in self._indices]
        self._starts: list[int] = np.cumsum([0, *counts]).tolist()
        if not self._starts[-1]:
            raise UserError(f"no images in {self.data}")
        split_of = np.repeat([SPLITS.index(shard.split) for shard in self.shards], counts)
        splits = {
            split: np.flatnonzero(split_of == number) for number, split in enumerate(SPLITS) if number in split_of
        }
        if "train" not in splits:
            raise UserError(f"{self.data} has no training images: all shards are named {', '.join(splits)}")
        is_first = np.concatenate([np.diff(index.blocks, prepend=-1) > 0 for index in self._indices])
        names = _Names([Path(shard.place).name for shard in self.shards], self._starts)
        refused = [skipped for index in self._indices for skipped in index.refused]
        return ImageIndex(names, splits, *self._labels(), refused, blocks=np.cumsum(is_first) - 1)

    def read(self, index: int) -> bytes:
        shard = bisect.bisect_right(self._starts, index) - 1
        blocks = self._indices[shard].blocks
        row = index - self._starts[shard]
        content = self._block(shard, int(blocks[row]))[row - int(np.searchsorted(blocks, blocks[row]))]
        if not content:
            raise BadImage("no image in this row; if rows hold paths of files, name the folder of these files")
        if len(content) > MAX_FILE_BYTES:
            raise BadImage(TOO_MANY_BYTES)
        return content

    def _block(self, shard: int, number: int) -> list[bytes | None]:
        """Kept for a while: several readers may go through the images at the same time."""
        key, recent = (shard, number), self._recent
        if key not in recent:
            recent[key] = persistently(self.shards[shard].place, lambda: self._indices[shard].fetch(number))
            while len(recent) > 1 and sum(map(_nbytes, recent.values())) > _KEPT_BYTES:
                recent.popitem(last=False)
        recent.move_to_end(key)
        return recent[key]

    def _labels(self) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
        """Labels [N] int64 and classes, if every image has one; text labels become classes in their order."""
        indices = [index for index in self._indices if len(index.blocks)]
        parts = [index.labels for index in indices if index.labels is not None]
        if len(parts) < len(indices):
            return None, None
        values = np.concatenate(parts)
        if values.dtype.kind not in "iu":
            classes, numbers = np.unique(values.astype(str), return_inverse=True)
            return numbers.astype(np.int64), tuple(classes.tolist())
        named = {index.classes for index in indices} - {None} or {self.classes}
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

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # no slices
        if index >= len(self):
            raise IndexError(index)
        shard = bisect.bisect_right(self._starts, index) - 1
        return f"{self._shards[shard]}/{index - self._starts[shard]:08d}"


def _nbytes(files: list[bytes | None]) -> int:
    return sum(len(file) for file in files if file)


def _has_labels(path: Path) -> bool:
    """Whether a webdataset's label is among a tar's first members."""
    try:
        with path.open("rb") as file:
            return any(member.name.endswith(".cls") for member in islice(tar_members(file), _PEEKED_MEMBERS))
    except (tarfile.TarError, OSError):
        return False


def _shards(files: Iterable[str], place: str) -> list[Shard]:
    """Those of the ``files`` below ``place`` that are shards, sorted."""
    names = sorted(name for name in files if shard_kind(name) in (PARQUET, TAR))
    if len(set(map(shard_kind, names))) > 1:
        raise UserError(f"{place} has Parquet and tar shards together; name a folder with one kind of them")
    return [Shard(name, _split(name[len(place) :])) for name in names]


def _split(path: str) -> str:
    """By the first word of the file's name, as in train-00000-of-00010.parquet, else by a folder's name."""
    *folders, file = path.lower().replace("\\", "/").split("/")
    words = [re.split(r"[-_.]", file)[0], *folders]
    return next((SPLIT_FOLDERS[word] for word in words if word in SPLIT_FOLDERS), "train")
