"""Decode many images in parallel processes, in order and in bounded memory; the store's engine.

The parent reads the files and the workers only compute, so that disks and archives see one reader and a
worker that a hostile file brings down can be replaced at any time.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection, wait

import numpy as np

from mocokit.data.decode import BadImage, decode, shrink

Encoded = bytes | np.ndarray | BadImage
Decoded = np.ndarray | BadImage

_CHUNK_IMAGES = 64
_CHUNK_BYTES = 2**24
_DEEP_PIXEL_BYTES = 12  # three bands of float32


def usable_cores() -> int:
    """The processor cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decode_all(images: Iterable[Encoded], max_side: int, workers: int) -> Generator[Decoded, None, None]:
    """Decode images in order; what cannot be decoded comes out as its BadImage.

    Args:
        images: file contents, or pixels [C, H, W] that are only shrunk, or a BadImage passed through.
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
        size += 0 if isinstance(image, BadImage) else len(image) if isinstance(image, bytes) else image.nbytes
        if len(chunk) >= most or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _decode_chunk(chunk: list[Encoded], max_side: int) -> list[Decoded]:
    return [_decode_one(image, max_side) for image in chunk]


def _decode_one(image: Encoded, max_side: int) -> Decoded:
    if isinstance(image, BadImage):
        return image
    if isinstance(image, np.ndarray):
        return shrink(image, max_side)
    try:
        return decode(image, max_side)
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
            self._stop.send_bytes(b"stop")  # nobody waits for what is under way
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
    """End when told to, or when the parent is gone: killed, it cannot stop workers that wait for work."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel, stopped])
    os._exit(1)
