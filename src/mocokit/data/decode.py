"""Decode one image file to pixels: uint8, or, of more than eight bits ("deep"), float32 in its own units.

Everything that is wrong with a file is a ``BadImage``.
"""

import io
import logging
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError

from mocokit.data.jpeg import decode_small_jpeg

MAX_FILE_BYTES = 2**30
MAX_PIXELS = 100_000_000
MAX_SAMPLES = 4 * MAX_PIXELS  # height x width x bands
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM")

_TOO_LARGE = f"more than {MAX_PIXELS // 1_000_000} megapixels"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_GRAY_ALPHA, _PNG_RGBA = 4, 6
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 258, 262, 274, 277, 338, 339
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _CMYK = 0, 1, 2, 5
_ASSOCIATED_ALPHA, _UNASSOCIATED_ALPHA = 1, 2
_UNSIGNED = 1


class BadImage(Exception):
    """The image cannot be used; the message is the reason, short and on one line."""

    def __init__(self, reason: str) -> None:
        super().__init__(" ".join(reason.split())[:200])


def decode(data: bytes, max_side: int | None = None) -> np.ndarray:
    """Decode one image file.

    Palettes, alpha (on white), CMYK, YCbCr, LAB and HSV are flattened to gray or RGB, the EXIF orientation
    is applied, and of several frames or pages only the first is read.

    Args:
        data: the whole file.
        max_side: a longer image is shrunk (antialiased) until its longest side has this length; None keeps every size.

    Returns:
        [C, H, W], C-contiguous: uint8, or float32 in the file's own units for 16- and 32-bit files. C is 1 for gray,
        3 for colour, and the number of bands for other TIFF files.

    Raises:
        BadImage: not an image, damaged, truncated, too large, or not representable.
    """
    if (small := decode_small_jpeg(data, max_side)) is not None:
        return np.ascontiguousarray(small)
    with _translated_errors():
        if not data:
            raise BadImage("empty file")
        if data[:4] in _TIFF_SIGNATURES:
            pixels = _decode_tiff(data)
        elif _is_deep_png(data):
            pixels = _decode_deep_png(data)
        else:
            with _open(data) as image:
                pixels = decode_pillow(image, max_side)
        if pixels.dtype != np.uint8 and not np.isfinite(pixels).all():
            raise BadImage("pixels that are infinite or not a number")
        return np.ascontiguousarray(shrink(pixels, max_side))


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) as the file's header states them, before the EXIF orientation; may raise BadImage."""
    with _translated_errors():
        try:
            with _open(data) as image:
                return image.height, image.width
        except UnidentifiedImageError:
            if data[:4] not in _TIFF_SIGNATURES:
                raise
            with _first_page(data) as page:
                return page.imagelength, page.imagewidth


def shrink(pixels: np.ndarray, max_side: int | None) -> np.ndarray:
    """Shrink [C, H, W] (uint8 or float32) so that its longest side is at most ``max_side``.

    The filter is an antialiased triangle: unlike bicubic it never overshoots the range of a deep image.
    """
    height, width = pixels.shape[1:]
    return _resize(pixels, _shrunk_size(width, height, max_side))


