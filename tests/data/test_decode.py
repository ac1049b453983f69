"""Every format and mode against the pixel values it should have, and hostile files."""

import base64
import contextlib
import io
import struct
import subprocess
import sys
import time
import warnings
import zlib

import numpy as np
import PIL
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile

from mocokit.data import pillow
from mocokit.data.decode import decode, image_size
from mocokit.data.pillow import BadImage, shrink
from tests.helpers import encode, noise, png16, png_header

RGB = noise(1, 6, 9)  # [H, W, 3]
GRAY = noise(2, 6, 9, channels=1)


def chw(pixels: np.ndarray) -> np.ndarray:
    return pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None]


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("pixels", [RGB, GRAY], ids=["rgb", "gray"])
def test_lossless_formats_keep_every_value(kind: str, pixels: np.ndarray) -> None:
    decoded = decode(encode(pixels, kind))
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    np.testing.assert_array_equal(decoded, chw(pixels))


def test_kinds_of_eight_bit_tiff() -> None:
    for options in (
        {"planarconfig": "separate", "photometric": "rgb"},
        {"compression": "deflate", "photometric": "rgb", "predictor": True},
        {"tile": (16, 16), "photometric": "rgb", "byteorder": ">"},
    ):
        pixels = np.ascontiguousarray(chw(RGB)) if "planarconfig" in options else RGB
        np.testing.assert_array_equal(decode(tiff(pixels, **options)), chw(RGB), err_msg=str(options))
    for compression in ("tiff_lzw", "packbits", "tiff_adobe_deflate"):
        data = encode(RGB, "TIFF", compression=compression)
        np.testing.assert_array_equal(decode(data), chw(RGB), err_msg=compression)
    np.testing.assert_array_equal(decode(tiff(255 - GRAY, photometric="miniswhite")), chw(GRAY))


def test_webp_and_gif() -> None:
    np.testing.assert_array_equal(decode(encode(RGB, "WEBP", lossless=True)), chw(RGB))
    np.testing.assert_array_equal(decode(encode(GRAY, "GIF")), chw(GRAY))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_are_close(kind: str) -> None:
    smooth = np.add.outer(np.arange(32), np.arange(48)).astype(np.uint8)[..., None] * np.array([1, 2, 3], np.uint8)
    decoded = decode(encode(smooth, kind, quality=95)).astype(int)
    assert np.abs(decoded - chw(smooth)).mean() < 3
    assert decode(encode(smooth[..., 0], "JPEG")).shape == (1, 32, 48)


def test_one_bit() -> None:
    for kind in ("PNG", "TIFF", "PPM", "BMP"):
        decoded = decode(encode(Image.fromarray(GRAY).convert("1", dither=Image.Dither.NONE), kind))
        np.testing.assert_array_equal(decoded, chw(np.where(GRAY >= 128, 255, 0)), err_msg=kind)


def test_palette_of_colours_and_of_grays() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 1, 2, 3])
    image.putdata([2, 0, 1])
    expected = np.array([[[70, 10, 40]], [[80, 20, 50]], [[90, 30, 60]]])
    np.testing.assert_array_equal(decode(encode(image)), expected)
    # The last entry is coloured, but no pixel uses it.
    image.putpalette([5, 5, 5, 100, 100, 100, 200, 200, 200, 1, 2, 3])
    np.testing.assert_array_equal(decode(encode(image)), [[[200, 5, 100]]])


