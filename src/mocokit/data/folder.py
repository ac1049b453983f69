"""A folder of images as a source."""

import errno
import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mocokit.data.archives import ARCHIVE_SUFFIXES
from mocokit.data.arrays import ARRAY_SUFFIXES
from mocokit.data.decode_pool import ImageFile
from mocokit.data.image_index import (
    NO_IMAGES,
    ImageIndex,
    Skipped,
    has_image_suffix,
    index_by_folders,
    is_hidden,
    is_run,
)
from mocokit.data.names import data_name
from mocokit.data.notes import OtherFiles, count, listed
from mocokit.data.pillow import MAX_PIXELS, SIGNATURE_BYTES, looks_like_an_image
from mocokit.errors import UserError

_OUTSIDE = "symbolic link that leads out of the folder; --follow-links reads what it leads to"
_MOST_BEHIND = 100_000  # images behind a link that leads out are counted up to here


class FolderSource:
    """The images in a folder, at any depth, and each real folder's only once; none from elsewhere, unless
    ``follow_links``. In a snapshot of the Hugging Face cache, its blobs belong to it."""

    decoded = False
    max_pixels = MAX_PIXELS

    def __init__(self, path: Path, follow_links: bool = False, splits: Mapping[str, str] | None = None) -> None:
        """``splits``: those that folders are said to be, by name."""
        self.root, self.splits = path.resolve(), splits or {}
        self._follow_links = follow_links
        snapshots = next((parent for parent in self.root.parents if parent.name == "snapshots"), None)
        self._blobs = snapshots and snapshots.parent / "blobs"
        self._others = OtherFiles()
        self.tables = self._others.tables  # paths inside of files that may hold labels, once it is listed
        self._unnamed: dict[str, os.stat_result] = {}  # images by their content alone
        self._linked: set[str] = set()  # files that are read by the name of a link
        self.name = data_name(self.root)
        self._names: Sequence[str] = []
        self._images: dict[str, tuple[int, int]] = {}  # size and modification time by relative path
        self._refused: list[Skipped] = []
        self._entered: set[str] = set()
        self._empty: list[str] = []  # folders
        self._runs: list[str] = []  # folders with what mocokit wrote

    def fingerprint(self) -> str:
        """From path, size and time of each image, and from what else may be images; not from a README beside them."""
        self._walk()
        lines = [f"{name}\0{size}\0{time}\n" for name, (size, time) in sorted(self._images.items())]
        lines += [f"{skipped.name}\0{skipped.reason}\n" for skipped in sorted(self._refused)]
        lines += [f"{ending}\0{number}\n" for ending, number in self._others.kinds() if ending not in NO_IMAGES]
        lines += [f"{name}\0{split}\n" for name, split in self.splits.items()]
        text = "".join(lines).encode(errors="surrogatepass")
        return f"folder/{hashlib.blake2b(text, digest_size=16).hexdigest()}"

    def read_index(self) -> ImageIndex:
        self._walk()
        if not self._images and not self._refused and (others := self._others.lines()):
            file = self._others.first_of((*ARCHIVE_SUFFIXES, *ARRAY_SUFFIXES))
            way = f"; to read {file}, name that file itself" if file else ""
            raise UserError(f"no images in {self.root}; {others[0]}{way}")
        image_index = index_by_folders(self._images, self._refused, self.root, self.splits)
        self._names = image_index.names
        notes = [*image_index.notes, *self._others.lines()]
        if self._empty:
            notes.append(f"{count(len(self._empty), 'empty folder', 'empty folders')}: {listed(sorted(self._empty))}")
        if self._runs:
            notes.append(f"{count(len(self._runs), 'run', 'runs')} of mocokit left out: {listed(sorted(self._runs))}")
        return replace(image_index, notes=tuple(notes))

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
        for path, status in self._unnamed.items():
            if os.path.realpath(self.root / path) not in self._linked:
                self._add(path, status)

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
                    entries = [entry for entry in scanned if not is_hidden(entry.name)]
                if not entries:
                    self._empty.append(folder)
                if folder and is_run({entry.name for entry in entries}):
                    self._runs.append(folder)
                    continue
                for entry in entries:
                    path = os.path.join(folder, entry.name)
                    if entry.is_symlink():
                        links.append(path)
                    elif entry.is_dir():
                        pending.append(path)
                    elif has_image_suffix(entry.name):
                        self._add(path, entry.stat())
                    elif entry.is_file():
                        self._look_into(path, entry.stat())
            except OSError as error:
                self._refuse(folder, f"folder cannot be read: {error.strerror}")
        return links

    def _follow(self, link: str) -> list[str]:
        """Collect what a symbolic link leads to; return the links in it."""
        is_image = has_image_suffix(link)
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
            self._others.add(link.replace(os.sep, "/"))
            return []
        inside = target.is_relative_to(self.root) or self._follow_links
        if not inside and not (self._blobs and not is_folder and target.is_relative_to(self._blobs)):
            self._refuse_outside(link, target, is_folder)
        elif not is_folder:
            self._linked.add(str(target))
            self._add(link, status)
        elif (self.root / link).parent.resolve().is_relative_to(target):
            self._refuse(link, "symbolic link that loops")
        else:
            return self._enter(link)
        return []

    def _refuse_outside(self, link: str, target: Path, is_folder: bool) -> None:
        """Refuse every image behind a link, so that a whole class does not count as one image."""
        behind: list[str] = []
        for folder, folders, files in os.walk(target) if is_folder else ():
            folders[:] = [name for name in folders if not is_hidden(name)]
            below = os.path.relpath(folder, target)
            images = [name for name in files if has_image_suffix(name) and not is_hidden(name)]
            behind += [os.path.normpath(os.path.join(link, below, name)) for name in images]
            if len(behind) >= _MOST_BEHIND:
                break
        for name in behind[:_MOST_BEHIND] or [link]:
            self._refuse(name, _OUTSIDE)

    def _look_into(self, path: str, status: os.stat_result) -> None:
        """Collect a file whose ending says nothing if its content is an image."""
        if not path.lower().endswith(NO_IMAGES):
            try:
                with open(self.root / path, "rb") as file:
                    if looks_like_an_image(file.read(SIGNATURE_BYTES)):
                        self._unnamed[path] = status
                        return
            except OSError:
                pass  # told with the others
        self._others.add(path.replace(os.sep, "/"))

    def _add(self, path: str, status: os.stat_result) -> None:
        if stat.S_ISREG(status.st_mode):
            self._images[path.replace(os.sep, "/")] = (status.st_size, status.st_mtime_ns)
        else:
            self._refuse(path, "not a regular file")

    def _refuse(self, path: str, reason: str) -> None:
        self._refused.append(Skipped(path.replace(os.sep, "/"), reason))
