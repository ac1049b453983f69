"""The cache directory: where it is, and its entries, each built by one process, seen only whole, and removed only while
no command uses it."""

import errno
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from mocokit.console import say
from mocokit.errors import UserError
from mocokit.files import sync_directory
from mocokit.options import expanded, home_directory

if sys.platform != "win32":
    import fcntl

IMAGES, DOWNLOADS = "images", "cifar10"  # folders of the entries, and of what torchvision downloads
_BUILDING = ".building"
_LOOK_SECONDS = 0.05  # `entries` locks an entry for less
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
    with cache_errors(root):
        kept = _made_private(root)
        root = root if kept else Path(tempfile.mkdtemp(prefix=f"mocokit-{user}-"))
    how = "kept in" if kept else "for this command alone in"
    say(f"there is no home directory, so decoded images are {how} {root}; MOCOKIT_CACHE names another place")
    return root


def _made_private(root: Path) -> bool:
    """Make a folder among everybody's files that nobody else may write to, who could change what is learned from. Of
    one that was open nothing is kept; whether it is ours at all."""
    with suppress(FileExistsError):
        root.mkdir(mode=0o700)
    status = root.lstat()
    if not stat.S_ISDIR(status.st_mode) or (hasattr(os, "getuid") and status.st_uid != os.getuid()):
        return False
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        root.chmod(0o700)
        for folder in (IMAGES, DOWNLOADS):
            shutil.rmtree(root / folder, ignore_errors=True)
    return True


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
    with cache_errors(folder.parent):
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
    locks = folder.parent / "locks"
    locks.mkdir(exist_ok=True)
    return FileLock(locks / f"{name}.lock")


def _data_set(entry: Path) -> str:
    """The name that an entry's lock has, also while it is built."""
    return entry.name.removeprefix(".").rpartition("-")[0]


def remove_leftovers(folder: Path) -> None:
    """Remove the half-built entries of killed processes, and say so; those that are still being built are locked."""
    removed = []
    for leftover in sorted(folder.glob(f".*{_BUILDING}")):
        name = _data_set(leftover)
        with suppress(Timeout, OSError), _lock(folder, name).acquire(blocking=False):
            shutil.rmtree(leftover)
            removed.append(name)
    if removed:
        say(f"{folder}: removed what killed commands left half decoded ({len(removed)}, first {removed[0]})")


def hold(entry: Path) -> int | None:
    """Keep an entry from being removed as long as the descriptor that is returned is open, at most as long as this
    process lives.

    Raises:
        OSError: there is no such entry, or it is being removed.
    """
    if sys.platform == "win32":  # which removes nothing that is mapped
        return None
    descriptor, deadline = os.open(entry, os.O_RDONLY), time.monotonic() + _LOOK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(_LOOK_SECONDS / 20)
                continue
            os.close(descriptor)
            raise
        except OSError:  # a file system without locks
            pass
        return descriptor


class Entry(NamedTuple):
    """Something in the cache directory: its folder, size in bytes, when it was made (of `time.time`), and whether a
    command uses or builds it."""

    path: Path
    nbytes: int
    made: float
    in_use: bool


def entries(root: Path) -> list[Entry]:
    """What is in the cache directory, the largest first."""
    listed = []
    folders = [path for path in (root / IMAGES).glob("*") if path.is_dir() and not path.is_symlink()]
    for path in (*folders, root / DOWNLOADS):
        with suppress(OSError):  # removed meanwhile
            sizes = [file.stat().st_size for file in path.rglob("*") if file.is_file()]
            in_use = path.name.endswith(_BUILDING) or not _unused(path)
            listed.append(Entry(path, sum(sizes), path.stat().st_mtime, in_use))
    return sorted(listed, key=lambda entry: (-entry.nbytes, entry.path))


def _unused(entry: Path) -> bool:
    with suppress(BlockingIOError), _alone(entry):
        return True
    return False


@contextmanager
def _alone(entry: Path) -> Iterator[None]:
    """Inside, nobody can `hold` the entry; BlockingIOError if somebody does."""
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(entry, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


def remove(entry: Path) -> bool:
    """Remove an entry unless a command uses or builds it; whether it is gone. A killed removal is a leftover."""
    if entry.name == DOWNLOADS:  # which is read whole when it is opened
        shutil.rmtree(entry, ignore_errors=True)
        return not entry.exists()
    leftover = entry.with_name(f".{entry.name}{_BUILDING}")
    with suppress(Timeout, OSError), _lock(entry.parent, _data_set(entry)).acquire(blocking=False), _alone(entry):
        shutil.rmtree(leftover, ignore_errors=True)
        entry.rename(leftover)
        shutil.rmtree(leftover)
        return True
    return False