def test_palette_with_transparency_lies_on_white() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    decoded = decode(encode(image, transparency=bytes([255, 0, 128])))
    assert decoded[:, 0, 0].tolist() == [10, 20, 30]
    assert decoded[:, 0, 1].tolist() == [255, 255, 255]
    np.testing.assert_allclose(decoded[:, 0, 2], np.array([70, 80, 90]) * 128 / 255 + 127, atol=1)
    assert decode(encode(image, "GIF", transparency=1))[:, 0, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_lies_on_white(kind: str, mode: str) -> None:
    alpha = noise(3, 6, 9, channels=1)
    colour = RGB if mode == "RGBA" else GRAY[..., None]
    image = Image.fromarray(np.dstack([colour, alpha]))
    assert image.mode == mode
    opacity = alpha[..., None] / 255
    expected = chw(colour * opacity + 255 * (1 - opacity))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    decoded = decode(encode(image.convert("RGBA") if kind == "WEBP" else image, kind, **options))
    assert decoded.shape[0] == (3 if kind == "WEBP" else len(expected))
    np.testing.assert_allclose(decoded.astype(float), np.broadcast_to(expected, decoded.shape), atol=1)


def test_a_transparent_colour_lies_on_white() -> None:
    gray = np.array([[7, 90]], dtype=np.uint8)
    np.testing.assert_array_equal(decode(encode(gray, transparency=7)), [[[255, 90]]])
    rgb = np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8)
    np.testing.assert_array_equal(decode(encode(rgb, transparency=(1, 2, 3)))[:, 0].T, [[255] * 3, [4, 5, 6]])


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("max_side", [None, 4])
@pytest.mark.parametrize("colour", [False, True])
def test_a_transparent_value_of_any_depth_lies_on_white(bits: int, max_side: int | None, colour: bool) -> None:
    """It is stated as a number of the file's own bits; a neighbour that differs in the last bit stays."""
    if colour and bits < 8:
        return
    height, width, channels = 8, 16, 3 if colour else 1
    most = 2**bits - 1
    pixels = np.random.default_rng(0).integers(0, most + 1, (height, width, channels)).astype(np.uint16)
    pixels[2], pixels[3] = 1, [*[1] * (channels - 1), 0]
    rows = b""
    for row in pixels:
        if bits == 16:
            rows += b"\0" + row.astype(">u2").tobytes()
        else:
            digits = np.unpackbits(row.astype(np.uint8).reshape(-1, 1), axis=1)[:, 8 - bits :]
            rows += b"\0" + np.packbits(digits.reshape(-1)).tobytes()
    header = struct.pack(">IIBBBBB", width, height, bits, 2 if colour else 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tRNS", b"\0\1" * channels), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in chunks:
        data += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    scale, kind_of = (1, np.float32) if bits == 16 else (255 // most, np.uint8)
    expected = np.where((pixels == 1).all(axis=2, keepdims=True), most, pixels).transpose(2, 0, 1) * scale
    decoded = decode(data, max_side)
    assert decoded.dtype == kind_of
    np.testing.assert_allclose(decoded, shrink(expected.astype(kind_of), max_side), rtol=1e-5)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind: str) -> None:
    """Pure inks: cyan takes red away, black takes all."""
    inks = {(0, 0, 0, 0): (255, 255, 255), (255, 0, 0, 0): (0, 255, 255), (0, 255, 0, 0): (255, 0, 255),
            (0, 0, 255, 0): (255, 255, 0), (0, 0, 0, 255): (0, 0, 0)}  # fmt: skip
    for ink, colour in inks.items():
        decoded = decode(encode(Image.new("CMYK", (16, 16), ink), kind))
        assert decoded.shape == (3, 16, 16)
        np.testing.assert_allclose(decoded[:, 8, 8], colour, atol=3)


def test_cmyk_jpeg_by_adobe_is_stored_inverted() -> None:
    data = encode(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG")
    assert b"Adobe" in data  # Pillow writes the marker and inverts; it must come back as it was
    np.testing.assert_allclose(decode(data)[:, 8, 8], (0, 255, 255), atol=3)


def test_ycbcr_and_lab_and_hsv() -> None:
    colour = Image.new("RGB", (4, 4), (200, 100, 50))
    if int(PIL.__version__.split(".")[0]) >= 13:  # older ones cannot read such a file
        ycbcr = decode(encode(colour.convert("YCbCr"), "TIFF"))
        np.testing.assert_allclose(ycbcr[:, 0, 0], (200, 100, 50), atol=2)
    lab = ImageCms.profileToProfile(
        colour, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    np.testing.assert_allclose(decode(encode(lab, "TIFF"))[:, 0, 0], (200, 100, 50), atol=3)
    hsv = pillow._flatten(colour.convert("HSV"), colour.size)  # no file format holds it
    np.testing.assert_allclose(hsv[:, 0, 0], (200, 100, 50), atol=3)


RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


@pytest.mark.parametrize(
    "data",
    [
        encode(Image.fromarray(RAMP), "PNG"),
        encode(Image.fromarray(RAMP), "TIFF"),
        tiff(RAMP, byteorder=">"),
        tiff(RAMP, byteorder="<", compression="deflate"),
        tiff(RAMP.astype(np.int16)),
        tiff(RAMP.astype(np.int32)),
        tiff(RAMP.astype(np.uint32)),
        tiff(RAMP.astype(np.float32)),
        tiff(RAMP.astype(np.float64)),
        tiff(65535 - RAMP, photometric="miniswhite"),
        png16(RAMP[..., None]),
        encode(Image.fromarray(RAMP.astype(np.int32)), "TIFF"),
        b"P5 64 64 65535\n" + RAMP.astype(">u2").tobytes(),
    ],
    ids=["png", "tiff", "big-endian", "deflate", "int16", "int32", "uint32", "float32", "float64", "inverted",
         "png16", "mode-I", "pgm"],
)  # fmt: skip
def test_a_12_bit_ramp_keeps_its_values(data: bytes) -> None:
    decoded = decode(data)
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, chw(RAMP))


def test_signed_and_large_numbers() -> None:
    values = np.array([[-3, 0, 2**31 - 1]], dtype=np.int32)
    np.testing.assert_array_equal(decode(tiff(values)), chw(values).astype(np.float32))
    values = np.array([[0, 2**31, 2**32 - 1]], dtype=np.uint32)
    np.testing.assert_array_equal(decode(tiff(values)), chw(values).astype(np.float32))
    values = np.array([[-1.5, 0.25, 1e30]], dtype=np.float32)
    np.testing.assert_array_equal(decode(tiff(values)), chw(values))


DEEP = np.random.default_rng(4).integers(0, 65536, (5, 7, 4), dtype=np.uint16)


def on_white(pixels: np.ndarray) -> np.ndarray:
    alpha = pixels[..., -1:] / 65535
    return chw(pixels[..., :-1] * alpha + 65535 * (1 - alpha))


def test_deep_png() -> None:
    np.testing.assert_array_equal(decode(png16(DEEP[..., :3])), chw(DEEP[..., :3]).astype(np.float32))
    np.testing.assert_allclose(decode(png16(DEEP)), on_white(DEEP), atol=0.1)
    np.testing.assert_allclose(decode(png16(DEEP[..., :2])), on_white(DEEP[..., :2]), atol=0.1)


def test_a_deep_png_is_shrunk_as_it_would_be_in_whole() -> None:
    pixels = np.random.default_rng(5).integers(0, 65536, (40, 30, 3), dtype=np.uint16)
    for data in (png16(pixels), png16(pixels[..., :1])):
        np.testing.assert_allclose(decode(data, 10), shrink(decode(data), 10), rtol=1e-5)


@pytest.mark.parametrize("most", [255, 256, 1023, 4095, 65535])
@pytest.mark.parametrize("plain", [False, True])
def test_bands_of_a_colour_ppm_are_what_they_would_be_alone(most: int, plain: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, most + 1, (5, 7, 3))
    pixels[0, 0] = 0, most // 3, most

    def ppm(kind: bytes, samples: np.ndarray) -> bytes:
        numbers = " ".join(map(str, samples.ravel())).encode()
        content = numbers if plain else samples.astype(np.uint8 if most < 256 else ">u2").tobytes()
        return kind + b"\n7 5 # wide, high\n%d\n" % most + content

    decoded = decode(ppm(b"P3" if plain else b"P6", pixels))
    for band, expected in enumerate(chw(pixels)):
        np.testing.assert_array_equal(decoded[band : band + 1], decode(ppm(b"P2" if plain else b"P5", expected)))
    assert decoded.dtype == (np.uint8 if most < 256 else np.float32)
    np.testing.assert_allclose(decoded, chw(pixels) * ((255 if most < 256 else 65535) / most), atol=0.51)
    with pytest.raises(BadImage, match=r"truncated|not enough"):
        decode(ppm(b"P6", pixels)[:-30] if not plain else ppm(b"P3", pixels)[:-90])


AVIF_OF_10_BITS = base64.b85decode(  # 4 x 4 pixels of (800, 400, 200)
    "0000WW^{RQVRmU|00000VRmU|ZE0pPZE0a<O+hh10002%ZDn*}000000000XXk=`10000000000aA{+7000000000000000000004sdC7Z2$lO"
    "000310016oY;R)#0000)000310RR910RR926951JBLDyZC~0YKW&i*H00031000_kZf0cy000000RRADb}%tRZ)|UJ00000YH4tCZ~y=ROKEUp"
    "ZvX%Q6lrsCWdHyG000001ONa41ONa45O8UDX#fBK00RmN3IG5A3}JRLLxCVb000006Ju{|a&BX6cmM(b0ssbp0000NX>e^}0000000001009I6"
    "0)qqq001j(WMOm?015~=1bw^+2pT{#6&XTf1i%0^0001xKbr{PntD01<7f"
)


def test_depth_that_is_lost_is_told() -> None:
    shallow = [encode(RGB, "JPEG2000"), encode(RGB, "JPEG2000", no_jp2=True), encode(RGB, "AVIF")]
    deep = [AVIF_OF_10_BITS]
    for data in map(bytearray, shallow[:2]):
        size = data.index(b"\xff\x4f\xff\x51")
        data[size + 42 : size + 51 : 3] = b"\x0b" * 3  # one less than the bits of each band
        deep.append(bytes(data))
    gray = encode(Image.fromarray(RAMP), "JPEG2000")  # nothing is lost
    np.testing.assert_array_equal(decode(gray), chw(RAMP))
    for data in (*shallow, gray, *deep):
        notes: list[str] = []
        decode(data, None, notes.append)
        assert notes == ["of more than 8 bits, of which 8 are read"] * (data in deep)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_deep_tiff(planar: str) -> None:
    def write(pixels: np.ndarray, **options: object) -> bytes:
        planes = pixels if planar == "contig" else np.ascontiguousarray(chw(pixels))
        return tiff(planes, photometric="rgb", planarconfig=planar, **options)

    np.testing.assert_array_equal(decode(write(DEEP[..., :3])), chw(DEEP[..., :3]).astype(np.float32))
    np.testing.assert_allclose(decode(write(DEEP, extrasamples=["unassalpha"])), on_white(DEEP), atol=0.1)
    # A fourth band that is not declared to be alpha is a band (near infrared), at any depth.
    np.testing.assert_array_equal(decode(write(DEEP, extrasamples=["unspecified"])), chw(DEEP).astype(np.float32))
    shallow = (DEEP >> 8).astype(np.uint8)
    decoded = decode(write(shallow, extrasamples=["unspecified"]))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, chw(shallow))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_many_bands_stay_many(dtype: type, planar: str) -> None:
    bands = np.random.default_rng(5).integers(0, 255, (5, 6, 9)).astype(dtype)
    pixels = bands if planar == "separate" else np.ascontiguousarray(bands.transpose(1, 2, 0))
    data = tiff(pixels, photometric="minisblack", planarconfig=planar)
    decoded = decode(data)
    assert decoded.dtype == (np.uint8 if dtype is np.uint8 else np.float32)
    np.testing.assert_array_equal(decoded, bands)
    assert image_size(data) == (6, 9)


def test_a_missing_codec_is_a_reason() -> None:
    pytest.importorskip("tifffile")
    data = bytearray(tiff(DEEP[..., :3], photometric="rgb", compression="deflate"))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        offset = file.pages.first.tags["Compression"].valueoffset
    data[offset : offset + 2] = struct.pack("<H", 34712)  # JPEG 2000
    with pytest.raises(BadImage, match=r"(?i)imagecodecs|jpeg"):
        decode(bytes(data))


def test_only_the_first_frame_is_read_and_that_is_told() -> None:
    frames = [Image.fromarray(noise(seed, 6, 9, channels=1)) for seed in range(3)]
    notes: list[str] = []
    gif = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(gif, None, notes.append), chw(np.asarray(frames[0])))
    webp = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_array_equal(decode(webp, None, notes.append), np.repeat(chw(np.asarray(frames[0])), 3, axis=0))
    assert notes == ["with several frames, of which the first is read"] * 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    """The standard's words: where the stored row 0 and column 0 belong in the upright picture."""
    upright = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    row_0, column_0 = {
        1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
        5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
    }[orientation]  # fmt: skip
    stored = upright
    if "bottom" in (row_0, column_0):
        stored = stored[::-1]
    if "right" in (row_0, column_0):
        stored = stored[:, ::-1]
    if row_0 in ("left", "right"):
        stored = stored.T
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(np.ascontiguousarray(stored), "PNG", exif=exif)
    np.testing.assert_array_equal(decode(data), upright[None])
    np.testing.assert_array_equal(decode(encode(np.ascontiguousarray(stored), "TIFF", exif=exif)), upright[None])
    deep = stored[..., None].repeat(3, axis=2).astype(np.uint16)
    tag = [(274, "H", 1, orientation, True)]
    np.testing.assert_array_equal(decode(tiff(deep, photometric="rgb", extratags=tag))[0], upright)


