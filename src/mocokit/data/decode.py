"""Decode one image file to pixels: uint8, or, of more than eight bits ("deep"), float32 in its own units.

Everything that is wrong with a file is a ``BadImage``.
"""

import io
import struct
import zlib
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from mocokit.data.jpeg import decode_small_jpeg
from mocokit.data.pillow import (
    MAX_PIXELS,
    BadImage,
    Note,
    check_size,
    decode_pillow,
    filled,
    flatten_alpha,
    open_image,
    orientation_of,
    oriented,
    shrink,
    shrunk_size,
    tell_nobody,
    translated_errors,
)
from mocokit.data.tiff import SIGNATURES, decode_tiff, tiff_size

MAX_FILE_BYTES = 2**28
TOO_MANY_BYTES = f"larger than {MAX_FILE_BYTES >> 20} MiB"

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_RGB, _PNG_GRAY_ALPHA, _PNG_RGBA = 2, 4, 6
_MOST_DEEP_ALPHA = 12_000_000  # pixels, which are decoded whole


def decode(
    data: bytes, max_side: int | None = None, note: Note = tell_nobody, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decode one image file.

    Palettes, alpha (on white), CMYK, YCbCr, LAB and HSV are flattened to gray or RGB, the EXIF orientation
    is applied, and of an animation only the first frame is read; for the pages of a TIFF file see `mocokit.data.tiff`.

    Args:
        data: the whole file.
        max_side: a longer image is shrunk (antialiased) until its longest side has this length; None keeps every size.
        note: called with what a user may not expect.
        max_pixels: larger images are refused.

    Returns:
        [C, H, W], C-contiguous: uint8, or float32 in the file's own units for 16- and 32-bit files. C is 1 for gray,
        3 for colour, and the number of bands for other TIFF files.

    Raises:
        BadImage: not an image, damaged, truncated, too large, or not representable.
    """
    if (small := decode_small_jpeg(data, max_side)) is not None:
        return np.ascontiguousarray(small)
    with translated_errors(max_pixels):
        if not data:
            raise BadImage("empty file")
        if data[:4] in SIGNATURES:
            pixels = decode_tiff(data, note)
        elif _is_deep_png(data):
            pixels = _decode_deep_png(data, max_side)
        else:
            with open_image(data) as image:
                if getattr(image, "is_animated", False):
                    note("with several frames, of which the first is read")
                if _is_crushed(image, data):
                    note("of more than 8 bits, of which 8 are read")
                deep = _decode_deep_ppm(image)
                pixels = decode_pillow(image, max_side) if deep is None else deep
        if pixels.dtype != np.uint8:
            pixels = filled(pixels, note=note)
        return np.ascontiguousarray(shrink(pixels, max_side))


def image_size(file: bytes | BinaryIO, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) as `decode` gives them, of which no more is read than the header; may raise BadImage."""
    stream = io.BytesIO(file) if isinstance(file, bytes) else file
    with translated_errors(max_pixels):
        try:
            image = open_image(stream)
        except UnidentifiedImageError:
            stream.seek(0)
            if (data := stream.read())[:4] not in SIGNATURES:
                raise
            return tiff_size(data)
        tags = getattr(image, "tag_v2", {})  # of TIFF files, whose size some versions of Pillow have turned
        height, width = tags.get(257, image.height), tags.get(256, image.width)
        return (width, height) if orientation_of(image, in_header=True) >= 5 else (height, width)  # by a quarter


def _is_crushed(image: ImageFile.ImageFile, data: bytes) -> bool:
    """Whether Pillow has only 8 bits of colour in a JPEG 2000 or AVIF file that has more."""
    if image.format == "JPEG2000":
        size = data.find(b"\xff\x4f\xff\x51")  # the marker before the size; 42 bytes on, one less than the bits
        return not image.mode.startswith("I") and data[size + 42] & 127 > 7
    # In AVIF, the decoder's configuration has a bit for high depth.
    return image.format == "AVIF" and (box := data.find(b"av1C")) >= 0 and bool(data[box + 6] & 64)


def _decode_deep_ppm(image: ImageFile.ImageFile) -> np.ndarray | None:
    """A colour PPM of more than 8 bits, of which Pillow keeps 8, as a gray one of three times the width, of which it
    keeps all: white becomes 65535. None of another image."""
    tile: Any = image.tile[0] if image.format == "PPM" and image.mode == "RGB" else None
    if not tile or tile.codec_name == "raw" or (most := tile.args[1]) <= 255:
        return None
    width, height = image.size
    check_size(width, height, 12)
    image._mode, image._size = "I", (3 * width, height)
    raw = tile.codec_name == "ppm" and most == 65535  # otherwise a slow decoder, as for gray
    codec, args = ("raw", "I;16B") if raw else (tile.codec_name, ("I", most))
    image.tile = [tile._replace(codec_name=codec, extents=(0, 0, *image.size), args=args)]
    return np.asarray(image).astype(np.float32).reshape(height, width, 3).transpose(2, 0, 1)


def _is_deep_png(data: bytes) -> bool:
    return data[:8] == _PNG_SIGNATURE and data[24:26] in (b"\x10\x02", b"\x10\x04", b"\x10\x06")


def _decode_deep_png(data: bytes, max_side: int | None) -> np.ndarray:
    """Both bytes of each sample, through decoders of Pillow's that keep one (torchvision's has crashed)."""
    with open_image(data) as image:
        transparent = image.info.get("transparency")  # of RGB: a colour
    if data[25] == _PNG_RGB and transparent is None:
        # Shrunk byte by byte and band by band: large ones would fill the memory.
        high, orientation = _png_bytes(data, "16B", max_side)
        low, _ = _png_bytes(data, "16L", max_side)
        return oriented(256 * high + low, orientation)
    with open_image(data) as image:
        if image.width * image.height > _MOST_DEEP_ALPHA:
            raise BadImage(f"16 bits with transparency and more than {_MOST_DEEP_ALPHA // 1_000_000} megapixels")
    if data[25] == _PNG_GRAY_ALPHA:
        # Two 16-bit samples a pixel are laid out and filtered like four of 8 bits.
        header = data[12:24] + bytes([8, _PNG_RGBA]) + data[26:29]
        data = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
        samples, orientation = _png_bytes(data)
        pixels = 256 * samples[::2] + samples[1::2]
    else:
        high, orientation = _png_bytes(data, "16B")
        low, _ = _png_bytes(data, "16L")
        pixels = 256 * high + low
    if transparent is not None:
        where = (pixels == np.reshape(transparent, (-1, 1, 1))).all(axis=0)
        return oriented(np.where(where, np.float32(65535), pixels), orientation)
    return oriented(flatten_alpha(pixels[:-1], pixels[-1:], white=65535), orientation)


def _png_bytes(data: bytes, order: str | None = None, max_side: int | None = None) -> tuple[np.ndarray, int]:
    """One byte of each sample, float32 [C, H, W], of 16 bits the upper ("16B") or lower ("16L"); and the orientation.

    Pillow keeps the more significant byte under the byte order it is told, and PNG is big-endian.
    """
    with open_image(data) as image:
        if order:
            image.tile = [tile._replace(args=f"{image.mode};{order}") for tile in image.tile]
        image.load()
        size = shrunk_size(*image.size, max_side)
        planes = []
        for band in range(len(image.getbands())):
            plane = image.getchannel(band).convert("F")
            planes.append(np.asarray(plane if size == plane.size else plane.resize(size, Image.Resampling.BILINEAR)))
        return np.stack(planes), orientation_of(image)
