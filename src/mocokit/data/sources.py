"""What the user named, as a source of images: a bundled data set, a folder, an archive, shards or arrays."""

import contextlib
import difflib
import errno
import hashlib
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mocokit.data.archives import ARCHIVE_SUFFIXES, ArchiveSource
from mocokit.data.arrays import ARRAY_SUFFIXES, ArraySource
from mocokit.data.cache import cache_directory
from mocokit.data.decode import BadImage
from mocokit.data.decode_pool import Encoded, ImageFile
from mocokit.data.image_index import ImageIndex, Skipped, Source, index_by_folders, is_hidden, is_image_name
from mocokit.data.shards import HUB, ShardSource, hub_shards, local_shards, remote_shards
from mocokit.errors import UserError

ACCEPTED = (
    f"digits, cifar10, a folder of images, an archive of one ({' '.join(ARCHIVE_SUFFIXES)}), "
    f"a NumPy file ({' '.join(ARRAY_SUFFIXES)}), a Parquet file, a folder or address of Parquet or tar shards, "
    "or hf:NAME"
)


def open_source(data: str) -> Source:
    """The source that ``data`` names; cheap, since nothing is listed or read yet.

    Raises:
        UserError: there is no such thing, or it is of no accepted kind.
    """
    if data in BUNDLED:
        return BundledSource(data, BUNDLED[data])
    if data.startswith(HUB):
        return ShardSource(data, *hub_shards(data))
    if "://" in data:
        return ShardSource(data, remote_shards(data))
    path = Path(data).expanduser()
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise UserError(f"no such data: {data}{_suggestion(path)}; accepted are {ACCEPTED}") from error
    if (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) and (shards := local_shards(path)):
        return ShardSource(str(path), shards)
    if stat.S_ISDIR(mode):
        return FolderSource(path)
    if stat.S_ISREG(mode) and path.name.lower().endswith(ARCHIVE_SUFFIXES):
        return ArchiveSource(path)
    if stat.S_ISREG(mode) and path.suffix.lower() in ARRAY_SUFFIXES:
        return ArraySource(path)
    raise UserError(f"{data} is neither a folder nor an archive; accepted are {ACCEPTED}")


def _suggestion(path: Path) -> str:
    try:
        siblings = os.listdir(path.parent)
    except (OSError, ValueError):
        siblings = []
    near = difflib.get_close_matches(path.name, [*siblings, *BUNDLED], n=1, cutoff=0.7)
    return f" (did you mean {path.with_name(near[0]) if near[0] in siblings else near[0]}?)" if near else ""


class BundledSource:
    """A data set that a library has or downloads; ``load`` gives its images, uint8 [N, C, H, W], and their index."""

    decoded = True

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

    root = cache_directory() / "cifar10"
    with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to --json
        try:
            return CIFAR10(root, train=train)
        except RuntimeError:  # not there, or damaged
            pass
        try:
            return CIFAR10(root, train=train, download=True)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"cannot download cifar10 ({reason}); name a local copy instead: "
                "a folder or archive with train/ and test/ class folders"
            ) from error


BUNDLED = {"digits": _digits, "cifar10": _cifar10}


def read_all(source: Source, indices: Iterable[int]) -> Iterator[Encoded]:
    """The images of a source at ``indices`` of its index, which has been read: as the source gives them, or files of a
    folder, which the decoding process reads."""
    if isinstance(source, FolderSource):
        yield from map(source.file, indices)
        return
    for index in indices:
        try:
            yield source.read(index)
        except BadImage as error:
            yield error


