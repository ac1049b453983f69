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
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from mocokit.data.decode import MAX_FILE_BYTES, BadImage, decode, shrink
from mocokit.data.image_index import Source
from mocokit.data.pixels import convert, convertible, stored_side
from mocokit.machine import usable_cores


class ImageFile(NamedTuple):
    """A file that is read by the process that decodes it."""

    path: str

    def read(self) -> bytes:
        """Its content; raises BadImage if it can't be had."""
        try:
            # Not blocking: the file may have become a FIFO since it was listed.
            flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            with open(os.open(self.path, flags), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise BadImage("not a regular file")
                if status.st_size > MAX_FILE_BYTES:
                    raise BadImage("larger than 1 GiB")
                return file.read(status.st_size)  # a larger number would be allocated in full
        except OSError as error:
            raise BadImage(f"cannot be read: {error.strerror}") from error


Encoded = bytes | np.ndarray | BadImage | ImageFile
Decoded = np.ndarray | BadImage

_FEW_IMAGES = 200  # below, starting processes costs more than it saves
_CHUNK_IMAGES = 64
_CHUNK_BYTES = 2**24
_DEEP_PIXEL_BYTES = 12  # three bands of float32
_stop: Any = None  # in a worker: shared with the parent, not 0 when the result is no longer needed


def worker_count(source: Source, images: int) -> int:
    """Number of decoding processes that is fastest for that many images."""
    return 0 if source.decoded or images < _FEW_IMAGES else usable_cores()


def decode_for_model(
    images: Iterable[Encoded],
    *,
    image_size: int,
    channels: int,
    intensity_range: tuple[float, float] | None,
    workers: int = 0,
) -> Generator[Decoded, None, None]:
    """Decode and convert images in order, to the pixels that the store would hold; nothing is written to disk.

    Args:
        images: as `mocokit.data.sources.read_all` gives them.
        image_size: the side that the model takes in; images are shrunk to twice that side at most.
        channels: gray is converted to RGB (3) or the reverse (1).
        intensity_range: what 0 and 255 stand for in images of more than 8 bits; None scales each by its own range.
        workers: decoding processes, 0 for none.

    Yields:
        For each image uint8 [channels, H, W], or the BadImage that says why it can't be used.
    """
    with closing(decode_all(images, stored_side(image_size), workers)) as decoded:
        for pixels in decoded:
            if isinstance(pixels, BadImage):
                yield pixels
            elif not convertible(len(pixels), channels):
                yield BadImage(f"{len(pixels)} channels where {channels} are needed")
            else:
                yield convert(pixels, channels, intensity_range)


def decode_all(images: Iterable[Encoded], max_side: int, workers: int) -> Generator[Decoded, None, None]:
    """Decode images in order, in ``workers`` processes, with 0 in this one; ``max_side`` is that of ``decode``.

    Pixels [C, H, W] are only shrunk; what cannot be decoded comes out as its BadImage.
    """
    if workers == 0:
        yield from (_decode(image, max_side) for image in images)
        return
    with _Pool(workers, max_side) as pool:
        pending: deque[tuple[list[Encoded], Future[list[Decoded]]]] = deque()
        for chunk in _chunks(images, max_side):
            pending.append((chunk, pool.submit(chunk)))
            if len(pending) > 2 * workers:
                yield from pool.result(*pending.popleft())
        while pending:
            yield from pool.result(*pending.popleft())


def _chunks(images: Iterable[Encoded], max_side: int) -> Iterator[list[Encoded]]:
    """Group images so that neither a chunk's files nor its pixels take much memory."""
    most = min(_CHUNK_IMAGES, 1 + 2 * _CHUNK_BYTES // (max_side**2 * _DEEP_PIXEL_BYTES))
    chunk: list[Encoded] = []
    size = 0
    for image in images:
        chunk.append(image)
        size += memoryview(image).nbytes if isinstance(image, bytes | np.ndarray) else 0  # type: ignore[arg-type]
        if len(chunk) >= most or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _decode(image: Encoded, max_side: int) -> Decoded:
    if isinstance(image, np.ndarray):
        return shrink(image, max_side)
    try:
        if isinstance(image, BadImage):
            return image
        return decode(image.read() if isinstance(image, ImageFile) else image, max_side)
    except BadImage as error:
        return error


class _Pool:
    """A process pool that survives images which kill its processes."""

    def __init__(self, workers: int, max_side: int) -> None:
        # Forked workers start at once and need no importable __main__ (a notebook, a script on stdin). They
        # use none of what a fork may leave locked: no threads of others, no BLAS, no CUDA.
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self._stop = context.RawValue("b", 0)
        self._start = partial(
            ProcessPoolExecutor, mp_context=context, initializer=_start_worker, initargs=(self._stop,)
        )
        self._workers, self._max_side = workers, max_side
        self._executor = self._start(workers)

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Told to stop, a worker leaves its chunk but does not end: one that has sent half a result would leave the
        # parent waiting for the other half.
        self._stop.value = kind is not None
        self._executor.shutdown(cancel_futures=True)

    def submit(self, chunk: list[Encoded]) -> Future[list[Decoded]]:
        try:
            return self._executor.submit(_decode_chunk, chunk, self._max_side)
        except BrokenProcessPool:
            self._executor = self._start(self._workers)
            return self._executor.submit(_decode_chunk, chunk, self._max_side)

    def result(self, chunk: list[Encoded], future: Future[list[Decoded]]) -> list[Decoded]:
        """The decoded chunk. One that was under way when a process died is decoded image by image."""
        try:
            return future.result()
        except BrokenProcessPool:
            decoded: list[Decoded] = []
        executor = self._start(1)
        for image in chunk:
            try:
                decoded += executor.submit(_decode_chunk, [image], self._max_side).result()
            except BrokenProcessPool:
                decoded.append(BadImage("the decoder crashed on it"))
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


def _decode_chunk(chunk: list[Encoded], max_side: int) -> list[Decoded]:
    """In a worker."""
    return [_decode(image, max_side) for image in chunk if not _stop.value]
