"""TIFF files: which pages are one image, and pages that Pillow would crush or cut."""

import io
import logging
import lzma
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from PIL import UnidentifiedImageError

from mocokit.data.pillow import (
    ORIENTATION,
    BadImage,
    Note,
    check_size,
    decode_pillow,
    filled,
    flatten_alpha,
    open_image,
    oriented,
)

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_BITS, _PHOTOMETRIC, _SAMPLES, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 258, 262, 277, 338, 339
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _CMYK = 0, 1, 2, 5
_ASSOCIATED_ALPHA, _UNASSOCIATED_ALPHA = 1, 2
_UNSIGNED, _SIGNED = 1, 2
_GDAL_NODATA = 42113
_INSTALL = "pip install 'mocokit[tiff]'"
_DAMAGED = "image file is truncated or damaged"
_LZMA = 34925
_MOST_RATIOS = {8: 1040, 32946: 1040, 50013: 1040, _LZMA: 10_000}  # bytes that one of Deflate or LZMA may become
_INFLATED_BYTES = 2**26  # of one strip or tile, which are not counted
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_MOST_CHANNEL_PAGES = 16  # more gray pages of one size, that nothing says what they are, are hardly channels


def decode_tiff(data: bytes, note: Note) -> np.ndarray:
    """The page, or pages, that are one image: uint8, or float32 with pixels without data filled."""
    pages, nodata = _tiff_pages(data, note)
    images = [_decode_page(data, page) for page in pages]
    if any(image.shape[1:] != images[0].shape[1:] for image in images):
        raise BadImage("channels of different sizes")
    deep = any(image.dtype != np.uint8 for image in images)
    pixels = np.concatenate([image.astype(np.float32) for image in images] if deep else images)
    return filled(pixels, nodata, note) if deep else pixels


def _tiff_pages(data: bytes, note: Note) -> tuple[list[int], float | None]:
    """Which pages are the channels of the first image, and the value that stands for no data.

    Where the file names its axes (ImageJ, OME, tifffile's own), those of channels are channels; of a time or z
    series the first picture is taken. Where it does not, 2 to 16 gray pages of one size and at least 8 bits are
    channels, and of other pages the first is taken.
    """
    with _open(data) as file:
        try:
            first, count = file.pages.first, len(file.pages)
            series = file.series[0]
        except Exception:  # Pillow forgives more
            return [0], None
        stated = first.tags.get(_GDAL_NODATA)
        nodata = None
        if stated is not None:
            with suppress(ValueError):
                nodata = float(str(stated.value).strip(" \0"))
        if count == 1 and not (file.is_imagej or file.is_shaped):
            return [0], nodata
        outer = [(axis, size) for axis, size in zip(series.axes, series.shape, strict=True) if axis not in "YXS"]
        planes = math.prod(size for _, size in outer)
        if planes == 1:
            if any(not page.is_reduced for page in file.pages[1:]):  # those are smaller copies
                note("with several pages, of which the first is read")
            return [0], nodata
        if len(series.pages) != planes or None in (pages := list(series.pages)):
            raise BadImage(f"{planes} pictures under one header; save them as pages")
        plain = all(axis in "QI" for axis, _ in outer)
        gray = first.samplesperpixel == 1 and first.bitspersample >= 8
        if plain and gray and planes <= _MOST_CHANNEL_PAGES:
            note(f"with {planes} pages of one size, read as channels")
            chosen = list(range(planes))
        else:
            if plain:
                note("with several pages, of which the first is read")
            elif any(axis != "C" and size > 1 for axis, size in outer):
                note(f"with a series of pictures (axes {series.axes}), of which the first is read")
            step = planes  # of pages from one channel to the next
            chosen = [0]
            for axis, size in outer:
                step //= size
                if axis == "C":
                    chosen = [number * step for number in range(size)]
        nbytes = 1 if first.bitspersample <= 8 or len(chosen) == 1 else 4  # as float32
        check_size(first.imagewidth, first.imagelength, len(chosen) * first.samplesperpixel * nbytes)
        return [pages[number].index for number in chosen], nodata


def tiff_size(data: bytes) -> tuple[int, int]:
    """(height, width) of the first page, upright."""
    with _open(data) as file:
        page = _page(file)
        size = page.imagelength, page.imagewidth
        return size[::-1] if _orientation(page) in (5, 6, 7, 8) else size


def _decode_page(data: bytes, index: int) -> np.ndarray:
    """Pillow where it keeps depth and bands (it supports more compressions), else tifffile."""
    try:
        image = open_image(data)
        image.seek(index)
    except UnidentifiedImageError:
        return _decode_with_tifffile(data, index)
    with image:
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        bits = max(tags.get(_BITS, (1,)))
        samples = tags.get(_SAMPLES, 1)
        opaque = not {_ASSOCIATED_ALPHA, _UNASSOCIATED_ALPHA}.intersection(tags.get(_EXTRA_SAMPLES, ()))
        # Pillow crushes deep colour to 8 bits and drops bands that are neither colour nor alpha.
        bands = (samples == 2 and opaque) or (samples == 4 and 0 in tags.get(_EXTRA_SAMPLES, ()))
        if samples > 4 or (samples > 1 and bits > 8) or bands:
            return _decode_with_tifffile(data, index)
        sample_format = max(tags.get(_SAMPLE_FORMAT, (_UNSIGNED,)))
        inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        pixels = decode_pillow(image, None)
        if bits == 8 and sample_format == _SIGNED and image.mode == "L":  # which Pillow takes for unsigned
            return pixels.view(np.int8).astype(np.float32)
        if bits > 8 and sample_format == _UNSIGNED:
            if bits == 32:  # Pillow keeps the bits of an unsigned number in a signed one
                pixels = np.asarray(image).view(np.uint32).astype(np.float32)[None]
            if inverted:
                pixels = np.float32(2**bits - 1) - pixels
        return pixels