def _shrunk_size(width: int, height: int, max_side: int | None) -> tuple[int, int]:
    scale = min(1.0, (max_side or math.inf) / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if pixels.shape[:0:-1] == size:
        return pixels
    return np.stack([np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR)) for plane in pixels])


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Decoders of untrusted bytes raise anything (struct.error, KeyError, MemoryError): all are BadImage."""
    truncated = ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ImageFile.LOAD_TRUNCATED_IMAGES = False  # a program around us may have switched it on
            yield
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage("not an image in a known format") from None
    except Image.DecompressionBombError:
        raise BadImage(_TOO_LARGE) from None
    except Exception as error:
        raise BadImage(str(error) or type(error).__name__) from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = truncated


def _open(data: bytes) -> ImageFile.ImageFile:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    _check_size(*image.size)
    return image


def _check_size(width: int, height: int, bands: int = 1) -> None:
    if width * height > MAX_PIXELS or width * height * bands > MAX_SAMPLES:
        raise BadImage(_TOO_LARGE)
    if width * height * bands == 0:
        raise BadImage("no pixels")


def decode_pillow(image: Image.Image, max_side: int | None) -> np.ndarray:
    """As `decode`, of an image that Pillow has opened."""
    size = _shrunk_size(*image.size, max_side)
    if size != image.size:
        # A JPEG decoder may skip detail, but only down to twice the final size: the rest is our filter's.
        image.draft(None, (2 * size[0], 2 * size[1]))
    image.load()
    return _orient(_resize(_flatten(image), size), _orientation(image))


def _flatten(image: Image.Image) -> np.ndarray:
    """Any Pillow mode to gray or RGB, [C, H, W] uint8 or float32."""
    mode = image.mode
    if mode.startswith("I;16") or mode in ("I", "F"):
        return np.asarray(image).astype(np.float32)[None]
    if mode == "LAB":
        image = _lab_to_rgb(image)
    elif mode in ("LA", "La") or (mode in ("1", "L") and image.has_transparency_data):
        gray, alpha = image.convert("LA").split()
        image = Image.composite(gray, Image.new("L", image.size, 255), alpha)
    elif mode in ("PA", "RGBA", "RGBa") or image.has_transparency_data:
        colour = image.convert("RGBA")
        image = Image.new("RGBA", image.size, "white")
        image.alpha_composite(colour)
    if image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    pixels = np.asarray(image)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return pixels[:1] if mode in ("P", "PA") and (pixels == pixels[0]).all() else pixels


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
    assert converted is not None  # only with inPlace=True
    return converted


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1


def _orient(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Bring [C, H, W] stored under an EXIF orientation (1 to 8) upright; others count as 1."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(1, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[:, ::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, :, ::-1]
    return pixels


def _is_deep_png(data: bytes) -> bool:
    return data[:8] == _PNG_SIGNATURE and data[24:26] in (b"\x10\x02", b"\x10\x04", b"\x10\x06")


def _decode_deep_png(data: bytes) -> np.ndarray:
    """Both bytes of each sample, through decoders of Pillow's that keep one (torchvision's has crashed)."""
    if data[25] == _PNG_GRAY_ALPHA:
        # Two 16-bit samples a pixel are laid out and filtered like four of 8 bits.
        header = data[12:24] + bytes([8, _PNG_RGBA]) + data[26:29]
        data = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
        samples, orientation = _png_bytes(data)
        pixels = samples[::2] << 8 | samples[1::2]
    else:
        high, orientation = _png_bytes(data, "16B")
        low, _ = _png_bytes(data, "16L")
        pixels = high << 8 | low
    has_alpha = len(pixels) in (2, 4)
    pixels = _flatten_alpha(pixels[:-1], pixels[-1:], white=65535) if has_alpha else pixels.astype(np.float32)
    return _orient(pixels, orientation)


def _png_bytes(data: bytes, order: str | None = None) -> tuple[np.ndarray, int]:
    """One byte of each sample, uint16 [C, H, W], of 16 bits the upper ("16B") or lower ("16L"); and the orientation.

    Pillow keeps the more significant byte under the byte order it is told, and PNG is big-endian.
    """
    with _open(data) as image:
        if order:
            image.tile = [tile._replace(args=f"{image.mode};{order}") for tile in image.tile]
        return np.asarray(image).astype(np.uint16).transpose(2, 0, 1), _orientation(image)


def _flatten_alpha(colour: np.ndarray, alpha: np.ndarray, white: float, premultiplied: bool = False) -> np.ndarray:
    """Lay deep colour [C, H, W] with alpha [1, H, W], both in 0..white, on white; float32."""
    opacity = alpha.astype(np.float32) / np.float32(white)
    colour = colour.astype(np.float32)
    return (colour if premultiplied else colour * opacity) + np.float32(white) * (1 - opacity)


def _decode_tiff(data: bytes) -> np.ndarray:
    """Pillow where it keeps depth and bands (it supports more compressions), else tifffile."""
    try:
        image = _open(data)
    except UnidentifiedImageError:
        return _decode_with_tifffile(data)
    with image:
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        bits = max(tags.get(_BITS, (1,)))
        samples = tags.get(_SAMPLES, 1)
        # Pillow crushes deep colour to 8 bits and drops bands that are neither colour nor alpha.
        if samples > 4 or (samples > 1 and bits > 8) or (samples == 4 and 0 in tags.get(_EXTRA_SAMPLES, ())):
            return _decode_with_tifffile(data)
        unsigned = max(tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))) == _UNSIGNED
        inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        pixels = decode_pillow(image, None)
        if bits > 8 and unsigned:
            if bits == 32:  # Pillow keeps the bits of an unsigned number in a signed one
                pixels = np.asarray(image).view(np.uint32).astype(np.float32)[None]
            if inverted:
                pixels = np.float32(2**bits - 1) - pixels
        return pixels


@contextmanager
def _first_page(data: bytes) -> Iterator[Any]:
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # it logs what it also raises
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        yield file.pages.first


def _decode_with_tifffile(data: bytes) -> np.ndarray:
    with _first_page(data) as page:
        samples = page.samplesperpixel
        _check_size(page.imagewidth, page.imagelength, samples)
        ends = [start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if max(ends, default=0) > len(data):
            raise BadImage("image file is truncated")
        pixels = page.asarray()
        if page.axes not in ("YX", "YXS", "SYX"):
            raise BadImage(f"TIFF with axes {page.axes} is not a plane image")
        pixels = np.moveaxis(np.atleast_3d(pixels), -1, 0) if page.axes != "SYX" else pixels
        tag = page.tags.get(_ORIENTATION)
        return _orient(_flatten_bands(pixels, page), tag.value if tag else 1)


def _flatten_bands(pixels: np.ndarray, page: Any) -> np.ndarray:
    """Bands [S, H, W] of any number type to [C, H, W], uint8 or float32; alpha only with gray or RGB."""
    if pixels.dtype.kind not in "uif":
        raise BadImage(f"TIFF with {pixels.dtype} pixels is not supported")
    white = float(np.iinfo(pixels.dtype).max) if pixels.dtype.kind in "ui" else 1.0
    eight_bit = pixels.dtype == np.uint8
    extra = tuple(int(kind) for kind in page.extrasamples)
    photometric = int(page.photometric)
    if photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _CMYK):
        raise BadImage(f"{8 * pixels.itemsize}-bit TIFF with photometric {photometric} is not supported")
    if photometric == _WHITE_IS_ZERO and pixels.dtype.kind == "u":
        pixels = pixels.dtype.type(white) - pixels
    if photometric == _CMYK and len(pixels) == 4:
        ink = pixels.astype(np.float32) / np.float32(white)
        pixels = np.float32(white) * (1 - ink[:3]) * (1 - ink[3:])
    elif len(pixels) in (2, 4) and extra[-1:] in ((_ASSOCIATED_ALPHA,), (_UNASSOCIATED_ALPHA,)):
        pixels = _flatten_alpha(pixels[:-1], pixels[-1:], white, extra[-1] == _ASSOCIATED_ALPHA)
    return np.rint(pixels).astype(np.uint8) if eight_bit else pixels.astype(np.float32)
