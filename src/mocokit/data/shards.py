"""Sets of Parquet or tar shards as image sources: local, in object storage, or on the Hugging Face hub."""

import bisect
import hashlib
import os
import re
import tarfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa

from mocokit.data.decode import MAX_FILE_BYTES, TOO_MANY_BYTES
from mocokit.data.image_index import (
    SPLITS,
    ImageIndex,
    holds_copies,
    is_hidden,
    is_image_name,
    is_run,
    reading,
    split_word,
    splits_note,
    splits_of_words,
)
from mocokit.data.labels import join_labels, label_column, number_labels
from mocokit.data.names import data_name
from mocokit.data.notes import listed
from mocokit.data.pillow import MAX_PIXELS, BadImage
from mocokit.data.shard_readers import LABEL_MEMBERS, PARQUET, TAR, is_remote, open_shard, persistently, shard_kind
from mocokit.data.tar import tar_members
from mocokit.errors import UserError

HUB = "hf:"

_PEEKED_MEMBERS = 8
_KEPT_BYTES = 2**30  # of the blocks that were read last
_OPENERS = 16  # shards whose indices are read at once: remote ones take a while each
# What changes with a file, by the names that file systems of fsspec have for it; the first that there is counts.
_VERSIONS = (
    *("ETag", "etag", "md5Hash", "blob_id", "LastModified", "last_modified", "updated", "modified", "mtime"),
    "created",
)


class Shard(NamedTuple):
    """One file of a set: its path or address, the split that its images belong to, and what tells remote ones of that
    address apart."""

    place: str
    split: str
    version: str = ""


def local_shards(path: Path) -> list[Shard]:
    """The Parquet file itself, a tar file with labels, or the shards below a folder without images; or none."""
    if path.is_file():
        is_shard = path.suffix.lower() == PARQUET or (path.suffix.lower() == TAR and _has_labels(path))
        return _shards([str(path)], str(path.parent)) if is_shard else []
    files: list[str] = []
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not is_hidden(name) and not holds_copies(name)]
        if is_run(names):
            folders.clear()
            continue
        if any(map(is_image_name, names)):
            return []
        files += [str(Path(folder, name)) for name in names]
    return _shards(files, str(path))


def remote_shards(address: str) -> list[Shard]:
    """The shards below an address that fsspec knows, such as ``s3://bucket/folder``; UserError if there are none."""
    with reading(address):
        system, path = fsspec.url_to_fs(address)
        system.invalidate_cache()  # of what this process was told before
        found = system.find(path, detail=True)
        files = {system.unstrip_protocol(name): _version(about or system.info(name)) for name, about in found.items()}
    if shards := _shards(files, address):
        return [shard._replace(version=files[shard.place]) for shard in shards]
    raise UserError(f"no shards in {address}; files of these kinds are shards: {PARQUET} {TAR}")


