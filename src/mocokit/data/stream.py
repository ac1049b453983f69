"""Images of a source decoded on the fly, in order and in bounded memory, for what looks at each image once.

Gives the pixels that the store holds and `Encoder.embed` makes; nothing is written to disk.
"""

from collections.abc import Generator, Iterable
from contextlib import closing

import numpy as np

from mocokit.data.decode import BadImage
from mocokit.data.pixels import convert, stored_side
from mocokit.data.workers import Decoded, Encoded, decode_all


def stream(
    images: Iterable[Encoded],
    *,
    image_size: int,
    channels: int,
    intensity_range: tuple[float, float] | None,
    workers: int = 0,
) -> Generator[Decoded, None, None]:
    """Decode and convert images in order.

    Args:
        images: as `mocokit.data.sources.read_all` gives them.
        image_size: the side that the model takes in; images are shrunk to twice that side at most.
        channels: gray is converted to RGB (3) or the reverse (1).
        intensity_range: what 0 and 255 stand for in images of more than 8 bits; None scales each by its own range.
        workers: decoding processes, 0 for none.

    Yields:
        For each image uint8 [channels, H, W], or the BadImage that says why it can't be used.
    """
    with closing(decode_all(images, stored_side(image_size), workers)) as decoded:
        for pixels in decoded:
            yield pixels if isinstance(pixels, BadImage) else _converted(pixels, channels, intensity_range)


def _converted(pixels: np.ndarray, channels: int, intensity_range: tuple[float, float] | None) -> Decoded:
    if len(pixels) != channels and {len(pixels), channels} != {1, 3}:
        return BadImage(f"{len(pixels)} channels where {channels} are needed")
    if pixels.dtype != np.uint8 and intensity_range is None:
        intensity_range = (float(pixels.min()), float(pixels.max()))
    return convert(pixels, channels, intensity_range)
