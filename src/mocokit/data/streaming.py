"""Batches straight from a source, for more images than the cache directory or the memory can hold.

Nothing is kept; every epoch reads the images anew, in an order that suits storage and is still shuffled. Each batch
is a function of (seed, step), whatever the number of processes.
"""

import math
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset

from mocokit import distributed
from mocokit.data.build import check_skipped
from mocokit.data.dataset import Batch
from mocokit.data.decode_pool import Decoded, Encoded, decode_for_model, read_all, worker_count
from mocokit.data.image_index import ImageIndex, Skipped, Source
from mocokit.data.pillow import BadImage
from mocokit.data.pixels import pad, stored_side
from mocokit.data.sources import open_source
from mocokit.data.store import Store, open_store
from mocokit.errors import UserError
from mocokit.seeding import derive_seed

SAMPLE_IMAGES = 10_000  # of a split, for statistics and quality checks
SAMPLE_BLOCKS = 64  # that they are drawn from; more where these have fewer than
SAMPLE_FETCHED = 40_000  # images, as a block is fetched whole
LANE_IMAGES = 64  # of a batch come from one lane; at least `LEAST_LANES` lanes, so that a batch is mixed
LEAST_LANES = 4
WINDOW_BYTES, MOST_WINDOW = 2**28, 1024  # of decoded images, and how many of them, that one lane mixes
EARLY_IMAGES = 1000  # after which too many unusable images end a run


@dataclass(frozen=True)
class StreamingImages:
    """The training images of a scanned source.

    Attributes:
        source: where they are read.
        names: of all images of the source.
        indices: int64 [N], ascending: which of them these are.
        blocks: int64 [N], equal for images that are best read together; None if each can be read alone.
        image_size, channels, intensity_range: see `mocokit.data.decode_pool.decode_for_model`.
        max_skipped: fraction of the images that may be unusable.
    """

    source: Source
    names: Sequence[str]
    indices: np.ndarray
    blocks: np.ndarray | None
    image_size: int
    channels: int
    intensity_range: tuple[float, float] | None
    max_skipped: float

    def __len__(self) -> int:
        return len(self.indices)


def open_streaming(
    data: str | Source, *, seed: int, max_skipped: float, **options: Any
) -> tuple[Store, StreamingImages]:
    """What the user named: a store of some images, for statistics and quality checks, and all training images.

    Args:
        data: see ``open_source``; or a source.
        seed: decides which images the store has.
        max_skipped: fraction of the images that may be unusable, 0 to 1.
        options: see ``open_store``.

    Raises:
        UserError, TooManySkipped: as ``open_store``.
    """
    source = open_source(data) if isinstance(data, str) else data
    listing = source.read_index()
    store = open_store(_Sample(source, listing, seed), seed=seed, max_skipped=max_skipped, **options)
    indices = listing.splits["train"]  # there are some, or the store had been refused
    images = StreamingImages(
        source,
        listing.names,
        indices,
        None if listing.blocks is None else listing.blocks[indices],
        store.image_size,
        store.channels,
        store.intensity_range,
        max_skipped,
    )
    # Of the images outside the sample no more than sizes are known without reading them.
    fingerprint = "-".join([store.fingerprint, str(len(images)), *filter(None, [listing.sizes])])
    notes = (*listing.label_notes(), *_about_sample(store, listing))  # of all images: what the sample lacks is not odd
    return replace(store, fingerprint=fingerprint, train_fingerprint=fingerprint, label_notes=notes), images


def _about_sample(store: Store, listing: ImageIndex) -> list[str]:
    """A line on classes that no sampled image to train on has, or none."""
    if listing.labels is None or (sampled := store.splits["train"].labels) is None:
        return []
    there, known = (len(_classes(labels)) for labels in (listing.labels[listing.splits["train"]], sampled))
    if there == known:
        return []
    return [f"the sample that is measured has {known:,} of {there:,} classes: figures are of these alone"]


class _Sample:
    """Some images of a source, itself a source: random ones of some blocks, since a block is read at once.

    Images to test on whose class is among those to train on, but not in the sample of these, are left out: nothing
    could tell it.
    """

    def __init__(self, source: Source, listing: ImageIndex, seed: int) -> None:
        self.source, self.name, self.decoded = source, source.name, source.decoded
        self.max_pixels = source.max_pixels
        splits, labels, blocks = dict(listing.splits), listing.labels, listing.blocks
        train = splits.get("train", np.empty(0, dtype=np.int64))
        sampled = _sample(train, blocks, labels, seed)
        for split, rows in splits.items():
            if labels is not None and split != "train":
                known = ~np.isin(labels[rows], np.setdiff1d(_classes(labels[train]), labels[sampled]))
                rows = rows[known] if known.any() else rows
            splits[split] = sampled if split == "train" else _sample(rows, blocks, labels, seed)
        self._listing = replace(listing, splits=splits)
        self._seed = seed

    def fingerprint(self) -> str:
        return f"sample/{SAMPLE_IMAGES}/{self._seed}/{self.source.fingerprint()}"

    def read_index(self) -> ImageIndex:
        return self._listing

    def read(self, index: int) -> bytes | np.ndarray:
        return self.source.read(index)

    def read_together(self, indices: Iterable[int]) -> Iterator[Encoded]:
        """As `read_all` of the whole source."""
        return read_all(self.source, indices)


