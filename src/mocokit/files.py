"""Write files whole: a reader, or a run that is killed, sees the old file or the new one, never a part."""

import csv
import glob
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

IDLE_SECONDS = 3600.0  # a temporary file that nobody has written to for so long is that of a killed process


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is synced to disk and renamed over ``path``.

    On any exception the temporary file is removed and ``path`` keeps what it held. What processes that were killed here
    have left is removed, too.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_temporary(path, IDLE_SECONDS)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files only their owner can read
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def is_utf8(name: str) -> bool:
    """Whether a name is text: of a file it may hold other bytes, which Python gives as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    """A name as every format can hold it: of files and folders it need not be UTF-8; what is not gets backslashes."""
    return name if name.isascii() else name.encode(errors="backslashreplace").decode()


def utf8_path(path: Path) -> str:
    """A name of an existing file for readers that take UTF-8 alone: where its own is not, that of a descriptor, which
    stays open."""
    place = str(path.absolute())
    return place if is_utf8(place) else f"/dev/fd/{os.open(path, os.O_RDONLY)}"


def remove_temporary(path: Path, idle: float = 0) -> None:
    """Remove the temporary files that processes killed inside `replacing` have left beside ``path``; where others may
    be at work, those that nobody has written to for ``idle`` seconds."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError):
            if not idle or abs(time.time() - temporary.stat().st_mtime) > idle:  # in the future by another clock
                temporary.unlink()


def sync_directory(directory: Path) -> None:
    """Make a rename durable; file systems without directory handles (Windows) do without."""
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` (UTF-8)."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(
    path: Path, columns: Sequence[str], rows: Iterable[Iterable[Any]], quoting: Any = csv.QUOTE_MINIMAL
) -> None:
    """Replace ``path`` by a table; of names that are not UTF-8 the other bytes get backslashes."""
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        csv.writer(file, lineterminator="\n", quoting=quoting).writerows([columns, *rows])


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none, or it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as indented JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")
