"""What a source holds: the names, splits and labels of its images, derived from paths for folders and archives."""

import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol
from unicodedata import normalize

import numpy as np

from mocokit.data.notes import count, listed
from mocokit.errors import UserError, reason_of

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".jpx", ".tga", ".heic", ".heif"),
)
# Files that often lie beside images; not opened to see whether they are some.
NO_IMAGES = (
    *(".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".html", ".py", ".pdf"),
    *(".npy", ".npz", ".parquet", ".zip", ".tar", ".gz", ".xz", ".bz2", ".7z", ".rar", ".ckpt", ".safetensors", ".pt"),
)
SPLITS = ("train", "val", "test")

_SPLIT_FLAGS = {"train": "--train", "test": "--test"}
_TEST, _EVAL = ("test", "testing", "tests"), ("eval", "evaluation")
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys((*_TEST, *_EVAL), "test"),
}
_UNLABELLED = ("unlabeled", "unlabelled", "unsupervised")  # folders of images to train on that are no class
_SYSTEM = {"__MACOSX", "Thumbs.db", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
_COPIES = ("@eadir", "thumbnails", "_thumbs", "#recycle")  # folders of smaller or deleted copies of other images


class Skipped(NamedTuple):
    """An image that cannot be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class ImageIndex:
    """The images of a source."""

    names: Sequence[str]  # path of each image inside the source, with slashes
    splits: dict[str, np.ndarray]  # indices into names, int64; of "train", "val" and "test" one at least
    labels: np.ndarray | None = None  # int64 [len(names)], -1 where an image has none; None without classes
    label_names: tuple[str, ...] | None = None  # the class of each label value; None without classes
    refused: list[Skipped] = field(default_factory=list)  # what was found but must not be read
    notes: tuple[str, ...] = ()  # how names were understood, what was left out: a line each
    blocks: np.ndarray | None = None  # int64 [len(names)], ascending: equal for images that are best read together
    sizes: str = ""  # digest of the sizes of all files, equal for copies of the set; empty where they are not known

    def all_notes(self) -> list[str]:
        """What to know before figures are trusted, a line each: the notes, and what is odd about the labels."""
        return [*self.notes, *self.label_notes()]

    def label_notes(self) -> list[str]:
        """What is odd about the labels, a line each."""
        return [*self._unlabelled(), *self._lone_classes()]

    def _unlabelled(self) -> list[str]:
        if self.labels is None:
            return []
        rows = np.sort(np.concatenate(list(self.splits.values())))
        without = rows[self.labels[rows] < 0]
        if not len(without):
            return []
        verb = "has" if len(without) == 1 else "have"
        use = "left out of kNN, probe and fine-tuning"
        return [f"{len(without):,} of {len(rows):,} images {verb} no label, first {self.names[without[0]]}: {use}"]

    def _lone_classes(self) -> list[str]:
        """Classes of one training image, and those that training and other images do not share."""
        if self.labels is None or self.label_names is None:
            return []
        given = {split: self.labels[rows] for split, rows in self.splits.items()}
        found = {split: np.unique(labels[labels >= 0]) for split, labels in given.items()}
        lines: list[str] = []
        train = found.pop("train", np.empty(0, dtype=np.int64))
        sizes = np.bincount(given["train"][given["train"] >= 0]) if len(train) else train
        if single := [self.label_names[value] for value in np.flatnonzero(sizes == 1)]:
            has = "has a single training image" if len(single) == 1 else "have a single training image each"
            lines.append(f"{count(len(single), 'class', 'classes')} {has}: {listed(single)}")
        for split, values in found.items():
            pairs = ((f"in {split} only", values, train), (f"in train only, not in {split}", train, values))
            for where, some, others in pairs if len(train) and len(values) else ():
                if lone := [self.label_names[value] for value in np.setdiff1d(some, others)]:
                    lines.append(f"{count(len(lone), 'class', 'classes')} {where}: {listed(lone)}")
        return lines


@contextmanager
def reading(place: object, kind: str = "") -> Iterator[None]:
    """Turn whatever goes wrong inside the block, and parsers of untrusted bytes raise anything, into a UserError of one
    line: that ``place``, a path or address, cannot be read ``kind``, such as " as an archive"."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        remote = "out of reach, " * ("://" in str(place))
        raise UserError(
            f"{place} cannot be read{kind} ({reason_of(error)}); is it {remote}damaged or misnamed?"
        ) from error


class Source(Protocol):
    """Where images come from: a bundled data set, a folder, an archive, shards or arrays."""

    name: str  # short enough for a run directory
    decoded: bool  # whether it holds pixels already, so that decoding costs nothing
    max_pixels: int  # larger images are not decoded

    def fingerprint(self) -> str:
        """A text that changes when the images do; found without reading them."""

    def read_index(self) -> ImageIndex:
        """List the images; comes before `read`. UserError if there are none, or they cannot be listed."""

    def read(self, index: int) -> bytes | np.ndarray:
        """The file of the image ``names[index]``, or its pixels (uint8 or float32 [C, H, W]); BadImage if neither."""


def main_split(splits: Iterable[str]) -> str:
    """The split that is looked at: the one to train on, or, where there is none, the next."""
    return min(splits, key=SPLITS.index)


def has_image_suffix(name: str) -> bool:
    """Whether a file's name or path ends as those of images do."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_image_name(name: str) -> bool:
    """Whether a path with slashes looks like an image file that is not hidden."""
    return has_image_suffix(name) and not any(map(is_hidden, name.split("/")))


def is_hidden(part: str) -> bool:
    """Whether a file or folder name is hidden or left behind by an operating system."""
    return (part.startswith(".") and part not in (".", "..")) or part in _SYSTEM


def holds_copies(part: str) -> bool:
    """Whether a folder's name says that it holds copies of other images, such as thumbnails."""
    return part.lower() in _COPIES


def is_run(names: Collection[str]) -> bool:
    """Whether a folder with files of these names is a run directory, whose images are pictures of results."""
    return "data.json" in names and ("config.yaml" in names or "finetune.yaml" in names)


def split_word(name: str) -> str | None:
    """The word for a split that a name of a shard or folder is, or begins or ends with, numbers aside, or None."""
    words = [word for word in _words(name) if not word.isdigit() and word != "of"]
    return next((word for word in (words[:1] + words[-1:]) if word in _SPLIT_WORDS), None)


def splits_of_words(words: Collection[str | None]) -> dict[str, str]:
    """The split that each word for one means; "eval" beside "test" is validation, unless that has a name as well."""
    found = {word: _SPLIT_WORDS[word] for word in words if word is not None}
    if any(word in found for word in _TEST) and "val" not in found.values():
        found |= {word: "val" for word in found if word in _EVAL}
    return found


def splits_note(names: Mapping[str, Sequence[str]]) -> list[str]:
    """A line that says which names were taken as which split; ``names`` are those of each split."""
    taken = [f"{split} is {listed(names[split])}" for split in SPLITS if split in names]
    return [f"splits by name: {'; '.join(taken)}"]


def index_by_folders(
    names: Iterable[str], refused: Iterable[Skipped], place: Path, said: Mapping[str, str] | None = None
) -> ImageIndex:
    """Sort image paths and derive splits and labels from their folders.

    Folders with names such as ``train``, ``val`` and ``test`` are splits, possibly inside lone wrapping folders, or
    those that are ``said`` to be; without them everything is "train". Class folders are labels if there are two at
    least and half the images of a split are directly in one; its other images have no label.

    Raises:
        UserError: there are no images in ``place``, or no folders as they are ``said`` to be.
    """
    names, refused = sorted(names), sorted(refused)
    if not names:
        first = f"{len(refused):,} refused, the first is {refused[0].name}: {refused[0].reason}" if refused else ""
        why = f" that may be read ({first})" if refused else ""
        raise UserError(f"no images in {place}{why}; files of these kinds are images: {' '.join(IMAGE_SUFFIXES)}")
    names, notes = _without_copies(names)
    paths = [name.split("/") for name in names]
    depth, split_folders = _said_depth(paths, said, place) if said else _split_depth(paths)
    if not said and not split_folders:
        below = ({path[at] for path in paths if len(path) > at + 1} for at in range(depth, max(map(len, paths)) - 1))
        notes += next(filter(None, map(_may_be_splits, below)), [])
    beside = None if "train" in split_folders.values() else "train"  # of images next to folders such as test
    split_of: list[str | None] = ["train"] * len(paths)
    if split_folders:
        split_of = [
            split_folders.get(path[depth]) if len(path) > depth + 1 else beside if len(path) == depth + 1 else None
            for path in paths
        ]
        notes += _folders_note(split_folders, beside is not None and beside in split_of)
        if outside := [name for name, split in zip(names, split_of, strict=True) if split is None]:
            what = count(len(outside), "image", "images")
            notes.append(f"{what} outside the folders of splits not used, first {outside[0]}")
    splits = {
        split: np.array([index for index, its in enumerate(split_of) if its == split], dtype=np.int64)
        for split in SPLITS
        if split in split_of
    }
    labels, label_names, more = _labels(paths, splits, depth + bool(split_folders))
    return ImageIndex(names, splits, labels, label_names, refused, notes=tuple(notes + more))


def _words(name: str) -> list[str]:
    return re.findall(r"\d+|[^\W\d_]+", name.lower())


def _without_copies(names: list[str]) -> tuple[list[str], list[str]]:
    """The names outside folders of copies, and a line about the others; all, if there are no others."""
    folders = {name.rpartition("/")[0] for name in names}
    of_copies = {folder for folder in folders if any(map(holds_copies, folder.split("/")))}
    if not 0 < len(of_copies) < len(folders):
        return names, []
    copies = [name for name in names if name.rpartition("/")[0] in of_copies]
    left = set(copies)
    what = f"{count(len(copies), 'image', 'images')} in folders of copies such as thumbnails"
    return [name for name in names if name not in left], [f"{what} left out, first {copies[0]}"]


def _split_depth(paths: list[list[str]]) -> tuple[int, dict[str, str]]:
    """At which depth the splits or else the data start, and which folders there are which split; none are none."""
    depth = 0
    while True:
        folders = {path[depth] for path in paths if len(path) > depth + 1}
        splits = _split_folders(folders)
        # Next to folders that are not splits, "train" is a class: the vehicle.
        kinds = set(splits.values())
        if splits and (len(splits) == len(folders) or ("train" in kinds and len(kinds) > 1)):
            return depth, splits
        # A cover picture beside a lone wrapping folder is no reason to take that for a class.
        if len(folders) != 1 or 2 * sum(len(path) == depth + 1 for path in paths) >= len(paths):
            return depth, {}
        depth += 1


def _said_depth(paths: list[list[str]], said: Mapping[str, str], place: Path) -> tuple[int, dict[str, str]]:
    """As `_split_depth`, of the folders that are ``said`` to be splits; beside a test folder alone all others train."""
    wanted = {normalize("NFC", name): split for name, split in said.items()}
    for depth in range(max(map(len, paths)) - 1):
        folders = {path[depth] for path in paths if len(path) > depth + 1}
        splits = {folder: wanted[plain] for folder in folders if (plain := normalize("NFC", folder)) in wanted}
        if len(splits) == len(wanted):
            others = {} if "train" in wanted.values() else dict.fromkeys(folders - set(splits), "train")
            return depth, others | splits
    there = listed(sorted({path[0] for path in paths if len(path) > 1})) or "none"
    name, split = next(iter(said.items()))
    beside = "" if len(said) == 1 else " beside " + " and ".join(list(said)[1:])
    raise UserError(f"--{split} {name}: {place} has no folder of images of that name{beside}; folders in it: {there}")


def _split_folders(folders: set[str]) -> dict[str, str]:
    """Folders named as splits; or all, if their names differ in nothing else, as in train2017 and val2017."""
    words = {folder: folder.lower() for folder in folders if folder.lower() in _SPLIT_WORDS}
    if not words:
        parts = {folder: split_word(folder) for folder in folders}
        rests = {tuple(word for word in _words(folder) if word != split) for folder, split in parts.items() if split}
        if None not in parts.values() and len(folders) > 1 and len(rests) == 1:
            words = {folder: str(word) for folder, word in parts.items()}
    meant = splits_of_words(words.values())
    splits = {folder: meant[word] for folder, word in words.items()}
    if splits:
        splits |= {folder: "train" for folder in folders if folder.lower() in _UNLABELLED}
    return splits


def _may_be_splits(folders: set[str]) -> list[str]:
    """A line on folders that are not taken as splits, but whose names have a word for one, and how to say so."""
    parted = {folder: _words(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", folder)) for folder in sorted(folders)}
    found: dict[str, str] = {}
    for folder, words in parted.items():
        for split in {_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS} & {"train", "test"}:
            found.setdefault(split, folder)
    if "test" not in found:
        return []
    named = [f"{flag} {shlex.quote(found[split])}" for split, flag in _SPLIT_FLAGS.items() if split in found]
    return [f"folders that may be splits are not taken as such; if they are: {' '.join(named)}"]


def _folders_note(splits: dict[str, str], beside: bool) -> list[str]:
    """Nothing, if the folders are named as the splits are."""
    if not beside and all(folder.lower() == split for folder, split in splits.items()):
        return []
    names: dict[str, list[str]] = {"train": ["the images beside them"]} if beside else {}
    for folder in sorted(splits):
        names.setdefault(splits[folder], []).append(f"{folder}/")
    return splits_note(names)


def _labels(
    paths: list[list[str]], splits: dict[str, np.ndarray], depth: int
) -> tuple[np.ndarray | None, tuple[str, ...] | None, list[str]]:
    """Labels, classes, and a line if a class may be a split."""
    class_of: dict[int, str] = {}
    for rows in splits.values():
        rows_to_label = [row for row in rows.tolist() if not any(part.lower() in _UNLABELLED for part in paths[row])]
        inside = {row: normalize("NFC", paths[row][depth]) for row in rows_to_label if len(paths[row]) == depth + 2}
        if 2 * len(inside) >= len(rows_to_label):
            class_of |= inside
    value = {name: number for number, name in enumerate(sorted(set(class_of.values())))}
    if len(value) < 2:
        return None, None, []
    labels = np.full(len(paths), -1, dtype=np.int64)
    labels[list(class_of)] = [value[name] for name in class_of.values()]
    odd = [name for name in value if name.lower() in _SPLIT_WORDS]
    note = f"a class, not a split, as other folders are beside it: {listed(odd)}"
    return labels, tuple(value), [note] if odd else []