def _sample(rows: np.ndarray, blocks: np.ndarray | None, labels: np.ndarray | None, seed: int) -> np.ndarray:
    """`SAMPLE_IMAGES` random ones of the ``rows``, ascending."""
    if len(rows) <= SAMPLE_IMAGES:
        return rows
    draw = np.random.default_rng(derive_seed(seed, "sample"))
    rows = rows if blocks is None else _fetched(rows, blocks, labels, draw)
    return np.sort(draw.choice(rows, SAMPLE_IMAGES, replace=False))


def _fetched(rows: np.ndarray, blocks: np.ndarray, labels: np.ndarray | None, draw: np.random.Generator) -> np.ndarray:
    """Those of the ``rows`` that are in some random ``blocks``, with images of as many classes as may be: shards are
    often sorted."""
    starts = np.flatnonzero(np.diff(blocks[rows], prepend=-1))
    lengths = np.diff(starts, append=len(rows))
    order = draw.permutation(len(starts))
    if labels is not None:  # the first block of each class comes first
        given, turns = labels[rows] >= 0, np.argsort(order).repeat(lengths)
        first = np.full(labels.max() + 1, len(order))
        np.minimum.at(first, labels[rows[given]], turns[given])
        early = np.unique(first[first < len(order)])
        order = np.concatenate([order[early], np.delete(order, early)])
    enough = int(np.searchsorted(np.cumsum(lengths[order]), SAMPLE_FETCHED)) + 1
    chosen = np.zeros(len(order), dtype=bool)
    chosen[order[: max(SAMPLE_BLOCKS, enough)]] = True
    return rows[chosen.repeat(lengths)]


def _classes(labels: np.ndarray) -> np.ndarray:
    return np.unique(labels[labels >= 0])


