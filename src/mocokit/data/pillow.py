"""Whatever Pillow opens, as an array of gray or RGB; and what all decoders of images share."""

import io
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError

from mocokit.data.nodata import fill_nodata

MAX_PIXELS = 100_000_000
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "AVIF", "JPEG2000", "TGA")
ORIENTATION = 274  # the tag

_STRIP_PIXELS = 2**22
_EXIF_BYTES = 2**16
_limit = ContextVar("_limit", default=MAX_PIXELS)  # while an image is decoded: each thread has its own
_lock, _threads, _before = threading.Lock(), 0, ExitStack()  # of threads that decode: the number; what they put back
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_OPTIONAL_ALPHA = ("BMP", "DIB", "TGA")  # whose fourth byte is often unused: all zero means opaque, as in viewers
_HUNGRY = ("WEBP", "JPEG2000")  # whose decoders hold 16 to 24 bytes a pixel
_NODATA = "with pixels without data, which get the least value of their image"

try:
    import pillow_heif

    pillow_heif.register_heif_opener()
    FORMATS += ("HEIF",)
except ImportError:  # an extra
    pillow_heif = None

Note = Callable[[str], None]  # told what was decided about an image: the end of "3 images ..."


class BadImage(Exception):
    """The image cannot be used; the message is the reason, short and on one line."""

    def __init__(self, reason: str) -> None:
        super().__init__(" ".join(reason.split())[:200])


def tell_nobody(_: str) -> None: ...


def shrink(pixels: np.ndarray, max_side: int | None) -> np.ndarray:
    """Shrink [C, H, W] (uint8 or float32) so that its longest side is at most ``max_side``.

    The filter is an antialiased triangle: unlike bicubic it never overshoots the range of a deep image.
    """
    height, width = pixels.shape[1:]
    return _resize(pixels, shrunk_size(width, height, max_side))


def shrunk_size(width: int, height: int, max_side: int | None) -> tuple[int, int]:
    """Width and height that `shrink` gives."""
    scale = min(1.0, (max_side or math.inf) / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if pixels.shape[:0:-1] == size:
        return pixels
    return np.stack([np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR)) for plane in pixels])


@contextmanager
def translated_errors(max_pixels: int = MAX_PIXELS) -> Iterator[None]:
    """Decoders of untrusted bytes raise anything (struct.error, KeyError, MemoryError): all are BadImage.

    Inside, images of more than ``max_pixels``, or four times as many bytes, are refused by their header.
    """
    global _threads
    token = _limit.set(max_pixels)
    with _lock:  # these settings are the whole process's: the first thread inside makes them, the last puts them back
        if _threads == 0:
            _before.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            _before.callback(setattr, ImageFile, "LOAD_TRUNCATED_IMAGES", ImageFile.LOAD_TRUNCATED_IMAGES)
            _before.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
            ImageFile.LOAD_TRUNCATED_IMAGES = False  # a program around us may have switched it on
            Image.MAX_IMAGE_PIXELS = max_pixels
        _threads += 1
        Image.MAX_IMAGE_PIXELS = max(max_pixels, Image.MAX_IMAGE_PIXELS or 0)  # stops none; `check_size` has each limit
    try:
        yield
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage("not an image in a known format") from None
    except Image.DecompressionBombError:
        raise too_large(max_pixels) from None
    except Exception as error:
        raise BadImage(str(error) or type(error).__name__) from error
    finally:
        with _lock:
            _threads -= 1
            if _threads == 0:
                _before.close()
        _limit.reset(token)


def _renew() -> None:
    """In a forked process, which has none of the threads that decode and maybe a lock that one of them held."""
    global _lock, _threads
    _lock, _threads = threading.Lock(), 0
    _before.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def too_large(most: float, what: str = "") -> BadImage:
    return BadImage(f"more than {most / 1e6:g} megapixels{what}; --max-pixels allows more")


def is_heif(data: bytes) -> bool:
    """Whether these bytes begin a HEIC or HEIF file."""
    return data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS


SIGNATURE_BYTES = 16


def looks_like_an_image(start: bytes) -> bool:
    """Whether the first `SIGNATURE_BYTES` of a file are those of an image format that has a signature."""
    signatures = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"\xffO\xffQ")
    riff = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    bmp = start[:2] == b"BM" and start[6:10] == b"\0\0\0\0"
    avif = start[4:12] in (b"ftypavif", b"ftypavis")
    return start.startswith(signatures) or riff or bmp or avif or is_heif(start)


def open_image(data: bytes | BinaryIO) -> ImageFile.ImageFile:
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        file.seek(0)
        if pillow_heif is None and is_heif(file.read(SIGNATURE_BYTES)):
            raise BadImage("a HEIC image, which needs pillow-heif: pip install 'mocokit[heic]'") from None
        raise
    check_size(*image.size, 8 if image.format in _HUNGRY else 1)
    if image.format == "PNG" and image.mode == "L" and "transparency" in image.info:
        image.info["transparency"] *= {"L;2": 85, "L;4": 17}.get(str(image.tile[0].args), 1)  # as the pixels will be
    return image


