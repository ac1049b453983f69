"""Decode many images in parallel processes, in order and in bounded memory; the store's engine.

The parent reads archives, so that they see one reader; files of a folder are read by the workers. These keep
nothing, so one that a hostile file brings down can be replaced at any time.
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
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

import numpy as np

from mocokit.data.decode import MAX_FILE_BYTES, BadImage, decode, shrink
from mocokit.data.image_index import Source
from mocokit.machine import usable_cores


class ImageFile(NamedTuple):
    """A file that is read where it is decoded, so that processes also share the reading."""

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
_stopping = threading.Event()  # in a worker: nobody waits for what is under way


def worker_count(source: Source, images: int) -> int:
    """As many decoding processes as pay for that many images."""
    return 0 if source.decoded or images < _FEW_IMAGES else usable_cores()


def decode_all(images: Iterable[Encoded], max_side: int, workers: int) -> Generator[Decoded, None, None]:
    """Decode images in order; what cannot be decoded comes out as its BadImage.

    Args:
        images: files or their contents, or pixels [C, H, W] that are only shrunk, or a BadImage passed through.
        max_side: see ``decode``.
        workers: number of processes; with 0 the images are decoded in this one.
    """
    chunks = _chunks(images, max_side)
    if workers == 0:
        for chunk in chunks:
            yield from _decode_chunk(chunk, max_side)
        return
    with _Pool(workers) as pool:
        pending: deque[tuple[list[Encoded], Future[list[Decoded]]]] = deque()
        for chunk in chunks:
            pending.append((chunk, pool.submit(chunk, max_side)))
            if len(pending) > 2 * workers:
                yield from pool.result(*pending.popleft(), max_side)
        while pending:
            yield from pool.result(*pending.popleft(), max_side)


def _chunks(images: Iterable[Encoded], max_side: int) -> Iterator[list[Encoded]]:
    """Group images so that neither a chunk's files nor its pixels take much memory."""
    most = min(_CHUNK_IMAGES, 1 + 2 * _CHUNK_BYTES // (max_side**2 * _DEEP_PIXEL_BYTES))
    chunk: list[Encoded] = []
    size = 0
    for image in images:
        chunk.append(image)
        size += (
            len(image) if isinstance(image, bytes) else image.nbytes if isinstance(image, np.ndarray) else 0
        )
        if len(chunk) >= most or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _decode_chunk(chunk: list[Encoded], max_side: int) -> list[Decoded]:
    return [_decode_one(image, max_side) for image in chunk if not _stopping.is_set()]


def _decode_one(image: Encoded, max_side: int) -> Decoded:
    if isinstance(image, BadImage):
        return image
    if isinstance(image, np.ndarray):
        return shrink(image, max_side)
    try:
        return decode(image.read() if isinstance(image, ImageFile) else image, max_side)
    except BadImage as error:
        return error


class _Pool:
    """A process pool that survives images which kill its processes."""

    def __init__(self, workers: int) -> None:
        # Forked workers start at once and need no importable __main__ (a notebook, a script on stdin). They
        # use none of what a fork may leave locked: no threads of others, no BLAS, no CUDA.
        self._context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self._workers = workers
        self._stopped, self._stop = self._context.Pipe(duplex=False)
        self._executor = self._start(workers)

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._stop.send_bytes(b"stop")
        self._executor.shutdown(cancel_futures=True)
        self._stop.close()
        self._stopped.close()

    def submit(self, chunk: list[Encoded], max_side: int) -> Future[list[Decoded]]:
        try:
            return self._executor.submit(_decode_chunk, chunk, max_side)
        except BrokenProcessPool:
            self._executor.shutdown()
            self._executor = self._start(self._workers)
            return self._executor.submit(_decode_chunk, chunk, max_side)

    def result(self, chunk: list[Encoded], future: Future[list[Decoded]], max_side: int) -> list[Decoded]:
        """The decoded chunk. One that was under way when a process died is decoded image by image."""
        try:
            return future.result()
        except BrokenProcessPool:
            return self._one_by_one(chunk, max_side)

    def _one_by_one(self, chunk: list[Encoded], max_side: int) -> list[Decoded]:
        decoded: list[Decoded] = []
        executor = self._start(1)
        for image in chunk:
            try:
                decoded += executor.submit(_decode_chunk, [image], max_side).result()
            except BrokenProcessPool:
                decoded.append(BadImage("the decoder crashed on it"))
                executor.shutdown()
                executor = self._start(1)
        executor.shutdown()
        return decoded

    def _start(self, workers: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            workers, mp_context=self._context, initializer=_start_worker, initargs=(self._stopped,)
        )


def _start_worker(stopped: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_exit_with_parent, args=(stopped,), daemon=True).start()


def _exit_with_parent(stopped: Connection) -> None:
    """End when the parent is gone: killed, it cannot stop workers that wait for work.

    Told to stop, a worker leaves its chunk but does not end: a parent that has half a result would wait for
    the other half.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    if parent.sentinel not in wait([parent.sentinel, stopped]):
        _stopping.set()
        wait([parent.sentinel])
    os._exit(1)
