"""Decode many images in parallel processes, in order and in bounded memory.

The parent reads archives, so that they have one reader; files of a folder are read by the workers. A worker that an
image crashes is replaced.
"""

import multiprocessing
import os
import signal
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mocokit.data.decode import MAX_FILE_BYTES, TOO_MANY_BYTES, decode
from mocokit.data.image_index import Source
from mocokit.data.pillow import MAX_PIXELS, BadImage, filled, shrink
from mocokit.data.pixels import ASSUMED, DULL, ENCODER_RANGE, FEW_LEVELS, convert, convertible, scaled, stored_side
from mocokit.data.tiles import Grid
from mocokit.machine import usable_cores


class ImageFile(NamedTuple):
    """A file that is read by the process that needs its content."""

    path: str

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open it for reading; raises BadImage if it can't be read, also inside the block."""
        try:
            # Not blocking: the file may have become a FIFO since it was listed.
            flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            with open(os.open(self.path, flags), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise BadImage("not a regular file")
                if status.st_size > MAX_FILE_BYTES:
                    raise BadImage(TOO_MANY_BYTES)
                yield file
        except OSError as error:
            raise BadImage(f"cannot be read: {error.strerror}") from error

    def read(self) -> bytes:
        """Its content; raises BadImage if it can't be had."""
        with self.open() as file:
            return file.read(os.fstat(file.fileno()).st_size)  # a larger number would be allocated in full


class Tiles(NamedTuple):
    """Tiles of one image, which is decoded once for them: their ``numbers`` in its ``grid``, and its ``size``, height
    and width, as its header states it."""

    image: bytes | np.ndarray | BadImage | ImageFile
    size: tuple[int, int]
    grid: Grid
    numbers: list[int]


Encoded = bytes | np.ndarray | BadImage | ImageFile | Tiles
Decoded = np.ndarray | BadImage
Noted = Callable[[int, str], None]  # of the position among the images and what was decided about that one
_Result = tuple[Decoded, list[str]]  # with what was decided

_FEW_IMAGES = 200  # below, starting processes costs more than it saves
_CHUNK_IMAGES = 64
_CHUNK_BYTES = 2**24
_PENDING_BYTES = 2**28  # of files that wait to be decoded
_DEEP_PIXEL_BYTES = 12  # three bands of float32
_stop: Any = None  # in a worker: shared with the parent, not 0 when the result is no longer needed


def worker_count(source: Source, images: int) -> int:
    """Number of decoding processes that is fastest for that many images."""
    return 0 if source.decoded or images < _FEW_IMAGES else usable_cores()


def read_all(source: Source, indices: Iterable[int]) -> Iterator[Encoded]:
    """The images at ``indices`` of a source's index, which has been read: a folder's files, not yet read; tiles of one
    image as one."""
    if together := getattr(source, "read_together", None):
        yield from together(indices)
        return
    read = getattr(source, "file", source.read)
    for index in indices:
        try:
            yield read(index)
        except BadImage as error:
            yield error


def decode_for_model(
    images: Iterable[Encoded],
    *,
    image_size: int,
    channels: int,
    intensity_range: tuple[float, float] | None,
    workers: int = 0,
    noted: Noted | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Generator[Decoded, None, None]:
    """Decode and convert images in order, to the pixels that the store would hold; nothing is written to disk.

    Args:
        images: as `read_all` gives them.
        image_size: the side that the model takes in; images are shrunk to twice that side at most.
        channels: gray is converted to RGB (3) or the reverse (1).
        intensity_range: what 0 and 255 stand for in images of more than 8 bits; None is explained at
            `mocokit.data.pixels.assumed_range`.
        workers: decoding processes, 0 for none.
        noted: called with what a user may not expect of an image.
        max_pixels: larger images are not decoded.

    Yields:
        For each image uint8 [channels, H, W], or the BadImage that says why it can't be used.
    """
    with closing(decode_all(images, stored_side(image_size), workers, noted, max_pixels)) as decoded:
        for position, pixels in enumerate(decoded):
            if isinstance(pixels, BadImage):
                yield pixels
            elif not convertible(len(pixels), channels):
                yield BadImage(f"{len(pixels)} channels where {channels} are needed")
            else:
                try:
                    converted = convert(pixels, channels, intensity_range)
                except BadImage as error:
                    yield error
                    continue
                if noted and pixels.dtype != np.uint8:
                    noted(position, scaled(*intensity_range, ENCODER_RANGE) if intensity_range else ASSUMED)
                    if np.ptp(converted) < FEW_LEVELS:
                        noted(position, DULL)
                yield converted


def decode_all(
    images: Iterable[Encoded], max_side: int, workers: int, noted: Noted | None = None, max_pixels: int = MAX_PIXELS
) -> Generator[Decoded, None, None]:
    """Decode images in order, in ``workers`` processes, with 0 in this one; ``max_side`` is that of ``decode``.

    Pixels [C, H, W] are only shrunk; what cannot be decoded comes out as its BadImage.
    """
    with closing(_results(images, max_side, workers, max_pixels)) as results:
        for position, (decoded, notes) in enumerate(results):
            if noted:
                for text in notes:
                    noted(position, text)
            yield decoded


def _results(images: Iterable[Encoded], max_side: int, workers: int, max_pixels: int) -> Generator[_Result, None, None]:
    if workers == 0:
        for image in images:
            yield from _decode(image, max_side, max_pixels)
        return
    with _Pool(workers, max_side, max_pixels) as pool:
        pending: deque[tuple[list[Encoded], Future[list[_Result]]]] = deque()
        for chunk in _chunks(images, max_side):
            pending.append((chunk, pool.submit(chunk)))
            waiting = sum(_nbytes(image, max_side) for its, _ in pending for image in its)
            while pending and (len(pending) > 2 * workers or waiting > _PENDING_BYTES):
                waiting -= sum(_nbytes(image, max_side) for image in pending[0][0])
                yield from pool.result(*pending.popleft())
        while pending:
            yield from pool.result(*pending.popleft())


def _chunks(images: Iterable[Encoded], max_side: int) -> Iterator[list[Encoded]]:
    """Group images so that neither a chunk's files nor its pixels take much memory."""
    most = min(_CHUNK_IMAGES, 1 + 2 * _CHUNK_BYTES // (max_side**2 * _DEEP_PIXEL_BYTES))
    chunk: list[Encoded] = []
    size = number = 0
    for image in images:
        chunk.append(image)
        size, number = size + _nbytes(image, max_side), number + _count(image)
        if number >= most or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size, number = [], 0, 0
    if chunk:
        yield chunk


def _count(image: Encoded) -> int:
    """How many results there will be."""
    return len(image.numbers) if isinstance(image, Tiles) else 1


def _nbytes(image: Encoded, max_side: int) -> int:
    """Of what waits to be decoded; with tiles, which may be many, of what comes of them, about."""
    if isinstance(image, Tiles):
        return _nbytes(image.image, max_side) + 3 * max_side**2 * _count(image)
    return memoryview(image).nbytes if isinstance(image, bytes | np.ndarray) else 0  # type: ignore[arg-type]


def _decode(image: Encoded, max_side: int | None, max_pixels: int) -> list[_Result]:
    """What comes of an image, or of each of some tiles."""
    if isinstance(image, Tiles):
        return decode_tiles(image, max_side, max_pixels)
    notes: list[str] = []
    try:
        if isinstance(image, BadImage):
            return [(image, notes)]
        if isinstance(image, np.ndarray):
            pixels = image if image.dtype == np.uint8 else filled(image, note=notes.append)
            return [(shrink(pixels, max_side), notes)]
        data = image.read() if isinstance(image, ImageFile) else image
        return [(decode(data, max_side, notes.append, max_pixels), notes)]
    except BadImage as error:
        return [(error, [])]


def decode_tiles(tiles: Tiles, max_side: int | None, max_pixels: int) -> list[_Result]:
    """The tiles, each shrunk to ``max_side`` at most; what is to be told of their image is told of the first."""
    ((whole, notes),) = _decode(tiles.image, None, max_pixels)
    if not isinstance(whole, BadImage) and whole.shape[1:] != tiles.size:
        whole = BadImage("not of the size that its header says")
    if isinstance(whole, BadImage):
        return [(whole, [])] * _count(tiles)
    parts = (whole[:, *tiles.grid.box(number, *tiles.size)] for number in tiles.numbers)
    return [(np.ascontiguousarray(shrink(part, max_side)), [] if n else notes) for n, part in enumerate(parts)]


class _Pool:
    """A process pool that survives images which kill its processes."""

    def __init__(self, workers: int, max_side: int, max_pixels: int) -> None:
        # Forked workers start at once and need no importable __main__ (a notebook, a script on stdin). They
        # use none of what a fork may leave locked: no threads of others, no BLAS, no CUDA.
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self._stop = context.RawValue("b", 0)
        self._start = partial(
            ProcessPoolExecutor, mp_context=context, initializer=_start_worker, initargs=(self._stop,)
        )
        self._workers, self._decode = workers, partial(_decode_chunk, max_side=max_side, max_pixels=max_pixels)
        self._executor = self._start(workers)

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Told to stop, a worker leaves its chunk but does not end: one that has sent half a result would leave the
        # parent waiting for the other half.
        self._stop.value = kind is not None
        self._executor.shutdown(cancel_futures=True)

    def submit(self, chunk: list[Encoded]) -> Future[list[_Result]]:
        try:
            return self._executor.submit(self._decode, chunk)
        except BrokenProcessPool:
            self._executor = self._start(self._workers)
            return self._executor.submit(self._decode, chunk)

    def result(self, chunk: list[Encoded], future: Future[list[_Result]]) -> list[_Result]:
        """The decoded chunk. One that was under way when a process died is decoded image by image."""
        try:
            return future.result()
        except BrokenProcessPool:
            decoded: list[_Result] = []
        executor = self._start(1)
        for image in chunk:
            try:
                decoded += executor.submit(self._decode, [image]).result()
            except BrokenProcessPool:
                decoded += [(BadImage("the decoder crashed on it"), [])] * _count(image)
                executor = self._start(1)
        executor.shutdown()
        return decoded


def _start_worker(stop: Any) -> None:
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """A parent that is killed cannot stop workers that wait for work."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _decode_chunk(chunk: list[Encoded], max_side: int, max_pixels: int) -> list[_Result]:
    """In a worker."""
    return [result for image in chunk if not _stop.value for result in _decode(image, max_side, max_pixels)]
