"""The index of an uncompressed tar file: where its members are, and which must not be read."""

import tarfile
from collections.abc import Iterator
from typing import IO, NamedTuple

from mocokit.data.decode import MAX_FILE_BYTES


class TarMember(NamedTuple):
    """A member that is not a folder: its content is ``size`` bytes from ``offset``, unless it is refused."""

    name: str
    offset: int
    size: int
    refusal: str | None  # why it must not be read


class _StrictTarInfo(tarfile.TarInfo):
    """tarfile takes a damaged header in mid-archive for the end; half a data set must not pass as whole."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:  # type: ignore[override]
        try:
            return super().fromtarfile(archive)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from error


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
            if not member.isdir():
                yield TarMember(member.name, member.offset_data, member.size, _refusal(member))


def _refusal(member: tarfile.TarInfo) -> str | None:
    if not member.isreg() or member.issparse():
        return "a link, device or sparse file in the archive"
    if member.size > MAX_FILE_BYTES:
        return "larger than 1 GiB"
    return None