def test_exif_orientation_of_a_jpeg_that_is_shrunk() -> None:
    halves = np.zeros((64, 256), dtype=np.uint8)
    halves[:, 128:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: left becomes top
    decoded = decode(encode(halves, "JPEG", exif=exif), max_side=32)
    assert decoded.shape == (1, 32, 8)
    assert decoded[0, :12].max() < 30
    assert decoded[0, 20:].min() > 225


def test_damaged_exif_does_not_cost_the_image() -> None:
    data = encode(RGB, "JPEG", exif=b"Exif\0\0garbage that is no TIFF header")
    assert decode(data).shape == (3, 6, 9)


@given(
    height=st.integers(1, 60), width=st.integers(1, 60), max_side=st.integers(1, 70),
    kind=st.sampled_from(["PNG", "JPEG", "deep"]),
)  # fmt: skip
@settings(max_examples=60)
def test_shrinking_never_enlarges_and_keeps_the_aspect(height: int, width: int, max_side: int, kind: str) -> None:
    pixels = noise(0, height, width)
    data = tiff(pixels.astype(np.uint16), photometric="rgb") if kind == "deep" else encode(pixels, kind)
    decoded = decode(data, max_side)
    longest = max(height, width)
    if longest <= max_side:
        assert decoded.shape == (3, height, width)
        return
    assert max(decoded.shape[1:]) == max_side
    for side, original in zip(decoded.shape[1:], (height, width), strict=True):
        assert side == max(1, round(original * max_side / longest))
    if kind != "JPEG":
        assert pixels.min() <= decoded.min() <= decoded.max() <= pixels.max()


def test_shrinking_is_antialiased() -> None:
    """A fine checkerboard becomes even gray; dropping pixels would leave black and white."""
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    for pixels in (board, board.astype(np.float32) * 100):
        small = shrink(pixels[None], 8)[0, 1:-1, 1:-1]
        np.testing.assert_allclose(small / pixels.max(), 0.5, atol=0.02)


def test_jpeg_draft_mode_is_close_to_the_full_decode() -> None:
    y, x = np.mgrid[0:600, 0:800]
    photo = np.stack([127 + 100 * np.sin(x / 50), 127 + 100 * np.cos(y / 70), (x + y) / 6], axis=2).astype(np.uint8)
    data = encode(photo, "JPEG", quality=95)
    full = shrink(decode(data), 80).astype(float)
    assert np.abs(decode(data, 80) - full).mean() < 1.5


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"this is a text file\n" * 20, "not an image"),
        (b"\xff\xd8\xff", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (png_header(20_000, 20_000), "megapixels"),
        (png_header(50_000, 50_000, depth=16), "megapixels"),
        (png_header(10_001, 10_000), "megapixels"),
        (png_header(0, 5), "."),
        (tiff(np.array([[np.nan, np.nan]], dtype=np.float32)), "only pixels without data"),
        (tiff(np.array([[np.inf, 1]], dtype=np.float64)), "infinite or not a number"),
        (tiff(np.array([[1e300, 1]], dtype=np.float64)), "infinite or not a number"),
        (tiff(np.ones((2, 2), dtype=np.complex64)), "complex64"),
    ],
    ids=["empty", "text", "stub", "svg", "bomb", "deep-bomb", "just-over", "no-rows", "nan", "inf", "1e300",
         "complex"],
)  # fmt: skip
def test_refused_with_a_short_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason) as caught:
        decode(data)
    assert 0 < len(str(caught.value)) <= 200
    assert "\n" not in str(caught.value)


