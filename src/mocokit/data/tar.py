"""The index of an uncompressed tar file: where its members are, and which must not be read."""

import tarfile
from collections.abc import Iterator
from typing import IO, NamedTuple

from mocokit.data.decode import MAX_FILE_BYTES, TOO_MANY_BYTES

_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_MOST_HEADER_BYTES = 2**20


class TarMember(NamedTuple):
    """A member that is not a folder: ``size`` bytes from ``offset``; ``refusal`` says why it must not be read."""

    name: str
    offset: int
    size: int
    refusal: str | None


class _StrictTarInfo(tarfile.TarInfo):
    """tarfile takes a damaged header in mid-archive for the end; half a data set must not pass as whole."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:  # type: ignore[override]
        try:
            return super().fromtarfile(archive)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from error

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _NAMES and self.size > _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header with a name of {self.size:,} bytes")  # would be read into memory
        return super()._proc_member(archive)  # type: ignore[misc]


def tar_members(file: IO[bytes]) -> Iterator[TarMember]:
    """The members in the archive's order, read from their headers; ``file`` may be moved between two of them.

    Raises:
        tarfile.TarError: this is no tar file, or it is damaged or truncated.
    """
    with tarfile.open(fileobj=file, mode="r:", tarinfo=_StrictTarInfo) as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # of a million headers, all would be kept
            if member.size < 0:
                raise tarfile.ReadError("negative size")  # would lead back to a member already seen
            refusal = TOO_MANY_BYTES if member.size > MAX_FILE_BYTES else None
            if not member.isreg() or member.issparse():
                refusal = "a link, device or sparse file in the archive"
            if not member.isdir():
                yield TarMember(member.name, member.offset_data, member.size, refusal)
