"""A folder of images as a source."""

import errno
import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mocokit.data.decode_pool import ImageFile
from mocokit.data.image_index import ImageIndex, Skipped, index_by_folders, is_hidden, is_image_name
from mocokit.data.notes import OtherFiles
from mocokit.data.pillow import SIGNATURE_BYTES, looks_like_an_image
from mocokit.errors import UserError

_OUTSIDE = "symbolic link that leads out of the folder; --follow-links reads what it leads to"
_MOST_BEHIND = 100_000  # images behind a link that leads out are counted up to here

# Files that often lie beside images; not opened to see whether they are some.
_NO_IMAGES = (
    *(".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".html", ".py", ".pdf"),
    *(".npy", ".npz", ".parquet", ".zip", ".tar", ".gz", ".xz", ".bz2", ".7z", ".rar", ".ckpt", ".safetensors", ".pt"),
)


class FolderSource:
    """The images in a folder, at any depth, and each real folder's only once; none from elsewhere, unless
    ``follow_links``. In a snapshot of the Hugging Face cache, its blobs belong to it."""

    decoded = False

    def __init__(self, path: Path, follow_links: bool = False) -> None:
        self.root = path.resolve()
        self._follow_links = follow_links
        snapshots = next((parent for parent in self.root.parents if parent.name == "snapshots"), None)
        self._blobs = snapshots and snapshots.parent / "blobs"
        self._others = OtherFiles()
        self._unnamed: dict[str, os.stat_result] = {}  # images by their content alone
        self._linked: set[str] = set()  # files that are read by the name of a link
        self.name = self.root.name or "data"
        self._names: Sequence[str] = []
        self._images: dict[str, tuple[int, int]] = {}  # size and modification time by relative path
        self._refused: list[Skipped] = []
        self._entered: set[str] = set()

    def fingerprint(self) -> str:
        """From path, size and time of each image."""
        self._walk()
        lines = [f"{name}\0{size}\0{time}\n" for name, (size, time) in sorted(self._images.items())]
        lines += [f"{skipped.name}\0{skipped.reason}\n" for skipped in sorted(self._refused)]
        lines += self._others.lines()
        text = "".join(lines).encode(errors="surrogatepass")
        return f"folder/{hashlib.blake2b(text, digest_size=16).hexdigest()}"

    def read_index(self) -> ImageIndex:
        self._walk()
        image_index = index_by_folders(self._images, self._refused, self.root)
        self._names = image_index.names
        return replace(image_index, notes=[*image_index.notes, *self._others.lines()])

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
                            self._add(path, entry.stat())
                        elif entry.is_file():
                            self._look_into(path, entry.stat())
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
            behind += [os.path.normpath(os.path.join(link, below, name)) for name in files if is_image_name(name)]
            if len(behind) >= _MOST_BEHIND:
                break
        for name in behind[:_MOST_BEHIND] or [link]:
            self._refuse(name, _OUTSIDE)

    def _look_into(self, path: str, status: os.stat_result) -> None:
        """Collect a file whose ending says nothing if its content is an image."""
        if not path.lower().endswith(_NO_IMAGES):
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
