"""What a source holds: the names, splits and labels of its images, derived from paths for folders and archives."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from mocokit.errors import UserError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".jpx", ".tga", ".heic", ".heif"),
)
SPLITS = ("train", "val", "test")
SPLIT_FOLDERS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


class Skipped(NamedTuple):
    """An image that cannot be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class ImageIndex:
    """The images of a source."""

    names: Sequence[str]  # path of each image inside the source, with slashes
    splits: dict[str, np.ndarray]  # indices into names, int64, for "train" and where they exist "val" and "test"
    labels: np.ndarray | None = None  # int64 [len(names)], -1 where no split uses the image; None without classes
    label_names: tuple[str, ...] | None = None  # the class of each label value; None without classes
    refused: list[Skipped] = field(default_factory=list)  # what was found but must not be read
    ignored: int = 0  # number of images outside the folders of splits, which are not used
    notes: list[str] = field(default_factory=list)  # lines on what else was found, and is not read
    blocks: np.ndarray | None = None  # int64 [len(names)], ascending: equal for images that are best read together


@contextmanager
def reading(place: object, kind: str = "") -> Iterator[None]:
    """Turn whatever goes wrong inside the block, and parsers of untrusted bytes raise anything, into a UserError of one
    line: that ``place``, a path or address, cannot be read ``kind``, such as " as an archive"."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__
        remote = "out of reach, " * ("://" in str(place))
        raise UserError(f"{place} cannot be read{kind} ({reason}); is it {remote}damaged or misnamed?") from error


class Source(Protocol):
    """Where images come from: a bundled data set, a folder, an archive, shards or arrays."""

    name: str  # short enough for a run directory
    decoded: bool  # whether it holds pixels already, so that decoding costs nothing

    def fingerprint(self) -> str:
        """A text that changes when the images do; found without reading them."""

    def read_index(self) -> ImageIndex:
        """List the images; comes before `read`. UserError if there are none, or they cannot be listed."""

    def read(self, index: int) -> bytes | np.ndarray:
        """The file of the image ``names[index]``, or its pixels (uint8 or float32 [C, H, W]); BadImage if neither."""


def is_image_name(name: str) -> bool:
    """Whether a path with slashes looks like an image file that is not hidden."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not any(map(is_hidden, name.split("/")))


def is_hidden(part: str) -> bool:
    """Whether a file or folder name is hidden or left behind by an operating system."""
    return (part.startswith(".") and part not in (".", "..")) or part in ("__MACOSX", "Thumbs.db")


def index_by_folders(names: Iterable[str], refused: Iterable[Skipped], place: Path) -> ImageIndex:
    """Sort image paths and derive splits and labels from their folders.

    Folders ``train`` and ``test`` or ``val`` are splits, possibly inside lone wrapping folders; without them
    everything is "train". Class folders are labels if there are two at least and every image is in exactly one.

    Raises:
        UserError: there are no images in ``place``.
    """
    names, refused = sorted(names), sorted(refused)
    if not names:
        first = f"{len(refused):,} refused, the first is {refused[0].name}: {refused[0].reason}" if refused else ""
        why = f" that may be read ({first})" if refused else ""
        raise UserError(f"no images in {place}{why}; files of these kinds are images: {' '.join(IMAGE_SUFFIXES)}")
    paths = [name.split("/") for name in names]
    depth, has_splits = _split_depth(paths)
    split_of: list[str | None] = ["train"] * len(paths)
    if has_splits:
        split_of = [SPLIT_FOLDERS.get(path[depth].lower()) if len(path) > depth + 1 else None for path in paths]
    splits = {
        split: np.array([index for index, its in enumerate(split_of) if its == split], dtype=np.int64)
        for split in SPLITS
        if split in split_of
    }
    labels, label_names = _labels(paths, np.concatenate(list(splits.values())), depth + has_splits)
    return ImageIndex(names, splits, labels, label_names, refused, ignored=split_of.count(None))


def _split_depth(paths: list[list[str]]) -> tuple[int, bool]:
    """At which depth the splits or else the data start, and whether those are splits."""
    depth = 0
    while True:
        folders = {path[depth] for path in paths if len(path) > depth + 1}
        splits = {SPLIT_FOLDERS.get(folder.lower()) for folder in folders}
        # Next to folders that are not splits, "train" is a class: the vehicle.
        if "train" in splits and (len(folders) == 1 or splits & {"val", "test"}):
            return depth, True
        if len(folders) != 1 or any(len(path) == depth + 1 for path in paths):
            return depth, False
        depth += 1


def _labels(paths: list[list[str]], used: np.ndarray, depth: int) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    if any(len(paths[index]) != depth + 2 for index in used):
        return None, None
    classes = [paths[index][depth] for index in used]
    value = {name: number for number, name in enumerate(sorted(set(classes)))}
    if len(value) < 2:
        return None, None
    labels = np.full(len(paths), -1, dtype=np.int64)
    labels[used] = [value[name] for name in classes]
    return labels, tuple(value)
