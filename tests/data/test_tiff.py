"""Which pages of a TIFF file are one image, and what is told about the others."""

import io
import lzma
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from mocokit.data.decode import decode
from mocokit.data.pillow import BadImage
from tests.helpers import encode, noise

GRAY = np.random.default_rng(0).integers(0, 4000, (2, 3, 4, 8, 9)).astype(np.uint16)  # t, z, c, y, x


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> tuple[np.ndarray, list[str]]:
    notes: list[str] = []
    return decode(data, None, notes.append), notes


@pytest.mark.parametrize(
    "options",
    [
        {"imagej": True, "metadata": {"axes": "CYX"}},
        {"ome": True, "metadata": {"axes": "CYX"}},
        {"imagej": True, "metadata": {"axes": "CYX"}, "compression": "zlib"},
    ],
)
def test_channels_that_the_file_names(options: dict[str, object]) -> None:
    pixels, notes = decoded(tiff(GRAY[0, 0], **options))
    np.testing.assert_array_equal(pixels, GRAY[0, 0])
    assert notes == []


def test_of_series_the_first_picture_with_all_its_channels() -> None:
    pixels, notes = decoded(tiff(GRAY, imagej=True, metadata={"axes": "TZCYX"}))
    np.testing.assert_array_equal(pixels, GRAY[0, 0])
    assert notes == ["with a series of pictures (axes TZCYX), of which the first is read"]
    swapped = np.ascontiguousarray(GRAY[0].swapaxes(0, 1))
    pixels, _ = decoded(tiff(swapped, ome=True, metadata={"axes": "CZYX"}))
    np.testing.assert_array_equal(pixels, GRAY[0, 0])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_gray_pages_of_one_size_are_channels(dtype: type) -> None:
    pages = (GRAY[0, :2].reshape(6 + 2, 8, 9) // 20).astype(dtype)
    for data in (tiff(pages), tiff(pages, metadata=None)):
        pixels, notes = decoded(data)
        np.testing.assert_array_equal(pixels, pages)
        assert pixels.dtype == (np.uint8 if dtype is np.uint8 else np.float32)
        assert notes == ["with 8 pages of one size, read as channels"]


def test_of_other_pages_the_first() -> None:
    many = np.zeros((17, 8, 9), np.uint8)
    colour = [Image.fromarray(noise(seed, 6, 9)) for seed in range(3)]
    sizes = [Image.fromarray(noise(seed, 6 + seed, 9)[..., 0]) for seed in range(3)]
    lines = [Image.fromarray(noise(seed, 6, 9)[..., 0]).convert("1") for seed in range(3)]
    files = [encode(its[0], "TIFF", save_all=True, append_images=its[1:]) for its in (colour, sizes, lines)]
    for data, expected in zip(
        [tiff(many), *files], [many[0], *(its[0] for its in (colour, sizes, lines))], strict=True
    ):
        pixels, notes = decoded(data)
        expected = np.asarray(expected)
        expected = expected.astype(np.uint8) * 255 if expected.dtype == bool else expected
        np.testing.assert_array_equal(pixels, np.atleast_3d(expected).transpose(2, 0, 1))
        assert notes == ["with several pages, of which the first is read"]


def test_one_page_is_told_nothing_of() -> None:
    for data in (tiff(GRAY[0, 0, 0]), encode(noise(0), "TIFF"), tiff(GRAY[0, 0, 0], imagej=True)):
        assert decoded(data)[1] == []


def test_two_bands_stay_two() -> None:
    bands = noise(3, 6, 9)[..., :2]
    for options in ({}, {"extrasamples": ["unspecified"]}):
        pixels = decode(tiff(bands, photometric="minisblack", planarconfig="contig", **options))
        np.testing.assert_array_equal(pixels, bands.transpose(2, 0, 1))


def test_a_value_that_the_file_states_is_no_data() -> None:
    heights = np.linspace(200, 250, 72, dtype=np.float32).reshape(8, 9)
    holes = heights.copy()
    holes[3, 3:6] = 777
    pixels, notes = decoded(tiff(holes, extratags=[(42113, "s", 0, "777", True)]))
    np.testing.assert_array_equal(pixels[0], np.where(holes == 777, np.float32(200), heights))
    assert notes == ["with pixels without data, which get the least value of their image"]
    with pytest.raises(BadImage, match="only pixels without data"):
        decode(tiff(np.full((2, 2), np.nan, np.float32)))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package"),
        NotImplementedError("packints_decode of 12-bit integers requires the 'imagecodecs' package"),
        ModuleNotFoundError("No module named 'compression'"),  # of ZSTD
    ],
)
def test_a_codec_that_is_missing_names_the_extra(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(tifffile.TiffPage, "asarray", missing)
    data = tiff(np.zeros((4, 4, 3), np.uint16), photometric="rgb")
    with pytest.raises(BadImage, match=r"compression NONE and 16 bits, which needs imagecodecs: pip .*mocokit\[tiff\]"):
        decode(data)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_of_a_truncated_file_it_is_said_that_it_is(compression: str) -> None:
    whole = encode(noise(0, 60, 40), "TIFF", compression=compression)
    for cut in [*range(10, len(whole), 300), *range(len(whole) - 200, len(whole))]:
        with pytest.raises(BadImage, match=r"truncated or damaged|corrupted"):
            decode(whole[:cut])
    strips = tiff(noise(0, 60, 40).astype(np.uint16), photometric="rgb", compression="zlib")
    short = zlib.compress(bytes(1000))
    with tifffile.TiffFile(io.BytesIO(strips)) as file:
        (start,) = file.pages.first.dataoffsets
    with pytest.raises(BadImage, match="truncated or damaged"):
        decode(strips[:start] + short + strips[start + len(short) :])


@pytest.mark.parametrize("shape", [(6, 9, 5), (6, 9, 3)])
def test_a_file_with_fewer_strips_than_its_rows_need(shape: tuple[int, ...]) -> None:
    """They would be black, and millions of them take minutes."""
    data = bytearray(tiff(np.ones(shape, np.uint16), photometric="rgb" if shape[2] == 3 else "minisblack",
                          planarconfig="contig", rowsperstrip=3))  # fmt: skip
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        tag = file.pages.first.tags["ImageLength"]
    struct.pack_into("<I", data, tag.valueoffset, 7)
    with pytest.raises(BadImage, match="truncated or damaged"):
        decode(bytes(data))
    struct.pack_into("<I", data, tag.valueoffset, 5)  # of a whole strip too much only two rows are read
    assert decode(bytes(data)).shape == (shape[2], 5, 9)


def test_several_bands_of_one_bit_are_named() -> None:
    with pytest.raises(BadImage, match="several bands of 1 bit"):
        decode(tiff(np.ones((4, 5, 3), bool), photometric="rgb"))


def test_deep_pages_count_as_what_they_take() -> None:
    pages = np.zeros((4, 8, 8), np.uint16)
    assert decode(tiff(pages, photometric="minisblack"), max_pixels=256).shape == (4, 8, 8)
    with pytest.raises(BadImage, match="megapixels of 16 bytes; --max-pixels"):
        decode(tiff(pages, photometric="minisblack"), max_pixels=255)
    assert decode(tiff(pages.astype(np.uint8), photometric="minisblack"), max_pixels=64).shape == (4, 8, 8)


@pytest.mark.parametrize("kind", ["deflate", "reversed", "lzma", "two of lzma"])
def test_strips_that_inflate_to_more_than_the_header_says(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before tifffile would hold the whole; as much as a strip may hold is read."""
    monkeypatch.setattr("mocokit.data.tiff._INFLATED_BYTES", 2**16)
    pixels = np.random.default_rng(0).integers(0, 4000, (180, 190, 3)).astype(np.uint16)  # of more bytes than that

    def packed(content: bytes) -> bytes:
        if "lzma" in kind:
            return (lzma.compress(b"") if kind == "two of lzma" else b"") + lzma.compress(content)
        whole = zlib.compress(content)
        return bytes(int(f"{byte:08b}"[::-1], 2) for byte in whole) if kind == "reversed" else whole

    def file(content: bytes) -> bytes:
        data = bytearray(
            tiff(pixels, photometric="rgb", compression="lzma" if "lzma" in kind else "zlib", rowsperstrip=180,
                 extratags=[(65000, "H", 1, 2, True)])
        )  # fmt: skip
        if kind == "reversed":  # tifffile does not write the tag
            at = data.index(struct.pack("<HHI", 65000, 3, 1))
            data[at : at + 2] = struct.pack("<H", 266)
        with tifffile.TiffFile(io.BytesIO(data)) as written:
            tags = written.pages.first.tags
            for name, value in (("StripOffsets", len(data)), ("StripByteCounts", len(packed(content)))):
                struct.pack_into("<I" if tags[name].dtype == 4 else "<H", data, tags[name].valueoffset, value)
        return bytes(data) + packed(content)

    np.testing.assert_array_equal(decode(file(pixels.tobytes())), pixels.transpose(2, 0, 1))
    asked: list[object] = []
    real = tifffile.TiffPage.asarray
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda page: asked.append(page) or real(page))
    with pytest.raises(BadImage, match="more pixels in a strip or tile than the header says"):
        decode(file(pixels.tobytes() + bytes(1)))
    assert asked == []


@pytest.mark.parametrize("shape", [(8, 32), (8, 16, 2)])
def test_signed_bytes_keep_their_values(shape: tuple[int, ...]) -> None:
    values = np.arange(-128, 128).astype(np.int8).reshape(shape)
    for options in ({}, {"compression": "zlib"}, {"extratags": [(274, "H", 1, 3, True)]}):
        pixels = decode(tiff(values, photometric="minisblack", planarconfig="contig", **options))
        expected = values[::-1, ::-1] if "extratags" in options else values
        assert pixels.dtype == np.float32
        np.testing.assert_array_equal(pixels, np.atleast_3d(expected).transpose(2, 0, 1))


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_white_is_what_the_stated_bits_hold(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of numbers of which tifffile makes 16-bit ones, if imagecodecs unpacks them."""
    values = np.array([[[0, 0], [5, 1000], [2**bits - 1, 2**bits - 1]]], np.uint16)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda page: values)
    data = bytearray(tiff(values, photometric="miniswhite", planarconfig="contig"))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        struct.pack_into("<HH", data, file.pages.first.tags["BitsPerSample"].valueoffset, bits, bits)
    np.testing.assert_array_equal(decode(bytes(data)), (2**bits - 1 - values.astype(np.float32)).transpose(2, 0, 1))
