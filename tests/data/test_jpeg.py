"""Small JPEG files decoded on the short way are what Pillow makes of them, whole or damaged."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mocokit.data import decode as decode_module
from mocokit.data import jpeg as jpeg_module
from mocokit.data.decode import decode
from mocokit.data.jpeg import decode_small_jpeg
from mocokit.data.pillow import BadImage
from tests.helpers import encode, noise

SIDE = 48
KINDS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "full chroma": {"subsampling": 0, "quality": 95},
    "half chroma": {"subsampling": 1},
    "coarse": {"subsampling": 2, "quality": 5},
    "restarts": {"restart_marker_blocks": 2},
    "not transformed": {"keep_rgb": True},
    "comment": {"comment": b"a word"},
}


def jpeg(kind: str, mode: str = "RGB", height: int = 13, width: int = 31, **more: object) -> bytes:
    return encode(Image.fromarray(noise(0, height, width)).convert(mode), "JPEG", **KINDS[kind] | more)


def by_pillow(data: bytes) -> np.ndarray | None:
    """What `decode` gives without the short way; None where it refuses."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(decode_module, "decode_small_jpeg", lambda data, max_side: None)
        try:
            return decode(data, SIDE)
        except BadImage:
            return None


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_pixels(kind, mode):
    if kind == "not transformed" and mode == "L":
        pytest.skip("is for colour")
    data = jpeg(kind, mode)
    short = decode_small_jpeg(data, SIDE)
    assert short is not None
    assert short.shape == (1 if mode == "L" else 3, 13, 31)
    np.testing.assert_array_equal(short, by_pillow(data))
    found = decode(data, SIDE)
    np.testing.assert_array_equal(found, short)
    assert found.flags.c_contiguous


def test_what_is_left_to_pillow():
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    left = [
        jpeg("baseline", exif=exif),
        jpeg("baseline", xmp=b"<x:xmpmeta/>"),
        jpeg("baseline", mode="CMYK"),
        jpeg("baseline", height=SIDE + 1),
        encode(noise(0), "PNG"),
        b"",
        b"\xff\xd8\xff",
    ]
    assert [decode_small_jpeg(data, SIDE) for data in left] == [None] * len(left)
    assert decode_small_jpeg(jpeg("baseline"), None) is None
    assert decode(left[0], SIDE).shape == (3, 31, 13)


@settings(max_examples=300)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_damaged_files_are_judged_alike(kind, data):
    content = bytearray(jpeg(kind))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    at = data.draw(st.integers(0, len(content)))
    del content[at : at + data.draw(st.sampled_from([0, 0, 1, 20, len(content)]))]
    expected = by_pillow(bytes(content))
    try:
        found = decode(bytes(content), SIDE)
    except BadImage:
        found = None
    assert (found is None) == (expected is None)
    if found is not None:
        np.testing.assert_array_equal(found, expected)


def test_without_the_library_pillow_does(monkeypatch):
    data = jpeg("baseline")
    expected = decode(data, SIDE)
    monkeypatch.setattr(jpeg_module, "simplejpeg", None)
    assert decode_small_jpeg(data, SIDE) is None
    np.testing.assert_array_equal(decode(data, SIDE), expected)


def test_the_frame_is_found_behind_a_long_comment():
    short = decode_small_jpeg(jpeg("baseline", comment=b"x" * 60_000), SIDE)
    np.testing.assert_array_equal(short, np.asarray(Image.open(io.BytesIO(jpeg("baseline")))).transpose(2, 0, 1))
