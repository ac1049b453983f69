"""The index of a tar file says where each member lies; what is damaged is an error, never the end."""

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mocokit.data.decode import MAX_FILE_BYTES
from mocokit.data.tar import tar_members

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def packed(members: list[tuple[str, bytes]], form: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return buffer.getvalue()


@given(
    st.lists(st.tuples(st.text("ab/é", min_size=1, max_size=90), st.binary(max_size=1500)), max_size=6),
    st.sampled_from(FORMATS),
)
def test_members_lie_where_the_index_says(members: list[tuple[str, bytes]], form: int) -> None:
    members = [(f"x{name}x", content) for name, content in members]
    content = packed(members, form)
    file = io.BytesIO(content)
    found = []
    for member in tar_members(file):
        assert member.refusal is None
        file.seek(member.offset)  # moves the file between two members
        found.append((member.name, file.read(member.size)))
    assert found == members


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"6"])
def test_links_and_devices_are_refused(kind: bytes) -> None:
    header = tarfile.TarInfo("a.png")
    header.type = kind
    (member,) = tar_members(io.BytesIO(header.tobuf() + bytes(1024)))
    assert member.refusal == "a link, device or sparse file in the archive"


def test_what_is_too_large_is_refused() -> None:
    header = tarfile.TarInfo("a.png")
    header.size = MAX_FILE_BYTES + 1
    assert next(tar_members(io.BytesIO(header.tobuf()))).refusal == "larger than 256 MiB"


@pytest.mark.parametrize("start", [0, 1024, 2048])
def test_a_damaged_header_is_not_the_end(start: int) -> None:
    content = bytearray(packed([(f"{i}.png", b"x") for i in range(3)]))
    content[start : start + 100] = b"\xff" * 100
    with pytest.raises(tarfile.TarError):
        list(tar_members(io.BytesIO(bytes(content))))


@settings(max_examples=200)
@given(st.data())
def test_damage_is_an_error_or_leaves_a_finite_index(data: st.DataObject) -> None:
    content = bytearray(packed([(f"{i}.png", b"x" * 600) for i in range(3)]))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.sampled_from([0, 0x80, 0xFF, 0x37]))
    try:
        members = list(tar_members(io.BytesIO(bytes(content))))
    except (tarfile.TarError, ValueError, OverflowError):
        return
    assert len(members) <= len(content) // 512
    assert all(member.size >= 0 for member in members)


def test_a_negative_size_does_not_loop() -> None:
    header = bytearray(tarfile.TarInfo("a.png").tobuf())
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"  # -512 in base 256
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:512]))
    with pytest.raises(tarfile.TarError):
        list(tar_members(io.BytesIO(bytes(header) + bytes(1024))))


def test_a_name_of_gigabytes_is_not_read() -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 3 * 2**30
    with pytest.raises(tarfile.TarError, match="a name of 3,221,225,472 bytes"):
        list(tar_members(io.BytesIO(header.tobuf() + bytes(1024))))