def test_tiff_bombs_are_refused_before_they_are_decoded() -> None:
    small = bytearray(tiff(np.zeros((2, 2, 5), np.uint8), photometric="minisblack", planarconfig="contig"))
    with tifffile.TiffFile(io.BytesIO(small)) as file:
        for name in ("ImageWidth", "ImageLength"):
            tag = file.pages.first.tags[name]
            small[tag.valueoffset : tag.valueoffset + 4] = struct.pack("<I", 200_000)[: 4 if tag.dtype == 4 else 2]
    start = time.perf_counter()
    with pytest.raises(BadImage):
        decode(bytes(small))
    assert time.perf_counter() - start < 2


SAMPLES = {
    "jpeg": encode(noise(6, 40, 40), "JPEG"),
    "png": encode(noise(6, 40, 40), "PNG"),
    "deep png": png16(DEEP),
    "gif": encode(GRAY, "GIF"),
    "bmp": encode(RGB, "BMP"),
    "webp": encode(RGB, "WEBP"),
    "ppm": encode(RGB, "PPM"),
    "tiff": encode(RGB, "TIFF", compression="tiff_lzw"),
    "deep tiff": tiff(DEEP[..., :3], photometric="rgb", compression="deflate"),
    "bands": tiff(np.ones((4, 5, 6), np.uint8), photometric="minisblack", planarconfig="separate"),
}


