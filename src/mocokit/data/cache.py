"""The cache directory on disk: where it is, and how entries are built so that only whole ones are seen."""

import errno
import hashlib
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mocokit.errors import UserError

_BUILDING = ".building"
_DISK_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO,
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT, errno.EEXIST,
}  # fmt: skip


def cache_directory() -> Path:
    """$MOCOKIT_CACHE, else $XDG_CACHE_HOME/mocokit, else ~/.cache/mocokit; created if need be."""
    if named := os.environ.get("MOCOKIT_CACHE"):
        root = Path(named).expanduser()
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mocokit"
    with cache_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    return root.resolve()


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
            "set MOCOKIT_CACHE to a directory with room that you may write to"
            " (mocokit pretrain --stream needs little)"
        ) from error


@contextmanager
def building(path: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes ``path`` when the block ends; on an exception it is removed.

    Of two processes that build the same entry the first to end provides it, the other's is dropped.
    """
    _remove_stale(path.parent)
    temporary = path.parent / f"{_owner()}{os.getpid()}-{secrets.token_hex(4)}{_BUILDING}"
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
            shutil.rmtree(temporary)
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def discard(path: Path) -> None:
    """Remove an entry, out of sight first so that nobody opens half of it."""
    doomed = path.parent / f"{_owner()}{os.getpid()}-{secrets.token_hex(4)}{_BUILDING}"
    try:
        path.rename(doomed)
    except FileNotFoundError:  # another process was faster
        return
    shutil.rmtree(doomed, ignore_errors=True)


def _owner() -> str:
    """A prefix that names this machine: process numbers of others on a shared disk say nothing here."""
    host = hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()
    return f".{host}-"


def _remove_stale(directory: Path) -> None:
    """Remove what builds of this machine left behind when they were killed."""
    for path in directory.glob(f"{_owner()}*{_BUILDING}"):
        process = path.name.removeprefix(_owner()).partition("-")[0]
        if process.isdigit() and not _is_alive(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    if os.name == "nt":  # signal 0 would end the process there
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _sync(path: Path) -> None:
    """Flush a file or a directory to disk; Windows has no handles on directories and does without."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