def hub_shards(data: str) -> tuple[list[Shard], tuple[str, ...] | None, tuple[str, ...]]:
    """The shards of ``hf:NAME[:CONFIG][@REVISION]``, the classes if the hub names them, and what is left out.

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
    files = {str(split): places for split, places in (builder.config.data_files or {}).items()}
    words = {split: split.lower() for split in files if split_word(split) == split.lower()}
    meant = splits_of_words(words.values())
    shards = [
        Shard(str(place), meant[word])
        for split, word in words.items()
        for place in files[split]
        if shard_kind(str(place)) in (PARQUET, TAR)
    ]
    if not shards:
        raise UserError(
            f"{data} has no Parquet or tar shards of a train, validation or test split; "
            f"the hub's own Parquet copy of many sets is {data.partition('@')[0]}@refs/convert/parquet"
        )
    features = builder.info.features or {}
    names = next((getattr(features[name], "names", None) for name in label_column(features)), None)
    others = [split for split in files if split not in words]
    return shards, names and tuple(names), (f"splits that are not used: {listed(others)}",) if others else ()


class ShardSource:
    """The images of some shards, in their order; ``classes`` name the label values where the shards do not."""

    decoded = False
    max_pixels = MAX_PIXELS

    def __init__(
        self, data: str, shards: list[Shard], classes: tuple[str, ...] | None = None, notes: tuple[str, ...] = ()
    ) -> None:
        self.data, self.shards, self.classes, self.notes = data, shards, classes, notes
        far = data.startswith(HUB) or is_remote(data)
        name = data.removeprefix(HUB).rstrip("/").split("/")[-1] if far else data_name(Path(data))
        self.name = re.sub(r"\W+", "-", name) or "data"
        self._recent: OrderedDict[tuple[int, int], list[bytes | None]] = OrderedDict()
        self._recent_bytes = 0

    def fingerprint(self) -> str:
        """From name, size and time of each local shard; from the addresses of remote ones, and size and time or hash
        of those that are not of the hub."""
        digest = hashlib.blake2b(digest_size=16)
        for shard in self.shards:
            stamp: object = (shard.place, shard.version)
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
        inside = self._splits_inside(split_of)
        splits = {
            split: np.flatnonzero(split_of == number) for number, split in enumerate(SPLITS) if number in split_of
        }
        is_first = np.concatenate([np.diff(index.blocks, prepend=-1) > 0 for index in self._indices])
        names = _Names(self._names(), self._starts)
        refused = [skipped for index in self._indices for skipped in index.refused]
        labels, label_names, more = self._labels()
        notes = dict.fromkeys([*self.notes, *self._splits_note(), *inside, *more])
        blocks = np.cumsum(is_first) - 1
        sizes = hashlib.blake2b(digest_size=8)
        for index in self._indices:
            sizes.update(repr(index.sizes.shape).encode() + index.sizes.astype("<i8").tobytes())
        return ImageIndex(names, splits, labels, label_names, refused, tuple(notes), blocks, sizes.hexdigest())

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
            self._recent_bytes += _nbytes(recent[key])
            while len(recent) > 1 and self._recent_bytes > _KEPT_BYTES:
                self._recent_bytes -= _nbytes(recent.popitem(last=False)[1])
        recent.move_to_end(key)
        return recent[key]

    def _names(self) -> list[str]:
        """Of the shards: their file names, with as many folders as tell them apart."""
        paths = [shard.place.replace("\\", "/").split("/") for shard in self.shards]
        for parts in range(1, max(map(len, paths), default=0)):
            names = ["/".join(path[-parts:]) for path in paths]
            if len(set(names)) == len(names):
                return names
        return ["/".join(path) for path in paths]

    def _splits_note(self) -> list[str]:
        """Which shards were taken as which split, unless all are to train on."""
        names: dict[str, list[str]] = {}
        for shard, name in zip(self.shards, self._names(), strict=True):
            names.setdefault(shard.split, []).append(name)
        return splits_note(names) if set(names) != {"train"} else []

    def _splits_inside(self, split_of: np.ndarray) -> list[str]:
        """Take folders in tar shards for splits, if they are named as training and other images, and say so in a line.

        Changes ``split_of`` [N], numbers of splits by the names of shards, unless those say something.
        """
        words = {word for index in self._indices for word in set(index.splits or ())}
        meant = splits_of_words(words)
        if "train" not in meant.values() or len(set(meant.values())) < 2 or split_of.any():
            return []
        for start, index in zip(self._starts, self._indices, strict=False):
            for row, word in enumerate(index.splits or ()):
                split_of[start + row] = SPLITS.index(meant[word] if word else "train")
        names: dict[str, list[str]] = {}
        for word, split in sorted(meant.items()):
            names.setdefault(split, []).append(f"{word}/")
        return splits_note(names)

    def _labels(self) -> tuple[np.ndarray | None, tuple[str, ...] | None, list[str]]:
        """Labels [N] int64, classes, and what was left out, a line each."""
        indices = [index for index in self._indices if len(index.blocks)]
        notes = [note for index in self._indices for note in index.notes]
        values = join_labels([index.labels for index in indices], [len(index.blocks) for index in indices])
        if values is None:
            values = self._folders()
        named = {index.classes for index in indices} - {None} or {self.classes}
        if len(named) > 1:
            raise UserError(f"{self.data}: its shards name different classes, so their labels do not compare")
        labels, classes, more = number_labels(values, named.pop(), self.data)
        return labels, classes, notes + more

    def _folders(self) -> pa.Array | None:
        """The folders in tar shards as classes, unless each shard has but one: then it was packed so."""
        parts: list[list[str | None]] = [
            index.folders or [None] * len(index.blocks) for index in self._indices if len(index.blocks)
        ]
        if all(len(set(part) - {None}) < 2 for part in parts):
            return None
        return pa.array([folder for part in parts for folder in part], pa.large_string())


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
    """Whether the label of an image, as in a webdataset, is among a tar's first members."""
    try:
        with path.open("rb") as file:
            names = [member.name for member in islice(tar_members(file), _PEEKED_MEMBERS)]
    except (tarfile.TarError, OSError):
        return False
    keys = {name.partition(".")[0] for name in map(_visible, names) if is_image_name(name)}
    ends = [name.partition(".") for name in map(_visible, names)]
    return any(end == LABEL_MEMBERS[0] or (end in LABEL_MEMBERS and key in keys) for key, _, end in ends)


def _visible(name: str) -> str:
    return name.removeprefix("./")


def _shards(files: Iterable[str], place: str) -> list[Shard]:
    """Those of the ``files`` below ``place`` that are shards, sorted; without a word for a split they are to train on.

    The word is first or last in the file's name, as in train-00000-of-00010.parquet, or else in a folder's.
    """
    names = sorted(name for name in files if shard_kind(name) in (PARQUET, TAR))
    if len(set(map(shard_kind, names))) > 1:
        raise UserError(f"{place} has Parquet and tar shards together; name a folder with one kind of them")
    # Of a relative path "." is no part; an address may be that of the one file.
    outer = 0 if place == "." else len(place)
    words = [_split_word(name[outer:] or name.rpartition("/")[2]) for name in names]
    meant = splits_of_words(words)
    return [Shard(name, meant[word] if word else "train") for name, word in zip(names, words, strict=True)]


def _version(about: Mapping[str, Any]) -> str:
    """Of what storage says ``about`` a file, what changes with it."""
    return repr((about.get("size"), next((about[name] for name in _VERSIONS if about.get(name)), None)))


def _split_word(path: str) -> str | None:
    *folders, file = path.replace("\\", "/").split("/")
    return next(filter(None, map(split_word, [os.path.splitext(file)[0], *folders])), None)
