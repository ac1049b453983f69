"""What a source holds: the names, splits and labels of its images, derived from paths for folders and archives."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from mocokit.errors import UserError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
SPLITS = ("train", "val", "test")
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


class Skipped(NamedTuple):
    """An image that cannot be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class ImageIndex:
    """The images of a source.

    Attributes:
        names: path of each image inside the source, with slashes.
        splits: indices into ``names``, int64, for "train" and where they exist "val" and "test".
        labels: int64 [len(names)], -1 where no split uses the image; None without class folders.
        label_names: the class of each label value, sorted; None without class folders.
        refused: what was found but must not be read, with reasons.
        ignored: number of images outside the folders of splits, which are not used.
        blocks: int64 [len(names)], ascending: equal for images that are best read together, since they are
            stored together; None where each can be read alone.
    """

    names: Sequence[str]
    splits: dict[str, np.ndarray]
    labels: np.ndarray | None = None
    label_names: tuple[str, ...] | None = None
    refused: list[Skipped] = field(default_factory=list)
    ignored: int = 0
    blocks: np.ndarray | None = None


class Source(Protocol):
    """Where images come from: a bundled data set, a folder, an archive, shards or arrays.

    Attributes:
        name: short enough for a run directory.
        decoded: whether it holds pixels already, so that decoding costs nothing.
    """

    name: str
    decoded: bool

    def fingerprint(self) -> str:
        """A text that changes when the images do; found without reading them."""

    def read_index(self) -> ImageIndex:
        """List the images; comes before `read`."""

    def read(self, index: int) -> bytes | np.ndarray:
        """The file of the image ``names[index]``, or its pixels (uint8 or float32 [C, H, W]).

        Raises:
            BadImage: it cannot be read.
        """


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
        why = f" that may be read ({refused[0].name}: {refused[0].reason})" if refused else ""
        raise UserError(f"no images in {place}{why}; files of these kinds are images: {' '.join(IMAGE_SUFFIXES)}")
    paths = [name.split("/") for name in names]
    depth, is_split = _split_depth(paths)
    members: dict[str, list[int]] = {}
    if is_split:
        for index, path in enumerate(paths):
            split = SPLIT_FOLDERS.get(path[depth].lower()) if len(path) > depth + 1 else None
            if split is not None:
                members.setdefault(split, []).append(index)
        depth += 1
    else:
        members["train"] = list(range(len(names)))
    used = [index for indices in members.values() for index in indices]
    labels, label_names = _labels(paths, used, depth)
    splits = {split: np.array(members[split], dtype=np.int64) for split in SPLITS if split in members}
    return ImageIndex(names, splits, labels, label_names, refused, ignored=len(names) - len(used))


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
            break
        depth += 1
    return depth, False


def _labels(paths: list[list[str]], used: list[int], depth: int) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    if any(len(paths[index]) != depth + 2 for index in used):
        return None, None
    classes = {index: paths[index][depth] for index in used}
    label_names = tuple(sorted(set(classes.values())))
    if len(label_names) < 2:
        return None, None
    value = {name: number for number, name in enumerate(label_names)}
    labels = np.full(len(paths), -1, dtype=np.int64)
    labels[used] = [value[classes[index]] for index in used]
    return labels, label_names