def check_size(width: int, height: int, nbytes: int = 1) -> None:
    """Refuse images of more pixels than are allowed, and fewer of more than four bytes a pixel; and those of none."""
    share = max(1, nbytes / 4)
    if width * height * share > (limit := _limit.get()):
        raise too_large(limit / share, f" of {nbytes} bytes" * (share > 1))
    if width * height * nbytes == 0:
        raise BadImage("no pixels")


def decode_pillow(image: Image.Image, max_side: int | None) -> np.ndarray:
    """As `decode`, of an image that Pillow has opened."""
    size = shrunk_size(*image.size, max_side)
    if size != image.size:
        # A JPEG decoder may skip detail, but only down to twice the final size: the rest is our filter's.
        image.draft(None, (2 * size[0], 2 * size[1]))
    image.load()
    orientation = orientation_of(image)
    if image.mode == "RGBA" and image.format in _OPTIONAL_ALPHA and image.getchannel("A").getextrema() == (0, 0):
        image = image.convert("RGB")
    if image.mode.startswith("I") and image.has_transparency_data:  # of a PNG file: a gray that is white
        deep = np.array(image)
        deep[deep == image.info["transparency"]] = 65535
        image = Image.fromarray(deep)
    if size != image.size and image.mode.startswith("I;16"):  # as an array a large one would be there four times
        image = image.convert("I").convert("F").resize(size, Image.Resampling.BILINEAR)
    return oriented(_flatten(image, size), orientation)


def _flatten(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Any Pillow mode to gray or RGB of a size, [C, H, W] uint8 or float32."""
    mode = image.mode
    if mode.startswith("I;16") or mode in ("I", "F"):
        return _resize(np.asarray(image).astype(np.float32)[None], size)
    if mode == "LAB":
        image = _lab_to_rgb(image)
    elif mode in ("LA", "La") or (mode in ("1", "L") and image.has_transparency_data):
        gray, alpha = image.convert("LA").split()
        image = Image.composite(gray, Image.new("L", image.size, 255), alpha)
    elif mode in ("PA", "RGBA", "RGBa") or image.has_transparency_data:
        image = _on_white(image)
    if image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    if size != image.size:  # before it is an array, which of a large image would be there twice
        image = image.resize(size, Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return pixels[:1] if mode in ("P", "PA") and (pixels == pixels[0]).all() else pixels


def _on_white(image: Image.Image) -> Image.Image:
    """An image with alpha as RGB, strip by strip: of a large one, copies would fill the memory."""
    flat = Image.new("RGB", image.size)
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        white = Image.new("RGBA", strip.size, "white")
        white.alpha_composite(strip)
        flat.paste(white.convert("RGB"), (0, top))
    return flat


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
    assert converted is not None  # only with inPlace=True
    return converted


def orientation_of(image: Image.Image, in_header: bool = False) -> int:
    """The EXIF orientation; ``in_header``: without decoding the pixels for it, which those of PNG files may follow."""
    try:
        stated = {"exif", "Raw profile type exif"} & image.info.keys()
        if in_header and isinstance(image, ImageFile.ImageFile) and image.format == "PNG" and not stated:
            image.info["exif"] = _exif_behind(image)
        exif = Image.Image.getexif(image) if in_header else image.getexif()
        return int(exif.get(ORIENTATION, 1))
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1


def _exif_behind(image: ImageFile.ImageFile) -> bytes:
    """The EXIF block of a PNG file, of which only what is before the pixels has been read; empty if there is none."""
    assert image.fp is not None
    image.fp.seek(image.tile[0].offset - 8)  # the first chunk of pixels: its length and its kind
    while (head := image.fp.read(8))[4:] not in (b"eXIf", b"IEND", b"fcTL", b""):  # fcTL: another picture
        image.fp.seek(int.from_bytes(head[:4]) + 4, os.SEEK_CUR)
    return b"Exif\0\0" + image.fp.read(_EXIF_BYTES) if head[4:] == b"eXIf" else b""


def oriented(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Bring [C, H, W] stored under an EXIF orientation (1 to 8) upright; others count as 1."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(1, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[:, ::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, :, ::-1]
    return pixels


def flatten_alpha(colour: np.ndarray, alpha: np.ndarray, white: float, premultiplied: bool = False) -> np.ndarray:
    """Lay deep colour [C, H, W] with alpha [1, H, W], both in 0..white, on white; float32."""
    opacity = alpha.astype(np.float32) / np.float32(white)
    colour = colour.astype(np.float32)
    return (colour if premultiplied else colour * opacity) + np.float32(white) * (1 - opacity)


def filled(pixels: np.ndarray, stated: float | None = None, note: Note = tell_nobody) -> np.ndarray:
    """Deep pixels with those filled that are without data; BadImage if there are no others, or infinite ones."""
    pixels, missing = fill_nodata(pixels, stated)
    if missing == pixels.size:
        raise BadImage("only pixels without data")
    if not np.isfinite(pixels).all():
        raise BadImage("pixels that are infinite or not a number")
    if missing:
        note(_NODATA)
    return pixels
