"""Batches straight from a source, for more images than the cache directory or the memory can hold.

The counterpart of `store` and `batches`: nothing is kept; every epoch reads the images anew, in an order that
suits storage and is still shuffled. Each batch is a function of (seed, step), whatever the number of processes.
"""

import math
import queue
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from mocokit import distributed
from mocokit.data.build import check_skipped
from mocokit.data.decode import BadImage
from mocokit.data.decode_pool import Decoded, decode_for_model, worker_count
from mocokit.data.image_index import ImageIndex, Skipped, Source
from mocokit.data.loader import Batch
from mocokit.data.pixels import stored_side
from mocokit.data.sources import open_source, read_all
from mocokit.data.store import Store, open_store
from mocokit.errors import UserError
from mocokit.seeding import derive_seed

SAMPLE_IMAGES, SAMPLE_BLOCKS = (
    10_000,
    64,
)  # of a split, for statistics and quality checks; from how many blocks
LANE_IMAGES = 64  # of a batch come from one lane; at least `LEAST_LANES` lanes, so that a batch is mixed
LEAST_LANES = 4
WINDOW_BYTES, MOST_WINDOW = 2**28, 1024  # of decoded images, and how many of them, that one lane mixes
EARLY_IMAGES = 1000  # after which too many unusable images end a run
_POLL_SECONDS = 0.1


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
    data: str, *, seed: int, max_skipped: float, **options: Any
) -> tuple[Store, StreamingImages]:
    """What the user named: a store of some images, for statistics and quality checks, and all training images.

    Args:
        data: see ``open_source``.
        seed: decides which images the store has.
        max_skipped: fraction of the images that may be unusable, 0 to 1.
        options: see ``open_store``.

    Raises:
        UserError, TooManySkipped: as ``open_store``.
    """
    source = open_source(data)
    listing = source.read_index()
    store = open_store(_Sample(source, listing, seed), seed=seed, max_skipped=max_skipped, **options)
    indices = listing.splits["train"]
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
    return replace(store, fingerprint=f"{store.fingerprint}-{len(images)}"), images


class _Sample:
    """Some images of a source, itself a source: whole stretches of some blocks, since a run is read at once."""

    def __init__(self, source: Source, listing: ImageIndex, seed: int) -> None:
        self.source, self.name, self.decoded = source, source.name, source.decoded
        splits = {split: _sample(rows, listing.blocks, seed) for split, rows in listing.splits.items()}
        self._listing = replace(listing, splits=splits)
        self._seed = seed

    def fingerprint(self) -> str:
        return f"sample/{SAMPLE_IMAGES}/{self._seed}/{self.source.fingerprint()}"

    def read_index(self) -> ImageIndex:
        return self._listing

    def read(self, index: int) -> bytes | np.ndarray:
        return self.source.read(index)