@contextmanager
def _open(data: bytes) -> Iterator[Any]:
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # it logs what it also raises
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        yield file


def _page(file: Any, index: int = 0) -> Any:
    try:
        return file.pages[index]
    except IndexError:  # pages are often listed behind all pixels
        raise BadImage(_DAMAGED) from None


def _decode_with_tifffile(data: bytes, index: int) -> np.ndarray:
    with _open(data) as file:
        page = _page(file, index)
        samples = page.samplesperpixel
        check_size(page.imagewidth, page.imagelength, samples)
        ends = [start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=False)]
        missing = len(ends) < max(math.prod(page.chunked), len(page.dataoffsets))  # of strips and tiles
        if missing or max(ends, default=0) > len(data):
            raise BadImage(_DAMAGED)
        if samples > 1 and page.bitspersample == 1:  # as if nothing were stated, where the values lie behind the end
            raise BadImage(f"{_DAMAGED}, or has several bands of 1 bit, which are not supported")
        if page.bitspersample > 8:
            check_size(page.imagewidth, page.imagelength, 4 * samples)
        _check_inflated(data, page)
        try:
            pixels = page.asarray()
        except (ValueError, NotImplementedError, ImportError) as error:
            if isinstance(error, ImportError) or "imagecodecs" in str(error):  # tifffile imports another one for ZSTD
                kind = f"{getattr(page.compression, 'name', page.compression)} and {page.bitspersample} bits"
                raise BadImage(f"a TIFF with compression {kind}, which needs imagecodecs: {_INSTALL}") from None
            if "reshape" in str(error):
                raise BadImage(f"{_DAMAGED}: {error}") from None
            raise
        if page.axes not in ("YX", "YXS", "SYX"):
            raise BadImage(f"TIFF with axes {page.axes} is not a plane image")
        pixels = np.moveaxis(np.atleast_3d(pixels), -1, 0) if page.axes != "SYX" else pixels
        return oriented(_flatten_bands(pixels, page), _orientation(page))


def _orientation(page: Any) -> int:
    tag = page.tags.get(ORIENTATION)
    return tag.value if tag else 1


def _check_inflated(data: bytes, page: Any) -> None:
    """Refuse strips and tiles of far more than the header says: without imagecodecs tifffile inflates them whole."""
    ratio = _MOST_RATIOS.get(int(page.compression), 0)
    stated = min(page.nbytes, math.prod(page.chunks) * page.dtype.itemsize) if page.dtype else 0
    most = max(stated, _INFLATED_BYTES)
    for start, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if ratio * count > most:
            packed = data[start : start + count]
            packed = packed.translate(_REVERSED) if page.fillorder == 2 else packed
            if page.compression == _LZMA:
                with lzma.LZMAFile(io.BytesIO(packed)) as stream:
                    inflated = stream.read(most + 1)
            else:
                inflated = zlib.decompressobj().decompress(packed, most + 1)
            if len(inflated) > most:
                raise BadImage("more pixels in a strip or tile than the header says")


def _flatten_bands(pixels: np.ndarray, page: Any) -> np.ndarray:
    """Bands [S, H, W] of any number type to [C, H, W], uint8 or float32; alpha only with gray or RGB."""
    if (kind := pixels.dtype.kind) not in "uif":
        raise BadImage(f"TIFF with {pixels.dtype} pixels is not supported")
    white = {"u": 2**page.bitspersample - 1, "i": 2 ** (page.bitspersample - 1) - 1, "f": 1}[kind]
    eight_bit = pixels.dtype == np.uint8
    extra = tuple(int(kind) for kind in page.extrasamples)
    photometric = int(page.photometric)
    if photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _CMYK):
        raise BadImage(f"{8 * pixels.itemsize}-bit TIFF with photometric {photometric} is not supported")
    if photometric == _WHITE_IS_ZERO and kind == "u":
        pixels = pixels.dtype.type(white) - pixels
    if photometric == _CMYK and len(pixels) == 4:
        ink = pixels.astype(np.float32) / np.float32(white)
        pixels = np.float32(white) * (1 - ink[:3]) * (1 - ink[3:])
    elif len(pixels) in (2, 4) and extra[-1:] in ((_ASSOCIATED_ALPHA,), (_UNASSOCIATED_ALPHA,)):
        pixels = flatten_alpha(pixels[:-1], pixels[-1:], white, extra[-1] == _ASSOCIATED_ALPHA)
    return np.rint(pixels).astype(np.uint8) if eight_bit else pixels.astype(np.float32)