class FolderSource:
    """A folder of images, at any depth."""

    decoded = False

    def __init__(self, path: Path) -> None:
        self.root = path.resolve()
        self.name = self.root.name or "data"
        self._found: tuple[dict[str, _Stamp], list[Skipped]] | None = None
        self._names: Sequence[str] = []

    def fingerprint(self) -> str:
        """From path, size and time of each image."""
        images, refused = self._walk()
        lines = [f"{name}\0{size}\0{time}\n" for name, (size, time) in sorted(images.items())]
        lines += [f"{skipped.name}\0{skipped.reason}\n" for skipped in sorted(refused)]
        text = "".join(lines).encode(errors="surrogatepass")
        return f"folder/{hashlib.blake2b(text, digest_size=16).hexdigest()}"

    def read_index(self) -> ImageIndex:
        images, refused = self._walk()
        image_index = index_by_folders(images, refused, self.root)
        self._names = image_index.names
        return image_index

    def file(self, index: int) -> ImageFile:
        """Image ``index``, not yet read."""
        # A string: to make a Path takes as long as to open the file.
        return ImageFile(f"{self.root}{os.sep}{self._names[index]}")

    def read(self, index: int) -> bytes:
        return self.file(index).read()

    def _walk(self) -> "tuple[dict[str, _Stamp], list[Skipped]]":
        if self._found is None:
            walk = _Walk(self.root)
            walk.run()
            self._found = walk.images, walk.refused
        return self._found


class _Stamp(NamedTuple):
    size: int
    mtime_ns: int


class _Walk:
    """Finds the images below a folder without leaving it, and enters each real folder once.

    Paths are strings relative to the folder, with the separators of the system.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images: dict[str, _Stamp] = {}
        self.refused: list[Skipped] = []
        self._visited: set[str] = set()

    def run(self) -> None:
        """Real folders first: a link to one of them then adds nothing, whichever name sorts first."""
        try:
            os.scandir(self.root).close()
        except OSError as error:
            raise UserError(f"{self.root} cannot be read: {error.strerror}") from error
        links = self._folder("")
        while links:
            found: list[str] = []
            for link in sorted(links):
                found += self._link(link)
            links = found

    def _folder(self, top: str) -> list[str]:
        """Take in the images of a folder and the folders in it; return the symbolic links met."""
        links: list[str] = []
        pending = [top]
        while pending:
            folder = pending.pop()
            real = os.path.realpath(self.root / folder)
            if real in self._visited:
                continue
            self._visited.add(real)
            try:
                with os.scandir(real) as entries:
                    for entry in entries:
                        path = os.path.join(folder, entry.name)
                        if is_hidden(entry.name):
                            continue
                        if entry.is_symlink():
                            links.append(path)
                        elif entry.is_dir():
                            pending.append(path)
                        elif is_image_name(entry.name):
                            self._file(path, entry.stat())
            except OSError as error:
                self._refuse(folder, f"folder cannot be read: {error.strerror}")
        return links

    def _link(self, link: str) -> list[str]:
        """Take in what a symbolic link leads to; return the links met there."""
        is_image = is_image_name(os.path.basename(link))
        try:
            target = (self.root / link).resolve(strict=True)
            status = target.stat()
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop, before Python 3.13
            looped = isinstance(error, RuntimeError) or error.errno == errno.ELOOP
            if looped or is_image:
                self._refuse(link, "symbolic link that loops" if looped else "broken symbolic link")
            return []
        is_folder = stat.S_ISDIR(status.st_mode)
        if not is_folder and not is_image:
            return []
        if not target.is_relative_to(self.root):
            self._refuse(link, "symbolic link that leads out of the folder")
        elif not is_folder:
            self._file(link, status)
        elif (self.root / link).parent.resolve().is_relative_to(target):
            self._refuse(link, "symbolic link that loops")
        else:
            return self._folder(link)
        return []

    def _file(self, path: str, status: os.stat_result) -> None:
        if stat.S_ISREG(status.st_mode):
            self.images[_posix(path)] = _Stamp(status.st_size, status.st_mtime_ns)
        else:
            self._refuse(path, "not a regular file")

    def _refuse(self, path: str, reason: str) -> None:
        self.refused.append(Skipped(_posix(path), reason))


def _posix(path: str) -> str:
    return path.replace(os.sep, "/")
