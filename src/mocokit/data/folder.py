"""A folder of images as a source."""

import errno
import hashlib
import os
import stat
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from mocokit.data.decode_pool import ImageFile
from mocokit.data.image_index import ImageIndex, Skipped, index_by_folders, is_hidden, is_image_name
from mocokit.errors import UserError


class FolderSource:
    """The images in a folder, at any depth."""

    decoded = False

    def __init__(self, path: Path) -> None:
        self.root = path.resolve()
        self.name = self.root.name or "data"
        self._names: Sequence[str] = []

    @cached_property
    def _found(self) -> "_Walk":
        return _Walk(self.root)

    def fingerprint(self) -> str:
        """From path, size and time of each image."""
        lines = [f"{name}\0{size}\0{time}\n" for name, (size, time) in sorted(self._found.images.items())]
        lines += [f"{skipped.name}\0{skipped.reason}\n" for skipped in sorted(self._found.refused)]
        text = "".join(lines).encode(errors="surrogatepass")
        return f"folder/{hashlib.blake2b(text, digest_size=16).hexdigest()}"

    def read_index(self) -> ImageIndex:
        image_index = index_by_folders(self._found.images, self._found.refused, self.root)
        self._names = image_index.names
        return image_index

    def file(self, index: int) -> ImageFile:
        """Image ``index``, not yet read."""
        # A string: to make a Path takes as long as to open the file.
        return ImageFile(f"{self.root}{os.sep}{self._names[index]}")

    def read(self, index: int) -> bytes:
        return self.file(index).read()


class _Walk:
    """Finds the images below a folder without leaving it, and enters each real folder once.

    Attributes:
        images: size and modification time of each, by its path relative to the folder.
        refused: what must not be read.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images: dict[str, tuple[int, int]] = {}
        self.refused: list[Skipped] = []
        self._visited: set[str] = set()
        try:
            os.scandir(root).close()
        except OSError as error:
            raise UserError(f"{root} cannot be read: {error.strerror}") from error
        # Real folders first: a link to one of them then adds nothing, whichever name sorts first.
        links = self._enter("")
        while links:
            links = [found for link in sorted(links) for found in self._follow(link)]

    def _enter(self, top: str) -> list[str]:
        """Collect the images below a folder; return the symbolic links in it."""
        links: list[str] = []
        pending = [top]
        while pending:
            folder = pending.pop()
            real = os.path.realpath(self.root / folder)
            if real in self._visited:
                continue
            self._visited.add(real)
            try:
                with os.scandir(real) as entries:
                    for entry in entries:
                        path = os.path.join(folder, entry.name)
                        if is_hidden(entry.name):
                            continue
                        if entry.is_symlink():
                            links.append(path)
                        elif entry.is_dir():
                            pending.append(path)
                        elif is_image_name(entry.name):
                            self._file(path, entry.stat())
            except OSError as error:
                self._refuse(folder, f"folder cannot be read: {error.strerror}")
        return links

    def _follow(self, link: str) -> list[str]:
        """Collect what a symbolic link leads to; return the links in it."""
        is_image = is_image_name(os.path.basename(link))
        try:
            target = (self.root / link).resolve(strict=True)
            status = target.stat()
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop, before Python 3.13
            looped = isinstance(error, RuntimeError) or error.errno == errno.ELOOP
            if looped or is_image:
                self._refuse(link, "symbolic link that loops" if looped else "broken symbolic link")
            return []
        is_folder = stat.S_ISDIR(status.st_mode)
        if not is_folder and not is_image:
            return []
        if not target.is_relative_to(self.root):
            self._refuse(link, "symbolic link that leads out of the folder")
        elif not is_folder:
            self._file(link, status)
        elif (self.root / link).parent.resolve().is_relative_to(target):
            self._refuse(link, "symbolic link that loops")
        else:
            return self._enter(link)
        return []

    def _file(self, path: str, status: os.stat_result) -> None:
        if stat.S_ISREG(status.st_mode):
            self.images[_posix(path)] = (status.st_size, status.st_mtime_ns)
        else:
            self._refuse(path, "not a regular file")

    def _refuse(self, path: str, reason: str) -> None:
        self.refused.append(Skipped(_posix(path), reason))


def _posix(path: str) -> str:
    return path.replace(os.sep, "/")
