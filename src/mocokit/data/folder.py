"""A folder of images as a source."""

import errno
import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mocokit.data.decode_pool import ImageFile
from mocokit.data.image_index import (
    ImageIndex,
    Skipped,
    count,
    index_by_folders,
    is_hidden,
    is_image_name,
    is_run,
    listed,
)
from mocokit.errors import UserError


class FolderSource:
    """The images in a folder, at any depth; none from elsewhere, and each real folder's only once."""

    decoded = False

    def __init__(self, path: Path) -> None:
        self.root = path.resolve()
        self.name = self.root.name or "data"
        self._names: Sequence[str] = []
        self._images: dict[str, tuple[int, int]] = {}  # size and modification time by relative path
        self._refused: list[Skipped] = []
        self._entered: set[str] = set()
        self._remarks: list[str] = []
        self._empty: list[str] = []  # folders

    def fingerprint(self) -> str:
        """From path, size and time of each image."""
        self._walk()
        lines = [f"{name}\0{size}\0{time}\n" for name, (size, time) in sorted(self._images.items())]
        lines += [f"{skipped.name}\0{skipped.reason}\n" for skipped in sorted(self._refused)]
        text = "".join(lines).encode(errors="surrogatepass")
        return f"folder/{hashlib.blake2b(text, digest_size=16).hexdigest()}"

    def read_index(self) -> ImageIndex:
        self._walk()
        image_index = index_by_folders(self._images, self._refused, self.root)
        self._names = image_index.names
        remarks = [*self._remarks, *image_index.remarks]
        if self._empty:
            remarks.append(f"{count(len(self._empty), 'empty folder', 'empty folders')}: {listed(sorted(self._empty))}")
        return replace(image_index, remarks=tuple(remarks))

    def file(self, index: int) -> ImageFile:
        """Image ``index``, not yet read."""
        # A string: to make a Path takes as long as to open the file.
        return ImageFile(f"{self.root}{os.sep}{self._names[index]}")

    def read(self, index: int) -> bytes:
        return self.file(index).read()

    def _walk(self) -> None:
        """Find the images, unless that is done."""
        if self._entered:
            return
        try:
            os.scandir(self.root).close()
        except OSError as error:
            raise UserError(f"{self.root} cannot be read: {error.strerror}") from error
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
            if real in self._entered:
                continue
            self._entered.add(real)
            try:
                with os.scandir(real) as scanned:
                    entries = list(scanned)
                if not entries:
                    self._empty.append(folder)
                if folder and is_run([entry.name for entry in entries]):
                    self._remarks.append(f"{folder} left out: a run of mocokit's")
                    continue
                for entry in entries:
                    path = os.path.join(folder, entry.name)
                    if is_hidden(entry.name):
                        continue
                    if entry.is_symlink():
                        links.append(path)
                    elif entry.is_dir():
                        pending.append(path)
                    elif is_image_name(entry.name):
                        self._add(path, entry.stat())
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
            self._add(link, status)
        elif (self.root / link).parent.resolve().is_relative_to(target):
            self._refuse(link, "symbolic link that loops")
        else:
            return self._enter(link)
        return []

    def _add(self, path: str, status: os.stat_result) -> None:
        if stat.S_ISREG(status.st_mode):
            self._images[path.replace(os.sep, "/")] = (status.st_size, status.st_mtime_ns)
        else:
            self._refuse(path, "not a regular file")

    def _refuse(self, path: str, reason: str) -> None:
        self._refused.append(Skipped(path.replace(os.sep, "/"), reason))
