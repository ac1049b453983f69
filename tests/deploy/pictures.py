"""Files of every kind that people have, of one photograph."""

import functools
import struct

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from tests.helpers import encode, png16

ORIENTATION = 274


@functools.cache
def _china() -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg"))


def photograph(width: int, height: int) -> Image.Image:
    return _china().resize((width, height))


def with_alpha(width: int, height: int) -> Image.Image:
    """RGBA of which every opacity occurs."""
    image = photograph(width, height).convert("RGBA")
    image.putalpha(Image.fromarray(np.arange(width * height).reshape(height, width).astype(np.uint8)))
    return image


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def bmp32(image: Image.Image, alpha: int) -> bytes:
    """A bitmap of 32 bits whose header names a mask of opacity, which is ``alpha`` everywhere."""
    pixels = np.dstack([np.asarray(image.convert("RGB"))[::-1, :, ::-1], np.full(image.size[::-1], alpha, np.uint8)])
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII4I", 56, *image.size, 1, 32, 3, pixels.nbytes, 2835, 2835, 0, 0, *masks)
    return struct.pack("<2sIHHI", b"BM", 14 + 56 + pixels.nbytes, 0, 0, 14 + 56) + header + pixels.tobytes()


def sixteen_bits(width: int, height: int, channels: int = 1) -> np.ndarray:
    """uint16 [H, W, C] that use little of their range."""
    pixels = np.asarray(photograph(width, height).convert("L"), np.uint16)[:, :, None] * 11 + 300
    return pixels.repeat(channels, axis=2)


def pictures(side: int) -> dict[str, bytes]:
    """Of 8 bits; some are longer than ``side``, which others are shrunk to, some are not."""
    small, large, huge = (side - 8, side // 2 + 1), (2 * side + 5, side + 3), (9 * side + 1, 6 * side)
    files = {}
    for orientation in range(1, 9):
        for name, size in (("small", small), ("large", large)):
            files[f"{name} JPEG, EXIF {orientation}"] = encode(photograph(*size), "JPEG", exif=turned(orientation))
    files["PNG, EXIF 6"] = encode(photograph(*large), exif=turned(6))
    files["WebP, EXIF 8"] = encode(photograph(*large), "WEBP", exif=turned(8))
    for name, size in (("1x1", (1, 1)), ("1 wide", (1, 3 * side)), ("1 high", (3 * side, 1)), ("33x47", (33, 47))):
        files[f"PNG {name}"] = encode(photograph(*size))
        files[f"JPEG {name}"] = encode(photograph(*size), "JPEG")
    files["huge JPEG"] = encode(photograph(*huge), "JPEG")
    files["huge JPEG, EXIF 5"] = encode(photograph(*huge), "JPEG", exif=turned(5))
    for name, size in (("small", small), ("large", large)):
        image, alpha = photograph(*size), with_alpha(*size)
        files |= {
            f"{name} JPEG": encode(image, "JPEG"),
            f"{name} gray JPEG": encode(image.convert("L"), "JPEG"),
            f"{name} CMYK JPEG": encode(image.convert("CMYK"), "JPEG"),
            f"{name} RGBA PNG": encode(alpha),
            f"{name} gray PNG with alpha": encode(alpha.convert("LA")),
            f"{name} palette PNG": encode(image.convert("P")),
            f"{name} palette PNG with alpha": encode(image.quantize(256), transparency=bytes(range(256))),
            f"{name} PNG with a transparent colour": encode(image, transparency=image.getpixel((0, 0))),
            f"{name} gray PNG with a transparent level": encode(image.convert("L"), transparency=200),
            f"{name} black and white PNG": encode(image.convert("1")),
            f"{name} WebP with alpha": encode(alpha, "WEBP"),
            f"{name} GIF": encode(image, "GIF"),
            f"{name} GIF with a transparent colour": encode(image.quantize(32), "GIF", transparency=3),
            f"{name} animation": encode(image, "GIF", save_all=True, append_images=[Image.new("RGB", size)]),
            f"{name} MPO": encode(image, "MPO", save_all=True, append_images=[Image.new("RGB", size)]),
            f"{name} BMP": encode(image, "BMP"),
            f"{name} BMP with unused alpha": bmp32(image, 0),
            f"{name} BMP with alpha": bmp32(image, 99),
        }
    return files


def deep_pictures(side: int) -> dict[str, bytes]:
    """16-bit gray PNG files."""
    sizes = {"small": (side - 8, side // 2 + 1), "large": (2 * side + 5, side + 3), "1x1": (1, 1)}
    return {f"{name} 16-bit PNG": png16(sixteen_bits(*size)) for name, size in sizes.items()}


def other_pictures() -> dict[str, bytes]:
    """That the printed lines refuse, whatever the encoder, and mocokit reads."""
    image = photograph(30, 20)
    return {
        "TIFF": encode(image, "TIFF"),
        "16-bit TIFF": encode(Image.fromarray(sixteen_bits(30, 20)[:, :, 0]), "TIFF"),
        "JPEG 2000": encode(image, "JPEG2000"),
        "16-bit RGB PNG": png16(sixteen_bits(30, 20, 3)),
        "16-bit RGBA PNG": png16(sixteen_bits(30, 20, 4)),
        "16-bit gray PNG with alpha": png16(sixteen_bits(30, 20, 2)),
    }