@given(name=st.sampled_from(sorted(SAMPLES)), fraction=st.floats(0, 1, exclude_max=True))
@settings(deadline=5000, max_examples=200)
def test_truncated_files_never_crash(name: str, fraction: float) -> None:
    data = SAMPLES[name]
    whole = decode(data)
    try:
        decoded = decode(data[: int(fraction * len(data))])
    except BadImage:
        return
    np.testing.assert_array_equal(decoded, whole)  # only what holds no pixels may be missing


@given(
    name=st.sampled_from(sorted(SAMPLES)),
    damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
)
@settings(deadline=5000, max_examples=200)
def test_damaged_files_never_crash(name: str, damage: list[tuple[float, int]]) -> None:
    data = bytearray(SAMPLES[name])
    for fraction, value in damage:
        data[int(fraction * len(data))] = value
    try:
        decoded = decode(bytes(data), max_side=64)
    except BadImage:
        return
    assert decoded.dtype in (np.uint8, np.float32)
    assert decoded.ndim == 3


def test_truncated_files_are_refused_whatever_the_program_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(BadImage, match="truncated"):
        decode(SAMPLES["jpeg"][:-200])
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_nothing_leaks_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in SAMPLES.values():
            for max_side in (None, 64):
                decode(data, max_side)
                with pytest.raises(BadImage):
                    decode(data[: len(data) // 2], max_side)
        scan = bytearray(encode(noise(0, 60, 60), "JPEG", quality=95))
        scan[len(scan) // 2 : -2] = bytes(b ^ 0x5A for b in scan[len(scan) // 2 : -2])
        with contextlib.suppress(BadImage):
            decode(bytes(scan), 64)
        with pytest.raises(BadImage):
            decode(png_header(9_990, 9_990))  # large enough for a warning of Pillow's
    assert capfd.readouterr() == ("", "")


def test_image_size_reads_only_the_header() -> None:
    assert image_size(png_header(9_000, 8_000)) == (8_000, 9_000)
    with pytest.raises(BadImage):
        image_size(b"text")


@pytest.mark.parametrize("turn", [1, 3, 6, 8])
@pytest.mark.parametrize("bands", [2, 3, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_image_size_is_that_of_the_upright_tiff(turn: int, bands: int, dtype: type) -> None:
    options: dict[str, object] = {"photometric": "rgb" if bands == 3 else "minisblack", "planarconfig": "contig"}
    data = tiff(np.zeros((6, 9, bands), dtype), extratags=[(274, "H", 1, turn, True)], **options)
    assert image_size(data) == decode(data).shape[1:] == ((9, 6) if turn > 4 else (6, 9))


@pytest.mark.parametrize("frames", [1, 2])
def test_image_size_sees_an_orientation_behind_the_pixels(frames: int) -> None:
    image = Image.fromarray(noise(0, 60, 90))
    exif = Image.Exif()
    exif[274] = 6
    data = encode(image, save_all=True, append_images=[image.rotate(180)] * (frames - 1))
    block = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(block) - 4) + block + struct.pack(">I", zlib.crc32(block))
    end = data.rindex(b"IEND") - 4
    data = data[:end] + chunk + data[end:]
    assert image_size(data) == decode(data).shape[1:] == ((90, 60) if frames == 1 else (60, 90))


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt"])
def test_image_size_sees_the_orientation_as_imagemagick_writes_it(kind: bytes) -> None:
    exif = Image.Exif()
    exif[274] = 6
    block = exif.tobytes()
    text = b"\nexif\n%8d\n" % len(block) + block.hex().encode()
    content = b"Raw profile type exif\0" + (b"\0" + zlib.compress(text) if kind == b"zTXt" else text)
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    data = encode(noise(0, 60, 90))
    begin = data.index(b"IDAT") - 4
    data = data[:begin] + chunk + data[begin:]
    assert image_size(data) == decode(data).shape[1:] == (90, 60)


def test_decoding_common_files_needs_no_torch() -> None:
    program = "import sys, mocokit.data.store; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
