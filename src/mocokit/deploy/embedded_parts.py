"""What ``mocokit embed`` has done so far, as Parquet files in a hidden directory, so that it can be resumed."""

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mocokit.config import Precision
from mocokit.data.image_index import Skipped
from mocokit.deploy.feature_file import METADATA_KEY
from mocokit.errors import UserError, refusing_damage
from mocokit.files import replacing
from mocokit.outputs import writing

PART_ROWS = 16_384  # of results that are held at most
PART_SECONDS = 30.0  # of work, about, that a killed process loses


class Parts:
    """Rows and skipped images of consecutive stretches of a sequence of images.

    Each stretch has a file of its own, START-STOP.parquet, written whole; its metadata hold what was skipped in it.

    Attributes:
        directory: hidden, next to the output.
        done: how much of the sequence is on disk, from its start and without a gap.
    """

    def __init__(self, output: Path, identity: dict[str, Any], overwrite: bool) -> None:
        """Take up the parts of ``output``, or begin; the caller holds the lock on their directory.

        ``identity`` is all that results depend on; with ``overwrite`` parts of another identity are removed.

        Raises:
            UserError: there are parts of another identity, or damaged ones.
            OSError: the directory is not writable.
        """
        self.directory = parts_directory(output)
        self._identity = identity
        found = [self._metadata(path)["identity"] for path in self.directory.glob("*-*.parquet")]
        if any({name: its.get(name) for name in identity} != identity for its in found):  # an older version says less
            if not overwrite:
                raise UserError(
                    f"{output}: an interrupted mocokit embed of another encoder, data, labels, dtype, --precision or "
                    f"--max-pixels left its parts in {self.directory}; --overwrite removes them"
                )
            self.remove()
        self.directory.mkdir(parents=True, exist_ok=True)
        for temporary in self.directory.glob("*.tmp"):
            temporary.unlink()
        self._held: list[tuple[int, pa.Table, list[Skipped]]] = []  # not on disk yet; each with where it stops
        self._flushed = time.monotonic()
        self.done = self._reach()

    def _files(self) -> Iterator[tuple[int, Path]]:
        """Each file and where its stretch stops, from the start of the sequence to the first gap."""
        following = {}
        for path in self.directory.glob("*-*.parquet"):
            start, stop = map(int, path.stem.split("-"))
            following[start] = stop, path
        position = 0
        while position in following:
            yield following[position]
            position = following[position][0]

    def _reach(self) -> int:
        return max((stop for stop, _ in self._files()), default=0)

    def _reading(self, path: Path) -> AbstractContextManager[None]:
        return refusing_damage(f"{path} is damaged", f"remove {self.directory} and run the command again")

    def _metadata(self, path: Path) -> dict[str, Any]:
        with self._reading(path):
            return _read_metadata(path)

    @property
    def position(self) -> int:
        """Where the next result belongs: behind what is on disk and what is held in memory."""
        return self._held[-1][0] if self._held else self.done

    def add(self, images: int, rows: pa.Table, skipped: list[Skipped]) -> None:
        """Take the results for the next ``images``; now and then what is held goes to disk."""
        self._held.append((self.position + images, rows, skipped))
        if self.position - self.done >= PART_ROWS or time.monotonic() - self._flushed > PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is held. After an interruption, wherever that was, another call completes it.

        Raises:
            UserError: the disk is full, or the directory is not writable.
        """
        if (stop := self.position) > self.done:
            _, tables, skipped = zip(*self._held, strict=True)
            metadata = json.dumps({"identity": self._identity, "skipped": list(itertools.chain(*skipped))})
            part = self.directory / f"{self.done}-{stop}.parquet"
            with writing(self.directory.parent), replacing(part) as path, path.open("wb") as file:
                pq.write_table(pa.concat_tables(tables).replace_schema_metadata({METADATA_KEY: metadata}), file)
            self.done = stop
        self._held = []
        self._flushed = time.monotonic()

    def check_complete(self, images: int) -> None:
        """Raise a UserError unless what is on disk, without a gap, is of so many ``images``."""
        if self._reach() != images:
            raise UserError(f"{self.directory} is damaged: a part is gone; run the command again, which makes it anew")

    def skipped(self) -> list[Skipped]:
        """The images on disk that can't be used, in order."""
        return [Skipped(*pair) for _, path in self._files() for pair in self._metadata(path)["skipped"]]

    def tables(self) -> Iterator[pa.Table]:
        """The rows on disk, in order; a damaged part raises a UserError."""
        for _, path in self._files():
            with self._reading(path), path.open("rb") as file:
                table = pq.ParquetFile(file).read()
            yield table.replace_schema_metadata(None)

    def remove(self) -> None:
        """Remove all of them; the directory, in which the lock is, stays."""
        for part in self.directory.glob("*-*.parquet"):
            part.unlink()


def parts_directory(output: Path) -> Path:
    """The directory of the parts of ``output``."""
    return output.with_name(f".{output.name}.parts")


def _read_metadata(part: Path) -> dict[str, Any]:
    with part.open("rb") as file:  # opened here: pyarrow takes UTF-8 names alone
        return dict(json.loads(pq.read_schema(file).metadata[METADATA_KEY]))


def precision_of_parts(output: Path) -> Precision | None:
    """In which an interrupted command computed; None if there is none, or its parts are damaged."""
    for part in parts_directory(output).glob("*-*.parquet"):
        with suppress(Exception):  # told when they are taken up
            precision: Precision = _read_metadata(part)["identity"]["precision"]
            return precision
    return None