class BlockSampler:
    """Which images each step sees: an order that suits storage and is still shuffled.

    An epoch's order is that of the blocks, permuted. It is cut into equally long lanes, each of which gives its own
    rows of every batch, window by window: a window is read in the order of storage and delivered mixed. Images left
    over at the end of an epoch are left out.

    Attributes:
        per_epoch: batches of an epoch.
        rows: of each batch that a lane gives.
        window_steps: how many steps a window lasts.
        lanes: how many there are.
    """

    def __init__(self, blocks: np.ndarray | None, count: int, batch_size: int, window: int, seed: int) -> None:
        """``blocks`` [count] int64, ascending, or None; ``window``: images that one lane may hold."""
        self.blocks, self.count, self.seed = blocks, count, seed
        self.batch_size = min(batch_size, count)
        self.per_epoch = count // self.batch_size
        self.lanes = math.gcd(self.batch_size, _power_of_two(max(LEAST_LANES, self.batch_size // LANE_IMAGES)))
        self.rows = self.batch_size // self.lanes
        self.window_steps = -(-min(window, MOST_WINDOW) // self.rows)

    def windows(self, start: int, stop: int, lanes: range) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The windows of some ``lanes`` that the steps ``start`` to ``stop`` need, in the order of need.

        Of each the positions of its images, ascending, and the permutation that mixes it.
        """
        step, order, ordered = start, np.empty(0), -1
        while step < stop:
            epoch, batch = divmod(step, self.per_epoch)
            if epoch != ordered:
                order, ordered = self._order(epoch), epoch
            first = batch - batch % self.window_steps
            last = min(first + self.window_steps, self.per_epoch)
            for lane in lanes:
                offset = lane * self.per_epoch * self.rows
                rows = np.sort(order[offset + first * self.rows : offset + last * self.rows])
                draw = np.random.default_rng(derive_seed(self.seed, f"window {epoch}", offset + first * self.rows))
                yield rows, draw.permutation(len(rows))
            step = epoch * self.per_epoch + last

    def _order(self, epoch: int) -> np.ndarray:
        """Positions of all images, int64 [count]: block by block, the blocks permuted."""
        draw = np.random.default_rng(derive_seed(self.seed, "order", epoch))
        if self.blocks is None:
            return draw.permutation(self.count)
        starts = np.flatnonzero(np.diff(self.blocks, prepend=self.blocks[0] - 1))
        lengths = np.diff(starts, append=self.count)
        chosen = draw.permutation(len(starts))
        moved = starts[chosen] - (np.cumsum(lengths[chosen]) - lengths[chosen])
        return np.repeat(moved, lengths[chosen]) + np.arange(self.count)


class _Window(NamedTuple):
    """Consecutive images of one lane, decoded and mixed: their positions in the set and their pixels."""

    ids: np.ndarray
    pixels: list[np.ndarray]


class StreamingDataset(IterableDataset[Batch]):
    """The batches of consecutive steps, read from the source a window ahead of training.

    A process reads the lanes that its share of the batch comes from. An image that can't be used is replaced by the
    next one of its window.

    Attributes:
        per_epoch: batches of an epoch.
        unusable: of images that can't be used, by their position in the set, why; those that this process found, and
            those that were known when the run went on.
    """

    reads_ahead = True

    def __init__(self, images: StreamingImages, batch_size: int, seed: int, workers: int) -> None:
        window = WINDOW_BYTES // (images.channels * stored_side(images.image_size) ** 2)
        self.images = images
        self.sampler = BlockSampler(images.blocks, len(images), batch_size, window, seed)
        self.per_epoch = self.sampler.per_epoch
        self.workers = min(workers, worker_count(images.source, len(images)))
        part, rows = distributed.local_slice(self.sampler.batch_size), self.sampler.rows
        self._lanes = range(part.start // rows, -(-part.stop // rows))
        first = self._lanes.start * rows
        self._part = slice(part.start - first, part.stop - first)
        self.unusable: dict[int, str] = {}
        self._read = 0
        self._steps = range(0)

    def from_step(self, start: int, stop: int) -> "StreamingDataset":
        """Itself, to give the steps from ``start`` to before ``stop``."""
        self._steps = range(start, stop)
        return self

    def __iter__(self) -> Iterator[Batch]:
        lanes, window_steps = self._lanes, self.sampler.window_steps
        with closing(self._windows()) as windows, _reading_ahead() as ahead:
            coming: deque[Future[Any]] = deque(ahead.submit(next, windows, None) for _ in lanes)
            held: list[_Window] = []
            section = (-1, -1)
            for step in self._steps:
                epoch, batch = divmod(step, self.per_epoch)
                current, within = divmod(batch, window_steps)
                if (epoch, current) != section:
                    section, held = (epoch, current), []
                    for _ in lanes:
                        held.append(coming.popleft().result())
                        coming.append(ahead.submit(next, windows, None))
                yield self._batch(held, within, step)

    def go_on(self, step: int, unusable: Mapping[int, str]) -> None:
        """Know what all processes knew at ``step``."""
        self.unusable |= unusable
        self._read = min(step * self.sampler.batch_size, len(self.images))

    @property
    def skipped(self) -> list[Skipped]:
        """The images that are known to be unusable."""
        names, indices = self.images.names, self.images.indices
        return [Skipped(names[int(indices[row])], reason) for row, reason in sorted(self.unusable.copy().items())]

    def _batch(self, windows: list[_Window], within: int, step: int) -> Batch:
        rows = slice(within * self.sampler.rows, (within + 1) * self.sampler.rows)
        ids = np.concatenate([window.ids[rows] for window in windows])[self._part]
        images, sizes = pad([image for window in windows for image in window.pixels[rows]][self._part])
        return Batch(
            torch.from_numpy(images), distributed.all_gather(torch.from_numpy(sizes)), torch.from_numpy(ids), step
        )

    def _windows(self) -> Generator[_Window, None, None]:
        """The windows of this process's lanes, in the order in which they are needed."""
        images = self.images
        planned: deque[tuple[np.ndarray, np.ndarray]] = deque()

        def indices() -> Iterator[int]:
            for rows, mixed in self.sampler.windows(self._steps.start, self._steps.stop, self._lanes):
                planned.append((rows, mixed))
                yield from images.indices[rows].tolist()

        decoded = decode_for_model(
            read_all(images.source, indices()),
            image_size=images.image_size,
            channels=images.channels,
            intensity_range=images.intensity_range,
            max_pixels=images.source.max_pixels,
            workers=self.workers,
        )
        window: list[Decoded] = []
        with closing(decoded):
            for pixels in decoded:
                window.append(pixels)
                if len(window) == len(planned[0][0]):
                    rows, mixed = planned.popleft()
                    rows, usable = self._replace_unusable(rows, window)
                    yield _Window(rows[mixed], [usable[i] for i in mixed.tolist()])
                    window = []

    def _replace_unusable(self, rows: np.ndarray, window: list[Decoded]) -> tuple[np.ndarray, list[np.ndarray]]:
        """The window with the next usable image in each unusable one's place.

        Raises:
            TooManySkipped, UserError: too many, or all, can't be used.
        """
        good = np.array([i for i, pixels in enumerate(window) if not isinstance(pixels, BadImage)], dtype=int)
        for row, pixels in zip(rows.tolist(), window, strict=True):
            if isinstance(pixels, BadImage):
                self.unusable[row] = str(pixels)
        self._read = min(self._read + len(window), len(self.images))
        if self.unusable:
            check_skipped(self.skipped, max(self._read, EARLY_IMAGES), self.images.max_skipped)
        if not len(good):
            raise UserError(f"{self.images.source.name}: none of {len(rows)} images read together can be used")
        source = good[np.searchsorted(good, np.arange(len(window))) % len(good)]
        return rows[source], [window[i] for i in source.tolist()]


@contextmanager
def _reading_ahead() -> Iterator[ThreadPoolExecutor]:
    """One thread that reads while the caller computes; at the end what has not begun is dropped."""
    ahead = ThreadPoolExecutor(1)
    try:
        yield ahead
    finally:
        ahead.shutdown(cancel_futures=True)


def _power_of_two(limit: int) -> int:
    return 1 << (limit.bit_length() - 1)