def _sample(rows: np.ndarray, blocks: np.ndarray | None, seed: int) -> np.ndarray:
    if len(rows) <= SAMPLE_IMAGES:
        return rows
    generator = np.random.default_rng(derive_seed(seed, "sample"))
    if blocks is None:
        return np.sort(generator.choice(rows, SAMPLE_IMAGES, replace=False))
    _, starts, lengths = np.unique(blocks[rows], return_index=True, return_counts=True)
    order = generator.permutation(len(starts))
    each = -(-SAMPLE_IMAGES // min(SAMPLE_BLOCKS, len(starts)))
    taken = np.minimum(lengths[order], each)
    enough = int(np.searchsorted(np.cumsum(taken), SAMPLE_IMAGES)) + 1
    stretches = zip(starts[order][:enough], taken[:enough], strict=True)
    return np.sort(np.concatenate([rows[start : start + count] for start, count in stretches]))


class _Window(NamedTuple):
    """Consecutive images of one lane, decoded and mixed: their positions in the set and their pixels."""

    ids: np.ndarray
    pixels: list[np.ndarray]


class StreamingBatches:
    """Iterates over the batches of steps ``start`` to ``total``, as `mocokit.data.loader.Batches` does.

    An epoch's order is that of the blocks, permuted. It is cut into equally long lanes; each gives its own
    rows of every batch, window by window, where a window is read in the order of storage and delivered mixed.
    A process reads the lanes that its share of the batch comes from, a window ahead of the training.
    An image that can't be used is replaced by the next one of its window. Images left over at the end of an
    epoch are left out.

    Attributes:
        per_epoch: batches of an epoch.
        start: the first step to give.
    """

    def __init__(
        self,
        images: StreamingImages,
        batch_size: int,
        seed: int,
        total: int,
        device: torch.device,
        workers: int,
    ) -> None:
        self.images, self.seed, self.total, self.device = images, seed, total, device
        self.batch_size = min(batch_size, len(images))
        self.per_epoch = len(images) // self.batch_size
        self.workers = min(workers, worker_count(images.source, len(images)))
        self.start = 0
        lanes = math.gcd(self.batch_size, _power_of_two(max(LEAST_LANES, self.batch_size // LANE_IMAGES)))
        self._rows = self.batch_size // lanes  # of each batch that a lane gives
        window = WINDOW_BYTES // (images.channels * stored_side(images.image_size) ** 2)
        self._steps = -(-min(window, MOST_WINDOW) // self._rows)  # that a window lasts
        part = distributed.local_slice(self.batch_size)
        self._lanes = range(part.start // self._rows, -(-part.stop // self._rows))
        first = self._lanes.start * self._rows
        self._part = slice(part.start - first, part.stop - first)
        self._skipped: dict[int, str] = {}
        self._read = 0
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[Batch]:
        self.close()
        self._closed = threading.Event()
        ready: queue.Queue[_Window | BaseException] = queue.Queue(maxsize=len(self._lanes))
        self._thread = threading.Thread(target=self._work, args=(ready, self._closed), daemon=True)
        self._thread.start()
        windows: list[_Window] = []
        section = (-1, -1)
        for step in range(self.start, self.total):
            epoch, batch = divmod(step, self.per_epoch)
            current, within = divmod(batch, self._steps)
            if (epoch, current) != section:
                section = (epoch, current)
                windows = [_got(ready) for _ in self._lanes]
            yield self._batch(windows, within, step)

    def close(self) -> None:
        """Stop reading."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def skipped(self) -> list[Skipped]:
        """The images that this process found to be unusable."""
        names, indices = self.images.names, self.images.indices
        return [Skipped(names[int(indices[row])], reason) for row, reason in sorted(self._skipped.items())]

    def _batch(self, windows: list[_Window], within: int, step: int) -> Batch:
        rows = slice(within * self._rows, (within + 1) * self._rows)
        ids = np.concatenate([window.ids[rows] for window in windows])[self._part]
        pixels = [image for window in windows for image in window.pixels[rows]][self._part]
        sizes = torch.tensor([image.shape[1:] for image in pixels], dtype=torch.int32)
        height, width = sizes.amax(dim=0).tolist()
        images = torch.zeros(
            (len(pixels), self.images.channels, height, width),
            dtype=torch.uint8,
            pin_memory=self.device.type == "cuda",
        )
        canvas = images.numpy()
        for row, image in enumerate(pixels):
            canvas[row, :, : image.shape[1], : image.shape[2]] = image
        images = images.to(self.device, non_blocking=True)
        return Batch(images, distributed.all_gather(sizes), torch.from_numpy(ids), step)

    def _work(self, ready: "queue.Queue[_Window | BaseException]", closed: threading.Event) -> None:
        """In a thread: read ahead until all is read or nobody wants more."""
        try:
            with closing(self._windows()) as windows:
                for window in windows:
                    if not _put(ready, window, closed):
                        return
        except BaseException as error:  # told where the batches are taken
            _put(ready, error, closed)

    def _windows(self) -> Generator[_Window, None, None]:
        """The windows of this process's lanes, in the order in which they are needed."""
        images = self.images
        planned: deque[tuple[np.ndarray, np.ndarray]] = deque()

        def indices() -> Iterator[int]:
            for rows, mixed in self._plan():
                planned.append((rows, mixed))
                yield from images.indices[rows].tolist()

        decoded = decode_for_model(
            read_all(images.source, indices()),
            image_size=images.image_size,
            channels=images.channels,
            intensity_range=images.intensity_range,
            workers=self.workers,
        )
        window: list[Decoded] = []
        with closing(decoded):
            for pixels in decoded:
                window.append(pixels)
                if len(window) == len(planned[0][0]):
                    rows, mixed = planned.popleft()
                    rows, usable = self._mended(rows, window)
                    yield _Window(rows[mixed], [usable[i] for i in mixed.tolist()])
                    window = []

    def _plan(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of each window the positions of its images, ascending, and the permutation that mixes it."""
        step, order, ordered = self.start, np.empty(0), -1
        while step < self.total:
            epoch, batch = divmod(step, self.per_epoch)
            if epoch != ordered:
                order, ordered = self._order(epoch), epoch
            first = batch - batch % self._steps
            last = min(first + self._steps, self.per_epoch)
            for lane in self._lanes:
                start = lane * self.per_epoch * self._rows
                rows = np.sort(order[start + first * self._rows : start + last * self._rows])
                generator = np.random.default_rng(
                    derive_seed(self.seed, f"window {epoch}", start + first * self._rows)
                )
                yield rows, generator.permutation(len(rows))
            step = epoch * self.per_epoch + last

    def _order(self, epoch: int) -> np.ndarray:
        """Positions of all images, int64 [N]: run by run, the blocks permuted."""
        generator = np.random.default_rng(derive_seed(self.seed, "order", epoch))
        count, blocks = len(self.images), self.images.blocks
        if blocks is None:
            return generator.permutation(count)
        starts = np.flatnonzero(np.diff(blocks, prepend=blocks[0] - 1))
        lengths = np.diff(starts, append=count)
        chosen = generator.permutation(len(starts))
        moved = starts[chosen] - (np.cumsum(lengths[chosen]) - lengths[chosen])
        return np.repeat(moved, lengths[chosen]) + np.arange(count)

    def _mended(self, rows: np.ndarray, window: list[Decoded]) -> tuple[np.ndarray, list[np.ndarray]]:
        """The window with the next usable image in each unusable one's place.

        Raises:
            TooManySkipped, UserError: too many, or all, can't be used.
        """
        good = np.array([i for i, pixels in enumerate(window) if not isinstance(pixels, BadImage)], dtype=int)
        for row, pixels in zip(rows.tolist(), window, strict=True):
            if isinstance(pixels, BadImage):
                self._skipped[row] = str(pixels)
        self._read = min(self._read + len(window), len(self.images))
        if self._skipped:
            check_skipped(self.skipped, max(self._read, EARLY_IMAGES), self.images.max_skipped)
        if not len(good):
            raise UserError(
                f"{self.images.source.name}: none of {len(rows)} images read together can be used"
            )
        source = good[np.searchsorted(good, np.arange(len(window))) % len(good)]
        return rows[source], [window[i] for i in source.tolist()]


def _power_of_two(limit: int) -> int:
    return 1 << (limit.bit_length() - 1)


def _got(ready: "queue.Queue[_Window | BaseException]") -> _Window:
    window = ready.get()
    if isinstance(window, BaseException):
        raise window
    return window


def _put(ready: "queue.Queue[Any]", item: Any, closed: threading.Event) -> bool:
    """Hand over ``item``, or give up when the taker has."""
    while not closed.is_set():
        try:
            ready.put(item, timeout=_POLL_SECONDS)
            return True
        except queue.Full:
            continue
    return False
