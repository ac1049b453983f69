"""Mean and standard deviation of the images, with which network inputs are normalised."""

import numpy as np

from mocokit.data.store import ImageSet

STATISTICS_IMAGES = 4096
STD_FLOOR = 1 / 255  # of blank images: one gray level


def channel_statistics(images: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels scaled to 0..1, over some evenly spaced images."""
    rows = np.arange(len(images))[:: -(-len(images) // STATISTICS_IMAGES)]
    count, total, squares = 0, np.zeros(images.channels), np.zeros(images.channels)
    for row in rows:
        pixels = images.image(row) / 255
        count += pixels[0].size
        total += pixels.sum(axis=(1, 2))
        squares += np.square(pixels).sum(axis=(1, 2))
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, STD_FLOOR**2))
    return tuple(mean.tolist()), tuple(std.tolist())
