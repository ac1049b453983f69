"""What ``mocokit embed`` has done so far, in whole files beside its output: the reason it can be resumed."""

import json
import re
import shutil
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mocokit.errors import UserError
from mocokit.files import replacing, write_json

PART_ROWS = 16_384  # of results that are held at most
PART_SECONDS = 30.0  # of work, about, that a killed process loses

_IDENTITY = "identity.json"
_NAME = re.compile(r"(\d+)-(\d+)\.npz")

Arrays = dict[str, np.ndarray]


class _Held(NamedTuple):
    """Results for the stretch from ``start`` to ``stop`` that are not on disk yet."""

    start: int
    stop: int
    arrays: Arrays


class Parts:
    """Results for consecutive stretches of a sequence, each in a file that its name says the stretch of.

    Attributes:
        directory: hidden, beside the output.
        done: how much of the sequence is on disk, from its start and without a gap.
    """

    def __init__(self, output: Path, identity: dict[str, Any], overwrite: bool) -> None:
        """Take up the parts of ``output``, or begin.

        Args:
            output: the file that will be assembled.
            identity: all that results depend on; parts of another identity are not taken up.
            overwrite: remove those.

        Raises:
            UserError: there are parts of another identity.
            OSError: the directory can't be written.
        """
        self.directory = output.with_name(f".{output.name}.parts")
        written = self._identity()
        if self.directory.exists() and written != identity:
            if written is not None and not overwrite:
                raise UserError(
                    f"{output}: an interrupted mocokit embed of another encoder, data or dtype left its parts in "
                    f"{self.directory}; --overwrite removes them, or name another --output"
                )
            shutil.rmtree(self.directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        write_json(self.directory / _IDENTITY, identity)
        self._held: list[_Held] = []
        self._flushed = time.monotonic()
        self._files: list[Path] = []
        self.done = 0
        stretches = {int(m[1]): int(m[2]) for p in self.directory.iterdir() if (m := _NAME.fullmatch(p.name))}
        while stop := stretches.get(self.done):
            self._append(stop)

    def _identity(self) -> Any:
        try:
            return json.loads((self.directory / _IDENTITY).read_text("utf-8"))
        except (OSError, ValueError):
            return None

    def _append(self, stop: int) -> None:
        self._files.append(self.directory / f"{self.done}-{stop}.npz")
        self.done = stop

    @property
    def position(self) -> int:
        """Where the next result belongs: behind what is on disk and what is held."""
        return self._held[-1].stop if self._held else self.done

    def add(self, count: int, arrays: Arrays) -> None:
        """Take the results for the next ``count`` of the sequence; now and then what is held goes to disk.

        Raises:
            OSError: it can't be written.
        """
        start = self.position
        self._held.append(_Held(start, start + count, arrays))
        if self.position - self.done >= PART_ROWS or time.monotonic() - self._flushed > PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is held. Another call is right after this one was interrupted, wherever that was.

        Raises:
            OSError: it can't be written.
        """
        held = [part for part in self._held if part.start >= self.done]
        if held:
            stop = held[-1].stop
            with replacing(self.directory / f"{self.done}-{stop}.npz") as path, path.open("wb") as file:
                np.savez(file, **_joined([part.arrays for part in held]))  # type: ignore[arg-type]
            self._append(stop)
        self._held = []
        self._flushed = time.monotonic()

    def __iter__(self) -> Iterator[Arrays]:
        """The arrays of each part, in order.

        Raises:
            UserError: a part is damaged.
        """
        for path in self._files:
            try:
                with np.load(path, allow_pickle=False) as file:
                    yield dict(file)
            except (OSError, ValueError, EOFError, zipfile.BadZipFile):
                raise UserError(f"{path} is damaged; remove {self.directory} and embed again") from None

    def merged(self, rows: int) -> Iterator[Arrays]:
        """As iteration, with short parts joined to at least ``rows`` of their first array."""
        held: list[Arrays] = []
        for part in self:
            held.append(part)
            if sum(len(next(iter(p.values()))) for p in held) >= rows:
                yield _joined(held)
                held = []
        if held:
            yield _joined(held)

    def remove(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.directory)


def _joined(parts: list[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
