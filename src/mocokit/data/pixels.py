"""Conversion of decoded images to the channels, the 8 bits and the size that are stored."""

from collections.abc import Sequence

import numpy as np

from mocokit.data.pillow import BadImage

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601-2


def convertible(channels: int, target: int) -> bool:
    """Whether images of ``channels`` can become images of ``target``: gray and colour become each other."""
    return channels == target or {channels, target} == {1, 3}


def stored_side(image_size: int) -> int:
    """The longest side that images are kept with: twice the model's, so that crops lose little."""
    return 2 * image_size


# What is told of images that `assumed_range` scales, and of those that another range leaves dull.
ASSUMED = "of more than 8 bits: 0 to 1, or else 0 to 65535, become 0 to 255"
FEW_LEVELS = 16
ENCODER_RANGE = "the range of the encoder or the call"
_ROUNDED = 1 + 1e-5  # shrinking rounds
DULL = f"with fewer than {FEW_LEVELS} of the 256 gray levels of their range"


def scaled(low: float, high: float, origin: str) -> str:
    """What is told of images that a range, which is from ``origin``, scales."""
    return f"of more than 8 bits: {low:g} to {high:g} become 0 to 255 ({origin}), others are clipped"


def in_unit(low: float, high: float) -> bool:
    """Whether pixels from ``low`` to ``high`` lie from 0 to 1."""
    return low >= 0 and high <= _ROUNDED


def assumed_range(low: float, high: float) -> tuple[float, float]:
    """What 0 and 255 stand for in an image of more than 8 bits with pixels from ``low`` to ``high``, for an encoder of
    8-bit images: 0 to 1, as in torchvision, or the full 16 bits, so that a picture means the same at any depth.

    Raises:
        BadImage: the pixels fit neither. If they end above 1 and below 256 they would be black as 16 bits, which no
            8-bit picture is that was widened to these: its gray levels are 256 or 257 apart.
    """
    if in_unit(low, high):
        return 0.0, 1.0
    if low >= 0 and 256 <= high <= 65535 * _ROUNDED:
        return 0.0, 65535.0
    raise BadImage(f"pixels from {low:g} to {high:g}, where 0 to 1 or all of 16 bits are expected; save them so")


def convert(pixels: np.ndarray, channels: int, intensity_range: tuple[float, float] | None) -> np.ndarray:
    """Decoded pixels [C, H, W] to uint8 [``channels``, H, W], gray and colour to each other; deep ones are scaled
    from ``intensity_range``, or as `assumed_range` says (which may raise BadImage) if that is None."""
    deep = pixels.dtype != np.uint8
    low, high = intensity_range or (assumed_range(float(pixels.min()), float(pixels.max())) if deep else (0.0, 255.0))
    if len(pixels) == 1 and channels == 3:
        pixels = np.repeat(pixels, 3, axis=0)
    elif len(pixels) == 3 and channels == 1:
        gray = np.tensordot(_LUMA, pixels.astype(np.float32), axes=1)[None]
        pixels = gray if deep else np.rint(gray).astype(np.uint8)
    if not deep:
        return pixels
    scale = 255 / (high - low) if high > low else 0.0
    # float64 before clipping: ``low`` rounded to float32 may be smaller, and negative numbers would wrap around.
    return np.rint((np.clip(pixels.astype(np.float64), low, high) - low) * scale).astype(np.uint8)


def pad(images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [C, H, W] of several sizes as one batch, zeros at the bottom and right.

    Returns:
        Pixels uint8 [B, C, H, W], where H and W are the largest, and true (height, width) int64 [B, 2].
    """
    sizes = np.array([image.shape[1:] for image in images], np.int64).reshape(-1, 2)
    channels = len(images[0]) if images else 0
    pixels = np.zeros((len(images), channels, *sizes.max(axis=0, initial=0)), np.uint8)
    for row, image in zip(pixels, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return pixels, sizes
