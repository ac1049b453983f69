"""What the user named, as a source of images: a bundled data set, a folder, an archive, shards or arrays."""

import contextlib
import difflib
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mocokit.data.archives import ARCHIVE_SUFFIXES, ArchiveSource
from mocokit.data.arrays import ARRAY_SUFFIXES, ArraySource
from mocokit.data.cache import DOWNLOADS, cache_directory
from mocokit.data.folder import FolderSource
from mocokit.data.image_index import ImageIndex, Source, is_image_name
from mocokit.data.pillow import MAX_PIXELS
from mocokit.data.shards import HUB, ShardSource, hub_shards, local_shards, remote_shards
from mocokit.data.tiled import TiledSource
from mocokit.data.tiles import LEAST_SIDE
from mocokit.errors import UserError

ACCEPTED = (
    f"digits, cifar10, a folder of images, an archive of one ({' '.join(ARCHIVE_SUFFIXES)}), "
    f"a NumPy file ({' '.join(ARRAY_SUFFIXES)}), a Parquet file, a folder or address of Parquet or tar shards, "
    "or hf:NAME"
)


def open_source(
    data: str,
    follow_links: bool = False,
    max_pixels: int = MAX_PIXELS,
    train: str | None = None,
    test: str | None = None,
    tiles: int = 0,
) -> Source:
    """The source that ``data`` names, of which nothing is read yet; UserError if it is of no accepted kind.

    Args:
        data: a name, path or address.
        follow_links: read what links in a folder lead to outside it.
        max_pixels: larger images are not decoded.
        train, test: names of the folders with these splits, if they are not the usual ones.
        tiles: cut images into tiles of about so many pixels a side (`TiledSource`); 0: leave them whole.
    """
    if 0 < tiles < LEAST_SIDE:
        what = "is the side of a tile in pixels, not how many there are"
        raise UserError(f"--tiles {tiles}: {what}; give {LEAST_SIDE} or more, such as 256")
    splits = {name: split for split, name in (("train", train), ("test", test)) if name is not None}
    if train is not None and train == test:
        raise UserError(f"--train {train}: is --test, too; name two folders")
    source = _open(data, follow_links, splits)
    if splits and not isinstance(source, FolderSource | ArchiveSource):
        name, split = next(iter(splits.items()))
        raise UserError(f"--{split} {name}: names a folder inside a folder or archive of images, which {data} is not")
    source.max_pixels = max_pixels
    return TiledSource(source, tiles) if tiles else source


def _open(data: str, follow_links: bool, splits: dict[str, str]) -> Source:
    if data in BUNDLED and os.path.isdir(data):
        raise UserError(
            f"{data}: is both a data set that comes with mocokit and the folder {os.path.abspath(data)}; "
            f"write ./{data} for the folder, or start elsewhere for the data set"
        )
    if data in BUNDLED:
        return BundledSource(data, BUNDLED[data])
    if data.startswith(HUB):
        return ShardSource(data, *hub_shards(data))
    if "://" in data:
        return ShardSource(data, remote_shards(data))
    path = Path(os.path.expanduser(data))
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a null character
        if any(mark in path.name for mark in "*?[") and path.parent.is_dir():
            raise UserError(f"{data} is a pattern of files; name the folder: {path.parent}") from error
        hint = " (a link that leads nowhere)" if os.path.islink(path) else _suggestion(path)
        raise UserError(f"no such data: {data}{hint}; accepted are {ACCEPTED}") from error
    is_file, is_folder = stat.S_ISREG(mode), stat.S_ISDIR(mode)
    if (is_file or is_folder) and (shards := local_shards(path)):
        if is_folder and len(shards) == 1 and not local_shards(Path(shards[0].place)):  # splits and classes are in it
            return ArchiveSource(Path(shards[0].place), splits)
        return ShardSource(str(path), shards)
    if is_folder:
        return FolderSource(path, follow_links, splits)
    if is_file and path.name.lower().endswith(ARCHIVE_SUFFIXES):
        return ArchiveSource(path, splits)
    if is_file and path.suffix.lower() in ARRAY_SUFFIXES:
        return ArraySource(path)
    if is_file and is_image_name(path.name):
        raise UserError(f"{data} is one image; name the folder of the images: {path.parent}")
    raise UserError(f"{data} is neither a folder nor an archive; accepted are {ACCEPTED}")


def check_there(data: str, made: str, way_out: str) -> None:
    """Refuse images that are not in the place that what was ``made`` of them says: the user has not named it."""
    if not (data in BUNDLED or data.startswith(HUB) or "://" in data or os.path.exists(os.path.expanduser(data))):
        raise UserError(f"{made} was made of {data}, which is not there; name the images: {way_out}")


def _suggestion(path: Path) -> str:
    siblings: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        siblings = [name for name in os.listdir(path.parent) if name != path.name]
    near = difflib.get_close_matches(path.name, [*siblings, *BUNDLED], n=1, cutoff=0.7)
    return f" (did you mean {path.with_name(near[0]) if near[0] in siblings else near[0]}?)" if near else ""


class BundledSource:
    """A data set that a library has or downloads; ``load`` gives its images, uint8 [N, C, H, W], and their index."""

    decoded = True
    max_pixels = MAX_PIXELS

    def __init__(self, name: str, load: Callable[[], tuple[np.ndarray, ImageIndex]]) -> None:
        self.name, self._load = name, load

    def fingerprint(self) -> str:
        return f"{self.name}/1"

    def read_index(self) -> ImageIndex:
        self._images, image_index = self._load()
        return image_index

    def read(self, index: int) -> np.ndarray:
        return self._images[index]


def _digits() -> tuple[np.ndarray, ImageIndex]:
    """The 1,797 handwritten digits, 8x8 gray, of scikit-learn. They have no official split: a fifth of each class is
    the test split, always the same."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    is_test = np.zeros(len(labels), dtype=bool)
    for value in range(10):
        members = order[labels[order] == value]
        is_test[members[: round(len(members) / 5)]] = True
    splits = {"train": np.flatnonzero(~is_test), "test": np.flatnonzero(is_test)}
    names = [f"{index:04d}" for index in range(len(labels))]
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    return images, ImageIndex(names, splits, labels, tuple(map(str, range(10))))


def _cifar10() -> tuple[np.ndarray, ImageIndex]:
    """CIFAR-10 through torchvision, downloaded once into the cache directory and verified by its md5."""
    train, test = _cifar10_part(train=True), _cifar10_part(train=False)
    labels = np.array([*train.targets, *test.targets], dtype=np.int64)
    splits = {"train": np.arange(len(train.data)), "test": np.arange(len(train.data), len(labels))}
    names = [f"{split}/{row:05d}" for split, rows in splits.items() for row in range(len(rows))]
    images = np.concatenate([train.data, test.data]).transpose(0, 3, 1, 2)
    return images, ImageIndex(names, splits, labels, tuple(train.classes))


def _cifar10_part(train: bool) -> Any:
    """As torchvision's data set, with ``data`` [N, 32, 32, 3] and ``targets``."""
    from torchvision.datasets import CIFAR10

    root = cache_directory() / DOWNLOADS
    with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to --json
        with contextlib.suppress(RuntimeError):  # not there, or damaged
            return CIFAR10(root, train=train)
        try:
            return CIFAR10(root, train=train, download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"cannot download cifar10 ({' '.join(str(error).split())}); name a local copy instead: "
                "a folder or archive with train/ and test/ class folders"
            ) from error


BUNDLED = {"digits": _digits, "cifar10": _cifar10}
