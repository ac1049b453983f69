"""Images decoded once into a memory-mapped file in the cache directory, and batches of them."""

import hashlib
import json
import math
import os
import re
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from mocokit.data.build import (
    FORMAT,
    INDEX,
    PIXELS,
    Progress,
    TooManySkipped,
    build,
    check_skipped,
    prepare,
    read_facts,
)
from mocokit.data.cache import IMAGES, building, cache_directory, cache_errors, hold, locked, remove_leftovers
from mocokit.data.image_index import Skipped, Source, main_split
from mocokit.data.notes import count
from mocokit.data.sources import open_source
from mocokit.errors import UserError
from mocokit.files import write_csv

__all__ = ["ImageSet", "Skipped", "Store", "TooManySkipped", "open_store", "write_skipped"]


class ImageSet:
    """The images of one split: uint8, of one channel count, each of its own size, memory-mapped.

    ``labels`` are int64 [N], -1 where an image has none, or None; ``sizes`` int32 [N, 2] height and width, ``canvas``
    the greatest of both, and ``nbytes`` that of all images padded to it; ``rows`` int64 [N], ascending, which images of
    the cache entry these are. Pickled, it is a path and what was given beside it: the other process maps the same file.
    """

    def __init__(
        self, path: Path, split: str, rows: np.ndarray | None = None, labels: np.ndarray | None = None
    ) -> None:
        """Open ``split`` of the cache entry ``path``, or call other ``rows`` of it so, with other ``labels``; OSError
        or ValueError if it is damaged."""
        self.path, self.split, self._given = path, split, (rows, labels)
        # What `mocokit.data.labelled` adds, int64 [N]: the row of each image in a file of labels, and its group.
        self.table_rows: np.ndarray | None = None
        self.groups: np.ndarray | None = None
        if (held := hold(path)) is not None:
            weakref.finalize(self, os.close, held)
        facts = read_facts(path)
        counts: dict[str, int] = facts["splits"]
        if rows is None:
            end = list(accumulate(counts.values()))[list(counts).index(split)]
            rows = np.arange(end - counts[split], end)
        self.rows: np.ndarray = rows
        with np.load(path / INDEX) as index:
            sizes = index["sizes"]
            if labels is None and "labels" in index:
                labels = index["labels"][rows]
        self.labels: np.ndarray | None = labels
        self.channels: int = facts["store"]["channels"]
        # Mapped now, so that it stays readable even if the entry is removed.
        self._pixels = np.asarray(np.memmap(path / PIXELS, dtype=np.uint8, mode="r"))
        ends = np.cumsum(sizes.astype(np.int64).prod(axis=1) * self.channels)
        if len(sizes) != sum(counts.values()) or len(self._pixels) != ends[-1]:
            raise ValueError(f"{path} is damaged")
        self.sizes: np.ndarray = sizes[rows]
        self._ends: np.ndarray = ends[rows]
        self._sizes_between: np.ndarray = sizes[rows[0] : rows[-1] + 1]  # also of images that are not of these
        self.canvas: tuple[int, int] = tuple(self.sizes.max(axis=0).tolist())
        self.nbytes: int = len(self) * self.channels * math.prod(self.canvas)

    def __len__(self) -> int:
        return len(self.sizes)

    def image(self, row: int) -> np.ndarray:
        """One image, uint8 [C, H, W]."""
        height, width = self.sizes[row]
        return self.batch([row])[0, :, :height, :width]

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageSet, (self.path, self.split, *self._given)

    @cached_property
    def names(self) -> list[str]:
        """The path of each image inside its source."""
        with np.load(self.path / INDEX) as index:
            names = index["names"].tobytes().decode(errors="surrogatepass").split("\0")
        return [names[row] for row in self.rows.tolist()]

    def batch(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The images at ``indices``: uint8 [B, C, H, W], zeros at the bottom and right up to the canvas."""
        indices = np.asarray(indices, dtype=np.int64)
        if self._uniform is not None:
            return self._uniform[self.rows[indices] - self.rows[0]]
        batch = np.zeros((len(indices), self.channels, *self.canvas), dtype=np.uint8)
        for row, end, (height, width) in zip(batch, self._ends[indices], self.sizes[indices].tolist(), strict=True):
            pixels = self._pixels[end - self.channels * height * width : end]
            row[:, :height, :width] = pixels.reshape(self.channels, height, width)
        return batch

    @cached_property
    def _uniform(self) -> np.ndarray | None:
        """The entry from the first image to the last as one array [M, C, H, W], if all there have one size: a batch is
        then a single gather."""
        if (self._sizes_between != self.canvas).any():
            return None
        shape = len(self._sizes_between), self.channels, *self.canvas
        end = int(self._ends[-1])
        return self._pixels[end - math.prod(shape) : end].reshape(shape)


@dataclass(frozen=True)
class Store:
    """The decoded images of one data set."""

    path: Path  # of its entry in the cache directory
    name: str  # short, for a run directory
    image_size: int  # the side of the square that models should take in
    median_side: float | None  # of the shorter sides of some images before they were shrunk; None if not measured
    channels: int  # of every image
    label_names: tuple[str, ...] | None  # the class of each label value, or None without labels
    skipped: list[Skipped]  # the images that cannot be used, and why
    notes: tuple[str, ...]  # what to know about splits and pixels, a line each
    label_notes: tuple[str, ...]  # what is odd about the labels, a line each
    fingerprint: str  # digest of pixels, labels and splits, equal on every machine
    train_fingerprint: str  # the same whatever a file of labels says, while all images and which of them train are
    intensity_range: tuple[float, float] | None  # that 16- and 32-bit images were scaled from; None if there are none
    from_cache: bool  # whether nothing had to be decoded
    splits: dict[str, ImageSet]  # of "train", "val" and "test" those that there are

    @property
    def main(self) -> ImageSet:
        """The training split, or, where there is none, the next: what is looked at where nothing is trained."""
        return self.splits[main_split(self.splits)]

    def summary(self) -> str:
        """What was found, in one line, and the notes, a line each."""
        counts = ", ".join(f"{len(images):,} {split}" for split, images in self.splits.items())
        counts += " image" if counts.rpartition(", ")[2].startswith("1 ") else " images"
        kind = {1: "gray", 3: "colour"}.get(self.channels, f"{self.channels}-channel")
        skipped = ""
        if self.skipped:
            skipped = f", {len(self.skipped):,} skipped (the first is {self.skipped[0].name}: {self.skipped[0].reason})"
        cached = ", from the cache" if self.from_cache else ""
        return "\n".join(
            [f"{self.name}: {counts}, {kind}, {self._classes()}{skipped}{cached}", *self.notes, *self.label_notes]
        )

    def _classes(self) -> str:
        """How many classes there are, and the smallest and the largest of those in the main split."""
        if not self.label_names:
            return "no labels"
        classes = f"{len(self.label_names):,} classes"
        labels = self.main.labels
        counts = np.bincount(labels[labels >= 0]) if labels is not None else np.empty(0, dtype=np.int64)
        there = np.flatnonzero(counts)
        if not len(there):
            return classes
        if len(there) < len(self.label_names):
            classes += f" ({len(there):,} in {self.main.split})"
        low, high = there[counts[there].argmin()], counts.argmax()
        if counts[low] == counts[high]:
            return f"{classes} of {count(int(counts[low]), 'image', 'images')}"
        smallest, largest = (f"{counts[value]:,} ({self.label_names[value]})" for value in (low, high))
        return f"{classes} of {smallest} to {largest} images"


def open_store(
    data: str | Source,
    *,
    image_size: int | Callable[[float], int],
    limit: int | None = None,
    seed: int = 0,
    max_skipped: float = 0.05,
    workers: int | None = None,
    intensity_range: tuple[float, float] | None = None,
    channels: int | None = None,
    progress: Progress | None = None,
    cache: Path | None = None,
    to_train: bool = False,
) -> Store:
    """Open what the user named, decoding it first unless the cache has it.

    Images are kept twice as large as ``image_size`` at most: crops need some room, not the full photograph.

    Args:
        data: see ``open_source``; or a source.
        image_size: the side that models take in; or what chooses it, given the median shorter side of the training
            images in pixels (nan if none of those looked at can be read).
        limit, seed: use a random subset of that many training images, class-balanced if there are labels.
        max_skipped: fraction of the images that may be unusable, 0 to 1.
        workers: decoding processes, 0 for none; None chooses.
        intensity_range: scale 16- and 32-bit images from this range, not from their own.
        channels: convert gray to RGB (3) or the reverse (1); None keeps gray where fewer than a hundredth have colour.
        progress: called with the images done and in total.
        cache: keep the decoded images below this directory, not below ``cache_directory()``.
        to_train: whether there have to be images to train on.

    Raises:
        UserError: the data cannot be opened, has nothing ``to_train`` on, or the cache directory cannot be written.
        TooManySkipped: more than ``max_skipped`` of the images cannot be used.
    """
    source = open_source(data) if isinstance(data, str) else data
    folder = (cache or cache_directory()) / IMAGES
    remove_leftovers(folder)
    key = _key([source.fingerprint(), source.max_pixels])
    name = f"{re.sub(r'[^A-Za-z0-9.-]+', '_', source.name)[:40].lstrip('.')}-{key}"

    def wanted(median: float | None) -> dict[str, Any] | None:
        """What the pixels depend on, as JSON gives it back; None if the median of the images is needed for that."""
        if not callable(image_size):
            side = image_size
        elif median is None:
            return None
        else:
            side = image_size(median)
        return {
            "image_size": side,
            "limit": limit,
            "seed": None if limit is None else seed,
            "intensity_range": intensity_range and list(intensity_range),
            "channels": channels,
        }

    def find() -> Store | None:
        entries = (_load(path, wanted, max_skipped) for path in sorted(folder.glob(f"{name}-*")))
        return next(filter(None, entries), None)

    def ensure() -> Store:
        with cache_errors(folder):
            folder.mkdir(exist_ok=True)
        with locked(folder, name):
            if store := find():  # built by another process in the meantime
                return store
            image_index, median = prepare(source, limit, seed, measure=to_train or callable(image_size))
            if to_train:
                check_trainable(image_index.splits, source.name)
            options = wanted(median)
            assert options is not None
            with cache_errors(folder), building(folder, name, _key(options)) as directory:
                build(source, image_index, median, options, directory, max_skipped, workers, progress)
            store = find()
        assert store is not None, f"an entry of {folder} was removed while it was opened"
        return replace(store, from_cache=False)

    store = find() or ensure()
    if to_train:
        check_trainable(store.splits, source.name)
    return store


def check_trainable(splits: Iterable[str], name: str) -> None:
    """Raise a UserError unless training images are among the ``splits`` of the data set ``name``."""
    if "train" not in splits:
        only = " and ".join(splits)
        raise UserError(
            f"{name} has no images to train on: by the names of folders or files all are {only} images; "
            "add a train folder or shard, or name the folder of the images itself"
        )


def _key(value: Any) -> str:
    return hashlib.blake2b(json.dumps([FORMAT, value]).encode(), digest_size=8).hexdigest()


def _load(path: Path, wanted: Callable[[float | None], dict[str, Any] | None], max_skipped: float) -> Store | None:
    """The entry at ``path``, or None if it is damaged, or not what is wanted."""
    try:
        facts = read_facts(path)
        if wanted(facts["median"]) not in facts["serves"]:
            return None
        fields, found = facts["store"], facts["found"]
        fields["skipped"] = [Skipped(*item) for item in fields["skipped"]]
        for name in ("label_names", "intensity_range"):
            fields[name] = fields[name] and tuple(fields[name])
        for name in ("notes", "label_notes"):
            fields[name] = tuple(fields[name])
        fields["train_fingerprint"] = fields["fingerprint"]
        splits = {split: ImageSet(path, split) for split in facts["splits"]}
        median = facts["median"] if facts["median"] is not None and facts["median"] > 0 else None  # not nan
        store = Store(path=path, from_cache=True, splits=splits, median_side=median, **fields)
    except Exception:  # whatever comes of damage
        return None
    check_skipped(store.skipped, found, max_skipped)
    return store


def write_skipped(path: Path, skipped: Iterable[Skipped]) -> None:
    """Write the images that cannot be used as CSV with the columns image and reason."""
    write_csv(path, ("image", "reason"), skipped)
