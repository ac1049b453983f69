"""Zip and tar archives as image sources, read in place: nothing is unpacked where a user would see it."""

import bz2
import gzip
import hashlib
import lzma
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from mocokit.data.cache import cache_directory, cache_errors
from mocokit.data.decode import MAX_FILE_BYTES, BadImage
from mocokit.data.image_index import ImageIndex, Skipped, index_by_folders, is_image_name
from mocokit.data.tar import TarMember, tar_members
from mocokit.errors import UserError

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")

_ENDS = 2**16
_BLOCK = 2**20
_COMPRESSIONS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
_DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error,
    OSError, EOFError, ValueError, NotImplementedError, RuntimeError,
)  # fmt: skip


def open_archive(path: Path) -> "ZipSource | TarSource":
    """The source for an archive whose name ends in one of ``ARCHIVE_SUFFIXES``; nothing is read yet."""
    return ZipSource(path) if path.name.lower().endswith(".zip") else TarSource(path)


def archive_stem(name: str) -> str:
    """A file name without its archive suffix."""
    suffix = max((s for s in ARCHIVE_SUFFIXES if name.lower().endswith(s)), key=len, default="")
    return name[: len(name) - len(suffix)]


def archive_fingerprint(path: Path) -> str:
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


def _damaged(path: Path, error: BaseException) -> UserError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UserError(f"{path} cannot be read as an archive ({reason}); is it damaged or misnamed?")


def _member_name(raw: str) -> str:
    """A member's path without the "./" that many tools put before it; ".." and a leading "/" stay."""
    parts = [part for part in raw.split("/") if part not in ("", ".")]
    return "/" * raw.startswith("/") + "/".join(parts)


def _unsafe(name: str) -> str | None:
    """Why a member's path must not be trusted, or None."""
    if name.startswith("/") or name[1:3] == ":/":
        return "absolute path in the archive"
    if ".." in name.split("/"):
        return "path leads out of the archive"
    return None


class ZipSource:
    """A zip archive with random access to its members."""

    decoded = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = archive_stem(path.name) or "data"
        self._zip: zipfile.ZipFile | None = None
        self._members: list[zipfile.ZipInfo] = []

    def fingerprint(self) -> str:
        return archive_fingerprint(self.path)

    def read_index(self) -> ImageIndex:
        try:
            self._zip = zipfile.ZipFile(self.path)
        except _DAMAGE as error:
            raise _damaged(self.path, error) from error
        members: dict[str, zipfile.ZipInfo] = {}
        refused: dict[str, Skipped] = {}
        for member in self._zip.infolist():
            name = _member_name(member.filename.replace("\\", "/"))
            if member.is_dir() or not is_image_name(name):
                continue
            reason = _unsafe(name) or self._refusal(member)
            if reason:
                refused[name] = Skipped(name, reason)
            else:
                members[name] = member  # as when unpacking, the last of several wins
        image_index = index_by_folders(members, refused.values(), self.path)
        self._members = [members[name] for name in image_index.names]
        return image_index

    @staticmethod
    def _refusal(member: zipfile.ZipInfo) -> str | None:
        mode = member.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            return "a link or device in the archive"
        if member.flag_bits & 0x1:
            return "encrypted"
        if member.file_size > MAX_FILE_BYTES:
            return "larger than 1 GiB"
        return None

    def read(self, index: int) -> bytes:
        assert self._zip is not None, "read_index() comes first"
        try:
            with self._zip.open(self._members[index]) as file:
                return file.read(MAX_FILE_BYTES)
        except _DAMAGE as error:
            raise BadImage(f"cannot be unpacked: {error}") from error


class TarSource:
    """A tar archive. A compressed one, which has no random access, is decompressed into an anonymous temporary file in
    the cache directory."""

    decoded = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = archive_stem(path.name) or "data"
        self._data: IO[bytes] | None = None
        self._members: list[TarMember] = []

    def fingerprint(self) -> str:
        return archive_fingerprint(self.path)

    def read_index(self) -> ImageIndex:
        members: dict[str, TarMember] = {}
        refused: dict[str, Skipped] = {}
        try:
            self._data = _uncompressed(self.path)
            for member in tar_members(self._data):
                name = _member_name(member.name)
                if not is_image_name(name):
                    continue
                if reason := _unsafe(name) or member.refusal:
                    refused[name] = Skipped(name, reason)
                else:
                    members[name] = member  # as when unpacking, the last of several wins
        except _DAMAGE as error:
            raise _damaged(self.path, error) from error
        image_index = index_by_folders(members, refused.values(), self.path)
        self._members = [members[name] for name in image_index.names]
        return image_index

    def read(self, index: int) -> bytes:
        assert self._data is not None, "read_index() comes first"
        member = self._members[index]
        try:
            self._data.seek(member.offset)
            return self._data.read(member.size)
        except OSError as error:
            raise BadImage(f"cannot be read: {error.strerror}") from error


def _uncompressed(path: Path) -> IO[bytes]:
    """The tar file itself, or what is compressed in it; by its first bytes, for names lie."""
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
