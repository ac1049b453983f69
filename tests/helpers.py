"""Tiny images and data sets for the tests."""

import io
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def encode(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """An image file from a Pillow image, or from uint8 [H, W] or [H, W, 3]."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(seed: int, height: int = 8, width: int = 8, channels: int = 3) -> np.ndarray:
    """Random uint8 [height, width, channels], without the last axis for one channel."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG file that states its size and ends where its pixels should start."""
    return _png_start(width, height, depth, colour) + struct.pack(">I", 1000) + b"IDAT"


def _png_start(width: int, height: int, depth: int, colour: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", header)


def png16(pixels: np.ndarray) -> bytes:
    """A 16-bit PNG from uint16 [H, W, 1 to 4]: gray, gray and alpha, RGB or RGBA."""
    height, width, channels = pixels.shape
    samples = pixels.astype(">u2").view(np.uint8).reshape(height, width, 2 * channels)
    samples[:, 1:] -= samples[:, :-1].copy()  # each row with the filter "Sub", as real files have
    rows = b"".join(b"\1" + row.tobytes() for row in samples)
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    return _png_start(width, height, 16, colour) + _png_chunk(b"IDAT", zlib.compress(rows)) + _png_chunk(b"IEND", b"")


def png_of_transparent_gray(bits: int) -> bytes:
    """Four rows of 16 bits each, of 1, 2, 4 or 16 bits a pixel; 1 is transparent."""
    rows = b"".join(b"\0" + row for row in (b"\x00\x01", b"\x1b\x1b", b"\x00\x02", b"\x55\x10"))
    chunks = _png_chunk(b"tRNS", b"\0\1") + _png_chunk(b"IDAT", zlib.compress(rows)) + _png_chunk(b"IEND", b"")
    return _png_start(16 // bits, 4, bits, 0) + chunks


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def write_images(folder: Path, names: list[str], height: int = 8, width: int = 8, channels: int = 3) -> Path:
    """Random PNG files under the given names, the same for the same names."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(noise(zlib.crc32(name.encode()), height, width, channels)))
    return folder


def class_folders(folder: Path, classes: int = 2, train: int = 6, test: int = 2, **size: int) -> Path:
    """A data set with train/ and test/ class folders, that many images in each class."""
    names = [
        f"{split}/class{value}/{number:03d}.png"
        for split, count in (("train", train), ("test", test))
        for value in range(classes)
        for number in range(count)
    ]
    return write_images(folder, names, **size)


def archive(folder: Path, path: Path) -> Path:
    """Pack a folder, without its own name, by the suffix of ``path``."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as packed:
            for file in files:
                packed.write(file, file.relative_to(folder))
        return path
    compression = {".tar": "", ".gz": "gz", ".tgz": "gz", ".xz": "xz", ".txz": "xz", ".bz2": "bz2"}[path.suffix]
    with tarfile.open(path, f"w:{compression}") as packed:  # type: ignore[call-overload]
        for file in files:
            packed.add(file, file.relative_to(folder).as_posix())
    return path
