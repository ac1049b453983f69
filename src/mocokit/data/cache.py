"""The cache directory: where it is, and how its entries are built, each by one process and seen only whole."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from mocokit.console import say
from mocokit.errors import UserError
from mocokit.files import sync_directory
from mocokit.options import expanded, home_directory

_BUILDING = ".building"
_DISK_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO,
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT, errno.EEXIST, errno.ENOLCK,
}  # fmt: skip


def cache_directory() -> Path:
    """$MOCOKIT_CACHE, else $XDG_CACHE_HOME/mocokit, else ~/.cache/mocokit; created if needed.

    Raises:
        UserError: it can't be written.
    """
    try:
        if named := os.environ.get("MOCOKIT_CACHE"):
            root = Path(expanded(named))
        elif above := os.environ.get("XDG_CACHE_HOME"):
            root = Path(expanded(above)) / "mocokit"
        else:
            root = _default_directory()
    except ValueError as error:
        raise UserError(f"MOCOKIT_CACHE or XDG_CACHE_HOME: {error}") from None
    with cache_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    return root.resolve()


@cache
def _default_directory() -> Path:
    """Below the home directory; where there is none, among the temporary files, which is told once."""
    home = home_directory()
    if home and os.path.isdir(home):
        return Path(home) / ".cache" / "mocokit"
    user = os.getuid() if hasattr(os, "getuid") else "cache"
    root = Path(tempfile.gettempdir()) / f"mocokit-{user}"
    say(f"there is no home directory, so decoded images are kept in {root}; MOCOKIT_CACHE names another place")
    return root


@contextmanager
def cache_errors(root: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission inside the block into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise UserError(
            f"cannot write the image cache {root}: {error.strerror}; "
            "set MOCOKIT_CACHE to a directory with enough space that you may write to"
            " (mocokit pretrain --stream needs little)"
        ) from error


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock on the entries of the data set ``name`` in ``folder``; it ends with the process that holds it."""
    root = folder.parent
    with cache_errors(root):
        (root / "locks").mkdir(exist_ok=True)
        _remove_leftovers(folder)
        lock = _lock(folder, name)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            say(f"waiting for another process that decodes {name}")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def building(folder: Path, name: str, entry: str) -> Iterator[Path]:
    """Yield an empty directory that becomes ``folder``/``name``-``entry``; on an exception it is removed.

    The caller holds the lock; an entry of that name, which must be damaged, is replaced.
    """
    path, temporary = folder / f"{name}-{entry}", folder / f".{name}-{entry}{_BUILDING}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            with file.open("r+b") as handle:
                os.fsync(handle.fileno())
        sync_directory(temporary)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
        sync_directory(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _lock(folder: Path, name: str) -> FileLock:
    return FileLock(folder.parent / "locks" / f"{name}.lock")


def _remove_leftovers(folder: Path) -> None:
    """Remove the half-built entries of killed processes; those that are still being built are locked."""
    for leftover in folder.glob(f".*{_BUILDING}"):
        name = leftover.name[1:].rpartition("-")[0]
        with suppress(Timeout), _lock(folder, name).acquire(blocking=False):
            shutil.rmtree(leftover, ignore_errors=True)
