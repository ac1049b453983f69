"""Zip and tar archives as image sources; nothing is unpacked into a directory."""

import bz2
import gzip
import hashlib
import lzma
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from mocokit.data.cache import cache_directory, cache_errors
from mocokit.data.decode import MAX_FILE_BYTES, TOO_MANY_BYTES
from mocokit.data.image_index import (
    NO_IMAGES,
    ImageIndex,
    Skipped,
    has_image_suffix,
    index_by_folders,
    is_hidden,
    reading,
)
from mocokit.data.names import data_name
from mocokit.data.notes import Notes, OtherFiles
from mocokit.data.pillow import MAX_PIXELS, SIGNATURE_BYTES, BadImage, looks_like_an_image
from mocokit.data.tar import TarMember, tar_members
from mocokit.errors import UserError

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")

_ENDS = 2**16
_BLOCK = 2**20
_COMPRESSIONS: dict[bytes, Callable[[Path], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
# The name of each member, the member, and why it must not be read; and what reads it.
_Opened = tuple[Iterator[tuple[str, Any, str | None]], Callable[[Any, int], bytes]]


def file_fingerprint(path: Path) -> str:
    """Name, size, time and both ends of the file: a zip's directory and a gzip's checksum are at the end."""
    try:
        status = path.stat()
        with path.open("rb") as file:
            start = file.read(_ENDS)
            file.seek(max(0, status.st_size - _ENDS))
            ends = hashlib.blake2b(start + file.read(_ENDS), digest_size=16).hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    return f"archive/{path.name}/{status.st_size}/{status.st_mtime_ns}/{ends}"


class ArchiveSource:
    """The images in a zip or tar archive, named as their paths in it."""

    decoded = False
    max_pixels = MAX_PIXELS

    def __init__(self, path: Path, splits: Mapping[str, str] | None = None) -> None:
        """``splits``: those that folders are said to be, by name."""
        self.splits = splits or {}
        suffix = max((s for s in ARCHIVE_SUFFIXES if path.name.lower().endswith(s)), key=len)
        self.path = path
        self.name = data_name(path, path.name[: -len(suffix)])
        self._members: list[Any] = []

    def fingerprint(self) -> str:
        said = "".join(f"/{split}={name}" for name, split in self.splits.items())
        return file_fingerprint(self.path) + said

    def read_index(self) -> ImageIndex:
        members: dict[str, Any] = {}
        refused: dict[str, Skipped] = {}
        others = OtherFiles()
        again = Notes()
        with reading(self.path, " as an archive"):
            found, self._read = (_open_zip if self.path.suffix.lower() == ".zip" else _open_tar)(self.path)
            for raw_name, member, refusal in found:
                name = _member_name(raw_name)
                if any(map(is_hidden, name.split("/"))):
                    continue
                if not has_image_suffix(name) and (refusal or not self._looks_like_an_image(name, member)):
                    others.add(name)
                    continue
                if reason := _unsafe(name) or refusal:
                    refused[name] = Skipped(name, reason)
                else:
                    if name in members:
                        again.add("under a name that comes again in the archive, where the last is read", name)
                    members[name] = member  # as when unpacking
        if not members and (inner := others.first_of(ARCHIVE_SUFFIXES)):
            raise UserError(f"no images in {self.path}, but archives: unpack it, and name one such as {inner}")
        image_index = index_by_folders(members, refused.values(), self.path, self.splits)
        self._members = [members[name] for name in image_index.names]
        return replace(image_index, notes=(*image_index.notes, *again.lines(), *others.lines()))

    def _looks_like_an_image(self, name: str, member: Any) -> bool:
        if name.lower().endswith(NO_IMAGES):
            return False
        try:
            return looks_like_an_image(self._read(member, SIGNATURE_BYTES))
        except Exception:  # damaged; told with the others
            return False

    def read(self, index: int) -> bytes:
        try:
            return self._read(self._members[index], MAX_FILE_BYTES)
        except Exception as error:
            raise BadImage(f"cannot be unpacked: {getattr(error, 'strerror', None) or error}") from error


def _member_name(raw: str) -> str:
    """A member's path without the "./" that many tools put before it; ".." and a leading "/" stay."""
    parts = [part for part in raw.split("/") if part not in ("", ".")]
    return "/" * raw.startswith("/") + "/".join(parts)


def _unsafe(name: str) -> str | None:
    """Why a member's path must not be trusted, or None."""
    if name.startswith("/") or name[1:3] == ":/":
        return "absolute path in the archive"
    return "path leads out of the archive" if ".." in name.split("/") else None


def _open_zip(path: Path) -> _Opened:
    archive = zipfile.ZipFile(path)

    def read(member: zipfile.ZipInfo, most: int) -> bytes:
        with archive.open(member) as file:
            return file.read(most)

    members = (member for member in archive.infolist() if not member.is_dir())
    return ((member.filename.replace("\\", "/"), member, _zip_refusal(member)) for member in members), read


def _zip_refusal(member: zipfile.ZipInfo) -> str | None:
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
        return "a link or device in the archive"
    if member.flag_bits & 0x1:
        return "encrypted"
    return TOO_MANY_BYTES if member.file_size > MAX_FILE_BYTES else None


def _open_tar(path: Path) -> _Opened:
    file = _uncompressed(path)

    def read(member: TarMember, most: int) -> bytes:
        file.seek(member.offset)
        return file.read(min(member.size, most))

    return ((member.name, member, member.refusal) for member in tar_members(file)), read


def _uncompressed(path: Path) -> IO[bytes]:
    """The tar file itself, or, as compressed ones have no random access, decompressed into an anonymous file in the
    cache directory. The first bytes decide, since names can be wrong."""
    with path.open("rb") as file:
        magic = file.read(6)
    decompress = next((opened for start, opened in _COMPRESSIONS.items() if magic.startswith(start)), None)
    if decompress is None:
        return path.open("rb")
    root = cache_directory()
    with cache_errors(root):
        data = tempfile.TemporaryFile(dir=root)  # noqa: SIM115 - it stays open for read()
    # tarfile's own decompression takes a truncated file for a short one.
    with decompress(path) as stream:
        while block := stream.read(_BLOCK):
            with cache_errors(root):
                data.write(block)
    with cache_errors(root):
        data.seek(0)
    return data
