"""Where a command writes: looked at before the work begins, and told about where it fails."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mocokit.errors import UserError


def check_no_file(option: str, folder: Path) -> None:
    """Refuse a folder in whose place, or above it, there is something else."""
    there = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), folder)
    if os.path.lexists(there) and not there.is_dir():
        raise UserError(f"{option} {folder}: {there} is no folder; choose another {option}")


def check_file(option: str, path: Path, overwrite: bool, suffixes: tuple[str, ...] = ()) -> None:
    """Refuse a path that can't be a file, ends in none of ``suffixes``, or is there and not to ``overwrite``."""
    if path.is_dir():
        raise UserError(f"{option} {path}: is a folder; name a file")
    if suffixes and path.suffix.lower() not in suffixes:
        raise UserError(f"{option} {path}: is no {suffixes[0]}; name a {suffixes[0]} file")
    check_no_file(option, path.parent)
    if path.exists() and not overwrite:
        raise UserError(f"{option} {path}: exists; name another, or --overwrite to replace it")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Inside, a full disk or a ``folder`` that may not be written is the user's to fix: a `UserError`."""
    try:
        yield
    except OSError as error:
        where, why = error.filename2 or error.filename or folder, error.strerror or error
        way_out = "make room or fix the folder's permissions and run the same command again"
        if isinstance(error, NotADirectoryError | FileExistsError):
            way_out = "a file is in the way; name another place"
        raise UserError(f"{where}: {why}; what was written before is kept; {way_out}") from error
